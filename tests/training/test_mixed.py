"""Mixed precision in single precision equals PyTorch's up to the order of sums, and is used where it is quicker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shiftscope.models.family import NetworkSpec, build
from shiftscope.training import mixed
from shiftscope.training.loop import train_step
from shiftscope.training.mixed import SinglePrecisionProducts, has_quick_bfloat16, mixed_precision
from shiftscope.training.recipe import Recipe, make_optimizer

#: A number of bfloat16 has 8 bits, so that two of them next to each other differ by up to 2^-7 of their size.
ONE_BIT = 2**-7


def whole(*shape: int, generator: torch.Generator) -> Tensor:
    """Return small whole numbers, whose sums of products single precision holds exactly in any order."""
    return torch.randint(-3, 4, shape, generator=generator).float()


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 3, groups=3), nn.Linear(9, 5)]
)
def test_values_and_gradients_are_pytorchs_where_sums_are_exact(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 9) if isinstance(layer, nn.Conv1d) else (2, 3, 9, 9)
    images = whole(*shape, generator=generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(whole(*parameter.shape, generator=generator))
    found = []
    for way in (torch.enable_grad(), SinglePrecisionProducts()):
        layer.zero_grad()
        given = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), way:
            outputs = layer(given)
        outputs.float().square().sum().backward()
        found.append([outputs, given.grad, *(parameter.grad for parameter in layer.parameters())])
    assert found[1][0].dtype == torch.bfloat16
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_autocast_leaves_alone_is_left_alone() -> None:
    layer, images = nn.Conv2d(1, 2, 3), torch.rand(1, 1, 5, 5)
    expected = nn.functional.conv2d(images, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16), SinglePrecisionProducts():
        assert layer(images).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(layer(images), expected)
        assert layer.double()(images.double()).dtype == torch.float64


def test_training_step_is_that_of_pytorch_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(16, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 10
    recipe = Recipe(precision="bf16", optimiser="sgd", learning_rate=0.1)
    moved, outputs = [], []
    for quick in (True, False):
        monkeypatch.setattr(mixed, "has_quick_bfloat16", lambda quick=quick: quick)
        model = build(NetworkSpec(channels=(4, 8), input_size=20), generator=torch.Generator().manual_seed(2))
        before = torch.cat([each.detach().flatten().clone() for each in model.parameters()])
        outputs.append(train_step(model, make_optimizer(model.parameters(), recipe), images, labels, recipe)[1].detach())
        moved.append(torch.cat([each.detach().flatten() for each in model.parameters()]) - before)
    assert {each.dtype for each in outputs} == {torch.bfloat16}
    torch.testing.assert_close(
        outputs[0].float(), outputs[1].float(), rtol=2 * ONE_BIT, atol=ONE_BIT * float(outputs[0].abs().max())
    )
    assert (moved[0] - moved[1]).norm() < ONE_BIT * moved[0].norm()


def test_without_mixed_precision_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "has_quick_bfloat16", lambda: False)
    layer, images = nn.Conv2d(1, 2, 3), torch.rand(1, 1, 5, 5)
    with mixed_precision(images.device, enabled=False):
        assert torch.equal(layer(images), nn.functional.conv2d(images, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("processor", "quick"),
    [
        ("vendor_id: GenuineIntel\nflags: avx2", False),
        ("vendor_id: GenuineIntel\nflags: avx512_bf16", False),
        ("vendor_id: GenuineIntel\nflags: avx512_bf16 amx_bf16 amx_tile", True),
        ("vendor_id: AuthenticAMD\nflags: avx512_bf16", True),
        ("vendor_id: AuthenticAMD\nflags: avx2", False),
        ("Features: fp asimd i8mm bf16 dgh", True),
        ("Features: fp asimd", False),
        (None, False),
    ],
)
def test_processors_with_quick_bfloat16(
    processor: str | None, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "PROCESSOR", tmp_path / "cpuinfo")
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    has_quick_bfloat16.cache_clear()
    try:
        assert has_quick_bfloat16() is quick
    finally:
        has_quick_bfloat16.cache_clear()
