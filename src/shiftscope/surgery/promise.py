"""Try a copy that should be equivariant: in double precision, under random circular shifts of random images."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from shiftscope.errors import InputError
from shiftscope.graphs.geometry import Geometry, read_geometry
from shiftscope.graphs.invariance import random_steps
from shiftscope.graphs.naming import subject
from shiftscope.graphs.positions import Head, head_kind
from shiftscope.similarity import largest_difference
from shiftscope.surgery.editor import Editor
from shiftscope.surgery.plan import TOLERANCE, Promise

__all__ = ["try_promise"]

SHIFTS = 3


def try_promise(model: nn.Module, editor: Editor, head: Head, image: tuple[int, int, int]) -> Promise:
    """Return whether circular shifts leave a copy's outputs as they are, or move the map before a head that flattens along.

    Args:
        model: the copy; it is left as it was.
        editor: its graph.
        head: how it takes positions away.
        image: (channels, height, width) of its input.
    """
    images = _shifted(image)
    try:
        with torch.no_grad():
            error = _map_error(editor, images) if head == "flatten" else _output_error(model, images)
    except Exception:  # whatever the copy raises in double precision
        error = None
    reasons = () if error is None or error <= TOLERANCE else _reasons(model, image, head)
    return Promise(error, "last map" if head == "flatten" else "outputs", reasons)


def _shifted(image: tuple[int, int, int]) -> Tensor:
    """Return a random image, shifted ones (by 1 pixel along both axes, and randomly), and last another random image."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(1, *image, generator=generator, dtype=torch.float64)
    shifts = random_steps(SHIFTS, image[1:], (1, 1))
    other = torch.rand(1, *image, generator=generator, dtype=torch.float64)
    return torch.cat([first, *(first.roll(shift, (2, 3)) for shift in shifts), other])


def _output_error(model: nn.Module, images: Tensor) -> float | None:
    """Return how far shifts change the output that they change most; None where no image changes any."""
    outputs = [each for each in tree_leaves(_double(model)(images)) if isinstance(each, Tensor)]
    if all(largest_difference(each[-1:], each[:1]) <= TOLERANCE for each in outputs):
        return None
    return max(largest_difference(each[1:-1], each[:1].expand_as(each[1:-1])) for each in outputs)


def _map_error(editor: Editor, images: Tensor) -> float:
    """Return the difference between maps before the head, displaced as it is smallest; of several heads, the largest."""
    copy = _double(editor.module)
    return max(_error_before(copy, node, images) for node in copy.graph.nodes if _flattens(editor, node))


def _flattens(editor: Editor, node: fx.Node) -> bool:
    return head_kind(editor, node, "channels first") == "flatten"


def _error_before(copy: fx.GraphModule, node: fx.Node, images: Tensor) -> float:
    """Return the difference between maps that a node receives, displaced as it is smallest."""
    copy.graph.output_node().args = (node.all_input_nodes[0],)
    copy.recompile()
    maps = copy(images[:-1])
    if maps.ndim != 4:
        return largest_difference(maps[1:], maps[:1].expand_as(maps[1:]))
    places = [(down, right) for down in range(maps.shape[2]) for right in range(maps.shape[3])]
    return max(min(largest_difference(each[None].roll(place, (2, 3)), maps[:1]) for place in places) for each in maps[1:])


def _double(model: Any) -> Any:
    """Return a copy in double precision, in which weights of zero are random: they would hide what a layer does."""
    copy, generator = deepcopy(model).cpu().double().eval(), torch.Generator().manual_seed(1)
    for value in copy.parameters():
        if not value.any():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return copy


def _reasons(model: nn.Module, image: tuple[int, int, int], head: Head) -> tuple[str, ...]:
    """Return why a copy is not equivariant, by its graph."""
    found = read_geometry(model, image)
    if isinstance(found, InputError):
        return (f"its graph does not say why ({found.problem.rstrip('.')})",)
    return tuple(_graph_reasons(found, head)) or ("some layer does not do what its type says",)


def _graph_reasons(found: Geometry, head: Head) -> list[str]:
    plain = [each.name for each in found.subsamplings if not each.polyphase]
    open_borders = [name for name, border in found.borders.items() if border != "circular"]
    misfits = [name for name in found.misfits if name not in open_borders]
    reasons = []
    if plain:
        reasons.append(f"{subject(plain, 'keep')} the same positions whatever the map holds")
    if open_borders:
        reasons.append(f"{subject(open_borders, 'do not pad')} circularly")
    if misfits:
        reasons.append(f"{subject(misfits, 'do not pad')} by what their windows read")
    if found.unknown:
        reasons.append(f"it is not known how {subject(found.unknown, 'treat')} positions")
    if head == "other" and not reasons:
        reasons.append("it is not known how the head uses positions")
    return reasons
