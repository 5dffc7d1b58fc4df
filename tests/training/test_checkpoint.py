"""An interrupted training resumes from its last checkpoint, and ends as if it had not been interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shiftscope.models.family import NetworkSpec, build
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Epoch, Training, train
from shiftscope.training.recipe import Recipe
from small import CANVAS, SPEC, blobs

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

LPS = NetworkSpec(channels=(4, 8), factor=4, input_size=12, classes=4, padding="circular", sampling="lps")


class TrainingEndedError(Exception):
    """Whatever ends a process."""


def fit(
    checkpoint: Checkpoint | None, *, spec: NetworkSpec = SPEC, end_after: int = 0, **settings: object
) -> tuple[Training, nn.Module]:
    model = build(spec, generator=torch.Generator().manual_seed(0))
    recipe = Recipe.model_validate({"learning_rate": 0.003, "max_epochs": 7, "patience": 9, **settings})

    def report(event: object) -> None:
        if isinstance(event, Epoch) and event.epoch == end_after:
            raise TrainingEndedError

    data = blobs(150, 0), blobs(60, 1)
    return train(model, data, recipe, place=CANVAS.place, seed=3, report=report, checkpoint=checkpoint), model


def same(one: nn.Module, other: nn.Module) -> bool:
    ours: dict[str, Tensor] = one.state_dict()
    return all(torch.equal(ours[name], each) for name, each in other.state_dict().items())


def history(training: Training) -> list[tuple[object, ...]]:
    """Return every epoch without its times."""
    return [
        (each.epoch, each.loss, each.train_accuracy, each.validation_accuracy, each.validation_loss) for each in training.epochs
    ]


@pytest.mark.parametrize("fast", [False, True], ids=["PyTorch's pools", "compiled pools"])
@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SPEC, {}),
        (SPEC, {"optimiser": "sgd", "learning_rate": 0.05, "learning_rate_decay": 0.9}),
        (SPEC, {"precision": "bf16", "translate": 2}),
        (LPS, {}),
    ],
    ids=["adam", "sgd, decaying", "bf16, shifted", "random layers"],
)
def test_interrupted_training_ends_in_the_same_weights(
    tmp_path: Path, spec: NetworkSpec, settings: dict[str, object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftscope.training.loop.IMAGES_WORTH_COMPILING", 0 if fast else 10**9)
    uninterrupted, expected = fit(None, spec=spec, **settings)
    path = tmp_path / "checkpoint.safetensors"
    for end_after in (3, 6):  # the interrupted epoch is lost: the next session repeats it
        with pytest.raises(TrainingEndedError):
            fit(Checkpoint(path, seconds=0.0), spec=spec, end_after=end_after, **settings)
    resumed, model = fit(Checkpoint(path, seconds=0.0), spec=spec, **settings)
    assert resumed.resumed_after == 5
    assert uninterrupted.resumed_after == 0
    assert history(resumed) == history(uninterrupted)
    assert (resumed.best_epoch, resumed.sentence) == (uninterrupted.best_epoch, uninterrupted.sentence)
    assert same(model, expected)


def test_global_generator_has_no_influence_and_keeps_its_state() -> None:
    torch.manual_seed(1)
    _, first = fit(None, spec=LPS)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _, second = fit(None, spec=LPS)
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_short_training_is_not_saved(tmp_path: Path) -> None:
    fit(Checkpoint(tmp_path / "checkpoint.safetensors", seconds=1000.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "of another recipe", "of another network", "of nothing"])
def test_unusable_file_is_reported_and_training_starts_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    other = {"of another recipe": {"learning_rate_decay": 0.5}, "of another network": {"spec": LPS}}.get(damage, {})
    with pytest.raises(TrainingEndedError):
        fit(Checkpoint(path, seconds=0.0), end_after=3, **other)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "of nothing":
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint.safetensors cannot be used \(.*\); training starts from the beginning"):
        training, model = fit(Checkpoint(path, seconds=0.0))
    assert training.resumed_after == 0
    assert same(model, fit(None)[1])


def test_provenance_of_each_session_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for machine in ("one", "two"):
        with pytest.raises(TrainingEndedError):
            fit(Checkpoint(path, made_by={"machine": machine}, seconds=0.0), end_after={"one": 3, "two": 6}[machine])
    last = Checkpoint(path, seconds=0.0)
    fit(last)
    assert last.sessions == [{"machine": "one"}, {"machine": "two"}]


def test_checkpoint_of_another_device_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(TrainingEndedError):
        fit(Checkpoint(path, seconds=0.0), end_after=3)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["standing"]) | {"device": "cuda"}
    save_file(load_file(path), path, metadata={"standing": json.dumps(metadata)})
    with pytest.warns(UserWarning, match=r"it was trained on cuda, and this is cpu\); training starts from the beginning"):
        fit(Checkpoint(path, seconds=0.0))
