"""Hooks on a model's layers that compare the maps of unshifted and shifted images as they pass, and keep numbers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope import layers as ours
from shiftscope.engine.direct import Canvas, Direct, ran_out_of_memory
from shiftscope.errors import InputError
from shiftscope.graphs.geometry import Geometry, MapGeometry, call_name, geometry_of
from shiftscope.graphs.operators import POINTWISE
from shiftscope.layers.blur import max_filtered
from shiftscope.layers.polyphase import PhaseLogits, PolyphaseSampling, TakePhase
from shiftscope.layers.resampling import Filter, filtered
from shiftscope.shifts import translate, translate_by_parts
from shiftscope.similarity import homogeneities, responses

__all__ = ["Kind", "Probe", "Probes"]

Kind = Literal["canvas", "convolution", "pool", "activation", "filter", "polyphase sampling", "layer", "head input", "output"]
Pair = tuple[int, int]

KINDS: tuple[tuple[tuple[type[nn.Module], ...], Kind], ...] = (
    ((nn.Conv2d, nn.ConvTranspose2d), "convolution"),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d), "pool"),
    ((ours.BlurPool2d, ours.MaxBlurPool2d), "filter"),
    ((PolyphaseSampling, TakePhase), "polyphase sampling"),
    ((*POINTWISE.modules, nn.PReLU, ours.AliasFreeActivation), "activation"),
)
ACTIVATIONS = {*(kind.__name__ for kind in POINTWISE.modules), "Swish", "HardSwish", "HardSigmoid", "QuickGELU", "GELUTanh"}
#: What a head begins with; of those that still get a map the last is the head.
HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)


@dataclass
class Probe:
    """A place to look at, and what was seen there.

    Attributes:
        name: the reader's, of the layer's call.
        kind: of layer.
        call: the module's name, and which of its calls in a pass.
        side: whether its input or its output is looked at.
        place: where the positions of its map lie.
        shape: channels, height and width of its map.
        stride: of the layer.
        empty: the map of an empty canvas, [1, channel, height, width], which is taken off; None where none is.
        empty_before: the map that the layer made that of, where it subsamples.
        seen: similarity, displacement and in place, [image, shift ...], block by block.
        homogeneity: in front of the layer, block by block.
        homogeneity_pooled: of what its window makes of that, block by block.
    """

    name: str
    kind: Kind
    call: tuple[str, int]
    side: Literal["in", "out"]
    place: MapGeometry
    shape: tuple[int, int, int]
    stride: Pair = (1, 1)
    empty: Tensor | None = None
    empty_before: Tensor | None = None
    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    homogeneity: list[Tensor] = field(default_factory=list)
    homogeneity_pooled: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """What a first pass told of a module's call."""

    layer: str
    number: int
    module: nn.Module
    kind: Kind | None
    gets: Tensor
    gives: Tensor

    @property
    def into(self) -> tuple[int, ...]:
        """Its input's shape."""
        return tuple(self.gets.shape)

    @property
    def out(self) -> tuple[int, ...]:
        """Its output's shape."""
        return tuple(self.gives.shape)

    @property
    def positions(self) -> int:
        """Of its output; 0 where that is no map."""
        return self.out[2] * self.out[3] if len(self.out) == 4 else 0


class Probes:
    """All places of a model, found in one pass of one image.

    Args:
        model: in evaluation mode.
        example: one image, where the model is.
        surroundings: what surrounds the images.
        layers: names of modules to look at, None for all of known kinds.
        batch_size: images a pass.
        keep_background: leave in maps what an empty canvas gives.

    Raises:
        InputError: an unknown layer; the model fails on such an image.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        surroundings: Canvas,
        layers: Sequence[str] | None,
        batch_size: int,
        *,
        keep_background: bool = False,
    ) -> None:
        self.model, self.surroundings, self.batch_size = model, surroundings, batch_size
        self.mode = surroundings.mode
        self.left_out: list[tuple[str, str]] = []
        try:
            self.geometry: Geometry | None = geometry_of(model)
        except InputError:
            self.geometry = None
        chosen = _chosen(model, layers)
        calls, output = self._first_pass(chosen, example)
        size = (example.shape[2], example.shape[3])
        canvas = Probe("canvas", "canvas", ("", 0), "in", MapGeometry(), (example.shape[1], *size))
        last = Probe("output", "output", ("", 0), "out", MapGeometry(has_positions=False), (output.shape[1], 1, 1))
        self.probes = [canvas, *self._layers(calls, size), *self._head(calls, size), last]
        told = {*(probe.call[0] for probe in self.probes), *(name for name, _ in self.left_out)}
        self.left_out += [(name, "it gives no map of positions") for name in layers or () if name not in told]
        self.names = sorted({probe.call[0] for probe in self.probes[1:-1]})
        if not keep_background:
            self._take_off(self.surroundings.background(example).reshape(1, -1, 1, 1).expand_as(example))

    def _take_off(self, canvas: Tensor) -> None:
        """Remember what an empty canvas gives, for every place with positions; vectors stay as the head sees them."""

        def see(layer: str, number: int, _: nn.Module, into: Tensor, out: Any) -> None:
            for probe in self.probes[1:-1]:
                if probe.call == (layer, number) and probe.place.has_positions:
                    probe.empty = _finite(as_maps(into if probe.side == "in" else out, probe.place))
                    probe.empty_before = _finite(into) if probe.stride != (1, 1) else None

        self.probes[0].empty = canvas
        with _watching(self.model, self.names, see), suppress(InputError):  # what it answers there is asked by nobody
            self._run(canvas.contiguous())

    def compare(self, images: Tensor, shifts: Tensor, device: torch.device) -> Iterator[int]:
        """Run images and their shifted copies, and see every place.

        Args:
            images: unshifted.
            shifts: [image, shift, 2].
            device: where the model is.

        Yields:
            how many images are done.
        """
        several = min(shifts.shape[1], self.batch_size - 1)
        some = max(1, self.batch_size // (1 + several))
        done = 0
        for part, steps in zip(images.split(some), shifts.split(some), strict=True):
            pieces = [self._pass(part.to(device), piece.to(device)) for piece in steps.split(several, dim=1)]
            for probe, *found in zip(self.probes, *pieces, strict=True):
                probe.seen.append(tuple(torch.cat(each, dim=1) for each in zip(*found, strict=True)))
            done += len(part)
            yield done

    def _pass(self, images: Tensor, shifts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One pass of images and some of their shifted copies: what each place showed."""
        count = len(shifts)
        batch = torch.cat([images, *(self._moved(images, steps) for steps in shifts.unbind(1))])
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {0: self._seen(self.probes[0], batch, count)}

        def see(layer: str, number: int, module: nn.Module, into: Tensor, out: Any) -> None:
            for place, probe in enumerate(self.probes[1:-1], start=1):
                if probe.call == (layer, number):
                    found[place] = self._seen(probe, into if probe.side == "in" else out, count)
                    if probe.stride != (1, 1) and len(probe.homogeneity) == len(probe.seen):
                        _alike(probe, module, into[:count])

        with _watching(self.model, self.names, see):
            output = self._run(batch)
        found[len(self.probes) - 1] = self._seen(self.probes[-1], output, count)
        missing = [probe.name for place, probe in enumerate(self.probes) if place not in found]
        if missing:
            raise InputError(f"layer {missing[0]!r} was not called in every pass. Leave it out with `layers`.")
        return [found[place] for place in range(len(self.probes))]

    def _seen(self, probe: Probe, value: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first maps of a pass, beside all that follow."""
        maps = as_maps(value, probe.place)
        if len(maps) % count or maps.shape[1:] != probe.shape:
            raise InputError(f"layer {probe.name!r} gives maps that depend on the batch. Leave it out with `layers`.")
        maps = _less(maps, probe.empty)
        after = maps[count:].reshape(-1, count, *probe.shape)
        found = responses(maps[:count].float(), after.float())
        return found.similarity.T, found.displacement.transpose(0, 1), found.in_place.T

    def _moved(self, images: Tensor, steps: Tensor) -> Tensor:
        move = translate_by_parts if steps.is_floating_point() else translate
        return move(images, steps, mode=self.mode, fill=self.surroundings.background(images))

    def _run(self, batch: Tensor) -> Tensor:
        """The outputs, checked; in one pass, because a hook has to see all of it together."""
        try:
            return Direct(self.model, self.surroundings, batch.device).once(batch)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise InputError(f"memory ran out in a pass of {len(batch)} images. Choose a smaller `batch_size`.") from error

    def _first_pass(self, chosen: dict[str, Kind | None], example: Tensor) -> tuple[list[_Call], Tensor]:
        calls: list[_Call] = []

        def see(layer: str, number: int, module: nn.Module, into: Tensor, out: Any) -> None:
            if isinstance(out, Tensor):
                # Copies, because the next layer may work in place.
                calls.append(_Call(layer, number, module, chosen[layer], into.clone(), out.clone()))

        with _watching(self.model, list(chosen), see):
            output = self._run(example)
        return calls, output

    def _layers(self, calls: list[_Call], size: Pair) -> Iterator[Probe]:
        """A probe for each call of a layer on maps; what works on single positions before larger maps is a gate's."""
        for order, call in enumerate(calls):
            name = call_name(call.layer, call.number)
            if call.kind is None or len(call.out) != 4:
                continue
            if call.positions == 1 and any(later.kind and later.positions > 1 for later in calls[order + 1 :]):
                continue
            place = self._place(call, size)
            if place is None:
                self.left_out.append((name, f"the axes of its maps {call.out[1:]} are not known"))
                continue
            yield Probe(name, call.kind, (call.layer, call.number), "out", place, shape_of(call.out, place), _stride(call.module))

    def _head(self, calls: list[_Call], size: Pair) -> Iterator[Probe]:
        """What the head gets: the last map, where no layer gave just that, and the vector of the first fully connected layer."""
        maps = [(order, call) for order, call in enumerate(calls) if isinstance(call.module, HEADS) and _is_map(call.into)]
        spatial = [order for order, call in enumerate(calls) if call.kind and call.positions > 1]
        order = spatial[-1] if spatial else -1
        held = calls[order].gives if spatial else torch.empty(0)
        if maps and maps[-1][0] > order:
            order, call = maps[-1]
            place = placed(self.geometry.last if self.geometry else None, call.into, size)
            if place is not None and not torch.equal(held, call.gets):
                shape = shape_of(call.into, place)
                yield Probe(f"{call.layer}, input", "head input", (call.layer, call.number), "in", place, shape)
            held = call.gets
        for call in calls[order + 1 :]:
            if isinstance(call.module, nn.Linear) and len(call.into) == 2:
                if call.gets.numel() != held.numel():
                    place = MapGeometry(has_positions=False)
                    shape = (call.into[1], 1, 1)
                    yield Probe(f"{call.layer}, input", "head input", (call.layer, call.number), "in", place, shape)
                return

    def _place(self, call: _Call, size: Pair) -> MapGeometry | None:
        places = self.geometry.maps if self.geometry else {}
        return placed(places.get(call_name(call.layer, call.number), places.get(call.layer)), call.out, size)


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], see: Callable[[str, int, nn.Module, Tensor, Any], None]) -> Iterator[None]:
    """Hooks on modules, for as long as this lasts."""
    numbers: Counter[str] = Counter()

    def hook(layer: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def called(module: nn.Module, args: Any, options: Any, out: Any) -> None:
            into = next((value for value in [*args, *options.values()] if isinstance(value, Tensor)), None)
            numbers[layer] += 1
            if into is not None:
                see(layer, numbers[layer] - 1, module, into, out)

        return called

    handles = []
    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Kind | None]:
    """The modules to look at with their kinds; None for what a head may begin with."""
    modules = {name: part for name, part in model.named_modules() if name}
    # What a choice of phases is made of works on phases, not on the map.
    inside = tuple(f"{name}." for name, part in modules.items() if isinstance(part, (PolyphaseSampling, PhaseLogits)))
    known = {name: kind for name, part in modules.items() if (kind := _kind(part)) and not name.startswith(inside)}
    if layers is not None:
        for name in layers:
            if name not in modules:
                near = get_close_matches(name, modules, n=3) or list(modules)[:3]
                raise InputError(f"the model has no layer {name!r}. Similar names: {', '.join(near)}.")
        known = {name: known.get(name, "layer") for name in layers}
    heads = {name: None for name, part in modules.items() if isinstance(part, (*HEADS, nn.Linear))}
    return {name: known.get(name, heads.get(name)) for name in modules if name in known or name in heads}


def _kind(part: nn.Module) -> Kind | None:
    """Known by type, or an activation of another library by its name."""
    if type(part).__name__ in ACTIVATIONS:
        return "activation"
    return next((kind for types, kind in KINDS if isinstance(part, types)), None)


def _stride(module: nn.Module) -> Pair:
    """By how much a layer subsamples."""
    if isinstance(module, PolyphaseSampling):
        module = module.take
    found: Any = module.filter.stride if isinstance(module, ours.BlurPool2d | ours.MaxBlurPool2d) else None
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d | TakePhase):
        found = module.stride if getattr(module, "stride", None) is not None else module.kernel_size
    found = 1 if found is None else found
    return _two(found)


def _alike(probe: Probe, module: nn.Module, maps: Tensor) -> None:
    """How alike neighbours are in front of a subsampling, and in what its window makes of that."""
    maps = as_maps(maps, probe.place)
    empty = None if probe.empty_before is None else as_maps(probe.empty_before, probe.place)
    probe.homogeneity.append(homogeneities(_less(maps, empty), probe.stride))
    dense = _at_stride_one(module, maps)
    if dense is not None:
        without = None if empty is None else _at_stride_one(module, empty)
        probe.homogeneity_pooled.append(homogeneities(_less(dense, without), probe.stride))


def _finite(maps: Tensor) -> Tensor | None:
    """A copy, where it says something."""
    return maps.clone() if bool(maps.isfinite().all()) else None


def _less(maps: Tensor, empty: Tensor | None) -> Tensor:
    return maps if empty is None else maps - empty


def _at_stride_one(module: nn.Module, maps: Tensor) -> Tensor | None:
    """What a pool or filter makes of maps before it subsamples; None for other layers."""
    if isinstance(module, nn.MaxPool2d):
        # A maximum over a box is one over rows of maxima over columns, for kernel + kernel values instead of kernel * kernel.
        (high, wide), (down, right), (tall, broad) = map(_two, (module.kernel_size, module.padding, module.dilation))
        columns = functional.max_pool2d(maps, (high, 1), 1, (down, 0), (tall, 1))
        return functional.max_pool2d(columns, (1, wide), 1, (0, right), (1, broad))
    if isinstance(module, nn.AvgPool2d):
        options = module.padding, False, module.count_include_pad, module.divisor_override
        return functional.avg_pool2d(maps, module.kernel_size, 1, *options)
    if isinstance(module, ours.BlurPool2d | ours.MaxBlurPool2d):
        by = Filter(module.filter.taps, (1, 1), module.filter.margins, module.filter.border)
        if isinstance(module, ours.BlurPool2d):
            return filtered(maps, by)
        return max_filtered(maps, module.kernel_size, module.padding, module.dilation, by)
    return None


def _two(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _is_map(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] * shape[3] > 1


def as_maps(value: Any, place: MapGeometry) -> Tensor:
    """[image, channel, height, width]; a vector has one position."""
    if not isinstance(value, Tensor):
        return torch.empty(0, 0, 0, 0)
    if value.ndim == 2:
        return value[:, :, None, None]
    return value.permute(0, 3, 1, 2) if place.layout == "channels last" else value


def shape_of(shape: tuple[int, ...], place: MapGeometry) -> tuple[int, int, int]:
    """Channels, height and width of maps of a shape, whichever way they lie."""
    return (shape[3], shape[1], shape[2]) if place.layout == "channels last" else (shape[1], shape[2], shape[3])


def placed(known: MapGeometry | None, shape: tuple[int, ...], size: Pair) -> MapGeometry | None:
    """Where the positions of a map lie: as the graph says, or by the map's size where it does not, or cannot be right."""
    if known is None or (not known.has_positions and shape[2] * shape[3] > 1):
        return _by_size(shape, size)
    if not known.has_positions:
        return known
    channels, height, width = shape_of(shape, known)
    if _agrees(known, (height, width), size):
        return known
    found = _by_size((1, channels, height, width), size)  # behind an operator that the graph does not explain
    return None if found is None else replace(found, layout=known.layout)


def _agrees(place: MapGeometry, found: Pair, size: Pair) -> bool:
    """Whether a map is as large as its factor says: no smaller than without padding, no larger than with as much as it sees."""
    each = zip(found, size, place.factor, place.receptive_field, strict=True)
    return all((whole - seen) // step + 1 <= part <= (whole + seen) // step + 1 for part, whole, step, seen in each)


def _by_size(shape: tuple[int, ...], size: Pair) -> MapGeometry | None:
    """Where positions lie, as far as the map's size tells; None where height and width do not shrink alike."""
    tall, wide = (whole / max(part, 1) for whole, part in zip(size, shape[2:4], strict=True))
    apart = 1.0 if size[0] == size[1] else 1.5
    if max(tall, wide) > apart * min(tall, wide):
        return None
    return MapGeometry((max(1, round(tall)), max(1, round(wide))))
