"""Probes: hooks on a model's layers that compare the feature maps of unshifted and shifted images, and keep numbers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftscope.engine.direct import Canvas, Direct, ran_out_of_memory
from shiftscope.errors import InputError
from shiftscope.explanations.hooks import HEADS, LayerKind, at_stride_one, hooked, stride_of, watched
from shiftscope.graphs.geometry import Geometry, MapGeometry, call_name
from shiftscope.graphs.sites import Pair
from shiftscope.graphs.tokens import TokenMap, TokenReading, has_attention, read_tokens
from shiftscope.similarity import homogeneities, responses

__all__ = ["Probe", "Probes"]

#: Similarity [image, shift], displacement [image, shift, 2] and similarity in place [image, shift].
Response = tuple[Tensor, Tensor, Tensor]


@dataclass
class Probe:
    """A place in the model, and what was measured there.

    Attributes:
        name: as readers see it, of the layer's call.
        kind: of layer.
        call: the module's name, and which of its calls in a pass, counted from 0.
        side: whether the module's input or its output is compared.
        geometry: where the positions of its map lie.
        shape: channels, height and width of its map.
        tokens: how tokens are laid on that map; None where the output is an ordinary map or a vector.
        stride: of the layer.
        blank: the map [1, channel, height, width] of a blank image, which is subtracted; None where none is.
        blank_input: the layer's input for a blank image, where the layer subsamples.
        responses: of each block of images.
        source: name of the place whose map the layer takes as it is; empty where that is none of the probes', such as a sum.
        homogeneity: of the layer's input, for each block of images.
        homogeneity_pooled: of that input after the layer's pool or filter at stride 1, for each block of images.
    """

    name: str
    kind: LayerKind
    call: tuple[str, int]
    side: Literal["in", "out"]
    geometry: MapGeometry
    shape: tuple[int, int, int]
    stride: Pair = (1, 1)
    tokens: TokenMap | None = None
    source: str = ""
    blank: Tensor | None = None
    blank_input: Tensor | None = None
    responses: list[Response] = field(default_factory=list)
    homogeneity: list[Tensor] = field(default_factory=list)
    homogeneity_pooled: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """A module's call in the first pass, with copies of its tensors."""

    layer: str
    number: int
    module: nn.Module
    kind: LayerKind | None
    into: Tensor
    out: Tensor
    tokens: TokenMap | None

    @property
    def name(self) -> str:
        return call_name(self.layer, self.number)

    @property
    def positions(self) -> int:
        """Positions of the output; 0 where that is no map."""
        if self.tokens is not None:
            return self.tokens.grid[0] * self.tokens.grid[1]
        return self.out[0, 0].numel() if self.out.ndim == 4 else 0


class Probes:
    """All probes of a model, found in a pass of one image.

    Args:
        model: in evaluation mode.
        example: one image, on the model's device.
        canvas: what surrounds the images.
        geometry: of the model's graph; None where that cannot be read.
        layers: names of the modules to compare; None for all of known kinds.
        batch_size: images a forward pass.
        outputs: whether outputs are vectors, which are compared too; otherwise the model may return anything.

    Attributes:
        probes: of the canvas, the layers, the head's input and the output, in this order.
        left_out: names of chosen layers that cannot be compared, and why.

    Raises:
        InputError: the model has no layer of such a name, or fails on the image.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        canvas: Canvas,
        geometry: Geometry | None,
        layers: Sequence[str] | None,
        batch_size: int,
        *,
        outputs: bool = True,
    ) -> None:
        self.model, self.canvas, self.geometry, self.batch_size, self.outputs = model, canvas, geometry, batch_size, outputs
        self.left_out: list[tuple[str, str]] = []
        self.tokens: TokenReading | None = None
        calls, output = self._first_pass(watched(model, layers, None), example)
        if has_attention(model) or any(isinstance(call.module, nn.Linear) and call.into.ndim > 2 for call in calls):
            self.tokens = read_tokens(model, example, layers or ())
            calls, output = self._first_pass(watched(model, layers, self.tokens), example)
        first = Probe("canvas", "canvas", ("", 0), "in", MapGeometry(), (example.shape[1], *canvas.size))
        last = Probe("output", "output", ("", 0), "out", MapGeometry(has_positions=False), (output.shape[1], 1, 1))
        self.probes = [first, *self._layers(calls), *([*self._head(calls), last] if outputs else [])]
        self._find_sources(calls, example)
        known = {*(probe.call[0] for probe in self.probes), *(name for name, _ in self.left_out)}
        self.left_out += [(name, "its output is no map") for name in layers or () if name not in known]
        self.names = sorted({probe.call[0] for probe in self._hooked})
        self._measure_blank(self.canvas.background(example).reshape(1, -1, 1, 1).expand_as(example))

    @property
    def _hooked(self) -> list[Probe]:
        """The probes that hooks measure: all but those of the canvas and the output."""
        return self.probes[1:-1] if self.outputs else self.probes[1:]

    def compare(self, images: Tensor, shifts: Tensor, device: torch.device) -> Iterator[int]:
        """Run images and their shifted copies, and measure every probe.

        Args:
            images: unshifted.
            shifts: [image, shift, 2], pixels.
            device: where the model is.

        Yields:
            the number of images done.
        """
        shifts_at_once = min(shifts.shape[1], self.batch_size - 1)
        images_at_once = max(1, self.batch_size // (1 + shifts_at_once))
        done = 0
        for some, theirs in zip(images.split(images_at_once), shifts.split(images_at_once), strict=True):
            passes = [self._pass(some.to(device), steps.to(device)) for steps in theirs.split(shifts_at_once, dim=1)]
            for probe, *found in zip(self.probes, *passes, strict=True):
                probe.responses.append(tuple(torch.cat(each, dim=1) for each in zip(*found, strict=True)))
            done += len(some)
            yield done

    def _pass(self, images: Tensor, shifts: Tensor) -> list[Response]:
        """Run images and their shifted copies in one batch, and return each probe's response."""
        count = len(shifts)
        moved = (self.canvas.move(images, steps) for steps in shifts.unbind(1))
        batch = torch.cat([self.canvas.centre(images), *moved])
        found: dict[int, Response] = {0: _response(self.probes[0], batch, count)}

        def see(layer: str, number: int, module: nn.Module, into: Tensor, out: Any) -> None:
            for place, probe in enumerate(self._hooked, start=1):
                if probe.call == (layer, number):
                    found[place] = _response(probe, into if probe.side == "in" else out, count)
                    # Once for each block of images: homogeneity does not depend on the shifts.
                    if probe.stride != (1, 1) and len(probe.homogeneity) == len(probe.responses):
                        _measure_homogeneity(probe, module, into[:count])

        with hooked(self.model, self.names, see):
            output = self._run(batch)
        if self.outputs:
            found[len(self.probes) - 1] = _response(self.probes[-1], output, count)
        missing = [probe.name for place, probe in enumerate(self.probes) if place not in found]
        if missing:
            raise InputError(f"Layer {missing[0]!r} is not called in every pass.", "Leave it out with `layers`.")
        return [found[place] for place in range(len(self.probes))]

    def _measure_blank(self, image: Tensor) -> None:
        """Keep every probe's map of a blank image; vectors are compared as they are."""

        def see(layer: str, number: int, _: nn.Module, into: Tensor, out: Any) -> None:
            for probe in self._hooked:
                if probe.call == (layer, number) and probe.geometry.has_positions:
                    probe.blank = _finite_copy(_as_maps(into if probe.side == "in" else out, probe))
                    probe.blank_input = _finite_copy(into) if probe.stride != (1, 1) else None

        self.probes[0].blank = image
        with hooked(self.model, self.names, see), suppress(InputError):  # outputs of a blank image may be NaN; nobody uses them
            self._run(image.contiguous())

    def _run(self, batch: Tensor) -> Tensor:
        """Return checked outputs of one pass; never split, because hooks must see all of the batch together."""
        try:
            if not self.outputs:
                self.model(batch)
                return batch.new_zeros(len(batch), 1)
            return Direct(self.model, self.canvas, batch.device).once(batch)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise InputError(f"Memory ran out in a pass of {len(batch)} images.", "Choose a smaller `batch_size`.") from error

    def _first_pass(self, chosen: dict[str, LayerKind | None], example: Tensor) -> tuple[list[_Call], Tensor]:
        """Return every call of a chosen module, and the output."""
        calls: list[_Call] = []
        known = self.tokens.maps if self.tokens else {}

        def see(layer: str, number: int, module: nn.Module, into: Tensor, out: Any) -> None:
            if isinstance(out, Tensor):
                # Copies, because the next layer may work in place.
                tokens = known.get(call_name(layer, number))
                calls.append(_Call(layer, number, module, chosen[layer], into.clone(), out.clone(), tokens))

        with hooked(self.model, list(chosen), see):
            output = self._run(example)
        return calls, output

    def _find_sources(self, calls: list[_Call], example: Tensor) -> None:
        """Note which probe's map each layer takes, by its values: in a network with branches it need not be the one before."""
        probes = {probe.call: probe for probe in self.probes if probe.side == "out" and probe.name != "output"}
        maps = [("canvas", example)]
        for call in calls:
            probe = probes.get((call.layer, call.number))
            if probe is not None:
                same = (
                    name for name, values in reversed(maps) if values.shape == call.into.shape and torch.equal(values, call.into)
                )
                probe.source = next(same, "")
                maps.append((probe.name, call.out))

    def _layers(self, calls: list[_Call]) -> Iterator[Probe]:
        """Yield a probe for each call of a layer on maps, except gates: single positions before larger maps."""
        for order, call in enumerate(calls):
            if call.kind is not None and call.tokens is not None:
                yield self._token_probe(call, call.kind, call.tokens)
                continue
            if call.kind is not None and self.tokens is not None and call.out.ndim == 3:
                self.left_out.append((call.name, "it is not known how its output lies on the image"))
                continue
            if call.kind is None or call.out.ndim != 4:
                continue
            if call.positions == 1 and any(later.kind and later.positions > 1 for later in calls[order + 1 :]):
                continue
            maps = self.geometry.maps if self.geometry else {}
            shape = tuple(call.out.shape)
            if shape[0] != 1 and not self.outputs:
                self.left_out.append((call.name, "it does not see one map an image"))
                continue
            geometry = _fitting(maps.get(call.name, maps.get(call.layer)), shape, self.canvas.size)
            if geometry is None:
                self.left_out.append((call.name, f"the axes of its maps {shape[1:]} are not known"))
                continue
            stride, sizes = stride_of(call.module), _sizes(shape, geometry)
            yield Probe(call.name, call.kind, (call.layer, call.number), "out", geometry, sizes, stride)

    def _token_probe(self, call: _Call, kind: LayerKind, tokens: TokenMap) -> Probe:
        """Return the probe of a module whose output was laid on the image."""
        tall, wide = (round(side / count) for side, count in zip(self.canvas.size, tokens.grid, strict=True))
        sizes = (tokens.maps(call.out).shape[1], *tokens.grid)
        return Probe(call.name, kind, (call.layer, call.number), "out", MapGeometry((tall, wide)), sizes, tokens=tokens)

    def _head(self, calls: list[_Call]) -> Iterator[Probe]:
        """Yield probes of the head's inputs: the last map, unless a layer's output is the same, and the vector after it."""
        heads = [order for order, call in enumerate(calls) if isinstance(call.module, HEADS) and _is_map(call.into)]
        spatial = [order for order, call in enumerate(calls) if call.kind and call.positions > 1]
        order = spatial[-1] if spatial else -1
        last = calls[order].out if spatial else torch.empty(0)
        if heads and heads[-1] > order:
            order = heads[-1]
            call, shape = calls[order], tuple(calls[order].into.shape)
            geometry = _fitting(self.geometry.last if self.geometry else None, shape, self.canvas.size)
            if geometry is not None and not torch.equal(last, call.into):
                yield _head_input(call, geometry, _sizes(shape, geometry))
            last = call.into
        for call in calls[order + 1 :]:
            if isinstance(call.module, nn.Linear) and call.into.ndim == 2:
                if call.into.numel() != last.numel():
                    yield _head_input(call, MapGeometry(has_positions=False), (call.into.shape[1], 1, 1))
                return


def _head_input(call: _Call, geometry: MapGeometry, shape: tuple[int, int, int]) -> Probe:
    return Probe(f"{call.layer}, input", "head input", (call.layer, call.number), "in", geometry, shape)


def _is_map(value: Tensor) -> bool:
    return value.ndim == 4 and value.shape[2] * value.shape[3] > 1


def _response(probe: Probe, value: Any, count: int) -> Response:
    """Compare a batch's first ``count`` maps, of unshifted images, with all that follow."""
    maps = _as_maps(value, probe)
    if len(maps) % count or maps.shape[1:] != probe.shape:
        raise InputError(f"The maps of layer {probe.name!r} depend on the batch.", "Leave it out with `layers`.")
    maps = _minus(maps, probe.blank)
    after = maps[count:].reshape(-1, count, *probe.shape)
    found = responses(maps[:count].float(), after.float())
    return found.similarity.T, found.displacement.transpose(0, 1), found.in_place.T


def _measure_homogeneity(probe: Probe, module: nn.Module, maps: Tensor) -> None:
    """Measure the local homogeneity of the input of a layer that subsamples, and of that input after its pool or filter."""
    maps = _as_maps(maps, probe)
    blank = None if probe.blank_input is None else _as_maps(probe.blank_input, probe)
    probe.homogeneity.append(homogeneities(_minus(maps, blank), probe.stride))
    dense = at_stride_one(module, maps)
    if dense is not None:
        dense_blank = None if blank is None else at_stride_one(module, blank)
        probe.homogeneity_pooled.append(homogeneities(_minus(dense, dense_blank), probe.stride))


def _finite_copy(maps: Tensor) -> Tensor | None:
    return maps.clone() if bool(maps.isfinite().all()) else None


def _minus(maps: Tensor, blank: Tensor | None) -> Tensor:
    return maps if blank is None else maps - blank


def _as_maps(value: Any, probe: Probe) -> Tensor:
    """Return a layer's value as [image, channel, height, width]; a vector gets one position."""
    if not isinstance(value, Tensor):
        return torch.empty(0, 0, 0, 0)
    if probe.tokens is not None:
        return probe.tokens.maps(value)
    if value.ndim == 2:
        return value[:, :, None, None]
    return value.permute(0, 3, 1, 2) if probe.geometry.layout == "channels last" else value


def _sizes(shape: tuple[int, ...], geometry: MapGeometry) -> tuple[int, int, int]:
    """Return channels, height and width of a map from its shape and layout."""
    return (shape[3], shape[1], shape[2]) if geometry.layout == "channels last" else (shape[1], shape[2], shape[3])


def _fitting(known: MapGeometry | None, shape: tuple[int, ...], size: Pair) -> MapGeometry | None:
    """Return a map's geometry from the graph if it fits the map's size, else from that size; None where neither is possible.

    Args:
        known: from the graph; None where the graph does not say.
        shape: of the map.
        size: height and width of the image.
    """
    if known is None or (not known.has_positions and shape[2] * shape[3] > 1):
        return _from_size(shape[2:4], size)
    if not known.has_positions:
        return known
    _, height, width = _sizes(shape, known)
    if _fits(known, (height, width), size):
        return known
    found = _from_size((height, width), size)  # after an operator that the graph's reader does not know
    return None if found is None else replace(found, layout=known.layout)


def _fits(geometry: MapGeometry, positions: Pair, size: Pair) -> bool:
    """Return whether a map is as large as its factor says: between no padding and padding by the receptive field."""
    each = zip(positions, size, geometry.factor, geometry.receptive_field, strict=True)
    return all((side - seen) // step + 1 <= count <= (side + seen) // step + 1 for count, side, step, seen in each)


def _from_size(positions: Sequence[int], size: Pair) -> MapGeometry | None:
    """Return the geometry that follows from a map's size; None where height and width shrink by different factors."""
    tall, wide = (side / max(count, 1) for side, count in zip(size, positions, strict=True))
    tolerance = 1.0 if size[0] == size[1] else 1.5
    if max(tall, wide) > tolerance * min(tall, wide):
        return None
    return MapGeometry((max(1, round(tall)), max(1, round(wide))))
