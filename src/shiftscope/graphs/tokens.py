"""Find how a model's token maps lie on the image: [image, token, channel], and maps with channels last or first.

The shape of an output does not say where its tokens lie, nor which tokens come before the map (class, distillation, registers).
So every arrangement that fits the shape is tried on the model: patches of an image are perturbed, one after the other, and the
token that changes most must lie in the perturbed patch. This needs hooks only, no graph. An arrangement that fails the trial is
not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftscope.graphs.geometry import call_name
from shiftscope.graphs.sites import Pair

__all__ = ["BlockKind", "TokenMap", "TokenReading", "first_tensor", "has_attention", "map_by_shape", "read_tokens"]

BlockKind = Literal["patch embedding", "merging", "block"]
#: Top, bottom, left and right of a part of an image, as shares of its height and width.
Region = tuple[float, float, float, float]
#: Number of perturbed patches, one per image, and how many of them must be found again.
PROBES, HITS = 6, 5
#: On a grid with fewer positions per side all must be found, because chance hits are likelier.
FINE = 6
#: Most tokens before a map that are tried: a class token, a distillation token and a few registers.
MOST_PREFIX = 10
#: Largest ratio between the pixels of a position's longer and shorter side.
DISTORTION = 1.35


@dataclass(frozen=True)
class TokenMap:
    """How the positions of one output are arranged.

    Attributes:
        layout: ``tokens`` is [image, token, channel]; the others are maps with that order of axes.
        grid: height and width of the map, positions.
        prefix: number of tokens before those of the map.
        sequence_first: whether tokens are [token, image, channel].
        levels: how often rows and columns are split in two, with the halves of all positions first, as Hiera orders them:
            the first token of each 2x2 square, the second of each, and so on; with each of these four maps split in its turn.
    """

    layout: Literal["tokens", "channels last", "channels first"]
    grid: Pair
    prefix: int = 0
    sequence_first: bool = False
    levels: int = 0

    def maps(self, value: Tensor) -> Tensor:
        """Return the map as [image, channel, height, width], without the tokens before it.

        >>> TokenMap("tokens", (2, 3), prefix=1).maps(torch.zeros(4, 7, 5)).shape
        torch.Size([4, 5, 2, 3])
        """
        if self.layout != "tokens":
            return value.permute(0, 3, 1, 2) if self.layout == "channels last" else value
        tokens = value.transpose(0, 1) if self.sequence_first else value
        placed = tokens[:, self.prefix :].transpose(1, 2)
        grid: Tensor = (self._joined(placed) if self.levels else placed).unflatten(2, self.grid)
        return grid

    def _joined(self, tokens: Tensor) -> Tensor:
        """Return tokens [image, channel, token] in the order of the map's rows."""
        halves, axes = [2] * 2 * self.levels, 2 * self.levels
        split = tokens.unflatten(2, (*halves, *(side >> self.levels for side in self.grid)))
        rows, columns = ([2 + axes + side, *range(axes + side, 1, -2)] for side in (0, 1))
        joined: Tensor = split.permute(0, 1, *rows, *columns).flatten(2)
        return joined

    def _split(self, tokens: Tensor) -> Tensor:
        """Return tokens [image, channel, token] in the model's order; the inverse of :meth:`_joined`."""
        order = self._joined(torch.arange(tokens.shape[2], device=tokens.device)[None, None])[0, 0]
        return tokens[:, :, order.argsort()]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Return whether a value of this shape can be arranged this way."""
        if self.layout != "tokens":
            return len(shape) == 4 and tuple(shape[1:3] if self.layout == "channels last" else shape[2:]) == self.grid
        return len(shape) == 3 and shape[0 if self.sequence_first else 1] == self.prefix + self.grid[0] * self.grid[1]

    def with_maps(self, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the value with its map replaced by ``change(map)``, and the tokens before the map as they are."""
        changed = change(self.maps(value))
        if self.layout != "tokens":
            return changed.permute(0, 2, 3, 1) if self.layout == "channels last" else changed
        tokens = value.transpose(0, 1) if self.sequence_first else value
        placed = changed.flatten(2)
        placed = (self._split(placed) if self.levels else placed).transpose(1, 2)
        tokens = torch.cat([tokens[:, : self.prefix], placed], dim=1)
        return tokens.transpose(0, 1) if self.sequence_first else tokens


@dataclass(frozen=True)
class TokenReading:
    """The token maps of a model.

    Attributes:
        image: height and width of the image they were read with.
        maps: arrangement of each module's output, by :func:`shiftscope.graphs.geometry.call_name`; only those that were verified.
        blocks: name and kind of the modules that a reader calls layers, in the order of their calls.
        complete: whether no output that may be a map, but is not verified, comes after the last block.
        coarsest: height and width of the smallest output that may be a map.
    """

    image: Pair
    maps: dict[str, TokenMap]
    blocks: tuple[tuple[str, BlockKind], ...]
    complete: bool = True
    coarsest: Pair | None = None

    @property
    def last(self) -> str:
        """Name of the last block; empty if there is none."""
        return self.blocks[-1][0] if self.blocks else ""

    @property
    def factor(self) -> Pair | None:
        """Pixels between neighbouring positions of the last block's map; None if they are not a whole number.

        Where that may not be the last map, those of the coarsest output that may be one.
        """
        if not self.blocks:
            return None
        grid = self.maps[self.last].grid if self.complete or self.coarsest is None else self.coarsest
        (height, width), (tall, wide) = self.image, grid
        return None if height % tall or width % wide else (height // tall, width // wide)


def read_tokens(model: nn.Module, image: Tensor, names: Sequence[str] = ()) -> TokenReading | None:
    """Find out how the outputs of a model's modules lie on the image.

    Args:
        model: in evaluation mode; it is not changed.
        image: one image [1, channel, height, width] on the model's device. Only its shape and type count.
        names: modules to read besides convolutions and those that hold others with weights.

    Returns:
        what was verified; None for a model without token maps.

    >>> read_tokens(nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.Flatten(), nn.Linear(128, 2)), torch.zeros(1, 1, 16, 16)) is None
    True
    """
    with torch.no_grad():
        if not has_attention(model) and not _mixes_positions(model, image):
            return None
        size = (image.shape[2], image.shape[3])
        candidates: dict[str, list[TokenMap]] = {}

        def collect(layer: str, number: int, _: nn.Module, __: Tensor, out: Tensor) -> None:
            if out.is_floating_point() and (found := list(_candidates(tuple(out.shape), len(probes), size))):
                candidates[call_name(layer, number)] = found

        read = [name for name, part in model.named_modules() if name and (name in names or _is_composite(part))]
        read += [name for name, part in model.named_modules() if name and isinstance(part, nn.Conv2d)]
        probes = _background(image).expand(3, -1, -1, -1)
        with _watching(model, list(dict.fromkeys(read)), collect):
            model(probes)
        maps = _verified(model, image, candidates)
    blocks = tuple(_blocks(model, maps))
    complete = bool(blocks) and _is_complete(blocks[-1][0], list(candidates))
    return TokenReading(size, maps, blocks, complete, min((found[0].grid for found in candidates.values()), default=None))


def first_tensor(value: Any) -> Tensor | None:
    """Return a module's output, or the first tensor where it returns several; None if there is none."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)


def has_attention(model: nn.Module) -> bool:
    """Return whether a part of a model is called attention."""
    return any("attention" in type(part).__name__.lower() for part in model.modules())


def _mixes_positions(model: nn.Module, image: Tensor) -> bool:
    """Return whether a fully connected layer works at several positions, as in mixers and on maps with channels last."""
    found: list[bool] = []
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    with _watching(model, names, lambda _, __, ___, into, ____: found.append(into.ndim > 2)):
        model(image)
    return any(found)


def _candidates(shape: tuple[int, ...], batch: int, size: Pair) -> Iterator[TokenMap]:
    """Yield the arrangements that fit an output's shape."""
    if len(shape) == 4 and shape[0] == batch:
        for layout, grid in (("channels first", shape[2:]), ("channels last", shape[1:3])):
            if _fits((grid[0], grid[1]), size):
                yield TokenMap(layout, (grid[0], grid[1]))  # type: ignore[arg-type]  # mypy widens the literals
    if len(shape) == 3:
        for axis in (0, 1):
            if shape[axis] == batch:
                yield from (replace(each, sequence_first=axis == 1) for each in _grids(shape[1 - axis], size))


def _grids(tokens: int, size: Pair) -> list[TokenMap]:
    """Return the grids that a number of tokens fills and whose proportions are closest to the image's."""
    found = [
        TokenMap("tokens", (tall, count // tall), tokens - count)
        for count in range(max(4, tokens - MOST_PREFIX), tokens + 1)
        for tall in range(2, count // 2 + 1)
        if count % tall == 0 and _fits((tall, count // tall), size)
    ]
    closest = min((_distortion(each.grid, size) for each in found), default=1.0)
    return [each for each in found if _distortion(each.grid, size) < closest + 1e-6]


def _nested(candidates: Sequence[TokenMap]) -> Iterator[TokenMap]:
    """Yield the arrangements of the same tokens in which rows and columns are split."""
    for each in candidates:
        if each.layout == "tokens" and each.prefix == 0:
            most = min((side & -side).bit_length() - 1 for side in each.grid)  # how often both sides halve
            yield from (replace(each, levels=levels) for levels in range(1, most + 1))


def _fits(grid: Pair, size: Pair) -> bool:
    """Return whether a grid of several positions has the proportions of the image."""
    return min(grid) > 1 and grid[0] <= size[0] and grid[1] <= size[1] and _distortion(grid, size) <= DISTORTION


def _distortion(grid: Pair, size: Pair) -> float:
    """Return the ratio between the pixels of a position's longer and shorter side."""
    tall, wide = (side / count for side, count in zip(size, grid, strict=True))
    return max(tall, wide) / min(tall, wide)


def _background(image: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.1 * torch.randn(image.shape[1:], generator=generator)[None].to(image)


def _verified(model: nn.Module, image: Tensor, candidates: dict[str, list[TokenMap]]) -> dict[str, TokenMap]:
    """Return the arrangements that agree with what perturbed patches change.

    Where a stem puts positions on the corners of patches, small patches change the position beside them. So what small patches do
    not confirm is tried with larger ones.
    """
    if not candidates:
        return {}
    sides = max(4, min(8, *(min(each.grid) for found in candidates.values() for each in found)))
    verified = _confirmed(model, image, candidates, sides)
    if (left := {name: found for name, found in candidates.items() if name not in verified}) and sides > 4:
        verified |= _confirmed(model, image, left, 4)
    return {name: verified[name] for name in candidates if name in verified}


def _confirmed(model: nn.Module, image: Tensor, candidates: dict[str, list[TokenMap]], sides: int) -> dict[str, TokenMap]:
    """Return the arrangements that agree with what patches change, of which so many stand along each side of the image."""
    probes, regions = _perturbed(image, sides)
    confirmed: dict[str, TokenMap] = {}

    def check(layer: str, number: int, _: nn.Module, __: Tensor, out: Tensor) -> None:
        plain = candidates.get(call_name(layer, number), [])
        right = [each for each in plain if _agrees(each, out, regions, len(probes))]
        right = right or [each for each in _nested(plain) if _agrees(each, out, regions, len(probes))]
        if len(right) == 1 or (right and right[0].layout != "tokens"):
            size = (image.shape[2], image.shape[3])
            confirmed[call_name(layer, number)] = min(right, key=lambda each: _distortion(each.grid, size))

    with _watching(model, list({name.split(", call ")[0] for name in candidates}), check):
        model(probes)
    return confirmed


def _perturbed(image: Tensor, sides: int) -> tuple[Tensor, list[Region]]:
    """Return an image, copies of it with one patch changed, and the patches: top, bottom, left, right as shares of the image."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(sides * sides, generator=generator)[:PROBES].tolist()
    regions = [
        (cell // sides / sides, (cell // sides + 1) / sides, cell % sides / sides, (cell % sides + 1) / sides) for cell in cells
    ]
    probes = _background(image).repeat(1 + len(cells), 1, 1, 1)
    height, width = image.shape[2:]
    for probe, (top, bottom, left, right) in zip(probes[1:], regions, strict=True):
        part = probe[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        part.copy_(2 * torch.rand(part.shape, generator=generator).round() - 0.5)
    return probes, regions


def _agrees(found: TokenMap, out: Tensor, regions: list[Region], batch: int) -> bool:
    """Return whether nearly every perturbed patch is where a map changes most, or most of the change lies there."""
    expected = (batch, found.prefix + found.grid[0] * found.grid[1])
    if found.layout == "tokens" and (out.shape[1::-1] if found.sequence_first else out.shape[:2]) != expected:
        return False
    maps = found.maps(out)
    if len(maps) != batch or tuple(maps.shape[2:]) != found.grid or not maps.isfinite().all():
        return False
    changes = (maps[1:] - maps[:1]).square().sum(1).flatten(1).cpu()
    inside = torch.stack([_cells(found.grid, region).flatten() for region in regions])
    if not bool((changes.amax(1) > 0).all()):
        return False
    shares = changes / changes.sum(1, keepdim=True)
    within = float((shares * inside).sum(1).mean())
    if within > (1 + float(inside.double().mean())) / 2:
        return True
    apart = changes.clamp_min(1e-300).log() - changes.clamp_min(1e-300).log().mean(0)  # some positions respond to every patch
    hits = [int(inside.gather(1, each.argmax(1, keepdim=True)).sum()) for each in (changes, apart)]
    return max(hits) >= (HITS if min(found.grid) >= FINE else len(regions))


def map_by_shape(shape: tuple[int, ...], size: Pair) -> TokenMap | None:
    """Return the one arrangement that fits a map's shape; None if there are several, or none. It is not verified.

    Args:
        shape: [image, channel, height, width] or [image, height, width, channel].
        size: height and width of the image.
    """
    found = list(_candidates(shape, shape[0], size)) if len(shape) == 4 else []
    return found[0] if len(found) == 1 else None


def _cells(grid: Pair, region: Region) -> Tensor:
    """Return which positions of a grid lie at least in part in a region of the image."""
    tops, lefts = (torch.arange(count, dtype=torch.float64) for count in grid)
    top, bottom, left, right = region
    rows = (tops + 1 > top * grid[0]) & (tops < bottom * grid[0])
    columns = (lefts + 1 > left * grid[1]) & (lefts < right * grid[1])
    return rows[:, None] & columns


def _blocks(model: nn.Module, maps: dict[str, TokenMap]) -> Iterator[tuple[str, BlockKind]]:
    """Yield the innermost repeated parts of a model that return a map, and the parts beside them."""
    parts = {name: part for name, part in model.named_modules() if name in maps}
    composites = [name for name, part in parts.items() if _is_composite(part)]
    repeated = [name for name in composites if _is_repeated(model, name, composites)]
    inner = [name for name in repeated if not any(other.startswith(f"{name}.") for other in repeated)]
    beside = [name for name in composites if not any(_is_inside(name, each) or _is_inside(each, name) for each in inner)]
    shown = {*inner, *(name for name in beside if not any(_is_inside(name, each) for each in beside))}
    convolutions = [name for name, part in parts.items() if isinstance(part, nn.Conv2d) and max(part.stride) > 1]
    shown |= {name for name in convolutions if not any(_is_inside(name, each) for each in shown)}
    before: Pair | None = None
    for name in (name for name in maps if name in shown):  # in the order of their calls
        grid = maps[name].grid
        yield name, "patch embedding" if before is None else "merging" if grid[0] < before[0] else "block"
        before = grid


def _is_complete(last: str, calls: list[str]) -> bool:
    """Return whether every later output that may be a map belongs to a module that contains the last block."""
    after = calls[calls.index(last) + 1 :]
    return all(last.startswith(f"{name}.") for name in after)


def _is_composite(part: nn.Module) -> bool:
    """Return whether a part holds others with weights."""
    return any(True for child in part.children() for _ in child.parameters())


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _is_repeated(model: nn.Module, name: str, composites: list[str]) -> bool:
    """Return whether a part is one of a list, or of several of its kind."""
    parent = name.rpartition(".")[0]
    owner, kind = model.get_submodule(parent), type(model.get_submodule(name))
    if isinstance(owner, nn.Sequential | nn.ModuleList) and parent:
        return True
    siblings = [f"{parent}.{child}".lstrip(".") for child, part in owner.named_children() if type(part) is kind]
    return sum(sibling in composites for sibling in siblings) > 1


@contextmanager
def _watching(model: nn.Module, names: list[str], see: Callable[[str, int, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with name, number of the call, module, first input and first output at every call of the named modules."""
    numbers: Counter[str] = Counter()

    def hook(layer: str) -> Callable[..., None]:
        def called(module: nn.Module, args: Any, options: dict[str, Any], out: Any) -> None:
            numbers[layer] += 1
            into, found = first_tensor([*args, *options.values()]), first_tensor(out)
            if into is not None and found is not None:
                see(layer, numbers[layer] - 1, module, into, found)

        return called

    handles = [model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
