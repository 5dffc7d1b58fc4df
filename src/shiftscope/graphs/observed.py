"""Run a model's graph: the shapes of all values, and the part of the image that the middle of a map sees."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from shiftscope.graphs.probing import probe_images, restoring, restoring_modes, set_mode
from shiftscope.graphs.sites import Pair

__all__ = ["BATCH", "Pass", "extent_seen", "observe"]

#: Images in a pass. Values whose first axis differs (windows of attention) are not maps of whole images.
BATCH = 2


@dataclass(frozen=True)
class Pass:
    """Shapes of all values in one forward pass.

    Attributes:
        image: height and width of the images.
        shapes: node -> shape of its value; without nodes whose values are not tensors, and those after an error.
    """

    image: Pair
    shapes: dict[fx.Node, tuple[int, ...]]


def observe(model: nn.Module, traced: fx.GraphModule, image: tuple[int, int, int]) -> Pass:
    """Return the shapes of all values in a pass on random images, up to the first error if there is one.

    Args:
        model: the model that the graph was traced from; it is left as it was.
        traced: its graph.
        image: (channels, height, width).
    """
    recorder = _Recorder(traced)
    with torch.no_grad():
        _run(model, recorder, probe_images(model, image)[0])
    return Pass((image[1], image[2]), recorder.shapes)


def extent_seen(
    model: nn.Module, traced: fx.GraphModule, image: tuple[int, int, int], node: fx.Node, place: tuple[slice | int, ...]
) -> Pair | None:
    """Return height and width of the part of a random image that a place of a node's value depends on, by its gradient.

    Args:
        model: the model that the graph was traced from; it is left as it was.
        traced: its graph.
        image: (channels, height, width).
        node: the node.
        place: index of the place in the node's value.

    Returns:
        pixels, at most the image's; None if there is no gradient, or the model overwrites what a gradient needs.
    """
    images = probe_images(model, image)[0].requires_grad_()
    recorder = _Recorder(traced, node)
    try:
        _run(model, recorder, images * 1)  # a leaf that needs a gradient could not be overwritten
        if recorder.value is None or not recorder.value.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(_weighted_sum(recorder.value[place]), images)
    except RuntimeError:  # PyTorch's, for values overwritten in place and for functions that have no derivative
        return None
    touched = gradient.abs().sum(dim=(0, 1)) > 0
    down, right = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    return (int(down[-1] - down[0]) + 1, int(right[-1] - right[0]) + 1) if len(down) else None


def _weighted_sum(part: Tensor) -> Tensor:
    """Return a random combination of values, for the plain sum of a norm's outputs has no gradient."""
    weights = torch.randn(part.shape, generator=torch.Generator().manual_seed(1)).to(part)
    total = (part * weights).sum()
    return total.real + total.imag if total.is_complex() else total  # a spectrum is complex


def _run(model: nn.Module, recorder: _Recorder, images: Tensor) -> None:
    with restoring(model), restoring_modes(recorder.module), suppress(Exception):  # whatever the model raises on such images
        for module in (model, recorder.module):
            set_mode(module, training=False)
        recorder.run(images)


class _Done(Exception):  # noqa: N818 - it ends a pass early, and is not an error
    """Raised to end a pass once the requested node is computed."""


class _Recorder(fx.Interpreter):
    """Runs a graph node by node and keeps shapes, and the value of one node, after which it stops."""

    def __init__(self, traced: fx.GraphModule, last: fx.Node | None = None) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.last, self.value = last, None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep its value's shape."""
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self.shapes[n] = tuple(found.shape)
        if n is self.last:
            self.value = found
            raise _Done
        return found
