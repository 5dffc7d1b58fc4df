"""Check on the model itself what its graph says about shifts.

A graph is read by the types of its layers, and a layer may do something else: a subclass with a ``forward`` of its own, a hook, a
weight with a value for each position. So whatever follows from a graph is tried: in double precision, at random circular shifts,
with the model's weights and with random ones, because weights of zero hide what a layer does.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, fx, nn

from shiftscope.graphs.geometry import Geometry
from shiftscope.graphs.tracing import trace

__all__ = ["TOLERANCE", "equivariance_error", "invariance_error", "probe_shape"]

#: Relative differences below this are rounding in double precision.
TOLERANCE = 1e-9
SHIFTS = 4


def invariance_error(model: nn.Module, image: tuple[int, int, int]) -> float | None:
    """Return the largest relative change of a model's outputs under random circular shifts by whole pixels.

    Args:
        model: the model; a copy in double precision is tried.
        image: (channels, height, width) of its input.

    Returns:
        the larger of two numbers, with the model's weights and with random ones; None if the model cannot be copied or run.
    """

    def error(copy: nn.Module) -> float | None:
        images, shifts = _probes(image, (1, 1))
        before = copy(images)
        if _difference(before[:1], before[1:]) <= TOLERANCE:
            return None  # outputs that are the same for any image say nothing about shifts
        return max(_difference(copy(images.roll(shift, (2, 3))), before) for shift in shifts)

    return _worst(model, error)


def equivariance_error(model: nn.Module, geometry: Geometry, image: tuple[int, int, int]) -> float | None:
    """Return how far the map before the head is from moving along with circular shifts by multiples of the subsampling factor.

    Args:
        model: the model; a copy in double precision is tried.
        geometry: what its graph says.
        image: (channels, height, width) of its input.

    Returns:
        the largest relative difference, with the model's weights and with random ones; None if it cannot be tried.
    """
    dims = (1, 2) if geometry.last.layout == "channels last" else (2, 3)

    def error(copy: nn.Module) -> float:
        features = _before_head(copy, geometry.head_name)
        images, shifts = _probes(image, geometry.lattice)
        before = features(images)
        steps = [(down // geometry.factor[0], right // geometry.factor[1]) for down, right in shifts]
        return max(
            _difference(features(images.roll(shift, (2, 3))), before.roll(step, dims))
            for shift, step in zip(shifts, steps, strict=True)
        )

    return _worst(model, error)


def probe_shape(model: nn.Module, geometry: Geometry) -> tuple[int, int, int]:
    """Return (channels, height, width) of images on which to try a model whose input is not known: eight positions a side."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return (first.in_channels if first is not None else 3, 8 * geometry.lattice[0], 8 * geometry.lattice[1])


def _worst(model: nn.Module, error: Callable[[nn.Module], float | None]) -> float | None:
    """Return the larger error of a model's copy with its own weights and with random ones; None if one cannot be computed."""
    try:
        copy = deepcopy(model).cpu().double().eval()
        with torch.no_grad():
            own = error(copy)
            _redraw(copy)
            redrawn = error(copy)
            return None if redrawn is None else max(own or 0.0, redrawn)
    except Exception:  # whatever the model raises on a copy, in double precision, or on images of this size
        return None


def _redraw(model: nn.Module) -> None:
    """Replace parameters and running statistics by random numbers of a similar size."""
    generator = torch.Generator().manual_seed(0)

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)

    value: Tensor
    for value in model.parameters():
        spread = float(value.std()) if value.numel() > 1 else 0.0
        value.copy_(value.mean() + normal(value) * spread if spread > 0 else 0.1 * normal(value))
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.add_(0.1 * normal(value))
        elif name.endswith("running_var"):
            value.mul_(1 + 0.5 * normal(value).abs())


def _probes(image: tuple[int, int, int], step: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return random images and random shifts by multiples of a step, none of which is zero."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image, generator=generator, dtype=torch.float64)
    images[1] = 6 * images[1] - 3
    shifts = [(step[0], 0), (0, step[1])]
    for _ in range(SHIFTS - len(shifts)):
        drawn = (
            each * int(torch.randint(1, max(2, size // each), (1,), generator=generator))
            for each, size in zip(step, image[1:], strict=True)
        )
        shifts.append((next(drawn), next(drawn)))
    return images, shifts


def _before_head(model: nn.Module, head: str) -> fx.GraphModule:
    """Return a model's graph up to the map that its head receives."""
    traced = trace(model)
    node = [each for each in traced.graph.nodes if head in (each.name, str(each.target))][-1]  # earlier calls are gates
    traced.graph.output_node().args = (node.all_input_nodes[0],)
    traced.recompile()
    return traced


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite where one is not finite."""
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-300))
