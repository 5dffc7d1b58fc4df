"""Dense equals a slow reference for random networks; where it is not exact, the engine chooses direct and gives the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from shiftscope.engine import operators, sheets
from shiftscope.engine.graph import trace
from shiftscope.engine.outputs import shift_outputs, stream_outputs
from shiftscope.engine.sheets import NotDenseError
from shiftscope.errors import InputError
from shiftscope.layers import AdaptivePolyphaseSampling, BlurPool2d, MaxBlurPool2d
from shiftscope.models.family import NetworkSpec, build
from shiftscope.shifts import grid

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def circular_pad(kernel: int) -> nn.Module:
    """Pad a map so that a convolution with this kernel keeps its size."""
    before = (kernel - 1) // 2
    return nn.CircularPad2d((before, kernel - 1 - before) * 2)


class Residual(nn.Module):
    """Two branches that meet: by a sum or side by side."""

    def __init__(self, left: nn.Module, right: nn.Module, *, join: str) -> None:
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return torch.cat([left, right], dim=1) if self.join == "cat" else torch.relu(left + right)


class Blur(nn.Module):
    """A depthwise binomial filter with stride, as in anti-aliasing layers of other libraries."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels
        self.register_buffer("taps", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.taps, stride=self.stride, groups=self.channels)


KINDS = ["convolution", "max", "average", "norm", "activation", "residual", "cat", "blur", "grouped", "ours"]


def ours(draw: st.DrawFn, stride: int, pad: list[nn.Module], kernel: int, *, circular: bool) -> list[nn.Module]:
    border, size = "circular" if circular else "valid", draw(st.integers(1, 4))
    if draw(st.booleans()):
        return [BlurPool2d(size, stride, border=border)]
    return [*pad, MaxBlurPool2d(kernel, filter_size=size, stride=stride, border=border)]


def block(draw: st.DrawFn, channels: int, *, circular: bool) -> tuple[list[nn.Module], int, int]:  # noqa: C901 - one case a kind
    """Draw layers, their output channels and their stride."""
    kind = draw(st.sampled_from(KINDS))
    kernel = draw(st.integers(1, 3))
    stride = draw(st.sampled_from([1, 1, 2]))
    pad = [circular_pad(kernel)] if circular else []
    if kind == "convolution":
        out = draw(st.integers(1, 4))
        if circular and kernel == 3:
            return [nn.Conv2d(channels, out, 3, stride, padding=1, padding_mode="circular")], out, stride
        dilation = 1 if circular else draw(st.sampled_from([1, 2]))
        return [*pad, nn.Conv2d(channels, out, kernel, stride, dilation=dilation)], out, stride
    if kind == "grouped":
        return [*pad, nn.Conv2d(channels, 2 * channels, kernel, stride, groups=channels, bias=False)], 2 * channels, stride
    if kind == "max":
        return [*pad, nn.MaxPool2d(kernel, stride)], channels, stride
    if kind == "average":
        return [*pad, nn.AvgPool2d(kernel, stride)], channels, stride
    if kind == "norm":
        norm = nn.BatchNorm2d(channels)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        return [norm], channels, 1
    if kind == "activation":
        return [draw(st.sampled_from([nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.ReLU(inplace=True)]))], channels, 1
    if kind == "ours":
        return ours(draw, stride, pad, kernel, circular=circular), channels, stride
    if kind == "blur" and not circular:
        return [Blur(channels, stride)], channels, stride
    # Both branches must align: without padding their kernels must have one size.
    left = nn.Sequential(*pad, nn.Conv2d(channels, channels, kernel, stride), nn.ReLU())
    if circular:
        right: nn.Module = nn.Sequential(nn.Conv2d(channels, channels, 1, stride))
    else:
        right = nn.Sequential(nn.MaxPool2d(kernel, stride))
    join = "cat" if kind == "cat" else "sum"
    return [Residual(left, right, join=join)], channels * (2 if join == "cat" else 1), stride


@st.composite
def networks(draw: st.DrawFn, *, circular: bool) -> tuple[nn.Module, int, int]:
    """Draw a network, its input size and channels."""
    torch.manual_seed(draw(st.integers(0, 999)))
    size = draw(st.sampled_from([8, 12, 16])) if circular else draw(st.integers(10, 17))
    inputs = channels = draw(st.integers(1, 2))
    layers: list[nn.Module] = []
    left = size
    for _ in range(draw(st.integers(1, 5))):
        added, out, stride = block(draw, channels, circular=circular)
        if circular and left % stride:
            continue
        with torch.no_grad():
            try:
                nn.Sequential(*layers, *added).eval()(torch.zeros(1, inputs, size, size))
            except (RuntimeError, InputError):  # the map has become too small for the kernel
                continue
        layers += added
        channels, left = out, left // stride
    with torch.no_grad():
        shape = nn.Sequential(*layers).eval()(torch.zeros(1, inputs, size, size)).shape
    head = draw(st.sampled_from(["flatten", "gap", "deep"]))
    if head == "gap":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[1], 3)]
    else:
        layers += [nn.Flatten(), nn.Linear(shape[1:].numel(), 3)]
    if head == "deep":
        layers += [nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 4)]
    return nn.Sequential(*layers).eval(), size, inputs


def slow_outputs(model: nn.Module, images: Tensor, shifts: Tensor, mode: str, fill: float) -> Tensor:
    """Run the model on one image and one shift at a time, moved pixel by pixel."""
    out = []
    size = images.shape[2]
    with torch.no_grad():
        for image in images:
            for dy, dx in shifts.tolist():
                if mode == "circular":
                    moved = image.roll((dy, dx), (1, 2))
                else:
                    moved = torch.full_like(image, fill)
                    for y in range(size):
                        for x in range(size):
                            if 0 <= y - dy < size and 0 <= x - dx < size:
                                moved[:, y, x] = image[:, y - dy, x - dx]
                out.append(model(moved[None])[0])
    return torch.stack(out).reshape(len(images), len(shifts), -1)


def content(size: int, channels: int, margin: int, fill: float, seed: int) -> Tensor:
    """Images of one colour with random content in the middle."""
    images = torch.full((2, channels, size, size), fill)
    inner = images[:, :, margin : size - margin, margin : size - margin]
    inner.copy_(torch.rand(inner.shape, generator=torch.Generator().manual_seed(seed)))
    return images


@given(data=st.data(), mode=st.sampled_from(["zero", "circular"]), margin=st.integers(0, 4), fill=st.sampled_from([0.0, 0.4]))
@settings(deadline=None, max_examples=60)
def test_dense_equals_slow_reference(data: st.DataObject, mode: str, margin: int, fill: float) -> None:
    model, size, channels = data.draw(networks(circular=mode == "circular"))
    count = data.draw(st.integers(1, 7))
    reach = data.draw(st.integers(0, size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    shifts = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    images = content(size, channels, margin, fill, count)
    found = shift_outputs(model, images, shifts, mode=mode, fill=fill, method="dense")
    expected = slow_outputs(model, images, shifts, mode, fill)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(found.reference, model(images), rtol=1e-4, atol=1e-5)


@given(
    factor=st.sampled_from([1, 2, 4, 8]),
    pool_kernel=st.integers(2, 3),
    pool=st.sampled_from(["max", "average"]),
    head=st.sampled_from(["flatten", "gap"]),
    padding=st.sampled_from(["valid", "circular"]),
    antialias=st.integers(1, 3),
)
@settings(deadline=None, max_examples=25)
def test_dense_for_the_papers_networks_equals_direct(factor: int, pool_kernel: int, antialias: int, **how: str) -> None:
    sizes = {"channels": (3, 4, 5), "input_size": 48, "factor": factor, "pool_kernel": pool_kernel, "antialias": antialias}
    spec = NetworkSpec.model_validate(sizes | how)
    padding = spec.padding
    model = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    model.normalise.mean.fill_(0.2)
    mode = "circular" if padding == "circular" else "zero"
    images = content(48, 1, 17, 0.0, 0)
    steps = torch.tensor([-4, -1, 0, 3])
    shifts = torch.cartesian_prod(steps, steps)
    dense, direct = (shift_outputs(model, images, shifts, mode=mode, method=method) for method in ("auto", "direct"))
    assert dense.method == "dense"
    assert "stationary" in dense.reason
    torch.testing.assert_close(dense.values, direct.values, rtol=1e-4, atol=1e-5)


def test_shift_outputs_of_cropping_model_moves_real_content_in() -> None:
    model = build(NetworkSpec(channels=(3, 4), factor=2, input_size=20), generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(2, 1, 31, 29, generator=torch.Generator().manual_seed(0))
    found = shift_outputs(lambda large: model(large[:, :, 5:25, 4:24]), images, torch.tensor([[3, -2]]), mode="circular")
    with torch.no_grad():
        expected = model(images[:, :, 5 - 3 : 25 - 3, 4 + 2 : 24 + 2])  # content moves down by 3, left by 2
    torch.testing.assert_close(found.values[:, 0], expected)


class Attention(nn.Module):
    """Attention between all positions."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return (flat.transpose(1, 2) @ flat).softmax(-1).mean(1)


class Branching(nn.Module):
    """A branch that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Overwriting(nn.Module):
    """Reads a map after an in-place operation on it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x - 0.5
        z = self.act(y)
        return (z + y).mean((2, 3))


class Calling(nn.Module):
    """Calls a function of its input, written as a user may write it."""

    def __init__(self, call) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, self.conv = call, nn.Conv2d(2, 2, 3)
        self.one, self.two = nn.Linear(200, 3), nn.Linear(200, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def preactivation(model: Calling, x: Tensor) -> Tensor:
    h = model.conv(x)
    shortcut = h.contiguous()
    return (nn.functional.relu(h, inplace=True) + shortcut).mean((2, 3))


def sequential(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


HOOKED = sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
HOOKED[0].register_forward_hook(lambda *_: None)
PATCHED = sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
PATCHED.forward = (lambda forward: lambda images: forward(images.where(images.amax((1, 2, 3), True) > 0.9, images * 2)))(
    PATCHED.forward
)


class Called(nn.Sequential):
    """Brightens faint images before its class's ``forward``."""

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(images.where(images.amax((1, 2, 3), True) > 0.9, images * 2))


@pytest.mark.parametrize(
    ("model", "mode", "reason"),
    [
        (sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "`0` pads with zeros"),
        (sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "circular", "`0` pads with zeros"),
        (sequential(nn.ZeroPad2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "`0` pads with zeros"),
        (sequential(nn.ReflectionPad2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "ReflectionPad2d"),
        (sequential(circular_pad(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "exact under circular shifts only"),
        (
            sequential(circular_pad(3), circular_pad(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "circular",
            "does not cover the torus",
        ),
        (sequential(nn.MaxPool2d(3, 2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "pads its map"),
        (sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "rounds its size up"),
        (sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), "zero", "adaptive pooling to more than one position"),
        (sequential(BlurPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "continues its map by reflect"),
        (
            sequential(AdaptivePolyphaseSampling(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "circular",
            "AdaptivePolyphaseSampling) has no exact rule",
        ),
        (sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), "zero", "AdaptiveMaxPool2d"),
        (sequential(nn.InstanceNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "InstanceNorm2d"),
        (
            sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "zero",
            "from the batch",
        ),
        (sequential(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "Upsample"),
        (sequential(nn.Linear(12, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "zero", "acts along the last axis"),
        (Attention().eval(), "zero", "has an exact rule for all axes but the first only"),
        (Branching().eval(), "zero", "cannot be traced"),
        (Overwriting().eval(), "zero", "overwrites what is used again"),
        (HOOKED, "zero", "forward hook"),
        (PATCHED, "zero", "code besides its class's `forward`"),
        (Called(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "zero", "code besides its class's `forward`"),
        (lambda batch: batch.mean((2, 3)), "zero", "plain callable"),
    ],
)
def test_auto_where_dense_is_not_exact_is_direct_with_reason(model, mode: str, reason: str) -> None:
    images = content(12, 2, 2, 0.0, 0)
    found = shift_outputs(model, images, grid(2), mode=mode)
    assert found.method == "direct"
    assert reason in found.reason
    if "batch" not in reason:  # normalising by the batch has no outputs of single images
        torch.testing.assert_close(found.values, slow_outputs(model, images, grid(2), mode, 0.0), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="'dense' is not exact here"):
        shift_outputs(model, images, grid(2), mode=mode, method="dense")


@pytest.mark.parametrize(
    ("call", "method"),
    [
        (lambda m, x: m.conv(x).mean((2, 3), dtype=torch.float32), "direct"),
        (lambda m, x: m.conv(x).mean(axis=(2, 3)), "direct"),
        (lambda m, x: torch.mean(input=m.conv(x), dim=(2, 3)), "dense"),
        (lambda m, x: torch.cat([x, m.conv(x)[:, :, :1, :1].expand_as(x)], axis=1).mean((2, 3)), "direct"),
        (lambda m, x: torch.cat(tensors=[x, x], dim=1).mean((2, 3)), "direct"),
        (lambda m, x: nn.functional.avg_pool2d(input=x, kernel_size=2).mean((2, 3)), "dense"),
        (lambda m, x: m.conv(input=x).mean((2, 3)), "dense"),
        (lambda m, x: torch.relu(input=x).mean((2, 3)), "dense"),
        (lambda m, x: x.add(m.conv(x).mean((2, 3), keepdim=True), alpha=2).mean((2, 3)), "direct"),
        (lambda m, x: x.div(0.3, rounding_mode="floor").mean((2, 3)), "direct"),
        (preactivation, "direct"),
        (lambda m, x: nn.functional.dropout(m.conv(x), 0.5, training=m.training).mean((2, 3)), "dense"),
        (lambda m, x: (nn.functional.dropout(x, training=m.training, inplace=True) + x).mean((2, 3)), "dense"),
        (lambda m, x: nn.functional.max_pool2d(m.conv(x), 2, stride=1).mean((2, 3)), "dense"),
        (lambda m, x: m.conv(x).view(x.size(0), -1) @ m.one.weight.T, "direct"),
        (lambda m, x: m.one(m.conv(x).reshape(x.shape[0], -1)), "dense"),
        (lambda m, x: m.one(m.conv(x).flatten(1)) + m.two(m.conv(x).flatten(1)), "dense"),
        (
            lambda m, x: (
                nn.functional.linear(m.conv(x).flatten(1), m.one.weight)
                - nn.functional.linear(m.conv(x).flatten(1), m.two.weight)
            ),
            "dense",
        ),
    ],
)
def test_auto_for_any_way_to_write_a_model_equals_slow_reference(call, method: str) -> None:
    model = Calling(call).eval()
    images = content(12, 2, 2, 0.0, 0)
    found = shift_outputs(model, images, grid(3))
    assert found.method == method, found.reason
    torch.testing.assert_close(found.values, slow_outputs(model, images, grid(3), "zero", 0.0), rtol=1e-4, atol=1e-5)


def test_auto_with_dropout_in_evaluation_is_direct() -> None:
    found = shift_outputs(
        Calling(lambda m, x: nn.functional.dropout(x, 0.5).mean((2, 3))).eval(), content(12, 2, 2, 0.0, 0), grid(2)
    )
    assert (found.method, "drops in evaluation mode" in found.reason) == ("direct", True)


@pytest.mark.parametrize("mode", ["zero", "circular"])
def test_auto_in_double_precision_is_direct(mode: str) -> None:
    model = Calling(lambda m, x: m.conv(x).mean((2, 3))).eval().double()
    images = content(12, 2, 2, 0.0, 0).double()
    found = shift_outputs(model, images, grid(2), mode=mode)
    assert "single precision" in found.reason
    expected = slow_outputs(model, images, grid(2), mode, 0.0).float()
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)


def test_dense_of_outputs_that_cancel_agrees_with_direct() -> None:
    """A derivative averages to zero on a torus: its outputs are rounding, which differs between the two methods."""
    derivative = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular", bias=False)
    taps = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    derivative.weight.data = torch.stack([taps, taps.T, taps + taps.T])[:, None]
    model = sequential(derivative, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = shift_outputs(model, content(16, 1, 0, 0.0, 0), grid(3), mode="circular")
    assert found.method == "dense"
    assert found.values.abs().max() < 1e-5


class OwnConvolution(nn.Conv2d):
    """A convolution that cannot be traced and does something else on bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1 if x.mean() > 0.3 else 0)


class OwnActivation(nn.ReLU):
    """An activation with a call of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.relu(x) + x.mean()


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x.amax(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return layer


@pytest.mark.parametrize(
    "layer", [OwnConvolution(2, 3, 3), nn.Sequential(nn.Conv2d(2, 3, 3), OwnActivation()), patched(nn.Conv2d(2, 3, 3))]
)
def test_auto_of_layers_with_code_of_their_own_is_direct(layer: nn.Module) -> None:
    model, images = sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()), content(12, 2, 2, 0.0, 0)[:1]
    found = shift_outputs(model, images, grid(2))
    assert found.method == "direct", found.reason
    torch.testing.assert_close(found.values, slow_outputs(model, images, grid(2), "zero", 0.0))


@contextmanager
def brighter_outputs(threshold: float) -> Iterator[None]:
    """Let convolutions return something else on bright images, by a hook that no graph shows."""

    def hook(module: nn.Module, _: object, out: Tensor) -> Tensor:
        return out + (out.mean(dim=(1, 2, 3), keepdim=True) > threshold) if isinstance(module, nn.Conv2d) else out

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def averaging() -> nn.Module:
    """A network whose outputs grow with the brightness of the image."""
    model = sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data.fill_(0.1)
    model[0].bias.data.zero_()
    return model


def test_block_in_which_dense_differs_and_the_rest_go_direct() -> None:
    dark, bright = 0.1 * torch.rand(8, 1, 12, 12), torch.rand(8, 1, 12, 12)
    batches = torch.cat([dark, bright, dark]).split(8)
    with (
        brighter_outputs(0.2),
        pytest.warns(UserWarning, match="one by one for 8 images, because dense and direct outputs differ"),
    ):
        found = list(stream_outputs(averaging(), iter(batches), grid(2)))
    assert [block.method for block in found] == ["dense", "direct", "direct"]
    assert [block.fell_back for block in found] == [False, True, False]
    with brighter_outputs(0.2):
        expected = slow_outputs(averaging(), bright, grid(2), "zero", 0.0)
    torch.testing.assert_close(found[1].values, expected)


def test_dense_that_differs_where_it_is_asked_for_raises_error() -> None:
    with brighter_outputs(0.2), pytest.raises(InputError, match="'dense' is not exact here: dense and direct outputs differ"):
        shift_outputs(averaging(), torch.rand(8, 1, 12, 12), grid(2), method="dense")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_memory_that_runs_out_in_a_later_dense_block_goes_direct(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    images, calls, average = torch.rand(6, 1, 12, 12), iter(range(100)), sheets.global_average

    def scarce(*arguments: object) -> object:
        if next(calls) > 1:
            raise error
        return average(*arguments)

    monkeypatch.setattr(operators, "global_average", scarce)
    with pytest.warns(UserWarning, match="out of memory in a dense pass|dense passes of 1 images"):
        found = list(stream_outputs(averaging(), images.split(2), grid(2)))
    assert [block.method for block in found] == ["dense", "direct", "direct"]
    torch.testing.assert_close(
        torch.cat([block.values for block in found]), slow_outputs(averaging(), images, grid(2), "zero", 0.0)
    )


def test_memory_that_runs_out_in_a_later_dense_block_is_answered_by_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    images, sizes, average = torch.rand(12, 1, 12, 12), [], sheets.global_average

    def scarce(sheet: sheets.Sheet, *arguments: object) -> object:
        sizes.append(len(sheet.maps))
        if sizes[-1] > 3:
            raise MemoryError
        return average(sheet, *arguments)

    monkeypatch.setattr(operators, "global_average", scarce)
    with pytest.warns(UserWarning, match="out of memory; continuing with dense passes of 3 images"):
        found = list(stream_outputs(averaging(), images.split(6), grid(2)))
    assert [block.method for block in found] == ["dense", "dense"]
    torch.testing.assert_close(
        torch.cat([block.values for block in found]), slow_outputs(averaging(), images, grid(2), "zero", 0.0)
    )


def test_dense_where_products_have_fewer_bits_is_compared_with_all_bits() -> None:
    switch = torch.backends.mkldnn.matmul
    if not hasattr(switch, "fp32_precision"):
        pytest.skip("this PyTorch has no such setting")
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        found = shift_outputs(averaging(), torch.rand(8, 1, 12, 12), grid(2))
        assert (found.method, switch.fp32_precision) == ("dense", "bf16")
    finally:
        switch.fp32_precision = before


def test_trace_of_plain_callable_raises_error() -> None:
    with pytest.raises(NotDenseError, match="plain callable"):
        trace(lambda batch: batch)


@pytest.mark.parametrize("fill", [0.0, 0.3])
def test_dense_of_empty_canvas_is_constant_over_shifts(fill: float) -> None:
    model = build(NetworkSpec(channels=(3, 4), factor=4, input_size=20), generator=torch.Generator().manual_seed(0)).eval()
    found = shift_outputs(model, torch.full((2, 1, 20, 20), fill), grid(2), fill=fill, method="dense")
    torch.testing.assert_close(found.values, found.reference[:, None].expand_as(found.values), rtol=1e-5, atol=1e-6)
