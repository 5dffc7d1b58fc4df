"""An activation that does not alias.

A nonlinearity creates new frequencies; those above half the sampling rate alias, in a way that depends on where the object is.
Upsampling before it makes room for them, and a low-pass filter after it removes them.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from shiftscope.errors import InputError
from shiftscope.layers.resampling import along_axes, may_cache, untraced

__all__ = ["AliasFreeActivation"]


class AliasFreeActivation(nn.Module):
    """Upsample, apply a nonlinearity, low-pass filter, downsample.

    Up- and downsampling are ideal and circular: they read a map as a discrete Fourier series. Circular shifts by multiples of
    ``1 / factor`` of a position then commute with the layer exactly, for every activation; shifts by any other fraction exactly
    for polynomials of degree up to ``2 factor - 1``, and approximately for other activations, better for larger ``factor``.

    Args:
        activation: a module that acts on each value alone.
        factor: how many times finer the map is after upsampling, 2 or more.

    Shape:
        [image, channel, *position] -> the same.

    Raises:
        InputError: `factor` is below 2.

    Source: Karras et al., "Alias-free generative adversarial networks", NeurIPS 2021, with filters of finite length; Michaeli,
    Michaeli and Soudry, "Alias-free convnets", CVPR 2023, with ideal filters and polynomials. Ours accepts any activation, and
    filters by one matrix per axis.

    >>> maps = torch.rand(1, 1, 3, 3)
    >>> bool(torch.allclose(AliasFreeActivation(nn.Identity())(maps), maps, atol=1e-6))
    True
    """

    def __init__(self, activation: nn.Module, *, factor: int = 2) -> None:
        super().__init__()
        if factor < 2:
            raise InputError(
                f"`factor` must be 2 or more, got {factor}.", "Without upsampling there is no room for new frequencies."
            )
        self.activation, self.factor = activation, factor

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """Apply the activation to the upsampled maps and return to their size."""
        kind = maps.dtype, maps.device
        with torch.autocast(maps.device.type, enabled=False):
            make = _cached_resampling if may_cache() else _resampling
            with untraced() if is_tracing() else nullcontext():
                sizes = maps.shape[2:]  # constants of traced code, as the matrices are
                up = [make(size, size * self.factor, *kind) for size in sizes]
                down = [make(size * self.factor, size, *kind) for size in sizes]
            back: Tensor = self.activation(along_axes(maps, up))
            return along_axes(back.to(maps.dtype), down)


@lru_cache(maxsize=64)
def _cached_resampling(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a cached matrix, an ordinary tensor even if the first call is in inference mode."""
    with torch.inference_mode(False):
        return _resampling(before, after, dtype, device)


def _resampling(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "after before"]:
    """Return the matrix of ideal circular resampling: all frequencies of both rates, an even rate's highest as a cosine."""
    spectrum = torch.fft.rfft(torch.eye(before, dtype=torch.float64), dim=0)
    rate = min(before, after)
    if rate % 2 == 0:
        # At the lower rate its two signs fall together: halved going up, doubled (as the real part) going down.
        spectrum[rate // 2] *= 0.5 if after > before else 2.0
    spectrum = spectrum[: rate // 2 + 1]
    matrix: Tensor = torch.fft.irfft(spectrum, n=after, dim=0) * (after / before)
    return matrix.contiguous().to(device, dtype)
