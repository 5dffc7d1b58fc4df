"""BlurPool and MaxBlurPool against slow restatements, against the libraries that have them, and through torch's own tools."""

from __future__ import annotations

import copy
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from shiftscope.errors import InputError
from shiftscope.layers import AliasFreeActivation, BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d
from shiftscope.layers.resampling import along_axes, binomial
from zoo import timm

BLURS = (BlurPool1d, BlurPool2d, BlurPool3d)
MAXIMA = (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)
NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zero": "constant", "circular": "wrap"}


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_blur(maps: np.ndarray, size: int, stride: int, border: str) -> np.ndarray:
    """Pad with numpy, correlate by a loop over positions, keep every stride-th."""
    axes = maps.ndim - 2
    if border != "valid":
        ends = [(0, 0), (0, 0)] + [((size - 1) // 2, size // 2)] * axes
        maps = np.pad(maps, ends, mode=NUMPY_MODES[border])
    weights = np.ones((1,) * axes)
    row = np.array([1.0])
    for _ in range(size - 1):
        row = np.convolve(row, [0.5, 0.5])
    for axis in range(axes):
        weights = weights * row.reshape([-1 if other == axis else 1 for other in range(axes)])
    counts = [(length - size) // stride + 1 for length in maps.shape[2:]]
    found = np.empty((*maps.shape[:2], *counts))
    for place in itertools.product(*map(range, counts)):
        window = maps[(..., *(slice(stride * p, stride * p + size) for p in place))]
        found[(..., *place)] = (window * weights).reshape(*maps.shape[:2], -1).sum(-1)
    return found


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_blur_is_the_slow_one(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    size, stride = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 4))
    border = data.draw(st.sampled_from(["reflect", "replicate", "zero", "circular", "valid"]))
    least = {"reflect": size // 2 + 1, "valid": size}.get(border, 1)
    sides = [data.draw(st.integers(least, 9)) for _ in range(axes)]
    maps = randoms(2, 3, *sides, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    found = BLURS[axes - 1](size, stride, border=border)(maps)
    torch.testing.assert_close(found, torch.from_numpy(slow_blur(maps.numpy(), size, stride, border)), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_maximum_and_its_gradient_are_those_of_torchs_pool_and_the_blur(data: st.DataObject) -> None:
    """Values from few different numbers, so that there are ties: the first of equals takes the gradient."""
    axes = data.draw(st.integers(1, 3))
    kernel, dilation = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    padding = data.draw(st.integers(0, kernel // 2))
    size, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    sides = [data.draw(st.integers(dilation * (kernel - 1) + 1 + size // 2, 10)) for _ in range(axes)]
    maps = randoms(2, 3, *sides, seed=data.draw(st.integers(0, 99))).mul(2).round()
    if data.draw(st.booleans()):
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    ours = MAXIMA[axes - 1](kernel, size, stride, padding=padding, dilation=dilation)
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](kernel, 1, padding, dilation)
    theirs = nn.Sequential(pool, BLURS[axes - 1](size, stride))
    gradients = []
    for layer in (ours, theirs):
        leaf = maps.clone().requires_grad_()
        out = layer(leaf)
        out.backward(randoms(*out.shape, seed=1))
        gradients.append((out.detach(), leaf.grad))
    with torch.no_grad():
        torch.testing.assert_close(ours(maps), gradients[1][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_output_sizes_are_those_of_a_strided_pool(axes: int) -> None:
    for side, kernel, stride, padding in itertools.product(range(3, 9), (2, 3), (1, 2, 3), (0, 1)):
        maps = torch.zeros(1, 1, *[side] * axes)
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](kernel, stride, padding)
        ours = MAXIMA[axes - 1](kernel, 3, stride, padding=padding, border="replicate")
        assert ours(maps).shape == pool(maps).shape


def test_long_axes_are_filtered_in_pieces_to_the_same_numbers() -> None:
    maps = randoms(1, 2, 5, 301)
    for border in ("reflect", "circular", "zero"):
        whole = torch.from_numpy(slow_blur(maps.numpy(), 5, 2, border))
        torch.testing.assert_close(BlurPool2d(5, 2, border=border)(maps), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_adobes_layer_is_reproduced(size: int, border: str) -> None:
    adobe = pytest.importorskip("antialiased_cnns.blurpool", reason="needs antialiased-cnns")
    names = {"reflect": "reflect", "replicate": "repl", "zero": "zero"}
    for height, width, stride in ((12, 9, 2), (8, 8, 1), (11, 7, 3)):
        maps = randoms(2, 4, height, width, dtype=torch.float32)
        theirs = adobe.BlurPool(4, pad_type=names[border], filt_size=size, stride=stride)
        ours = BlurPool2d(size, stride, border=border, compat="adobe")
        torch.testing.assert_close(ours(maps), theirs(maps), atol=1e-5, rtol=0)
        line = maps[:, :, 0]
        if size > 1 and border != "zero":
            theirs_1d = adobe.BlurPool1D(4, pad_type=names[border], filt_size=size, stride=stride)
            torch.testing.assert_close(BlurPool1d(size, stride, border=border)(line), theirs_1d(line), atol=1e-5, rtol=0)


def test_adobes_weights_load_and_foreign_filters_do_not() -> None:
    adobe = pytest.importorskip("antialiased_cnns.blurpool", reason="needs antialiased-cnns")
    theirs = nn.Sequential(nn.MaxPool2d(2, 1), adobe.BlurPool(4, filt_size=4, stride=2))
    MaxBlurPool2d(2, 4, 2, compat="adobe").load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match=r"1\.filt holds another filter"):
        MaxBlurPool2d(2, 3, 2, compat="adobe").load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_kornias_layers_are_reproduced(size: int) -> None:
    kornia = pytest.importorskip("kornia", reason="needs kornia")
    for height, width, stride in ((12, 9, 2), (8, 8, 1), (11, 7, 3)):
        maps = randoms(2, 4, height, width, dtype=torch.float32)
        ours = BlurPool2d(size, stride, compat="kornia")
        torch.testing.assert_close(ours(maps), kornia.filters.BlurPool2D(size, stride)(maps), atol=1e-5, rtol=0)
        pooled = kornia.filters.MaxBlurPool2D(size, stride, max_pool_size=2)(maps)
        torch.testing.assert_close(MaxBlurPool2d(2, size, stride, compat="kornia")(maps), pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_timms_layer_is_reproduced(size: int) -> None:
    theirs = timm().layers.BlurPool2d
    for height, width, stride in ((12, 9, 2), (8, 8, 1), (11, 9, 3)):
        maps = randoms(2, 4, height, width, dtype=torch.float32)
        ours = BlurPool2d(size, stride, compat="timm")
        torch.testing.assert_close(ours(maps), theirs(4, filt_size=size, stride=stride)(maps), atol=1e-5, rtol=0)


def test_gradients_are_right() -> None:
    maps = randoms(2, 2, 5, 6).requires_grad_()
    for border in ("reflect", "replicate", "zero", "circular", "valid"):
        blur = BlurPool2d(3, 2, border=border)
        assert torch.autograd.gradcheck(blur, (maps,))
        assert torch.autograd.gradgradcheck(blur, (maps,))
    assert torch.autograd.gradcheck(MaxBlurPool2d(3, 4, 2, padding=1), (maps,))


def test_the_second_gradient_of_a_maximum_is_refused() -> None:
    maps = randoms(1, 1, 6, 6).requires_grad_()
    (first,) = torch.autograd.grad(MaxBlurPool2d()(maps).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


LAYERS = [
    BlurPool2d(3, 2),
    BlurPool2d(4, 1, border="zero"),
    MaxBlurPool2d(2, 3, 2),
    MaxBlurPool2d(3, 5, 2, padding=1, border="circular"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_channels_last_stays_so_and_changes_nothing(layer: nn.Module) -> None:
    maps = randoms(3, 4, 9, 8)
    found = layer(maps.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, layer(maps), atol=1e-12, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_mixed_precision_keeps_its_own_and_comes_near(layer: nn.Module) -> None:
    maps = randoms(3, 4, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(maps.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(maps), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.timeout(600)
def test_compiled_it_gives_the_same(layer: nn.Module) -> None:
    maps = randoms(3, 4, 9, 8, dtype=torch.float32)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(maps), layer(maps), atol=1e-5, rtol=0)
        gradients = []
        for each in (compiled, layer):
            leaf = maps.clone().requires_grad_()
            each(leaf).square().sum().backward()
            gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_exported_it_gives_the_same_on_another_size(layer: nn.Module, tmp_path: Path) -> None:
    maps = randoms(2, 4, 9, 8, dtype=torch.float32)
    other = randoms(3, 4, 14, 11, dtype=torch.float32)
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(copy.deepcopy(layer), (maps,), dynamic_shapes=(sides,))
    torch.testing.assert_close(exported.module()(other), layer(other), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_onnxruntime_gives_the_same(layer: nn.Module, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
    pytest.importorskip("onnxscript", reason="needs onnxscript (extra `onnx`)")
    maps = randoms(2, 4, 9, 8, dtype=torch.float32)
    path = tmp_path / "layer.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(copy.deepcopy(layer), (maps,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: maps.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(maps), atol=1e-5, rtol=0)


def test_a_layer_has_no_weights_and_survives_copying_and_printing() -> None:
    layer = MaxBlurPool2d(3, 4, (2, 1), padding=1, border="zero")
    assert not layer.state_dict()
    maps = randoms(2, 3, 8, 8)
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(maps), layer(maps))
    assert "stride=(2, 1)" in str(layer)


def test_taps_of_ones_own_are_used_along_each_axis_or_each_along_its_own() -> None:
    maps = randoms(1, 1, 4, 6)
    same = BlurPool2d(taps=[0.5, 0.5], stride=1, border="valid")(maps)
    torch.testing.assert_close(same, nn.functional.avg_pool2d(maps, 2, 1))
    each = BlurPool2d(taps=[[1.0], [0.0, 1.0]], stride=1, border="valid")(maps)
    torch.testing.assert_close(each, maps[..., 1:])


def test_products_along_axes_follow_the_map_whatever_its_order_in_memory() -> None:
    maps = randoms(2, 3, 4, 5)
    factors = [randoms(2, 4), randoms(6, 5)]
    expected = torch.einsum("nchw,ah,bw->ncab", maps, *factors)
    for ordered in (maps, maps.contiguous(memory_format=torch.channels_last), maps.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(along_axes(ordered, factors), expected)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: BlurPool2d(8), "`filter_size` must be 1 to 7, got 8. Give other filters as `taps`"),
        (lambda: BlurPool2d(4, compat="timm"), "`compat='timm'` has odd filters from 3 on, got (4, 4)"),
        (lambda: BlurPool2d(3, compat="keras"), "`compat` must be one of adobe, kornia, timm, got 'keras'"),
        (lambda: BlurPool2d(3, border="mirror"), "`border` must be one of reflect, replicate, zero, circular, valid"),
        (lambda: BlurPool2d(3, 0), "`stride` must be 1 or more positions, got (0, 0)"),
        (lambda: BlurPool2d((3, 3, 3)), "`filter_size` must be one number or 2, got (3, 3, 3)"),
        (lambda: BlurPool2d(taps=[]), "`taps` must be weights along an axis"),
        (lambda: MaxBlurPool2d(0), "`kernel_size` and `dilation` must be 1 or more"),
        (lambda: MaxBlurPool2d(2, padding=2), "`padding` must be at most half of `kernel_size` (2, 2), got (2, 2)"),
        (lambda: BlurPool2d(5)(torch.zeros(1, 1, 2, 8)), "Use border 'replicate', 'zero' or 'circular', or a smaller filter"),
        (lambda: BlurPool2d(5, border="valid")(torch.zeros(1, 1, 4, 8)), "does not fit into a map of size 4"),
        (lambda: MaxBlurPool2d(3)(torch.zeros(1, 1, 2, 8)), "a maximum over 3 positions does not fit into a map of size 2"),
        (lambda: BlurPool2d()(torch.zeros(1, 8, 8)), "BlurPool2d takes [image, channel, position, position], got (1, 8, 8)"),
        (
            lambda: BlurPool2d()(torch.zeros(1, 1, 8, 8, dtype=torch.int64)),
            "BlurPool2d takes floating point maps, got torch.int64",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(make: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        make()  # type: ignore[operator]
    assert told in str(caught.value)


def test_a_single_position_is_served_by_every_border_that_can() -> None:
    for border in ("replicate", "circular"):
        assert torch.equal(BlurPool2d(7, 2, border=border)(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 1, 1))
    assert BlurPool2d(3, 2, border="zero")(torch.ones(1, 1, 1, 1)).item() == binomial(3)[1] ** 2


def test_an_evaluation_leaves_nothing_that_a_later_training_stumbles_over() -> None:
    """Matrices are kept from call to call; those made in inference mode or for stand-ins must not be."""
    for layer in (BlurPool2d(3, 2), AliasFreeActivation(nn.ReLU())):
        with torch.inference_mode():
            layer(torch.rand(1, 1, 23, 17))
        layer(torch.rand(1, 1, 23, 17, requires_grad=True)).sum().backward()
        with FakeTensorMode():
            layer(torch.rand(1, 1, 29, 17))
        assert layer(torch.rand(1, 1, 29, 17)).isfinite().all()


def test_functional_transforms_pass_through() -> None:
    for layer in (BlurPool2d(3, 2), MaxBlurPool2d(2, 3, 2)):
        maps = randoms(3, 2, 1, 8, 9)
        torch.testing.assert_close(torch.func.vmap(layer)(maps), torch.stack([layer(each) for each in maps]))
        gradient = torch.func.grad(lambda x, layer=layer: layer(x).square().sum())(maps[0])
        leaf = maps[0].clone().requires_grad_()
        layer(leaf).square().sum().backward()
        torch.testing.assert_close(gradient, leaf.grad)
