"""Anti-aliased pooling: a low-pass filter before every subsampling.

Subsampling folds what a map holds above half the new sampling rate onto what lies below, and how it folds depends on where the
object is: that is how stride breaks shift equivariance. A filter that takes out the upper half first leaves little to
fold (Zhang, "Making convolutional networks shift-invariant again", ICML 2019).

Ours differ from that paper's code in how they compute (:mod:`shiftscope.layers.resampling`), not in what: ``compat`` names the
library whose outputs and output sizes are reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.layers.maxima import max_filtered
from shiftscope.layers.resampling import Border, Filter, binomial, centred_margins, filtered

__all__ = ["BlurPool", "BlurPool1d", "BlurPool2d", "BlurPool3d", "Compat", "MaxBlurPool1d", "MaxBlurPool2d", "MaxBlurPool3d"]

#: A library whose layer of the same name is reproduced.
Compat = Literal["adobe", "kornia", "timm"]
#: The border each of them uses unless told otherwise.
BORDERS: dict[str, Border] = {"adobe": "reflect", "kornia": "zero", "timm": "reflect"}


class BlurPool(nn.Module):
    """What the layers of every number of axes share."""

    axes: ClassVar[int]
    max_kernel: tuple[int, ...] | None = None

    def __init__(
        self,
        filter_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        *,
        border: Border | None = None,
        taps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        if compat is not None and compat not in get_args(Compat):
            raise InputError(f"`compat` must be one of {', '.join(get_args(Compat))}, got {compat!r}.")
        weights = self._taps(filter_size, taps)
        steps = self._each(stride, "stride")
        sizes = tuple(len(axis) for axis in weights)
        if compat == "timm" and any(size % 2 == 0 or size == 1 for size in sizes):
            raise InputError(
                f"`compat='timm'` has odd filters from 3 on, got {sizes}: timm pads alike on both sides, so that an even filter "
                "would give maps of another size. Use an odd one, or compat 'adobe'."
            )
        margins = [centred_margins(size) for size in sizes]
        if compat == "timm":
            margins = [((step - 1 + size - 1) // 2,) * 2 for size, step in zip(sizes, steps, strict=True)]
        self.compat = compat
        self.filter = Filter(weights, steps, margins, border or BORDERS.get(compat or "", "reflect"))

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """The maps, filtered and subsampled."""
        self._check(maps)
        return filtered(maps, self.filter)

    def extra_repr(self) -> str:
        """The settings, as ``print`` shows them."""
        sizes = tuple(len(axis) for axis in self.filter.taps)
        how = f", compat={self.compat!r}" if self.compat else ""
        return f"filter_size={sizes}, stride={self.filter.stride}, border={self.filter.border!r}{how}"

    def _check(self, maps: Tensor) -> None:
        if maps.ndim != 2 + self.axes:
            raise InputError(f"{type(self).__name__} takes [image, channel{', position' * self.axes}], got {tuple(maps.shape)}.")
        if not maps.is_floating_point():
            raise InputError(f"{type(self).__name__} takes floating point maps, got {maps.dtype}.")

    def _taps(self, filter_size: int | Sequence[int], taps: Any) -> tuple[tuple[float, ...], ...]:
        if taps is None:
            return tuple(binomial(size) for size in self._each(filter_size, "filter_size"))
        listed = [torch.as_tensor(axis, dtype=torch.float64) for axis in taps]
        per_axis = listed if listed and listed[0].ndim == 1 else [torch.stack(listed)] * self.axes if listed else []
        if len(per_axis) != self.axes or any(axis.ndim != 1 or not len(axis) for axis in per_axis):
            raise InputError(f"`taps` must be weights along an axis, or one list of them for each of {self.axes} axes.")
        return tuple(tuple(axis.tolist()) for axis in per_axis)

    def _each(self, value: int | Sequence[int], name: str) -> tuple[int, ...]:
        values = (value,) * self.axes if isinstance(value, int) else tuple(value)
        if len(values) != self.axes:
            raise InputError(f"`{name}` must be one number or {self.axes}, got {values}.")
        return values

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept the filters that other libraries keep among their weights, if they are ours."""
        for name in ("filt", "1.filt", "kernel"):
            kept = state.pop(prefix + name, None)
            if kept is not None and not self._is_ours(kept):
                errors = rest[-1]
                errors.append(f"{prefix}{name} holds another filter than {self.extra_repr()}.")
        super()._load_from_state_dict(state, prefix, *rest)

    def _is_ours(self, kept: Tensor) -> bool:
        ours = torch.ones(())
        for taps in self.filter.taps:
            ours = ours[..., None] * torch.tensor(taps)
        return kept.shape[-self.axes :] == ours.shape and torch.allclose(kept.cpu().float(), ours.expand_as(kept), atol=1e-6)


class BlurPool1d(BlurPool):
    """:class:`BlurPool2d` along one axis: [image, channel, position]."""

    axes = 1


class BlurPool2d(BlurPool):
    """Filter, then keep every ``stride``-th position along each axis.

    ``y[i, j] = sum over a, b of taps[a] taps[b] x[stride i + a - before, stride j + b - before]``, with
    ``before = (filter_size - 1) // 2``. At stride 1 it filters and keeps every position.

    Args:
        filter_size: of the binomial filter, 1 to 7, one number or one for each axis; 1 does not filter.
        stride: keep every so many positions, one number or one for each axis.
        border: what lies beyond the map: its mirror image (``reflect``), its outermost value (``replicate``), ``zero``, its other
            end (``circular``), or nothing (``valid``: the filter stays inside). ``reflect`` unless ``compat`` says otherwise.
        taps: another separable filter, the same along each axis or a list for each.
        compat: reproduce ``adobe`` (antialiased-cnns), ``kornia`` or ``timm``: their border and, for timm, its margins of
            ``(stride + filter_size - 2) // 2`` on both sides. Adobe's margins are ours.

    Shape:
        [image, channel, height, width] -> [image, channel, ceil(height / stride), ceil(width / stride)], less
        ``filter_size - 1`` before the division where ``border`` is ``valid``.

    Raises:
        InputError: an impossible setting, an even filter under ``compat='timm'``; on use, maps that ``reflect`` or ``valid``
            cannot serve.

    Source: Zhang 2019, ``models_lpf``/``antialiased_cnns.BlurPool``. Theirs pads a copy and convolves it depthwise, needs the
    number of channels, and fails on maps that reflection cannot continue; ours does with any border that can.

    >>> BlurPool2d(filter_size=3, stride=2)(torch.eye(4)[None, None])[0, 0].tolist()
    [[0.5, 0.125], [0.125, 0.375]]
    """

    axes = 2


class BlurPool3d(BlurPool):
    """:class:`BlurPool2d` along three axes: [image, channel, depth, height, width]."""

    axes = 3


class _MaxBlurPool(BlurPool):
    """A maximum at every position, then :class:`BlurPool`."""

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 2,
        filter_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        *,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        border: Border | None = None,
        taps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        compat: Compat | None = None,
    ) -> None:
        super().__init__(filter_size, stride, border=border, taps=taps, compat=compat)
        self.kernel_size = self._each(kernel_size, "kernel_size")
        self.padding = self._each(padding, "padding")
        self.dilation = self._each(dilation, "dilation")
        if min(self.kernel_size) < 1 or min(self.dilation) < 1:
            raise InputError(f"`kernel_size` and `dilation` must be 1 or more, got {self.kernel_size} and {self.dilation}.")
        if any(not 0 <= 2 * pad <= kernel for pad, kernel in zip(self.padding, self.kernel_size, strict=True)):
            raise InputError(f"`padding` must be at most half of `kernel_size` {self.kernel_size}, got {self.padding}.")

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """The maps' maxima, filtered and subsampled."""
        self._check(maps)
        for size, kernel, padding, step in zip(maps.shape[2:], self.kernel_size, self.padding, self.dilation, strict=True):
            if not torch.compiler.is_exporting() and size + 2 * padding < step * (kernel - 1) + 1:
                raise InputError(
                    f"a maximum over {kernel} positions does not fit into a map of size {size}. Use a smaller `kernel_size` or "
                    "`padding`."
                )
        return max_filtered(maps, self.kernel_size, self.padding, self.dilation, self.filter)

    def extra_repr(self) -> str:
        """The settings, as ``print`` shows them."""
        return f"kernel_size={self.kernel_size}, padding={self.padding}, dilation={self.dilation}, {super().extra_repr()}"


class MaxBlurPool1d(_MaxBlurPool):
    """:class:`MaxBlurPool2d` along one axis: [image, channel, position]."""

    axes = 1


class MaxBlurPool2d(_MaxBlurPool):
    """A maximum at every position, filtered, then subsampled: max pooling whose stride does not alias.

    Args:
        kernel_size: positions the maximum is over, one number or one for each axis.
        filter_size: as in :class:`BlurPool2d`, like all that is not named here.
        stride: as there.
        padding: of the maximum, as in ``nn.MaxPool2d``.
        dilation: of the maximum, likewise.
        border: as there.
        taps: as there.
        compat: as there.

    Shape:
        [image, channel, height, width] -> the size that ``nn.MaxPool2d`` with this stride gives.

    Raises:
        InputError: as there; a maximum larger than the map.

    The gradient goes to the first of equal values, as ``nn.MaxPool2d``'s does; it is made from the input alone, so that nothing
    of the size of the map is kept for it. It can be taken once, not twice.

    Source: Zhang 2019. Theirs is ``nn.Sequential(nn.MaxPool2d(kernel, stride=1), BlurPool(...))``: the same values.

    >>> MaxBlurPool2d(kernel_size=2, filter_size=3)(torch.eye(6)[None, None]).shape
    torch.Size([1, 1, 3, 3])
    """

    axes = 2


class MaxBlurPool3d(_MaxBlurPool):
    """:class:`MaxBlurPool2d` along three axes: [image, channel, depth, height, width]."""

    axes = 3
