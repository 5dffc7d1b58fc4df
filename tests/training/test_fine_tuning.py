"""Fine-tuning on real digits: it learns, keeps the best epoch, repeats and resumes bit for bit, refuses bad input."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.errors import InputError
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.progress import Event
from shiftscope.training import FineTuned, FineTuning, fine_tune, inconsistency
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.fine_tuning import layer_rates
from shiftscope.training.gains import compare_trained
from shiftscope.training.loop import Epoch

SIZE, SHIFT = 16, 2


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 120 digits, zeros and ones, on a canvas, and their labels."""
    data = load(DataSpec(image_size=10, canvas=SIZE, validation_images=100))
    picked = (data.train.labels < 2).nonzero().flatten()[:120]
    return data.canvas.place(data.train.images[picked]), data.train.labels[picked]


def network(**settings: Any) -> nn.Module:
    spec = NetworkSpec(channels=(6, 8), factor=4, input_size=SIZE, **settings)
    return build(spec, generator=torch.Generator().manual_seed(0))


def tuned(
    model: nn.Module | None = None, *, report: Any = lambda _: None, checkpoint: Checkpoint | None = None, **settings: Any
) -> FineTuned:
    chosen = FineTuning(**{"max_epochs": 2, "translate": SHIFT, "learning_rate": 0.01, "batch_size": 16, **settings})
    return fine_tune(model or network(), *digits(), chosen, report=report, checkpoint=checkpoint)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"consistency": "kl", "shifts": 2},
        {"consistency": "cosine", "consistency_weight": 0.5},
        {"every_shift": True},
        {"layer_decay": 0.5, "optimiser": "sgd", "learning_rate": 0.05},
    ],
    ids=str,
)
def test_every_objective_lowers_the_loss_and_leaves_the_model_alone(settings: dict[str, Any]) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tuned(model, **{"max_epochs": 2, **settings})
    losses = [epoch.loss for epoch in found.training.epochs]
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not same(model, found.model)


def test_same_seed_repeats_bit_for_bit_and_an_interrupted_training_resumes_so(tmp_path: Path) -> None:
    whole = tuned(max_epochs=3, consistency="kl")
    assert same(whole.model, tuned(max_epochs=3, consistency="kl").model)

    def interrupt(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 2:
            raise KeyboardInterrupt

    file = tmp_path / "training.safetensors"
    stopped = tuned(max_epochs=3, consistency="kl", report=interrupt, checkpoint=Checkpoint(file, seconds=0.0))
    assert stopped.stopped and len(stopped.training.epochs) == 2
    resumed = tuned(max_epochs=3, consistency="kl", checkpoint=Checkpoint(file, seconds=0.0))
    assert resumed.training.resumed_after == 1
    assert same(whole.model, resumed.model)


def test_checkpoint_of_another_seed_or_other_images_or_weights_is_ignored(tmp_path: Path) -> None:
    images, labels = digits()
    settings, file = FineTuning(max_epochs=2, translate=1), tmp_path / "training.safetensors"

    def resumed(model: nn.Module, data: Tensor, seed: int) -> int:
        checkpoint = Checkpoint(file, seconds=0.0)
        return fine_tune(model, data, labels, settings, seed=seed, checkpoint=checkpoint).training.resumed_after

    other = network()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert resumed(network(), images, 0) == 0
    for model, data, seed in ((network(), images, 1), (network(), 1 - images, 0), (other, images, 0)):
        before = file.read_bytes()
        with pytest.warns(UserWarning, match="its seed, images or first weights are others"):
            assert resumed(model, data, seed) == 0
        file.write_bytes(before)
    assert resumed(network(), images, 0) == 1


def test_interrupted_training_keeps_its_best_epoch() -> None:
    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    one = tuned(max_epochs=1)
    stopped = tuned(max_epochs=5, report=interrupt)
    assert one.training.best_epoch == 1
    assert stopped.stopped and same(one.model, stopped.model)


def test_untrained_weights_are_kept_where_training_only_harms() -> None:
    good = tuned(max_epochs=3).model
    found = tuned(good, max_epochs=2, learning_rate=1.0, optimiser="sgd")
    assert found.training.best_epoch == 0 and same(good, found.model)


def test_training_stops_when_validation_does_not_improve() -> None:
    found = tuned(learning_rate=1e-9, max_epochs=50, patience=1)
    assert len(found.training.epochs) - found.training.best_epoch == 1


def test_batch_norms_keep_their_statistics_with_every_shift_only() -> None:
    head = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 10)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *head)
    assert torch.equal(tuned(model, every_shift=True, max_epochs=1).model[1].running_mean, torch.zeros(4))
    assert not torch.equal(tuned(model, max_epochs=1).model[1].running_mean, torch.zeros(4))


def test_larger_images_bring_in_real_content() -> None:
    images, labels = digits()
    model = build(NetworkSpec(channels=(4, 6), factor=2, input_size=12), generator=torch.Generator().manual_seed(0))
    found = fine_tune(model, images, labels, FineTuning(max_epochs=1, translate=2), size=(12, 12))
    assert len(found.training.epochs) == 1
    with pytest.raises(InputError, match="needs images of the model's input size"):
        fine_tune(model, images, labels, FineTuning(every_shift=True, translate=2), size=(12, 12))


def test_layers_far_from_the_output_learn_more_slowly() -> None:
    model = network()
    rates = {id(parameter): rate for parameter, rate in layer_rates(model, 0.5)}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert sorted(set(found.values())) == [0.25, 0.5, 1.0]
    assert found["head.2.weight"] == found["head.2.bias"] == 1.0


def test_inconsistency_of_equal_outputs_is_zero_and_kl_is_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(3, 5, generator=generator), torch.randn(3, 2, 5, generator=generator)
    for kind in ("kl", "cosine"):
        assert inconsistency(one, one[:, None], kind).item() == pytest.approx(0, abs=1e-6)
    p, q = one.softmax(-1)[:, None], other.softmax(-1)
    assert inconsistency(one, other, "kl").item() == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (digits()[0][:20], None, "must have labels"),
        (digits()[0][:20], torch.zeros(20, dtype=torch.long), "two classes or more"),
        (digits()[0][:20], torch.arange(20), "0 to 9, the model's classes, got 0 to 19"),
        (digits()[0][:3], torch.arange(3), "5 images or more, got 3"),
        (digits()[0][:20], torch.rand(20), "whole numbers"),
        (digits()[0][:20], torch.arange(10), "one class for each of 20 images, got 10"),
    ],
)
def test_unusable_data_is_refused(images: Tensor, labels: Tensor | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fine_tune(network(), images, labels, FineTuning(max_epochs=1))


def test_unusable_models_and_settings_are_refused() -> None:
    for name, value in (("max_epochs", 0), ("patience", 0), ("target_train_accuracy", 0.5)):
        with pytest.raises(ValidationError, match=name):
            FineTuning.model_validate({name: value})
    with pytest.raises(InputError, match="no weights that can be trained"):
        tuned(network().requires_grad_(requires_grad=False))
    with pytest.raises(InputError, match="not exact here"):
        tuned(network(padding="same"), every_shift=True)
    with pytest.raises(InputError, match="needs `precision` fp32"):
        tuned(every_shift=True, precision="bf16")


def test_gains_are_paired_and_zero_for_equal_models() -> None:
    images, labels = digits()
    one, other = network().eval(), tuned(max_epochs=1).model
    table = compare_trained({"one": one, "the same": one, "other": other}, images[:30], labels[:30], max_shift=1)
    rows = {row["model"]: row for row in table.rows}
    assert rows["one"]["mcs"] == rows["the same"]["mcs"]
    assert rows["gain over one"]["mcs"].value == pytest.approx(rows["other"]["mcs"].value - rows["one"]["mcs"].value, abs=1e-5)
    equal = compare_trained({"one": one, "the same": one}, images[:30], labels[:30], max_shift=1).rows[-1]
    assert (equal["mcs"].low, equal["mcs"].high) == (0, 0)


def test_last_batch_of_one_image_joins_the_one_before() -> None:
    """81 images leave 65 to train on, and a norm takes no batch of one."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    found = fine_tune(model, torch.rand(81, 1, 8, 8), torch.arange(81) % 2, FineTuning(max_epochs=1, translate=1))
    assert len(found.training.epochs) == 1


def test_training_of_tied_layers_is_saved(tmp_path: Path) -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    saved = Checkpoint(tmp_path / "checkpoint.safetensors", seconds=0)
    found = fine_tune(
        model, torch.rand(20, 1, 8, 8), torch.arange(20) % 2, FineTuning(max_epochs=2, translate=1), checkpoint=saved
    )
    assert len(found.training.epochs) == 2
