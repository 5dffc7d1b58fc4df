"""The loss over all shifts and its gradient equal the mean over shifted copies, on real digits; what is not exact is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.errors import InputError
from shiftscope.models.family import NetworkSpec, build
from shiftscope.shifts import Mode, grid, translate
from shiftscope.training import AllShifts, all_shifts_loss

SIZE, SHIFT = 20, 3


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return five digits on a canvas, in double precision, and their labels."""
    data = load(DataSpec(image_size=10, canvas=SIZE, validation_images=100))
    return data.canvas.place(data.train.images[:5]).double(), data.train.labels[:5]


def network(**settings: Any) -> nn.Module:
    settings = {"channels": (3, 4), "factor": 4, "input_size": SIZE, **settings}
    return build(NetworkSpec(**settings), generator=torch.Generator().manual_seed(0)).eval()


def normed() -> nn.Module:
    """Return layers that the family lacks: batch norms, GELU, a residual sum, two fully connected layers, dropout."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 3, 3, 2), nn.AvgPool2d(3, 2)

        def forward(self, maps: Tensor) -> Tensor:
            return torch.relu(self.left(maps) + self.right(maps))

    head = [nn.Flatten(), nn.Linear(3 * 64, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 10)]
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), Residual(), nn.Sequential(*head))
    model[1].running_mean.uniform_(-1, 1)
    return model.eval()


def unbiased() -> nn.Module:
    """Return a network whose maps are 0 on the background, and tie there."""
    model = network()
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.bias)
    return model


#: Networks, borders and fills.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Mode, float]] = {
    "max pools": (network, "zero", 0.3),
    "biases of zero": (unbiased, "zero", 0.0),
    "mean over positions": (lambda: network(head="gap", pool="average"), "zero", 0.3),
    "filters": (lambda: network(antialias=3, padding="circular"), "circular", 0.0),
    "circular": (lambda: network(padding="circular"), "circular", 0.0),
    "norms": (normed, "zero", 0.3),
}


def slow_gradients(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode, fill: float) -> tuple[float, list[Tensor]]:
    """Return the mean loss over all shifts, and its gradient, from one shifted copy after the other."""
    total = 0.0
    for step in grid(SHIFT):
        moved = translate(images, step.expand(len(images), 2), mode=mode, fill=fill)
        loss = nn.functional.cross_entropy(model(moved), labels) / len(grid(SHIFT))
        loss.backward()
        total += loss.item()
    return total, [each.grad.clone() for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradient_equal_mean_of_shifted_copies(name: str, dtype: torch.dtype, tolerance: float) -> None:
    make, mode, fill = NETWORKS[name]
    model = make().to(dtype)
    images, labels = digits()[0].to(dtype), digits()[1]
    expected, gradients = slow_gradients(model, images, labels, mode, fill)
    model.zero_grad()
    loss = all_shifts_loss(model, images, labels, max_shift=SHIFT, mode=mode, fill=fill)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    for parameter, slow in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - slow).norm()) <= tolerance * float(slow.norm())


def test_every_step_uses_the_weights_of_the_moment() -> None:
    model, (images, labels) = network(channels=(3, 24), factor=1).double(), digits()  # a head so large that it is transformed
    expected = AllShifts(model, size=(SIZE, SIZE), max_shift=SHIFT)
    before = expected(images, labels).item()
    with torch.no_grad():
        expected(images, labels)
        for parameter in model.parameters():
            parameter.mul_(1.5)
        again = expected(images, labels).item()
    assert again == pytest.approx(slow_gradients(model, images, labels, "zero", 0.0)[0])
    assert again != pytest.approx(before, rel=1e-3)


def test_loss_of_the_users_own_is_averaged_over_images_and_shifts() -> None:
    model, (images, labels) = network().double(), digits()
    loss = all_shifts_loss(model, images, labels, max_shift=1, loss=lambda outputs, _: outputs[:, 0])
    shifted = [model(translate(images, step.expand(len(images), 2)))[:, 0] for step in grid(1)]
    assert loss.item() == pytest.approx(torch.stack(shifted).mean().item())


def test_frozen_weights_get_no_gradient() -> None:
    model, (images, labels) = network(), digits()
    model.features.requires_grad_(requires_grad=False)
    all_shifts_loss(model, images.float(), labels, max_shift=1).backward()
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("head")}


@pytest.mark.parametrize(
    ("make", "labels", "words"),
    [
        (lambda: network().train(), [0, 1, 2, 3, 4], "must be in evaluation mode.*batch norm"),
        (lambda: nn.Sequential(network(), nn.Dropout().train()), [0, 1, 2, 3, 4], "must be in evaluation mode"),
        (lambda: network(padding="same"), [0, 1, 2, 3, 4], "not exact here: .*pads with zeros"),
        (network, [0, 1, 2, 3, 10], "must be 0 to 9, the model's classes, got 0 to 10"),
        (network, [0, 1, 2, 3], "one for each of 5 images, got 4"),
        (network, [0.0, 1.0, 2.0, 3.0, 4.0], "must be whole numbers"),
    ],
)
def test_what_has_no_exact_gradient_is_refused(make: Callable[[], nn.Module], labels: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        all_shifts_loss(make(), digits()[0].float(), torch.tensor(labels), max_shift=1)


def test_outputs_that_depend_on_python_state_are_noticed() -> None:
    class Clipped(nn.Module):
        """Clips by a number that changes after the graph was read."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = network(), 1.0

        def forward(self, images: Tensor) -> Tensor:
            scaled: Tensor = self.body(images) * self.scale
            return scaled

    model, (images, labels) = Clipped().eval(), digits()
    expected = AllShifts(model, size=(SIZE, SIZE), max_shift=1)
    expected(images.float(), labels)
    model.scale = 2.0
    with pytest.raises(InputError, match="dense and direct outputs differ"):
        expected(images.float(), labels)
