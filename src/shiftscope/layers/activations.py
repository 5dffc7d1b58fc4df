"""An activation that does not alias.

A nonlinearity makes frequencies that its input did not hold; those above half the sampling rate fold back, and how depends on
where the object is. Between an upsampling and a low-pass filter there is room for them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.layers.resampling import along_axes, may_keep

__all__ = ["AliasFreeActivation"]


class AliasFreeActivation(nn.Module):
    """Upsample, apply a nonlinearity, take out what is above the first sampling rate, downsample.

    Up- and downsampling are ideal and circular: a map is read as a sum of waves (a discrete Fourier series). Circular shifts by
    multiples of ``1 / factor`` of a position then commute with it exactly, whatever the activation; any other part of a position
    exactly where the activation is a polynomial of degree up to ``2 factor - 1``, and nearly for others, the more so, the
    larger ``factor`` is.

    Args:
        activation: acts on each value alone.
        factor: positions between two, after upsampling.

    Shape:
        [image, channel, *position] -> the same.

    Raises:
        InputError: a factor below 2.

    Source: Karras et al., "Alias-free generative adversarial networks", NeurIPS 2021, with filters of finite length; Michaeli,
    Michaeli and Soudry, "Alias-free convnets", CVPR 2023, with ideal filters and polynomials. Ours takes any activation, and
    filters by a matrix an axis.

    >>> maps = torch.rand(1, 1, 3, 3)
    >>> bool(torch.allclose(AliasFreeActivation(nn.Identity())(maps), maps, atol=1e-6))
    True
    """

    def __init__(self, activation: nn.Module, *, factor: int = 2) -> None:
        super().__init__()
        if factor < 2:
            raise InputError(
                f"`factor` must be 2 or more, got {factor}: without upsampling there is no room for new frequencies."
            )
        self.activation, self.factor = activation, factor

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """The activation's values, low-passed."""
        sizes, kind = maps.shape[2:], (maps.dtype, maps.device)
        with torch.autocast(maps.device.type, enabled=False):
            make = _kept if may_keep() else _resampling
            fine = along_axes(maps, [make(size, size * self.factor, *kind) for size in sizes])
            back: Tensor = self.activation(fine)
            return along_axes(back.to(maps.dtype), [make(size * self.factor, size, *kind) for size in sizes])


@lru_cache(maxsize=64)
def _kept(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A matrix for many calls, which may need gradients though the first does not."""
    with torch.inference_mode(False):
        return _resampling(before, after, dtype, device)


def _resampling(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "after before"]:
    """Ideal circular resampling: the waves that both rates can hold, the highest of an even rate as a cosine."""
    spectrum = torch.fft.rfft(torch.eye(before, dtype=torch.float64), dim=0)
    kept = min(before, after)
    if kept % 2 == 0:
        # At the lower rate its two signs fall together: halved going up, doubled (as the real part) going down.
        spectrum[kept // 2] *= 0.5 if after > before else 2.0
    spectrum = spectrum[: kept // 2 + 1]
    matrix: Tensor = torch.fft.irfft(spectrum, n=after, dim=0) * (after / before)
    return matrix.contiguous().to(device, dtype)
