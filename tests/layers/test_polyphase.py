"""Polyphase sampling is exactly equivariant under circular shifts; the alias-free activation under fractional ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shiftscope.errors import InputError
from shiftscope.layers import AdaptivePolyphaseSampling, AliasFreeActivation, LearnedPolyphaseSampling
from shiftscope.layers.polyphase import NormChoice, TakePhase, phases

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sampling(kind: str, channels: int, stride: int, filter_size: int) -> nn.Module:
    if kind == "aps":
        return AdaptivePolyphaseSampling(stride, filter_size=filter_size)
    return LearnedPolyphaseSampling(channels, stride, filter_size=filter_size).double().eval()


def network(kind: str, stride: int, filter_size: int, seed: int) -> nn.Module:
    """Two circular blocks, each with sampling, and a mean over positions at the end; random weights."""
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            sampling(kind, 4, stride, filter_size),
            nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            sampling(kind, 5, stride, filter_size),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )
        .double()
        .eval()
    )


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["aps", "lps"]),
    stride=st.integers(2, 4),
    blocks=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    filter_size=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_network_is_invariant_to_every_circular_shift(
    kind: str, stride: int, blocks: tuple[int, int], filter_size: int, seed: int
) -> None:
    """Every shift of the torus, in double precision."""
    model = network(kind, stride, filter_size, seed)
    height, width = (stride * stride * block for block in blocks)
    image = randoms(1, 1, height, width, seed=seed)
    shifted = torch.cat([image.roll((y, x), (2, 3)) for y in range(height) for x in range(width)])
    with torch.no_grad():
        outputs = model(shifted)
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), atol=1e-10, rtol=0)


def test_network_with_plain_stride_is_not_invariant() -> None:
    """The same network that always keeps the first phase: the property above can fail."""
    torch.manual_seed(0)
    model = network("aps", 2, 1, 0)
    for place in (2, 5):
        model[place] = nn.MaxPool2d(1, 2)
    image = randoms(1, 1, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(model(image), model(image.roll(1, 2)), atol=1e-6)


def test_phases_are_strided_slices() -> None:
    maps = randoms(2, 3, 6, 8)
    found = phases(maps, (3, 2))
    for i in range(3):
        for j in range(2):
            assert torch.equal(found[:, 2 * i + j], maps[:, :, i::3, j::2])


def test_norm_choice_breaks_ties_independently_of_positions() -> None:
    """Two phases of the same norm, [3, 4] and [5, 0]: the larger sum of absolute values wins, wherever it lies."""
    line = torch.tensor([3.0, 5.0, 4.0, 0.0])
    maps = torch.zeros(4, 1, 2, 4)
    for shift in range(4):
        maps[shift, 0, 0] = line.roll(shift)
    for taken in AdaptivePolyphaseSampling(2)(maps):
        assert sorted(taken.flatten().tolist()) == [3.0, 4.0]


@pytest.mark.parametrize("kind", ["binary", "mirrored", "two dots"])
def test_sampling_of_maps_of_few_values_is_equivariant(kind: str) -> None:
    """Phases with the same values in another arrangement tie in all rules but those that compare neighbours, and mirror images
    whose parts lie far apart in all but the last rule, which describes whole phases."""
    torch.manual_seed(0)
    spread = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double().requires_grad_(False)
    for number in range(300):
        size = (4, 6, 8)[number % 3]
        maps = (torch.rand(1, 1, size, size) < 0.3).double()
        maps = (maps + maps.flip(3)).clamp(max=1) if kind == "mirrored" else maps
        if kind == "two dots":  # whose phases sample them at even and at odd places
            size, (down, right) = 32, (number // 17 % 17 + 1, number % 17 + 1)
            maps = torch.zeros(1, 1, size, size, dtype=torch.float64)
            maps[0, 0, 10, 10] = maps[0, 0, 10 + down, 10 + right] = 1
            maps = spread(maps).abs()
        moved = min(size, 8)
        taken = AdaptivePolyphaseSampling(2)(torch.cat([maps.roll((y, x), (2, 3)) for y in range(moved) for x in range(moved)]))
        half = size // 2
        rolled = torch.stack([taken[0].roll((y, x), (1, 2)) for y in range(half) for x in range(half)])
        assert torch.cdist(taken.flatten(1), rolled.flatten(1)).amin(1).max() < 1e-7


@pytest.mark.parametrize("window", [3, 5, 9])
def test_sampling_of_smooth_maps_in_single_precision_follows_shifts(window: int) -> None:
    """Phases of smooth maps have almost the same norm, so that rounding must not decide between them."""
    maps = randoms(700, 2, 32, 32, seed=window, dtype=torch.float32).abs()
    for _ in range(4):
        maps = nn.functional.avg_pool2d(nn.functional.pad(maps, (window // 2,) * 4, mode="circular"), window, 1)
    sampling = AdaptivePolyphaseSampling(2)
    before, after = sampling(maps), sampling(maps.roll((3, 1), (2, 3)))
    rolled = torch.stack([before.roll((down, right), (2, 3)) for down in (1, 2) for right in (0, 1)])
    assert (rolled == after).flatten(2).all(2).any(0).all()


def test_sampling_of_constant_map_is_constant() -> None:
    assert torch.equal(AdaptivePolyphaseSampling(2)(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 2, 2))


def test_branches_with_shared_choice_stay_aligned() -> None:
    """A shift of the input shifts their sum; with separate choices it need not."""
    choose, take = NormChoice(2), TakePhase(2)
    branch, shortcut = randoms(1, 3, 8, 8, seed=1), randoms(1, 3, 8, 8, seed=2)

    def sum_of_branches(shift: int) -> Tensor:
        moved, short = branch.roll(shift, 3), shortcut.roll(shift, 3)
        choice = choose(moved)
        return (take(moved, choice) + take(short, choice)).sum(dim=1).flatten().sort().values

    torch.testing.assert_close(sum_of_branches(0), sum_of_branches(1), atol=1e-12, rtol=0)
    assert choose(branch).item() != choose(shortcut).item()


def test_learned_sampling_in_training_gives_gradient_to_every_weight() -> None:
    layer = LearnedPolyphaseSampling(3, 2).train()
    torch.manual_seed(0)
    layer(randoms(2, 3, 4, 4, dtype=torch.float32)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0


def test_adaptive_sampling_gives_gradient_to_chosen_phase_only() -> None:
    maps = randoms(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(AdaptivePolyphaseSampling(2, filter_size=3), (maps,))
    maps.grad = None
    AdaptivePolyphaseSampling(2)(maps).sum().backward()
    assert maps.grad is not None
    assert maps.grad.sum().item() == 2 * 2 * 4


# Learned sampling differs in what it computes scores by: it is captured like the other, and no C++ is compiled for it.
@pytest.mark.parametrize(("kind", "backend"), [("aps", "inductor"), ("lps", "aot_eager")])
@pytest.mark.timeout(600)
def test_sampling_compiled_exported_and_in_onnxruntime_equals_eager(kind: str, backend: str, tmp_path: Path) -> None:
    layer = sampling(kind, 3, 2, 3).float()
    maps = randoms(2, 3, 8, 6, dtype=torch.float32)
    expected = layer(maps)
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=backend)(maps), expected, atol=1e-5, rtol=0)
        exported = torch.export.export(layer, (maps,))
        torch.testing.assert_close(exported.module()(maps), expected, atol=1e-5, rtol=0)
        runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
        torch.onnx.export(exported, (), tmp_path / "layer.onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: maps.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("factor", [2, 3])
def test_alias_free_identity_returns_its_input(size: int, factor: int) -> None:
    maps = randoms(2, 3, size, size + 1)
    torch.testing.assert_close(AliasFreeActivation(nn.Identity(), factor=factor)(maps), maps, atol=1e-10, rtol=0)


def moved(maps: Tensor, by: float) -> Tensor:
    """Move maps by a fraction of a position along the last axis, of odd size, by Fourier transform."""
    waves = torch.fft.rfft(maps)
    turns = by * torch.arange(waves.shape[-1], dtype=torch.float64) / maps.shape[-1]
    return torch.fft.irfft(waves * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns), n=maps.shape[-1])


class Power(nn.Module):
    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, maps: Tensor) -> Tensor:
        return maps**self.degree


@pytest.mark.parametrize(("degree", "factor"), [(2, 2), (3, 2), (5, 3)])
def test_alias_free_polynomial_commutes_with_fractional_shift(degree: int, factor: int) -> None:
    """Exactly up to degree 2 factor - 1; not without upsampling, nor with a higher degree."""
    maps = randoms(1, 2, 1, 9)
    layer = AliasFreeActivation(Power(degree), factor=factor)
    torch.testing.assert_close(layer(moved(maps, 0.3)), moved(layer(maps), 0.3), atol=1e-9, rtol=1e-9)
    for aliasing in (Power(degree), AliasFreeActivation(Power(2 * factor), factor=factor)):
        assert not torch.allclose(aliasing(moved(maps, 0.3)), moved(aliasing(maps), 0.3), atol=1e-3)


def test_alias_free_relu_commutes_with_shifts_of_the_fine_grid() -> None:
    maps = randoms(1, 2, 1, 9)
    layer = AliasFreeActivation(nn.ReLU(), factor=4)
    torch.testing.assert_close(layer(moved(maps, 0.25)), moved(layer(maps), 0.25), atol=1e-10, rtol=0)


def test_alias_free_relu_aliases_less_at_higher_factor() -> None:
    maps = randoms(4, 3, 1, 15)
    errors = []
    for layer in (nn.ReLU(), AliasFreeActivation(nn.ReLU(), factor=2), AliasFreeActivation(nn.ReLU(), factor=8)):
        errors.append((layer(moved(maps, 0.3)) - moved(layer(maps), 0.3)).norm().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: AdaptivePolyphaseSampling(2)(torch.zeros(1, 1, 7, 8)),
            "multiples of the stride (2, 2) of polyphase sampling",
        ),
        (lambda: AdaptivePolyphaseSampling(0), "`stride` must be 1 or more positions, got (0, 0)"),
        (lambda: AdaptivePolyphaseSampling(2, filter_size=9), "`filter_size` must be 1 to 7, got 9"),
        (lambda: LearnedPolyphaseSampling(3, temperature=0.0), "`temperature` must be positive, got 0.0"),
        (lambda: AliasFreeActivation(nn.ReLU(), factor=1), "`factor` must be 2 or more, got 1"),
    ],
)
def test_invalid_input_raises_error(make: object, text: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert text in str(caught.value)


class Rolls(TorchDispatchMode):
    """Counts calls of ``torch.roll``, which only the rules that compare positions use."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.roll.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("maps", "ties"), [(randoms(3, 2, 8, 8), False), (torch.ones(1, 2, 4, 4), True)])
def test_norm_choice_computes_later_rules_for_ties_only(maps: Tensor, ties: bool) -> None:
    with Rolls() as rolls:
        NormChoice(2)(maps)
    assert (rolls.count > 0) == ties
