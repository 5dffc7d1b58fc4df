"""How every layer's feature maps respond to shifts: how similar they stay, and how far they move.

Unshifted and shifted images pass the model in one batch. A hook on each layer sees both maps together, compares them, and keeps
three numbers for each image and shift, so that no map outlives its layer and memory does not grow with the images. This costs a
forward pass for the unshifted images, one for each shift, and the comparisons.

The response to a blank image (the canvas's colour everywhere) is subtracted from feature maps before they are compared. Biases
spread it over all positions, where it stays when the image moves; it says nothing about the image, but would make very different
maps look alike. Vectors are compared as the head sees them.

Layers are modules; what functions compute is seen where it enters the next module. Hooks are always removed, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shiftscope.engine.checks import check_fill, check_images, check_options, check_shifts, check_size, device_of, evaluating
from shiftscope.engine.direct import Canvas
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.hooks import LayerKind
from shiftscope.explanations.probes import Probe, Probes
from shiftscope.graphs.geometry import Geometry, Reading, read_geometry
from shiftscope.measures import COSINE, MEASURES
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import Mode
from shiftscope.tables import Cell, Table

__all__ = ["BATCH", "Layer", "Layers", "layer_responses"]

#: Similarity falls at a layer if it is lower than at the one whose map it takes by this much.
SMALLEST_FALL = 0.005
#: Images of one pass, unshifted and shifted together.
BATCH = 64


@dataclass(frozen=True)
class Layer:
    """How the feature maps of one layer respond to shifts; all values in double precision.

    Attributes:
        name: of the layer, or ``canvas`` for the images, or ``output``.
        kind: of the layer.
        size: height and width of its map, positions; (1, 1) for vectors.
        channels: of its map.
        factor: pixels between neighbouring positions, along height and width; None for vectors.
        stride: of the layer itself.
        similarity: max over u of c(u), the cosine between the maps before and after a shift, displaced by u; see
            :mod:`shiftscope.similarity`.
        displacement: argmax over u of c(u), (down, right) in the map's positions.
        in_place: c(0), which is what a flattening and a fully connected layer see.
        homogeneity: local homogeneity at the layer's stride of the map that it subsamples; None for layers that do not.
        homogeneity_pooled: local homogeneity at the same stride of that map after the layer's pool or filter at stride 1; None
            for other layers.
        source: name of the layer whose map it takes as it is; empty where that is none of these, such as a sum.
    """

    name: str
    kind: LayerKind
    size: tuple[int, int]
    channels: int
    factor: tuple[int, int] | None
    stride: tuple[int, int]
    similarity: Float[Tensor, "image shift"]
    displacement: Int[Tensor, "image shift 2"]
    in_place: Float[Tensor, "image shift"]
    homogeneity: Float[Tensor, " image"] | None = None
    homogeneity_pooled: Float[Tensor, " image"] | None = None
    source: str = ""

    @property
    def movement(self) -> Float[Tensor, "image shift"]:
        """Length of the displacement, in the map's positions."""
        lengths: Tensor = self.displacement.double().norm(dim=-1)
        return lengths

    @property
    def movement_in_pixels(self) -> Float[Tensor, "image shift"] | None:
        """Length of the displacement in pixels of the image; None for vectors."""
        if self.factor is None:
            return None
        lengths: Tensor = (self.displacement * torch.tensor(self.factor)).double().norm(dim=-1)
        return lengths

    def estimates(self) -> dict[str, Estimate | None]:
        """Return measure -> mean over images of each image's mean over its shifts, with 95 % intervals over images."""
        farthest = torch.tensor(self.size).double() - 1
        return {
            "similarity": _estimate(self.similarity, COSINE),
            "movement": _estimate(self.movement, (0.0, float(farthest.norm()))),
            "movement_in_pixels": _estimate(
                self.movement_in_pixels, (0.0, float((farthest * torch.tensor(self.factor or (1, 1))).norm()))
            ),
            "in_place": _estimate(self.in_place, COSINE),
            "homogeneity": _estimate(self.homogeneity, COSINE),
            "homogeneity_pooled": _estimate(self.homogeneity_pooled, COSINE),
        }


@dataclass(frozen=True)
class Layers:
    """How every layer responds to shifts.

    Attributes:
        layers: the canvas, the chosen layers in the order of their calls, the head's input, and the output.
        shifts: (dy, dx) of every image and shift, pixels.
        border: what came in at the border.
        left_out: names of chosen layers whose maps could not be compared, and why.
        from_graph: whether factors come from the model's graph; otherwise from the sizes of its maps.
    """

    layers: tuple[Layer, ...]
    shifts: Shaped[Tensor, "image shift 2"]
    border: Border
    left_out: tuple[tuple[str, str], ...]
    from_graph: bool

    def layer(self, name: str) -> Layer:
        """Return the layer with a name.

        Raises:
            InputError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise InputError(f"There is no layer {name!r} here.", f"There are: {', '.join(layer.name for layer in self.layers)}.")

    def table(self) -> Table:
        """Return a row for each layer."""
        rows: list[dict[str, Cell]] = []
        for layer in self.layers:
            factor = layer.factor and (layer.factor[0] if layer.factor[0] == layer.factor[1] else str(layer.factor))
            size = "x".join(map(str, layer.size)) if layer.factor else ""
            row: dict[str, Cell] = {"layer": layer.name, "kind": layer.kind, "channels": layer.channels}
            rows.append({**row, "size": size, "factor": factor, **layer.estimates()})
        measures = tuple(self.layers[0].estimates())
        columns = ("layer", "kind", "channels", "size", "factor", *measures)
        return Table("Every layer's response to shifts", columns, tuple(rows), (*self._notes(), *map(_definition, measures)))

    def falls(self, most: int) -> Table:
        """Return a row for each of the layers at which the similarity of feature maps falls most, in the order of the calls.

        A layer is compared with the one whose map it takes; where it takes a sum or the like, with the one called before it.

        Args:
            most: number of rows at most; a fall below ``SMALLEST_FALL`` is none.
        """
        maps = [layer for layer in self.layers if layer.factor is not None]
        similarity = {layer.name: mean(layer.similarity.mean(dim=1), bounds=COSINE) for layer in maps}
        found = []
        for previous, layer in pairwise(maps):
            before, after = similarity.get(layer.source, similarity[previous.name]), similarity[layer.name]
            if before.value - after.value >= SMALLEST_FALL:
                found.append((before.value - after.value, layer, after))
        largest = sorted(range(len(found)), key=lambda place: -found[place][0])[:most]
        rows = tuple[dict[str, Cell], ...](
            {"layer": layer.name, "kind": layer.kind, "similarity": after, "fall": fall}
            for fall, layer, after in (found[place] for place in sorted(largest))
        )
        return Table("Where the similarity of feature maps falls most", ("layer", "kind", "similarity", "fall"), rows)

    def _notes(self) -> list[str]:
        length = float(self.shifts.double().norm(dim=-1).mean())
        notes = [
            f"Intervals: 95 %, over {len(self.shifts)} images, {self.shifts.shape[1]} shifts of each (border {self.border}). "
            f"The mean length of a shift is {length:.2f} pixels: a map that only moves has similarity 1 and moves as far.",
            "The response to a blank image is subtracted from feature maps before they are compared.",
        ]
        if self.border == "circular":
            notes.append("Maps are compared as if zeros surrounded them: what a circular shift wraps around lowers similarity.")
        if not self.from_graph:
            notes.append("The model's graph cannot be traced: factors are the image's size over the map's, rounded.")
        return notes + [f"Left out: {name}, {why}." for name, why in self.left_out]


def layer_responses(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"] | Iterable[Tensor],
    shifts: Shaped[Tensor, "*each shift 2"],
    *,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
    size: tuple[int, int] | None = None,
    layers: Sequence[str] | None = None,
    geometry: Reading | None = None,
    outputs: bool = True,
    batch_size: int = BATCH,
    device: torch.device | str | None = None,
    report: Report = silent,
) -> Layers:
    """Compare every layer's feature maps before and after shifts of the images.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: the unshifted images, canvas included; or an iterable of batches, held one at a time.
        shifts: (dy, dx) in pixels, [shift, 2] for all images or [image, shift, 2] for each its own. Floating point shifts may
            be fractions of pixels: by Fourier transform in mode ``circular``, bilinear in mode ``zero``.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        layers: names of the modules to compare; every convolution, pool, activation, filter and polyphase sampling by default.
        geometry: what :func:`shiftscope.graphs.geometry.read_geometry` returned for the model; by default it is read here.
        outputs: whether outputs are vectors, which are compared too; otherwise the model may return anything.
        batch_size: images a forward pass, unshifted and shifted together.
        device: where to compute; the model's own by default.
        report: called with progress events.

    Returns:
        the layers' responses, on the CPU.

    Raises:
        InputError: the model is no module or has no layer of such a name; there is no image, or images are integers or not
            finite; the shifts have another form; or the outputs are not one vector an image.
        ModelFailsError: the model raises an exception on these images.
        NotFiniteError: the model's outputs hold NaN or infinity.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3))
    >>> images = torch.zeros(4, 1, 8, 8)
    >>> images[:, :, 3:5, 3:5] = torch.rand(4, 1, 2, 2)
    >>> found = layer_responses(model, images, torch.tensor([[0, 1]]))
    >>> [layer.name for layer in found.layers], round(found.layer("0").estimates()["similarity"].value, 5)
    (['canvas', '0', '1', 'output'], 1.0)
    """
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.", "Wrap it in one.")
    if first is None or len(first) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    if batch_size < 2:
        raise InputError(f"`batch_size` must be 2 or more images, one of them unshifted, got {batch_size}.")
    check_images(first)
    check_options(mode, "direct", batch_size)
    if isinstance(images, Tensor) or shifts.ndim != 3:
        check_shifts(first, shifts)
    check_fill(first, fill)
    place = device_of(model, device)
    count = len(images) if isinstance(images, Tensor) else 0
    reading = read_geometry(model) if geometry is None else geometry
    found = reading if isinstance(reading, Geometry) else None
    with evaluating(model), torch.no_grad():
        outer = (first.shape[2], first.shape[3])
        canvas = Canvas(mode, fill, check_size(outer, size, mode))
        probes = Probes(model, canvas.centre(first[:1]).to(place), canvas, found, layers, batch_size, outputs=outputs)
        used: list[Tensor] = []
        for batch in chain([first], batches):
            check_images(batch, outer)
            before = sum(map(len, used))
            used.append(_shifts_of(batch, shifts, before))
            for done in probes.compare(batch, used[-1], place):
                report(Stage("comparing feature maps of every layer", before + done, count))
    if shifts.ndim == 3 and sum(map(len, used)) != len(shifts):
        raise InputError(f"`shifts` must hold a list for each of {sum(map(len, used))} images, got {len(shifts)}.")
    responses = tuple(map(_layer, probes.probes))
    border: Border = "crop" if mode == "zero" and canvas.size != outer else mode
    return Layers(responses, torch.cat(used), border, tuple(probes.left_out), found is not None)


def _shifts_of(batch: Tensor, shifts: Tensor, start: int) -> Tensor:
    """Return the shifts of each image of a batch that starts at an image's number."""
    if shifts.ndim == 2:
        return shifts.expand(len(batch), -1, -1)
    if start + len(batch) > len(shifts):
        raise InputError(f"`shifts` must hold a list for each image, got {len(shifts)} for {start + len(batch)} or more.")
    return shifts[start : start + len(batch)]


def _layer(probe: Probe) -> Layer:
    """Return everything that a probe has measured."""
    similarity, displacement, in_place = (torch.cat(parts) for parts in zip(*probe.responses, strict=True))
    channels, *size = probe.shape
    homogeneity, pooled = (torch.cat(found) if found else None for found in (probe.homogeneity, probe.homogeneity_pooled))
    return Layer(
        name=probe.name,
        kind=probe.kind,
        size=(size[0], size[1]),
        channels=channels,
        factor=probe.geometry.factor if probe.geometry.has_positions else None,
        stride=probe.stride,
        similarity=similarity,
        displacement=displacement,
        in_place=in_place,
        homogeneity=homogeneity,
        homogeneity_pooled=pooled,
        source=probe.source,
    )


def _estimate(values: Tensor | None, bounds: tuple[float, float]) -> Estimate | None:
    if values is None:
        return None
    return mean(values if values.ndim == 1 else values.mean(dim=1), bounds=bounds)


def _definition(measure: str) -> str:
    return f"{MEASURES[measure].label}: {MEASURES[measure].sentence}"
