"""ReLU and max pooling in one compiled pass equal PyTorch's two layers, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.layers import MaxBlurPool2d
from shiftscope.models.family import NetworkSpec, build
from shiftscope.training import pools
from shiftscope.training.loop import train_step
from shiftscope.training.pools import ReluMaxPool2d, fast_max_pools
from shiftscope.training.recipe import Recipe, make_optimizer

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def reference(maps: Tensor, kernel: int, stride: int) -> Tensor:
    return functional.relu(functional.max_pool2d(maps, kernel, stride))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(LAYOUTS),
    st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    st.integers(0, 99),
)
def test_values_and_gradients_equal_pytorchs_with_ties(
    images: int,
    channels: int,
    more_high: int,
    more_wide: int,
    kernel: int,
    stride: int,
    layout: torch.memory_format,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (images, channels, kernel + more_high, kernel + more_wide)
    # Small whole numbers: many ties, zeros and negatives, and sums that every precision holds exactly.
    maps = torch.randint(-3, 4, size, generator=generator).to(dtype).contiguous(memory_format=layout)
    one, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    expected, found = reference(one, kernel, stride), ReluMaxPool2d(kernel, stride)(other)
    assert torch.equal(found, expected)
    weights = torch.randint(-3, 4, found.shape, generator=generator).to(dtype)
    expected.backward(weights)
    found.backward(weights)
    assert torch.equal(other.grad, one.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_overlapping_gradients_equal_pytorchs_bit_for_bit(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 17, 19, generator=generator).contiguous(memory_format=layout)
    one, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    expected, found = reference(one, 4, 1), ReluMaxPool2d(4, 1)(other)
    weights = torch.randn(found.shape, generator=generator)
    expected.backward(weights)
    found.backward(weights)
    assert torch.equal(other.grad, one.grad)


def test_half_precision_gradient_is_closer_to_the_exact_one_than_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 8, 24, 24, generator=generator).bfloat16()
    leaves = [maps.double().requires_grad_(), maps.clone().requires_grad_(), maps.clone().requires_grad_()]
    weights = torch.randn(2, 8, 21, 21, generator=generator).bfloat16()
    for leaf, pool in zip(leaves, (reference, reference, _fast), strict=True):
        pool(leaf, 4, 1).backward(weights.to(leaf.dtype))
    exact, theirs, ours = (leaf.grad.double() for leaf in leaves)
    assert (ours - exact).abs().max() <= 2**-8 * exact.abs().max()
    assert (ours - exact).abs().mean() < (theirs - exact).abs().mean()


def _fast(maps: Tensor, kernel: int, stride: int) -> Tensor:
    found: Tensor = ReluMaxPool2d(kernel, stride)(maps)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_and_threads_change_nothing(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHUNK", 500)
    maps = torch.randn(7, 5, 12, 12, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        one, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        expected, found = reference(one, 3, 2), ReluMaxPool2d(3, 2)(other)
        assert torch.equal(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
        assert torch.equal(other.grad, one.grad)
    finally:
        torch.set_num_threads(threads)


NOT_NUMBERS = {  # positive and negative, as undefined operations leave them
    torch.bfloat16: (torch.int16, 0x7FC0, 0xFFC0 - 2**16),
    torch.float32: (torch.int32, 0x7FC00000, 0xFFC00000 - 2**32),
}


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_stays_nan(sign: int, dtype: torch.dtype) -> None:
    integer, *patterns = NOT_NUMBERS[dtype]
    bits = torch.tensor(patterns[sign], dtype=integer)
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps.view(integer)[1, 2, 4, 4] = bits
    maps[0, 0, 0, 0] = -torch.inf
    assert maps[1, 2, 4, 4].isnan()
    assert bool(torch.signbit(maps[1, 2, 4, 4])) == bool(sign)
    assert ReluMaxPool2d(2, 2)(maps)[1, 2, 2, 2].isnan()


def test_minus_infinity_is_a_number() -> None:
    assert torch.equal(ReluMaxPool2d(2, 2)(torch.full((1, 1, 4, 4), -torch.inf)), torch.zeros(1, 1, 2, 2))


def test_gradients_pass_the_numerical_check() -> None:
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(ReluMaxPool2d(3, 2), maps)


def test_model_and_weight_names_are_restored() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.MaxPool2d(3, 1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.ReLU(),
        MaxBlurPool2d(2, filter_size=3),
    )
    before, names = [*model.modules()], [*model.state_dict()]
    images = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    with pytest.raises(ZeroDivisionError), fast_max_pools(model):
        kinds = [type(module).__name__ for module in model.modules()]
        assert kinds.count("ReluMaxPool2d") == 3
        assert kinds.count("MaxPool2d") == 1  # it pads
        assert [*model.state_dict()] == names
        assert torch.allclose(model(images), expected, atol=1e-6)
        raise ZeroDivisionError
    assert all(one is other for one, other in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"pool_kernel": 3, "factor": 2}, {"antialias": 3}, {"padding": "circular"}])
def test_training_takes_the_same_steps(settings: dict[str, object]) -> None:
    spec = NetworkSpec.model_validate({"channels": (4, 8), "input_size": 16, "classes": 4, **settings})
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 4

    def trained(fast: bool) -> nn.Module:
        model = build(spec, generator=torch.Generator().manual_seed(0))
        optimizer = make_optimizer(model.parameters(), Recipe())
        for _ in range(5):
            if fast:
                with fast_max_pools(model):
                    train_step(model, optimizer, images, labels, Recipe())
            else:
                train_step(model, optimizer, images, labels, Recipe())
        return model

    plain, fast = trained(False).state_dict(), trained(True).state_dict()
    exact = spec.antialias == 1  # a filter's backward pass goes another way
    for name, weights in plain.items():
        assert torch.equal(fast[name], weights) if exact else torch.allclose(fast[name], weights, atol=1e-5)


PRELUDES = {
    "broken": "",
    "missing": (
        "import importlib.util as util, sys\n"
        "found, sys.modules['numba'] = util.find_spec, None\n"
        "util.find_spec = lambda name, *rest: None if name == 'numba' else found(name, *rest)\n"
    ),
}


@pytest.mark.parametrize("numba", PRELUDES)
def test_without_usable_numba_nothing_changes(numba: str, tmp_path: Path) -> None:
    code = (
        "from torch import nn\n"
        "from shiftscope.training.pools import fast_max_pools, numba_version\n"
        "model = nn.Sequential(nn.MaxPool2d(2), nn.ReLU())\n"
        "with fast_max_pools(model): print(type(model[0]).__name__, numba_version())"
    )
    if numba == "broken":
        (tmp_path / "numba.py").write_text("raise ImportError('needs another NumPy')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", PRELUDES[numba] + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "MaxPool2d None\n"
    warning = "Numba cannot be used (needs another NumPy); trainings are slower without it"
    assert (warning in done.stderr) == (numba == "broken")


@pytest.mark.parametrize("kind", ["in place", "hooked", "a subclass"])
def test_layers_with_visible_intermediates_stay(kind: str) -> None:
    class Own(nn.Sequential):
        pass

    sequence = Own if kind == "a subclass" else nn.Sequential
    model = sequence(nn.ReLU(inplace=kind == "in place"), nn.MaxPool2d(2))
    if kind == "hooked":
        model[0].register_forward_hook(lambda *_: None)
    with fast_max_pools(model):
        assert [type(module) for module in model] == [nn.ReLU, nn.MaxPool2d]


def test_map_without_batch_axis_is_pooled() -> None:
    maps = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ReluMaxPool2d(2, 2)(maps), reference(maps, 2, 2))
