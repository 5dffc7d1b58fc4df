"""What shifts do to every layer: how much of each map is preserved, and how far it has gone.

Unshifted and shifted images go through the model in one batch. A hook on each layer sees both maps together, compares them, and
keeps three numbers for each image and shift, so that no map outlives its layer and memory does not grow with the images. It costs
one pass for the unshifted images, one for each shift, and the comparisons.

What a layer gives to an empty canvas is taken off its maps first. Biases spread it over all positions, where it stays when the
image moves; it says nothing about the image, but would make very different maps look alike. Vectors stay as the head sees them.

Layers are modules; what functions compute is seen where it enters the next module. The model is left as it was: hooks are removed
whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shiftscope.engine.checks import check_fill, check_images, check_shifts, device_of, evaluating
from shiftscope.engine.direct import Canvas
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.probes import Kind, Probe, Probes
from shiftscope.shifts import Mode
from shiftscope.tables import Cell, Table

__all__ = ["Layer", "Layers", "layer_responses"]

Progress = Callable[[int, int | None], None]

#: Images, unshifted and shifted, of one pass.
BATCH = 64


@dataclass(frozen=True)
class Layer:
    """What shifts did to the maps of one layer. All values are in double precision.

    Attributes:
        name: of the layer, ``canvas``, or ``output``.
        kind: what it is.
        size: height and width of its map, positions; (1, 1) for vectors.
        channels: of its map.
        factor: pixels between neighbouring positions along height and width; None where there are no positions.
        stride: of the layer itself.
        similarity: max over u of c(u), for every image and shift; see :mod:`shiftscope.similarity`.
        displacement: argmax over u of c(u), (down, right) in the map's positions.
        in_place: c(0), what a flatten and fully connected layer sees.
        homogeneity: of the map in front of a layer that subsamples, at its stride; None for others.
        homogeneity_pooled: of what the layer's pool or filter makes of that map at stride 1, which is what is then subsampled;
            None where it is no pool or filter.
    """

    name: str
    kind: Kind
    size: tuple[int, int]
    channels: int
    factor: tuple[int, int] | None
    stride: tuple[int, int]
    similarity: Float[Tensor, "image shift"]
    displacement: Int[Tensor, "image shift 2"]
    in_place: Float[Tensor, "image shift"]
    homogeneity: Float[Tensor, " image"] | None = None
    homogeneity_pooled: Float[Tensor, " image"] | None = None

    @property
    def movement(self) -> Float[Tensor, "image shift"]:
        """|argmax c|, in the map's positions."""
        lengths: Tensor = self.displacement.double().norm(dim=-1)
        return lengths

    @property
    def movement_in_pixels(self) -> Float[Tensor, "image shift"] | None:
        """The same in the input's pixels: each axis times its factor."""
        if self.factor is None:
            return None
        lengths: Tensor = (self.displacement * torch.tensor(self.factor)).double().norm(dim=-1)
        return lengths

    def estimates(self) -> dict[str, Estimate | None]:
        """Means over images of each image's mean over its shifts, with 95 % intervals over images."""
        far = float(torch.tensor(self.size).double().sub(1).norm())
        pixels = self.movement_in_pixels
        reach = float((torch.tensor(self.size).double().sub(1) * torch.tensor(self.factor or (1, 1))).norm())
        return {
            "similarity": _estimate(self.similarity, (-1.0, 1.0)),
            "movement": _estimate(self.movement, (0.0, far)),
            "movement_in_pixels": _estimate(pixels, (0.0, reach)),
            "in_place": _estimate(self.in_place, (-1.0, 1.0)),
            "homogeneity": _estimate(self.homogeneity, (-1.0, 1.0)),
            "homogeneity_pooled": _estimate(self.homogeneity_pooled, (-1.0, 1.0)),
        }


@dataclass(frozen=True)
class Layers:
    """Every layer's response to shifts.

    Attributes:
        layers: the canvas, the chosen layers in the order they are called, what the head gets, and the output.
        shifts: (dy, dx) of every image and shift, pixels.
        mode: what came in at the border.
        left_out: names of chosen layers whose maps could not be read, and why.
        from_graph: whether factors come from the model's graph; else from the sizes of its maps.
    """

    layers: tuple[Layer, ...]
    shifts: Shaped[Tensor, "image shift 2"]
    mode: Mode
    left_out: tuple[tuple[str, str], ...]
    from_graph: bool

    def layer(self, name: str) -> Layer:
        """The layer of a name.

        Raises:
            InputError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise InputError(f"there is no layer {name!r} here. There are: {', '.join(layer.name for layer in self.layers)}.")

    def table(self) -> Table:
        """A row for each layer."""
        rows: list[dict[str, Cell]] = []
        for layer in self.layers:
            factor = layer.factor and (layer.factor[0] if layer.factor[0] == layer.factor[1] else str(layer.factor))
            size = "x".join(map(str, layer.size)) if layer.factor else ""
            row: dict[str, Cell] = {"layer": layer.name, "kind": layer.kind, "channels": layer.channels}
            rows.append({**row, "size": size, "factor": factor, **layer.estimates()})
        length = float(self.shifts.double().norm(dim=-1).mean())
        notes = [
            f"In brackets: 95 % intervals over {len(self.shifts)} images, {self.shifts.shape[1]} shifts of each ({self.mode}). "
            f"The mean shift is {length:.2f} pixels: a map that has only moved has similarity 1 and moved by as many pixels.",
            "similarity: the largest cosine over all displacements of the map, less what an empty canvas gives; movement: where "
            "it is reached, in positions and in pixels; in_place: the cosine without displacement, what a fully connected layer "
            "sees; homogeneity: of the map in front of a subsampling, at its stride; homogeneity_pooled: of what its window "
            "makes of that map.",
        ]
        if self.mode == "circular":
            notes.append("Maps are compared as if zeros lay around them, so that what wraps around a border counts as lost.")
        if not self.from_graph:
            notes.append("The model's graph cannot be traced: factors are the image's size over the map's, rounded.")
        notes += [f"Left out: {name}, {why}." for name, why in self.left_out]
        columns = ("layer", "kind", "channels", "size", "factor", *self.layers[0].estimates())
        return Table("Every layer's response to shifts", columns, tuple(rows), tuple(notes))


def layer_responses(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"] | Iterable[Tensor],
    shifts: Shaped[Tensor, "*each shift 2"],
    *,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
    layers: Sequence[str] | None = None,
    keep_background: bool = False,
    batch_size: int = BATCH,
    device: torch.device | str | None = None,
    progress: Progress = lambda *_: None,
) -> Layers:
    """Compare every layer's maps of the unshifted and of the shifted images.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: the unshifted images, canvas included; or an iterable of batches, held one at a time.
        shifts: (dy, dx) in pixels, [shift, 2] for all images or [image, shift, 2] for each its own. Parts of pixels where they
            are floating point: by Fourier transform in mode ``circular``, bilinear otherwise.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one a channel.
        layers: names of the modules to look at; every convolution, pool, activation, filter and polyphase sampling by default.
        keep_background: leave in maps what an empty canvas gives.
        batch_size: images a pass, unshifted and shifted together.
        device: where to compute; the model's own by default.
        progress: told how many images are done, of how many (None where that is unknown).

    Returns:
        the layers' responses, on the CPU.

    Raises:
        InputError: a model that is no module, fails on such images, or whose outputs are not finite vectors; no image, integer
            images, values that are not finite; shifts of another form; an unknown layer.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3))
    >>> images = torch.zeros(4, 1, 8, 8)
    >>> images[:, :, 3:5, 3:5] = torch.rand(4, 1, 2, 2)
    >>> found = layer_responses(model, images, torch.tensor([[0, 1]]))
    >>> [layer.name for layer in found.layers], round(found.layer("0").estimates()["similarity"].value, 5)
    (['canvas', '0', '1', 'output'], 1.0)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module to be looked into, got {type(model).__name__}. Wrap it in one.")
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    if batch_size < 2:
        raise InputError(f"`batch_size` must be 2 or more images, one of them unshifted, got {batch_size}.")
    check_images(first)
    if mode not in ("zero", "circular"):
        raise InputError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    if isinstance(images, Tensor) or shifts.ndim != 3:
        check_shifts(first, shifts)
    check_fill(first, fill)
    canvas = Canvas(mode, fill, (first.shape[2], first.shape[3]))
    place = torch.device(device) if device else device_of(model)
    whole = len(images) if isinstance(images, Tensor) else None
    with evaluating(model), torch.inference_mode():
        probes = Probes(model, first[:1].to(place), canvas, layers, batch_size, keep_background=keep_background)
        used: list[Tensor] = []
        for batch in chain([first], batches):
            check_images(batch, canvas.size)
            used.append(_shifts_of(batch, shifts, sum(map(len, used))))
            for done in probes.compare(batch, used[-1], place):
                progress(sum(map(len, used[:-1])) + done, whole)
    if shifts.ndim == 3 and sum(map(len, used)) != len(shifts):
        raise InputError(f"`shifts` must hold a list for each of {sum(map(len, used))} images, got {len(shifts)}.")
    found = tuple(map(_layer, probes.probes))
    return Layers(found, torch.cat(used), mode, tuple(probes.left_out), probes.geometry is not None)


def _shifts_of(batch: Tensor, shifts: Tensor, start: int) -> Tensor:
    """The shifts of each image of a batch."""
    if shifts.ndim == 2:
        return shifts.expand(len(batch), -1, -1)
    if start + len(batch) > len(shifts):
        raise InputError(f"`shifts` must hold a list for each image, got {len(shifts)} for {start + len(batch)} or more.")
    return shifts[start : start + len(batch)]


def _layer(probe: Probe) -> Layer:
    """All that a probe has seen."""
    similarity, displacement, in_place = (torch.cat(parts) for parts in zip(*probe.seen, strict=True))
    place, shape = probe.place, probe.shape
    homogeneity, pooled = (torch.cat(found) if found else None for found in (probe.homogeneity, probe.homogeneity_pooled))
    return Layer(
        name=probe.name,
        kind=probe.kind,
        size=(shape[1], shape[2]),
        channels=shape[0],
        factor=place.factor if place.has_positions else None,
        stride=probe.stride,
        similarity=similarity,
        displacement=displacement,
        in_place=in_place,
        homogeneity=homogeneity,
        homogeneity_pooled=pooled,
    )


def _estimate(values: Tensor | None, bounds: tuple[float, float]) -> Estimate | None:
    if values is None:
        return None
    return mean(values if values.ndim == 1 else values.mean(dim=1), bounds=bounds)
