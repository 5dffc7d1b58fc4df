"""A fixed model and its control are trained alike, and a stopped pair resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.runtime.executors import Processes
from shiftscope.runtime.progress import Event, JobEvent, silent
from shiftscope.surgery import operate
from shiftscope.training import FineTuned, FineTuning
from shiftscope.training.loop import Epoch
from shiftscope.training.paired import Pair, PairedPlan, train_all
from small import one_thread
from studies.test_runner import Elsewhere


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


def pair(**settings: Any) -> Pair:
    models = {"without": model(), "with the fix": operate("blur", model(), filter_size=3).model}
    return Pair(models, *data(), plan(**settings))


def other_pair() -> Pair:
    """Make what another machine has, whose images differ."""
    found = pair()
    return replace(found, plan=found.plan.model_copy(update={"data_sha256": "c"}))


def trained(folder: Path | None, report: Any = silent, seeds: int = 1, **settings: Any) -> dict[str, tuple[FineTuned, ...]]:
    return train_all(partial(pair, **settings), seeds=seeds, folder=folder, report=report)


def same(ours: dict[str, tuple[FineTuned, ...]], theirs: dict[str, tuple[FineTuned, ...]]) -> bool:
    pairs = [(one, other) for name in theirs for one, other in zip(ours[name], theirs[name], strict=True)]
    states = [(one.model.state_dict(), other.model.state_dict()) for one, other in pairs]
    weights = all(torch.equal(value, other[key]) for one, other in states for key, value in one.items())
    return weights and all(courses(one) == courses(other) for one, other in pairs)


def courses(tuned: FineTuned) -> list[tuple[float, ...]]:
    """Return the numbers of each epoch, apart from times."""
    return [(each.loss, each.running_accuracy, each.validation_accuracy, each.validation_loss) for each in tuned.training.epochs]


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
    assert courses(found["with the fix"][0]) == courses(whole["with the fix"][0])
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


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[FineTuned, ...]]:
    """Return the trainings of one process, with the one thread that workers have."""
    with one_thread():
        return trained(None, seeds=2)


@pytest.mark.slow  # two processes that import PyTorch
def test_processes_train_as_one_process_does(alone: dict[str, tuple[FineTuned, ...]], tmp_path: Path) -> None:
    labels = set[str]()

    def note(event: Event) -> None:
        if isinstance(event, JobEvent) and isinstance(event.event, Epoch):
            labels.add(event.label)

    folder = tmp_path / "training"
    found = train_all(pair, seeds=2, folder=folder, executor=Processes(2), report=note)
    assert same(found, alone)
    assert labels == {f"{name}, seed {seed}" for name in ("without", "with the fix") for seed in (0, 1)}
    names = {"without", "without,seed=1", "with-the-fix", "with-the-fix,seed=1"}
    assert {file.name for file in folder.iterdir()} == {"plan.json", *(f"{name}.safetensors" for name in names)}
    (folder / "without,seed=1.safetensors").unlink()
    assert same(train_all(pair, seeds=2, folder=folder, executor=Elsewhere()), alone)  # what is missing alone is trained again


def test_worker_with_other_images_refuses_to_train() -> None:
    with pytest.raises(InputError, match="differ from those that it was planned with"):
        train_all(other_pair, pair=pair(), executor=Elsewhere())


def test_seeds_differ_and_the_first_is_that_of_one_training(alone: dict[str, tuple[FineTuned, ...]]) -> None:
    with one_thread():
        once = trained(None)
    assert same(once, {name: each[:1] for name, each in alone.items()})
    assert not same({name: each[1:] for name, each in alone.items()}, once)


def test_every_shift_is_refused_before_anything_is_trained() -> None:
    torch.manual_seed(0)
    padded = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 3)).eval()
    mixed = replace(pair(every_shift=True), models={"without": model(), "padded": padded})
    with pytest.raises(InputError, match="all shifts at once are not exact here"):
        train_all(lambda: mixed, report=lambda event: pytest.fail(f"began: {event}"))


def test_no_seed_is_refused() -> None:
    with pytest.raises(InputError, match="`seeds` must be 1 or more, got 0"):
        trained(None, seeds=0)
