"""Training reaches its target, keeps the best epoch, is repeatable bit for bit, and says how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from shiftscope.training.loop import Epoch, Step, accuracy_if_reached, evaluate, train
from shiftscope.training.pools import ReluMaxPool2d, fast_max_pools
from shiftscope.training.recipe import Recipe
from small import CANVAS, blobs, fit, fresh


def test_learnable_task_reaches_every_training_image() -> None:
    model = fresh()
    training = fit(model)
    assert training.status == "reached"
    assert evaluate(model, blobs(200, 0), place=CANVAS.place)[0] == 1.0
    kept = training.epochs[training.best_epoch - 1]
    assert kept.train_accuracy == 1.0
    assert "Reached 100 % train accuracy" in training.sentence


def test_best_epoch_is_the_best_on_validation_of_those_at_the_target() -> None:
    model = fresh()
    training = fit(model, patience=4)
    reached = [epoch for epoch in training.epochs if epoch.train_accuracy == 1.0]
    best = max(reached, key=validated)
    assert training.best_epoch == best.epoch
    assert len(training.epochs) == min(training.best_epoch + 4, 30)
    accuracy, loss = evaluate(model, blobs(60, 1), place=CANVAS.place)
    assert (accuracy, loss) == pytest.approx((best.validation_accuracy, best.validation_loss))


def validated(epoch: Epoch) -> tuple[float, float]:
    """What epochs that reached the target are ranked by."""
    return epoch.validation_accuracy, -epoch.validation_loss


def test_training_images_are_evaluated_only_for_an_epoch_that_can_be_the_best() -> None:
    validation = blobs(60, 1)
    validation.labels[:6] = (validation.labels[:6] + 1) % 4  # the surer the network is, the higher the loss
    training = train(fresh(), (blobs(200, 0), validation), Recipe(learning_rate=0.003, patience=6), place=CANVAS.place, seed=3)
    reached = [epoch for epoch in training.epochs if epoch.train_accuracy is not None]
    others = training.epochs[reached[0].epoch :][-6:]
    assert [epoch.train_accuracy for epoch in others] == [None] * 6
    assert {epoch.running_accuracy for epoch in others} == {1.0}
    assert reached[-1].epoch == training.best_epoch == training.epochs[-7].epoch
    assert max(map(validated, others)) <= validated(reached[-1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("translate", [0, 2])
def test_same_seed_gives_the_same_weights_bit_for_bit(precision: str, translate: int) -> None:
    first, second, other = fresh(), fresh(), fresh()
    settings = {"precision": precision, "translate": translate, "max_epochs": 3}
    fit(first, **settings)
    torch.rand(5)  # the global stream must not matter
    fit(second, **settings)
    fit(other, seed=1, **settings)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.state_dict()["head.2.weight"], other.state_dict()["head.2.weight"])


def test_compiled_pools_are_used_where_faster_and_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast, swapped = fresh(), fresh(), []

    @contextmanager
    def noticed(model: nn.Module) -> Iterator[None]:
        swapped.append(model)
        with fast_max_pools(model):
            assert any(isinstance(module, ReluMaxPool2d) for module in model.modules())
            yield

    monkeypatch.setattr("shiftscope.training.loop.fast_max_pools", noticed)
    fit(plain, max_epochs=3)
    assert swapped == []
    monkeypatch.setattr("shiftscope.training.loop.IMAGES_WORTH_COMPILING", 600)
    fit(fast, max_epochs=3)
    assert swapped == [fast]
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), fast.parameters(), strict=True))


def test_augmentation_shifts_every_image_anew_in_every_epoch() -> None:
    seen: list[Tensor] = []

    def place(images: Tensor, shifts: Tensor | None = None) -> Tensor:
        if shifts is not None:
            seen.append(shifts)
        return CANVAS.place(images, shifts)

    train(fresh(), (blobs(100, 0), blobs(10, 1)), Recipe(translate=2, max_epochs=2, batch_size=50), place=place, seed=0)
    assert [len(shifts) for shifts in seen] == [50] * 4
    assert len({tuple(shifts.flatten().tolist()) for shifts in seen}) == 4
    assert torch.stack(seen).abs().max() == 2


def test_missed_target_is_reported_and_the_best_epoch_kept() -> None:
    training = fit(fresh(), max_epochs=1, learning_rate=1e-6)
    assert training.status == "not reached"
    assert "Did not reach 100 % train accuracy in 1 epochs" in training.sentence
    assert training.best_epoch == 1


def test_diverging_loss_ends_the_training_and_names_the_epoch() -> None:
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = fit(model, learning_rate=1e30, optimiser="sgd")
    assert training.status == "diverged"
    assert "stopped being a number in epoch 1" in training.sentence
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_blow_up_in_the_last_step_count_as_divergence() -> None:
    """One step an epoch: its loss is from before it, and is fine."""
    training = fit(fresh(), learning_rate=1e38, batch_size=200, max_epochs=1)
    assert training.status == "diverged"


def test_global_settings_are_restored_after_a_failure() -> None:
    def broken(images: Tensor, shifts: Tensor | None = None) -> Tensor:
        raise RuntimeError("no canvas")

    with pytest.raises(RuntimeError, match="no canvas"):
        train(fresh(), (blobs(10, 0), blobs(10, 1)), Recipe(), place=broken, seed=0)
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_epoch_is_reported_in_order() -> None:
    events: list[Step | Epoch] = []
    training = fit(fresh(), report=events.append, max_epochs=3)
    assert [event for event in events if isinstance(event, Epoch)] == list(training.epochs)


def test_learning_rate_decays_by_epoch() -> None:
    rates: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    original = torch.optim.SGD
    torch.optim.SGD = Watching
    try:
        fit(fresh(), optimiser="sgd", learning_rate=0.1, learning_rate_decay=0.5, max_epochs=2, batch_size=100)
    finally:
        torch.optim.SGD = original
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_evaluation_counts_every_image_once() -> None:
    data = blobs(1100, 3)
    model = fresh()
    outputs = model(CANVAS.place(data.images))
    accuracy, loss = evaluate(model, data, place=CANVAS.place)
    assert accuracy == pytest.approx((outputs.argmax(1) == data.labels).double().mean().item())
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, data.labels).item(), rel=1e-5)


def test_evaluation_stops_once_the_target_is_missed() -> None:
    model, data = fresh(), blobs(2000, 0)
    fit(model)
    asked: list[int] = []
    model.register_forward_hook(lambda *call: asked.append(len(call[1][0])))
    accuracy = evaluate(model, data, place=CANVAS.place)[0]
    assert accuracy > 0.9
    assert accuracy_if_reached(model, data, accuracy, place=CANVAS.place) == (pytest.approx(accuracy), 0)
    assert accuracy_if_reached(model, data, accuracy, place=CANVAS.place, begin=1024) == (pytest.approx(accuracy), 0)
    data.labels.copy_(model(CANVAS.place(data.images)).argmax(1))
    data.labels[600] = (data.labels[600] + 1) % 4
    asked.clear()
    assert accuracy_if_reached(model, data, 1.0, place=CANVAS.place) == (None, 512)
    assert accuracy_if_reached(model, data, 1.0, place=CANVAS.place, begin=512) == (None, 512)
    assert asked == [512, 512, 512]
