"""A fixed model and its control are trained alike, and a stopped pair resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.runtime.progress import Event, JobEvent, silent
from shiftscope.surgery import operate
from shiftscope.training import FineTuned, FineTuning
from shiftscope.training.loop import Epoch
from shiftscope.training.paired import PairedPlan, train_all


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()


def plan(**settings: Any) -> PairedPlan:
    chosen = FineTuning(max_epochs=3, translate=1, patience=9, **settings)
    about = {"model": "m", "model_sha256": "a", "fixes": "blur", "data": "noise", "data_sha256": "b"}
    return PairedPlan(**about, images=40, settings=chosen, seed=0)


def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(40) % 3


def trained(folder: Path | None, report: Any = silent, **settings: Any) -> dict[str, FineTuned]:
    models = {"without": model(), "with the fix": operate("blur", model(), filter_size=3).model}
    return train_all(models, *data(), plan(**settings), folder=folder, report=report)


def same(ours: dict[str, FineTuned], theirs: dict[str, FineTuned]) -> bool:
    pairs = ((ours[name].model.state_dict(), theirs[name].model.state_dict()) for name in theirs)
    return all(torch.equal(value, other[key]) for one, other in pairs for key, value in one.items())


@pytest.mark.parametrize("stopped", ["without", "with the fix"])
def test_stopped_pair_resumes_bit_for_bit(stopped: str, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, JobEvent) and event.label == stopped and isinstance(event.event, Epoch) and event.event.epoch == 2:
            raise KeyboardInterrupt

    whole = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "training", stop)
    done = {file.name for file in (tmp_path / "training").iterdir()}
    assert ("without.safetensors" in done) == (stopped == "with the fix")
    epochs = list[str]()

    def note(event: Event) -> None:
        if isinstance(event, JobEvent) and isinstance(event.event, Epoch):
            epochs.append(event.label)

    found = trained(tmp_path / "training", note)
    assert same(found, whole)
    assert found["with the fix"].training.epochs[-1].loss == whole["with the fix"].training.epochs[-1].loss
    assert epochs.count("without") == (3 if stopped == "without" else 0)


def test_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "training")
    with pytest.raises(InputError, match="holds another training"):
        trained(tmp_path / "training", consistency="kl")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        trained(tmp_path / "other")


def test_damaged_finished_training_is_trained_again(tmp_path: Path) -> None:
    whole = trained(tmp_path / "training")
    (tmp_path / "training" / "without.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="trained again"):
        assert same(trained(tmp_path / "training"), whole)
