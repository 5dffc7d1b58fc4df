"""BlurPool and MaxBlurPool equal slow references and other libraries' layers, and work with PyTorch's compilers and exporters."""

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

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

BLURS = (BlurPool1d, BlurPool2d, BlurPool3d)
MAXIMA = (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)
NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zero": "constant", "circular": "wrap"}


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_blur(maps: np.ndarray, size: int, stride: int, border: str) -> np.ndarray:
    """Pad with NumPy, correlate by a loop over positions, keep every stride-th."""
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
def test_blur_equals_slow_reference(data: st.DataObject) -> None:
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
def test_max_blur_and_gradient_equal_torch_pool_then_blur(data: st.DataObject) -> None:
    """Few different values make ties: the first of equal values takes the gradient."""
    axes = data.draw(st.integers(1, 3))
    kernel, dilation = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    padding = data.draw(st.integers(0, kernel // 2))
    size, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    sides = [data.draw(st.integers(dilation * (kernel - 1) + 1 + size // 2, 10)) for _ in range(axes)]
    maps = randoms(2, 3, *sides, seed=data.draw(st.integers(0, 99))).mul(2).round()
    if data.draw(st.booleans()):
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    ours = MAXIMA[axes - 1](kernel, filter_size=size, stride=stride, padding=padding, dilation=dilation)
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


@given(
    axes=st.integers(1, 3), side=st.integers(3, 8), kernel=st.integers(2, 3), stride=st.integers(1, 3), padding=st.integers(0, 1)
)
@settings(deadline=None)
def test_max_blur_has_output_size_of_strided_pool(axes: int, side: int, kernel: int, stride: int, padding: int) -> None:
    maps = torch.zeros(1, 1, *[side] * axes)
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](kernel, stride, padding)
    ours = MAXIMA[axes - 1](kernel, filter_size=3, stride=stride, padding=padding, border="replicate")
    assert ours(maps).shape == pool(maps).shape


@pytest.mark.parametrize("border", ["reflect", "circular", "zero"])
def test_blur_of_long_axis_in_pieces_equals_slow_reference(border: str) -> None:
    maps = randoms(1, 2, 5, 301)
    expected = torch.from_numpy(slow_blur(maps.numpy(), 5, 2, border))
    torch.testing.assert_close(BlurPool2d(5, 2, border=border)(maps), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_blur_equals_antialiased_cnns(size: int, border: str) -> None:
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


def test_load_state_dict_accepts_same_filter_only() -> None:
    adobe = pytest.importorskip("antialiased_cnns.blurpool", reason="needs antialiased-cnns")
    theirs = nn.Sequential(nn.MaxPool2d(2, 1), adobe.BlurPool(4, filt_size=4, stride=2))
    MaxBlurPool2d(2, filter_size=4, stride=2, compat="adobe").load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match=r"1\.filt holds another filter"):
        MaxBlurPool2d(2, filter_size=3, stride=2, compat="adobe").load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_layers_equal_kornia(size: int) -> None:
    kornia = pytest.importorskip("kornia", reason="needs kornia")
    for height, width, stride in ((12, 9, 2), (8, 8, 1), (11, 7, 3)):
        maps = randoms(2, 4, height, width, dtype=torch.float32)
        ours = BlurPool2d(size, stride, compat="kornia")
        torch.testing.assert_close(ours(maps), kornia.filters.BlurPool2D(size, stride)(maps), atol=1e-5, rtol=0)
        pooled = kornia.filters.MaxBlurPool2D(size, stride, max_pool_size=2)(maps)
        torch.testing.assert_close(
            MaxBlurPool2d(2, filter_size=size, stride=stride, compat="kornia")(maps), pooled, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("size", [3, 5, 7])
def test_blur_equals_timm(size: int) -> None:
    theirs = timm().layers.BlurPool2d
    for height, width, stride in ((12, 9, 2), (8, 8, 1), (11, 9, 3)):
        maps = randoms(2, 4, height, width, dtype=torch.float32)
        ours = BlurPool2d(size, stride, compat="timm")
        torch.testing.assert_close(ours(maps), theirs(4, filt_size=size, stride=stride)(maps), atol=1e-5, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "replicate", "zero", "circular", "valid"])
def test_blur_gradients_equal_finite_differences(border: str) -> None:
    maps, blur = randoms(2, 2, 5, 6).requires_grad_(), BlurPool2d(3, 2, border=border)
    assert torch.autograd.gradcheck(blur, (maps,))
    assert torch.autograd.gradgradcheck(blur, (maps,))


def test_max_blur_gradient_equals_finite_differences() -> None:
    assert torch.autograd.gradcheck(MaxBlurPool2d(3, filter_size=4, stride=2, padding=1), (randoms(2, 2, 5, 6).requires_grad_(),))


def test_max_blur_second_gradient_raises_error() -> None:
    maps = randoms(1, 1, 6, 6).requires_grad_()
    (first,) = torch.autograd.grad(MaxBlurPool2d()(maps).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


LAYERS = [
    BlurPool2d(3, 2),
    BlurPool2d(4, 1, border="zero"),
    MaxBlurPool2d(2, filter_size=3, stride=2),
    MaxBlurPool2d(3, filter_size=5, stride=2, padding=1, border="circular"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer_keeps_channels_last(layer: nn.Module) -> None:
    maps = randoms(3, 4, 9, 8)
    found = layer(maps.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, layer(maps), atol=1e-12, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer_under_autocast_keeps_dtype_and_values(layer: nn.Module) -> None:
    maps = randoms(3, 4, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(maps.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(maps), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.timeout(600)
def test_layer_compiled_equals_eager(layer: nn.Module) -> None:
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
def test_layer_exported_equals_eager_at_another_size(layer: nn.Module, tmp_path: Path) -> None:
    maps = randoms(2, 4, 9, 8, dtype=torch.float32)
    other = randoms(3, 4, 14, 11, dtype=torch.float32)
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(copy.deepcopy(layer), (maps,), dynamic_shapes=(sides,))
    torch.testing.assert_close(exported.module()(other), layer(other), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer_in_onnxruntime_equals_eager(layer: nn.Module, tmp_path: Path) -> None:
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


@pytest.mark.filterwarnings("ignore")  # both ways are deprecated, and still in use
@pytest.mark.parametrize("layer", [*LAYERS, AliasFreeActivation(nn.ReLU())], ids=str)
def test_layer_traced_by_torchscript_and_exported_from_it_equals_eager(layer: nn.Module, tmp_path: Path) -> None:
    """Both follow single operators: what is written in place would be lost without a word."""
    maps, others = (randoms(count, 4, 9, 8, seed=count, dtype=torch.float32) for count in (2, 3))
    traced = torch.jit.trace(layer, maps)
    assert all(torch.allclose(traced(each), layer(each), atol=1e-5) for each in (maps, others))
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
    axes = {"maps": {0: "image"}}
    torch.onnx.export(layer, (maps,), tmp_path / "layer.onnx", dynamo=False, input_names=["maps"], dynamic_axes=axes)
    session = runtime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    for each in (maps, others):
        (found,) = session.run(None, {"maps": each.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(each), atol=1e-5, rtol=0)


def test_alias_free_activation_is_exported_for_any_number_of_images() -> None:
    layer, images = AliasFreeActivation(nn.ReLU()), torch.export.Dim("images")
    maps, others = (randoms(count, 4, 9, 8, seed=count, dtype=torch.float32) for count in (2, 3))
    exported = torch.export.export(layer, (maps,), dynamic_shapes=({0: images},)).module()
    torch.testing.assert_close(exported(others), layer(others), atol=1e-5, rtol=0)


def test_layer_has_no_weights_and_can_be_copied_and_printed() -> None:
    layer = MaxBlurPool2d(3, filter_size=4, stride=(2, 1), padding=1, border="zero")
    assert not layer.state_dict()
    maps = randoms(2, 3, 8, 8)
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(maps), layer(maps))
    assert "stride=(2, 1)" in str(layer)


def test_taps_for_all_axes_or_for_each() -> None:
    maps = randoms(1, 1, 4, 6)
    shared = BlurPool2d(taps=[0.5, 0.5], stride=1, border="valid")(maps)
    torch.testing.assert_close(shared, nn.functional.avg_pool2d(maps, 2, 1))
    each = BlurPool2d(taps=[[1.0], [0.0, 1.0]], stride=1, border="valid")(maps)
    torch.testing.assert_close(each, maps[..., 1:])


def test_along_axes_accepts_any_memory_order() -> None:
    maps = randoms(2, 3, 4, 5)
    factors = [randoms(2, 4), randoms(6, 5)]
    expected = torch.einsum("nchw,ah,bw->ncab", maps, *factors)
    for ordered in (maps, maps.contiguous(memory_format=torch.channels_last), maps.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(along_axes(ordered, factors), expected)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BlurPool2d(8), "`filter_size` must be 1 to 7, got 8. Pass other filters as `taps`"),
        (lambda: BlurPool2d(4, compat="timm"), "`filter_size` must be odd and 3 or more with `compat='timm'`, got (4, 4)"),
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
        (
            lambda: BlurPool2d()(torch.zeros(1, 8, 8)),
            "`maps` must be [image, channel, position, position] for BlurPool2d, got (1, 8, 8)",
        ),
        (
            lambda: BlurPool2d()(torch.zeros(1, 1, 8, 8, dtype=torch.int64)),
            "`maps` must be floating point for BlurPool2d, got torch.int64",
        ),
    ],
)
def test_invalid_input_raises_error(make: object, text: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("size", "border", "expected"), [(7, "replicate", 1.0), (7, "circular", 1.0), (3, "zero", binomial(3)[1] ** 2)]
)
def test_blur_of_single_position(size: int, border: str, expected: float) -> None:
    assert BlurPool2d(size, 2, border=border)(torch.ones(1, 1, 1, 1)).item() == pytest.approx(expected)


@pytest.mark.parametrize("layer", [BlurPool2d(3, 2), AliasFreeActivation(nn.ReLU())], ids=str)
def test_layer_after_inference_mode_can_train(layer: nn.Module) -> None:
    """Matrices are cached from call to call; those made in inference mode or from fake tensors must not be."""
    with torch.inference_mode():
        layer(torch.rand(1, 1, 23, 17))
    layer(torch.rand(1, 1, 23, 17, requires_grad=True)).sum().backward()
    with FakeTensorMode():
        layer(torch.rand(1, 1, 29, 17))
    assert layer(torch.rand(1, 1, 29, 17)).isfinite().all()


@pytest.mark.parametrize("layer", [BlurPool2d(3, 2), MaxBlurPool2d(2, filter_size=3, stride=2)], ids=str)
def test_layer_under_functional_transforms_equals_eager(layer: nn.Module) -> None:
    maps = randoms(3, 2, 1, 8, 9)
    torch.testing.assert_close(torch.func.vmap(layer)(maps), torch.stack([layer(each) for each in maps]))
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(maps[0])
    leaf = maps[0].clone().requires_grad_()
    layer(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("stride", [1, 2])
def test_filter_of_one_tap_shares_no_memory_with_its_input(stride: int) -> None:
    maps = torch.rand(1, 2, 4, 4)
    before = maps.clone()
    BlurPool2d(1, stride)(maps).zero_()
    assert torch.equal(maps, before)


def test_settings_of_a_max_blur_pool_are_given_by_name() -> None:
    """Their order is not that of the pool which it replaces."""
    with pytest.raises(TypeError, match="positional"):
        MaxBlurPool2d(3, 2, 1)


def test_windows_beyond_the_border_have_no_gradient() -> None:
    """Every window of the only two positions lies in the padding."""
    maps = torch.rand(1, 1, 2, 2, requires_grad=True)
    pool = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3}
    functional = torch.nn.functional.max_pool2d(maps, 2, 1, 1, 3)
    blurred = MaxBlurPool2d(filter_size=1, border="zero", **pool)(maps)
    assert torch.equal(blurred, functional)
    blurred.nan_to_num(neginf=0).sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()
