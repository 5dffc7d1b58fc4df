"""The dense way: from images and shifts to the sheet, through the traced model, and back to one output for each shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shiftscope.engine.direct import Direct, Model, World, finite
from shiftscope.engine.graph import Tracer, trace
from shiftscope.engine.sheets import Layout, NotDenseError
from shiftscope.errors import InputError

__all__ = ["Dense", "Method", "choose"]

Method = Literal["auto", "direct", "dense"]

#: Values that the widest map of a dense pass may hold, so that it stays near the processor.
DENSE_VALUES = 4_000_000
DENSE_BATCH = 32
#: With so few shifts, running the model on each copy costs less than dense's larger maps.
FEWEST_DENSE_SHIFTS = 6
CHECKED_IMAGES, CHECKED_SHIFTS = 2, 5
#: Largest difference of dense to direct relative to the output's norm; single precision leaves about 1e-6.
TOLERANCE = 1e-3
#: Outputs smaller than this share of the images' norm count as so large.
LEAST_SCALE = 1e-4


@dataclass
class Dense:
    """The traced model, run once on what all shifts see."""

    tracer: Tracer
    world: World
    device: torch.device
    layout: Layout
    picks: tuple[Tensor, Tensor]
    block: int

    def __call__(self, images: Tensor) -> Tensor:
        """Outputs [image, shift, class]."""
        images = images.to(self.device)
        maps, background, corner = self._box(images)
        outputs = self.tracer(maps.contiguous(memory_format=torch.channels_last), background, corner, self.layout)
        rows, columns = self.picks
        return finite(outputs[:, rows, columns]).float().cpu()

    def _box(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The images less the background, on a box that holds all that differs from it, and where that begins in P."""
        if self.world.mode != "zero":
            return images, torch.zeros(images.shape[1], device=images.device), (0, 0)
        background = self.world.background(images)
        rest = images - background[:, None, None]
        content = (rest != 0).any(dim=0).any(dim=0)
        rows, columns = (content.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        if len(rows) == 0:
            return rest[:, :, :1, :1], background, (0, 0)
        (top, bottom), (left, right) = ((int(places[0]), int(places[-1]) + 1) for places in (rows, columns))
        return rest[:, :, top:bottom, left:right], background, (top, left)


def choose(
    model: Model,
    images: Tensor,
    shifts: Tensor,
    world: World,
    device: torch.device,
    method: Method,
    direct: Direct,
    batch_size: int | None,
) -> tuple[Dense | None, str]:
    """Dense where it is exact and pays, and why not elsewhere."""
    if method == "direct":
        return None, "Direct was asked for."
    try:
        if shifts.is_floating_point():
            raise NotDenseError("shifts in parts of pixels are interpolated")
        if shifts.ndim == 3:
            raise NotDenseError("each image has shifts of its own")
        if direct.precision != "fp32":
            raise NotDenseError("mixed precision was asked for")
        if not _is_single(model, images):
            raise NotDenseError("its weights or images are not in single precision")
        if method == "auto" and len(shifts) < FEWEST_DENSE_SHIFTS:
            raise NotDenseError(f"{len(shifts)} shifts are too few for it to pay")
        layout, picks = _layout(shifts, world, device)
        extent = [starts[-1] - starts[0] + size for starts, size in zip(layout.starts, layout.size, strict=True)]
        block = batch_size or max(1, min(DENSE_BATCH, DENSE_VALUES // (16 * extent[0] * extent[1])))
        dense = Dense(trace(model), world, device, layout, picks, block)
        _compare(dense, direct, images, shifts)
    except NotDenseError as reason:
        if method == "dense":
            raise InputError(f"`method` 'dense' is not exact here: {reason}. Use 'auto' or 'direct'.") from None
        return None, f"Direct, because {reason}."
    return dense, "Dense, because every operator before the head is stationary, which the traced graph shows."


def _layout(shifts: Tensor, world: World, device: torch.device) -> tuple[Layout, tuple[Tensor, Tensor]]:
    """Where the windows start, in the images' own coordinates, and which start each shift means."""
    starts = torch.tensor(world.corner) - shifts.cpu()
    torus = None
    if world.mode == "circular":
        torus = world.size
        starts = starts % torch.tensor(torus)
    rows, row_of = starts[:, 0].unique(return_inverse=True)
    columns, column_of = starts[:, 1].unique(return_inverse=True)
    layout = Layout(world.size, tuple(rows.tolist()), tuple(columns.tolist()), torus)
    return layout, (row_of.to(device), column_of.to(device))


def _is_single(model: Model, images: Tensor) -> bool:
    """Whether images and weights are in single precision, the one the rules are written for."""
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    return images.dtype == torch.float32 and all(weight.dtype == torch.float32 for weight in weights)


def _compare(dense: Dense, direct: Direct, images: Tensor, shifts: Tensor) -> None:
    """Hold dense against direct on a sample."""
    fullest = images.flatten(1).var(dim=1).topk(min(CHECKED_IMAGES, len(images))).indices
    images = images[fullest]
    generator = torch.Generator().manual_seed(len(shifts))
    picked = torch.randperm(len(shifts), generator=generator)[:CHECKED_SHIFTS]
    expected = direct(images, shifts[picked])
    found = dense(images)[:, picked]
    # Outputs that cancel to nothing are compared with what went in, of which rounding is a share.
    least = LEAST_SCALE * float(images.norm())
    scale = expected.norm(dim=-1).clamp_min(max(least, torch.finfo(torch.float32).tiny))
    apart = float(((found - expected).norm(dim=-1) / scale).max())
    if apart > TOLERANCE:
        raise RuntimeError(
            f"dense and direct outputs differ by {apart:.1e} of their norm on sampled shifts, although the graph says that "
            "they must not. Use `method='direct'` and report this model."
        )
