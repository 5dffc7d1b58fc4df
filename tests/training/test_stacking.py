"""Networks trained together are what each would be alone."""

from __future__ import annotations

import pytest
import torch

from shiftscope.training.loop import Epoch, Recipe, Step
from shiftscope.training.stacking import train_together
from small import CANVAS, blobs, fit, fresh


def together(seeds: tuple[int, ...], report=lambda _: None, **settings: object):
    models = [fresh(seed) for seed in seeds]
    recipe = Recipe(**{"learning_rate": 0.01, "max_epochs": 30, "patience": 1, **settings})
    data = (blobs(200, 0), blobs(60, 1))
    return models, train_together(models, data, recipe, place=CANVAS.place, seeds=seeds, report=report)


@pytest.mark.parametrize("settings", [{}, {"translate": 2}, {"optimiser": "sgd"}, {"batch_size": 7}], ids=str)
def test_each_network_is_trained_as_if_it_were_alone(settings: dict[str, object]) -> None:
    models, trainings = together((0, 3, 5), max_epochs=3, **settings)
    for seed, model, training in zip((0, 3, 5), models, trainings, strict=True):
        alone = fresh(seed)
        expected = fit(alone, seed=seed, max_epochs=3, **settings)
        assert (training.best_epoch, training.status) == (expected.best_epoch, expected.status)
        for one, other in zip(training.epochs, expected.epochs, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-3)
            assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-2)
        for name, weights in alone.state_dict().items():
            assert torch.allclose(model.state_dict()[name], weights, atol=2e-3), name


def test_one_that_is_over_stops_and_the_others_go_on() -> None:
    _, trainings = together((0, 1, 2, 3), patience=0)
    lengths = [len(training.epochs) for training in trainings]
    assert len(set(lengths)) > 1
    for seed, training in enumerate(trainings):
        alone = fit(fresh(seed), seed=seed, patience=0)
        assert training.status == alone.status == "reached"
        assert abs(len(training.epochs) - len(alone.epochs)) <= 3


def test_one_that_diverges_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [fresh(0), fresh(1)]
    with torch.no_grad():
        next(models[1].parameters()).fill_(float("nan"))
    recipe = Recipe(learning_rate=0.01, max_epochs=2)
    one, other = train_together(models, (blobs(200, 0), blobs(60, 1)), recipe, place=CANVAS.place, seeds=(0, 1))
    assert other.status == "diverged"
    assert one.status == "not reached"
    assert one.epochs[0].loss == pytest.approx(fit(fresh(0), max_epochs=2).epochs[0].loss, rel=1e-3)


def test_mixed_precision_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftscope.training.stacking.SECONDS_BETWEEN_REPORTS", 0.0)
    events: list[object] = []
    _, trainings = together((0, 1), report=events.append, precision="bf16", max_epochs=2)
    assert all(training.epochs[1].loss < training.epochs[0].loss for training in trainings)
    steps = [event for event in events if isinstance(event, Step)]
    assert (steps[0].done, steps[0].of) == (128, 400)
    assert sum(isinstance(event, Epoch) for event in events) == 4
