"""Anchor a token model: patches, windows and merged tokens follow circular shifts of the image, at no multiply-adds.

Layers are changed inside a copy of the model, found by hooks, so that no graph is needed. Three kinds of changes build on each
other: circular *borders* (padding, and no mask between windows that a shift brings together), *windows* that follow the map, and
the *patch grid*: patch embedding, merging, and attention to subsampled keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from shiftscope.engine.checks import evaluating
from shiftscope.errors import InputError, first_line
from shiftscope.graphs.invariance import INVARIANT, output_change, outputs_in_double, random_steps
from shiftscope.graphs.probing import restoring
from shiftscope.graphs.sites import Pair, check_layer, pair
from shiftscope.graphs.tokens import TokenMap, TokenReading, first_tensor, map_by_shape, read_tokens
from shiftscope.layers.anchor import Anchoring, make_anchored
from shiftscope.surgery.plan import Change, Surgery, cost
from shiftscope.surgery.positions import PositionWeight, averaged, moved, position_weights

__all__ = ["STEPS", "AnchorPlan", "Step", "anchor", "confirmed_positions"]

Step = Literal["borders", "windows", "whole map", "patch grid"]
STEPS: tuple[Step, ...] = get_args(Step)
STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
#: Name of a module -> shape.
Shapes = dict[str, tuple[int, ...]]
#: Names of the attribute that holds the size of a window, in timm, torchvision, transformers and others.
WINDOWS = ("window_size", "partition_size", "ws")
NO_TOKENS = "it has no token maps: use `aps`"


@dataclass(frozen=True)
class Edit:
    """One change of one layer.

    Attributes:
        layer: its name.
        step: which kind of change it is.
        was, becomes, why: for the plan.
        apply: makes the change, in place.
    """

    layer: str
    step: Step
    was: str
    becomes: str
    why: str
    apply: Callable[[nn.Module], None]


class AnchorPlan:
    """What anchoring changes in a model.

    Args:
        model: in evaluation mode; it is not changed.
        image: (channels, height, width) of its input.
        reading: how its tokens lie on such an image; read here by default.

    Attributes:
        reading: the same; None for a model without tokens.
        edits: the changes, in the order of the layers.
        kept: layers that stay as they are, and why.
    """

    def __init__(self, model: nn.Module, image: tuple[int, int, int], reading: TokenReading | None = None) -> None:
        self.model, self.image = model, image
        like = next(model.parameters(), torch.zeros(()))
        self.example = torch.zeros(1, *image, dtype=like.dtype, device=like.device)
        self.reading = reading or read_tokens(model, self.example)
        self.edits: list[Edit] = []
        self.kept: list[Change] = []
        if self.reading is not None:
            self._find(self.reading)

    def applied(
        self, steps: Sequence[Step], names: Callable[[str], bool] = lambda _: True, to: nn.Module | None = None
    ) -> nn.Module:
        """Return a copy with the changes of some steps.

        Args:
            steps: which.
            names: whether to change the layer of a name.
            to: the model to copy, with the same layers; the plan's own by default.
        """
        copy = deepcopy(self.model if to is None else to)
        for edit in self.edits:
            if edit.step in steps and names(edit.layer):
                edit.apply(copy.get_submodule(edit.layer))
        return copy

    def has(self, step: Step) -> bool:
        """Return whether there is a change of this kind."""
        return any(edit.step == step for edit in self.edits)

    def _find(self, reading: TokenReading) -> None:
        shapes, outputs = _shapes(self.model, self.example)
        known = [name for name in reading.maps if name in shapes]
        windows = {name: found for name, into in shapes.items() if (found := self._windowed_map(name, into, reading)) is not None}
        merging = [name for name in known if self._merges(name, reading.maps[name], shapes[name])]
        for name, part in self.model.named_modules():
            if name in shapes and isinstance(part, STRIDED):
                self._add_strided(name, part, shapes[name])
            elif name in windows and not any(name.startswith(f"{other}.") for other in windows):
                self._add_windows(name, part, windows[name])
            elif name in merging and not any(other.startswith(f"{name}.") for other in merging):
                self._add_merging(name, reading.maps[name], shapes[name])
        self._share_phases(shapes, outputs)

    def _share_phases(self, shapes: Shapes, outputs: Shapes) -> None:
        """Anchor a part as a whole where several branches subsample its input: they must keep the same phase."""
        strided = {
            edit.layer: (shapes[edit.layer][2:], pair(vars(self.model.get_submodule(edit.layer))["stride"]))
            for edit in self.edits
            if edit.step == "patch grid" and isinstance(self.model.get_submodule(edit.layer), STRIDED)
        }
        for name in [name for name, into in shapes.items() if len(into) == 4 and name not in strided]:
            inner = {other: form for other, form in strided.items() if other.startswith(f"{name}.")}
            for sides, stride in set(inner.values()) if len(outputs.get(name, ())) == 4 else ():
                branches = [other for other, form in inner.items() if form == (sides, stride)]
                kept = tuple(side // step for side, step in zip(sides, stride, strict=True))
                if len(branches) > 1 and (shapes[name][2:], outputs[name][2:]) == (sides, kept):
                    self._replace(branches, name, stride)
                    strided = {other: form for other, form in strided.items() if other not in branches}

    def _replace(self, branches: list[str], name: str, stride: Pair) -> None:
        """Plan one anchoring of a part instead of one for each of its branches."""
        own = [edit for edit in self.edits if edit.layer in branches and edit.step == "patch grid"]
        place = self.edits.index(own[0])
        self.edits = [edit for edit in self.edits if edit not in own]
        title, why = f"{len(branches)} branches of stride {stride[0]}", "all of them start at one phase, that of the largest norm"
        edit = Edit(name, "patch grid", title, "anchored", why, _anchored(Anchoring(stride, returns=False)))
        self.edits.insert(place, edit)

    def _windowed_map(self, name: str, into: tuple[int, ...], reading: TokenReading) -> TokenMap | None:
        """Return how the map of a part with windows lies: as its output does, or as that of the block around it."""
        if _window(self.model.get_submodule(name)) is None:
            return None
        while name and name not in reading.maps:
            name = name.rpartition(".")[0]
        found = reading.maps.get(name)
        return found if found is not None and found.holds(into) else map_by_shape(into, reading.image)

    def _merges(self, name: str, out: TokenMap, into: tuple[int, ...]) -> bool:
        """Return whether a part gives fewer tokens than it receives, without a strided layer inside."""
        return _source_map(out, into) is not None and not _has_strides(self.model.get_submodule(name))

    def _add_strided(self, name: str, part: nn.Module, into: tuple[int, ...]) -> None:
        """Plan a convolution's or pool's circular padding and anchored stride."""
        if len(into) != 4 or max(into[2:]) == 1:
            return
        options = vars(part)
        kernel, stride = pair(options["kernel_size"]), pair(options["stride"] or options["kernel_size"])
        title = f"{'convolution' if isinstance(part, nn.Conv2d) else 'pool'} {'x'.join(map(str, kernel))}, stride {stride[0]}"
        if isinstance(part, nn.Conv2d) and type(part).forward is not nn.Conv2d.forward:
            if max(stride) > 1 or max(kernel) > 1:
                self.kept.append(Change(name, title, "", f"unsupported: {type(part).__name__} may do more than a convolution"))
            return
        reason = _misfit(part, into, kernel, stride)
        if reason:
            self.kept.append(Change(name, title, "", f"unsupported: {reason}"))
            return
        if isinstance(part, nn.Conv2d) and part.padding_mode != "circular" and _pads(part):
            why = "what lies beyond the border comes from the opposite one"
            self.edits.append(Edit(name, "borders", title, "circular padding", why, _make_circular))
        if max(stride) > 1:
            why = "its stride starts at the phase of the largest norm"
            self.edits.append(Edit(name, "patch grid", title, "anchored", why, _anchored(Anchoring(stride, returns=False))))

    def _add_windows(self, name: str, part: nn.Module, found: TokenMap) -> None:
        """Plan a windowed layer's circular shift and anchored windows."""
        window, shift = _window(part) or (1, 1), _shift(part)
        window = (min(window[0], found.grid[0]), min(window[1], found.grid[1]))
        across = getattr(part, "partition_block", True) is False  # windows of tokens spread over the map
        period = found.grid if across else window
        title = f"windows of {window[0]}x{window[1]} tokens{', shifted' if max(shift) else ''}"
        if any(side % each for side, each in zip(found.grid, window, strict=True)):
            why = f"unsupported: its map of {found.grid[0]}x{found.grid[1]} tokens is not filled by whole windows"
            self.kept.append(Change(name, title, "", why))
            return
        if max(shift):
            turn = Anchoring((1, 1), offset=shift, returns=True, as_maps=found.maps, replaced=found.with_maps)
            why = "shifted windows continue across the border, without a mask"
            self.edits.append(Edit(name, "borders", title, "circular windows", why, _unshifted(turn)))
        anchoring = Anchoring(period, returns=True, as_maps=found.maps, replaced=found.with_maps)
        if window == found.grid and not across:
            title, why = "attention over the whole map", "the map starts at its position of the largest norm"
            self.edits.append(Edit(name, "whole map", title, "anchored", why, _anchored(anchoring)))
        elif period != (1, 1):
            why = "windows start at the phase of the largest norm"
            self.edits.append(Edit(name, "windows", title, "anchored windows", why, _anchored(anchoring)))

    def _add_merging(self, name: str, out: TokenMap, into: tuple[int, ...]) -> None:
        """Plan an anchored merging of tokens."""
        source = _source_map(out, into)
        if source is None:
            return
        factor = (source.grid[0] // out.grid[0], source.grid[1] // out.grid[1])
        title, why = f"merging of {factor[0]}x{factor[1]} positions", "it merges from the phase of the largest norm on"
        anchoring = Anchoring(factor, returns=False, as_maps=source.maps, replaced=source.with_maps)
        self.edits.append(Edit(name, "patch grid", title, "anchored", why, _anchored(anchoring)))


def anchor(
    model: nn.Module,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
    reading: TokenReading | None = None,
) -> Surgery:
    """Return a copy of a token model whose patches, windows and merged tokens follow circular shifts of the image.

    Before a patch embedding, a window attention, a merging or a strided convolution the map is rolled so that its phase of
    largest norm comes first (:mod:`shiftscope.layers.anchor`); padding and shifted windows become circular. Weights are kept, and
    multiply-adds too. The copy is tried in double precision, and the last line of the plan says what holds:

    - without position embedding, outputs are the same at every circular shift by whole pixels;
    - with one, shifts change the outputs only through it: patches hold the same content, but at other positions.

    Args:
        model: a transformer, mixer or the like; it is not changed, and need not be traceable.
        only: names of the layers to change; all by default.
        skip: names of layers that stay as they are.
        image: (channels, height, width) of its input; by default three channels of 224x224 pixels.
        reading: how its tokens lie on such an image; read here by default.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        InputError: the model has no layer of such a name, or does not take such images.

    Sources: Ding et al. 2023; Rojas-Gomez et al. 2024. There the networks are rewritten by hand.
    """
    known = {name for name, _ in model.named_modules()}
    for name in (*(only or ()), *skip):
        check_layer(name, known)
    image = image or (3, 224, 224)
    try:
        before = cost(model, image)
        with restoring(model), evaluating(model):
            plan = AnchorPlan(model, image, reading)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"The model does not take images of {image} ({first_line(error).rstrip('.')}).") from error
    if plan.reading is None:
        return Surgery(deepcopy(model), (Change("-", type(model).__name__, "", NO_TOKENS),), before, before)
    wanted = {name for name in known if (only is None or name in only) and name not in skip}
    copy = plan.applied(STEPS, wanted.__contains__)
    changes = [_change(edit, wanted) for edit in plan.edits]
    return Surgery(copy, (*changes, *plan.kept, _tried(copy, plan)), before, cost(copy, image))


def confirmed_positions(model: nn.Module, reading: TokenReading, images: Tensor) -> tuple[PositionWeight, ...] | None:
    """Return the weights that make a model's outputs change under circular shifts by multiples of the factor.

    Args:
        model: of which borders and windows are circular.
        reading: how its tokens lie on the image.
        images: on which to try it.

    Returns:
        empty where such shifts change nothing; None where no weights are found that undo them by moving along.
    """
    factor, size = reading.factor, reading.image
    steps = random_steps(2, size, factor, seed=1) if factor else []
    if factor is None or not steps:
        return None
    expected = outputs_in_double(model, images)
    if expected is None:
        return None
    change = output_change(model, images, steps, expected=expected)
    if change is not None and change < INVARIANT:
        return ()
    for weights in position_weights(model, reading):
        if all(_undone(model, weights, step, images, expected) for step in steps):
            return weights
    return None


def _undone(model: nn.Module, weights: tuple[PositionWeight, ...], step: Pair, images: Tensor, expected: Tensor) -> bool:
    """Return whether weights that move along with the image undo a shift: outputs are those of the unshifted images."""
    try:
        change = output_change(moved(model, weights, step), images, [step], expected=expected)
    except RuntimeError:  # indices that were rolled and no longer fit
        return False
    return change is not None and change < INVARIANT


def _change(edit: Edit, wanted: set[str]) -> Change:
    if edit.layer in wanted:
        return Change(edit.layer, edit.was, edit.becomes, edit.why)
    return Change(edit.layer, edit.was, "", "left out by `only` or `skip`")


def _tried(copy: nn.Module, plan: AnchorPlan) -> Change:
    """Return what circular shifts change in the copy, as random ones in double precision find it."""
    images = torch.rand(2, *plan.image, generator=torch.Generator().manual_seed(0))
    steps = random_steps(3, (plan.image[1], plan.image[2]), (1, 1))
    with evaluating(copy):
        return _tried_in_evaluation(copy, plan, images, steps)


def _tried_in_evaluation(copy: nn.Module, plan: AnchorPlan, images: Tensor, steps: list[tuple[int, int]]) -> Change:
    change = output_change(copy, images, steps)
    title = "circular shifts by whole pixels"
    if change is not None and change < INVARIANT:
        return Change("-", title, "", "they change no output (tried in double precision)")
    still = plan.applied(["borders", "windows", "whole map"])
    weights = confirmed_positions(still, plan.reading, images) if plan.reading is not None else None
    mean = averaged(copy, weights) if weights else None
    change = None if mean is None else output_change(mean, images, steps)
    if weights and change is not None and change < INVARIANT:
        names = ", ".join(f"`{weight.name}`" for weight in weights[:3]) + (" and others" if len(weights) > 3 else "")
        each = "each pair of positions" if all(weight.is_relative for weight in weights) else "each position"
        why = f"they change outputs only through {names}, a value for {each} (tried in double precision)"
        return Change("-", title, "", why)
    return Change("-", title, "", "they still change outputs: not every layer follows them")


def _shapes(model: nn.Module, example: Tensor) -> tuple[Shapes, Shapes]:
    """Return the shapes of each module's first input and output, in its first call; outer modules come after inner ones."""
    inputs, outputs = Shapes(), Shapes()

    def hook(name: str) -> Callable[..., None]:
        def called(_: nn.Module, args: Any, options: dict[str, Any], out: Any) -> None:
            into, found = first_tensor([*args, *options.values()]), first_tensor(out)
            if into is not None and found is not None:
                inputs.setdefault(name, tuple(into.shape))
                outputs.setdefault(name, tuple(found.shape))

        return called

    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def _window(part: nn.Module) -> Pair | None:
    """Return a layer's window, tokens; None for layers without one."""
    found = next((value for name in WINDOWS if (value := vars(part).get(name)) is not None), None)
    if isinstance(found, int):
        found = (found, found)
    usable = isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(each, int) and each > 0 for each in found)
    return (found[0], found[1]) if usable and found is not None else None


def _shift(part: nn.Module) -> Pair:
    found = vars(part).get("shift_size", 0)
    return pair(found) if isinstance(found, int | tuple | list) else (0, 0)


def _source_map(out: TokenMap, into: tuple[int, ...]) -> TokenMap | None:
    """Return how a part's input lies if its map is a whole number of times as high and wide as the output's; None otherwise."""
    (tall, wide), found = out.grid, list[TokenMap]()
    if len(into) == 4:
        found = [TokenMap("channels last", (into[1], into[2])), TokenMap("channels first", (into[2], into[3]))]
        found = found if out.layout == "channels last" else found[::-1]
    elif len(into) == 3 and into[1] % (tall * wide) == 0:
        factor = round((into[1] // (tall * wide)) ** 0.5)
        found = [TokenMap("tokens", (tall * factor, wide * factor))] if factor**2 * tall * wide == into[1] else []
    for each in found:
        if each.grid[0] > tall and each.grid[1] > wide and each.grid[0] % tall == 0 and each.grid[1] % wide == 0:
            return each
    return None


def _pads(part: nn.Conv2d) -> bool:
    return part.padding != "valid" and (part.padding == "same" or max(pair(part.padding)) > 0)


def _misfit(part: nn.Module, into: tuple[int, ...], kernel: Pair, stride: Pair) -> str:
    """Return why a strided or padded layer cannot meet every position of a circular map alike; empty where it can."""
    options = vars(part)
    if options.get("padding") == "same":
        return ""
    padding, dilation = pair(0 if options["padding"] == "valid" else options["padding"]), pair(options.get("dilation", 1))
    if any(side % step for side, step in zip(into[2:], stride, strict=True)):
        return f"its map of {into[2]}x{into[3]} positions is no multiple of its stride"
    if any(pad > side for side, pad in zip(into[2:], padding, strict=True)):
        return f"its map of {into[2]}x{into[3]} positions is smaller than its padding"
    reaches = (gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True))
    fits = (1 - step <= 2 * pad - reach <= 0 for pad, reach, step in zip(padding, reaches, stride, strict=True))
    if not all(fits):
        return "it does not pad by what its window reads"
    return "it pads, and only a convolution can do that circularly" if not isinstance(part, nn.Conv2d) and max(padding) else ""


def _has_strides(part: nn.Module) -> bool:
    return any(isinstance(inner, STRIDED) for inner in part.modules())


def _make_circular(part: nn.Module) -> None:
    """Let a convolution pad circularly."""
    vars(part)["padding_mode"] = "circular"


def _anchored(anchoring: Anchoring) -> Callable[[nn.Module], None]:
    """Return the edit that anchors a layer, also one that was turned by :func:`_unshifted` before."""

    def apply(part: nn.Module) -> None:
        already = getattr(part, "anchoring", None)
        if isinstance(already, Anchoring):
            already.set_period(anchoring.period)
        else:
            make_anchored(part, deepcopy(anchoring))

    return apply


def _unshifted(turn: Anchoring) -> Callable[[nn.Module], None]:
    """Return the edit that rolls the map of shifted windows outside of their layer, which then needs no mask."""

    def apply(part: nn.Module) -> None:
        made: Any = part
        made.shift_size = 0 if isinstance(made.shift_size, int) else type(made.shift_size)((0, 0))
        if hasattr(made, "attn_mask"):
            made.attn_mask = None
        make_anchored(part, deepcopy(turn))

    return apply
