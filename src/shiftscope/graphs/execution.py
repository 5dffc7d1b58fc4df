"""Follow circular shifts of the image through a model while it runs, operator by operator.

A graph traced from a model's Python code is only as good as the trace. Here the model itself runs, with its subclasses, hooks and
branches, and the rules of :mod:`shiftscope.graphs.rules` follow every operator that torch executes. The result holds for images
of this size and for the path that the code took. So the code must take the same path for other images and in a second call, must
not read values of maps in Python, and must draw no random numbers; otherwise nothing is concluded.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shiftscope.graphs.probing import restoring_random_numbers
from shiftscope.graphs.rules.call import Call, Rule, UnknownError
from shiftscope.graphs.rules.own_layers import OwnLayers, is_own
from shiftscope.graphs.rules.table import READS, RULES
from shiftscope.graphs.rules.values import pointwise
from shiftscope.graphs.symmetry import Axis, Factor, Lost, Symmetry, Tracked, constant, fixed
from shiftscope.graphs.tensors import TensorTable, region

__all__ = ["Run", "follow"]

#: Reason for indices, such as those of maxima: a shift changes them instead of moving them. They are rarely used.
PLACES = "places"
#: What a run says of code that reads values.
READING = "its code reads values of a map"


@dataclass
class Run:
    """What one run of a model showed.

    Attributes:
        outputs: how each output tensor follows shifts.
        notes: (layer, what it does to positions) in the order of execution: ``stride``, ``polyphase``, ``misfit``, ``unknown`` or
            a padding mode.
        maps: symmetry of every tensor that moves with shifts.
        trace: operators with their arguments other than tensors, to compare runs.
        values: the output tensors.
        lost: why it is unknown how some tensors follow shifts.
        precision: the lowest precision in which values were computed.
        kept: those of these tensors whose numbers are in ``keep``, by number.
        problem: why nothing can be concluded from the run; empty for a conclusive one.
    """

    outputs: list[Tracked] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    maps: list[Symmetry] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    precision: torch.dtype = torch.float64
    problem: str = ""


def follow(model: nn.Module, images: Tensor, *, keep: Collection[int] = ()) -> Run:
    """Run a model and return how its maps and outputs follow circular shifts of the images.

    Args:
        model: the model, in evaluation mode. Its buffers change if its code changes them, so pass a copy.
        images: [image, channel, height, width].
        keep: numbers of the tensors that move with shifts, in the order of :attr:`Run.maps`, to keep.

    Raises:
        Exception: whatever the model raises.
    """
    mode = _Following(model, images, keep)
    reads = _Reads(mode)
    with restoring_random_numbers() as used, mode.named(), torch.inference_mode(), _attention_as_operators(), reads, mode:
        result = model(images)
    run = mode.run
    run.values = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
    run.outputs = [mode.tracked(each) for each in run.values]
    if any(used):
        run.problem = "its code draws random numbers"
    if any(not isinstance(each, Tensor | None | bool | int | float | str) for each in tree_leaves(result)):
        run.problem = "it returns something other than tensors"
    return run


@contextmanager
def _attention_as_operators() -> Iterator[None]:
    """Run attention as basic operators instead of one fused kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _restoring_random_state() -> Iterator[None]:
    """Restore Python's random state: runtime type checkers may draw numbers, which do not count as the model's."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class _Reads(TorchFunctionMode):
    """Notices code that turns tensors into Python's or NumPy's values, which is no operator."""

    METHODS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})

    def __init__(self, following: _Following) -> None:
        super().__init__()
        self.following = following

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if function in self.METHODS:
            self.following.read(args[0])
        return function(*args, **(kwargs or {}))


class _Following(TorchDispatchMode):
    """Tracks the symmetry of every tensor while a model runs."""

    def __init__(self, model: nn.Module, images: Tensor, keep: Collection[int]) -> None:
        super().__init__()
        self.model, self.keep = model, keep
        self.names = {part: name or type(model).__name__ for name, part in model.named_modules()}
        self.run = Run()
        self.known = TensorTable[Tracked]()
        extent = (int(images.shape[2]), int(images.shape[3]))
        axes = [_moving(extent[0], "down"), _moving(extent[1], "right")]
        self.known[images] = Symmetry((*map(fixed, images.shape[:2]), *axes), extent=extent, image=True)
        self.stack: list[nn.Module] = [model]
        self.inside = 0
        self.states: list[Any] = []
        self.own_layers = OwnLayers(self._note)

    # Layers

    @contextmanager
    def named(self) -> Iterator[None]:
        """Track which layer runs, and treat this package's layers as single operators."""
        with _hooks(self.model, self._enter, self._leave):
            yield

    def _enter(self, part: nn.Module, own: bool) -> None:
        self.stack.append(part)
        self.inside += own
        self.states.append(random.getstate())

    def _leave(self, part: nn.Module, own: bool, given: Sequence[Any], result: Any) -> None:
        state = self.states.pop()
        with _restoring_random_state():
            self._left(part, own, given, result)
        if own:
            random.setstate(state)

    def _left(self, part: nn.Module, own: bool, given: Sequence[Any], result: Any) -> None:
        if own:
            self.inside -= 1
        if own and not self.inside and isinstance(result, Tensor):
            sources = [self.tracked(each) for each in given if isinstance(each, Tensor)]
            lost = next((each for each in sources if isinstance(each, Lost)), None)
            try:
                found = lost or self.own_layers(part, [each for each in sources if isinstance(each, Symmetry)], result)
            except UnknownError:
                found = self._unknown()
            self._record([result], [found])
        self.stack.pop()

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and track its results."""
        with _restoring_random_state():
            return self._dispatched(func, args, kwargs or {})

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.inside:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        name = name.rstrip("_") if not name.endswith("__") else name
        if name not in RULES and name not in READS and torch.Tag.pointwise not in func.tags and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        given = _bound(func, args, kwargs)
        sources = [self.tracked(each) for each in tree_leaves(given) if isinstance(each, Tensor)]
        result = func(*args, **kwargs)
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        self.run.trace.append(f"{func} {[_plain(each) for each in tree_leaves(given)]}")
        written = _written(func, given)
        found = self._results(func, name, given, sources, results, written)
        if func._schema.is_mutable:
            self._overwrite(written, found[0] if found else Lost(self._layer_name()), sources)
        else:
            self._record(results, found)
        return result

    def _results(
        self, func: Any, name: str, given: dict[str, Any], sources: list[Tracked], results: list[Tensor], written: list[Tensor]
    ) -> list[Tracked]:
        """Return the symmetry of each result of an operator."""
        known = [each for each in sources if isinstance(each, Symmetry)]
        lost = [each for each in sources if isinstance(each, Lost)]
        image = any(each.image for each in known)
        if (image or lost) and _shows_values(func, name, given):
            self.run.problem = READING
        if lost and not (written and name in ("copy", "fill", "zero") and lost == [self.tracked(written[0])]):
            # A head with a weight for each position stays one until a map is combined with it.
            weighs = all(each.weighs for each in lost) and not any(each.image and each.factors for each in known)
            inherited = replace(lost[0], weighs=weighs) if lost[0].reason != PLACES else self._unknown()
            return [_seen(inherited, each) for each in results]
        rule, is_random = RULES.get(name), torch.Tag.nondeterministic_seeded in func.tags
        if rule is None and is_random and not image and not written:
            return [self._unknown() for _ in results]
        if rule is None and torch.Tag.pointwise in func.tags and not is_random:
            rule = pointwise
        return self._by_rule(rule, given, results, image=image)

    def _by_rule(self, rule: Rule | None, given: dict[str, Any], results: list[Tensor], *, image: bool) -> list[Tracked]:
        """Return the symmetry of each result by the operator's rule; where it has none or fails, what is known without it."""
        try:
            if rule is None:
                raise UnknownError
            outputs = rule(Call(given, results, self._symmetry, self._note))
            found = outputs if isinstance(outputs, list) else [outputs] * len(results)
            return [self._tidy(each) if each is not None else Lost(PLACES) for each in found]
        except (UnknownError, IndexError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            if not image:
                return [constant(each.shape) for each in results]
            weighs = isinstance(error, UnknownError) and error.weighs
            unknown = self._unknown(weighs=weighs and all(each.ndim <= 2 for each in results))
            return [unknown] * len(results)

    def _unknown(self, *, weighs: bool = False) -> Lost:
        found = Lost(self._layer_name(), weighs)
        if not weighs:
            self._note("unknown")
        return found

    def _symmetry(self, tensor: Tensor) -> Symmetry:
        found = self.tracked(tensor)
        if isinstance(found, Lost):
            raise UnknownError
        return found

    def tracked(self, tensor: Tensor) -> Tracked:
        """Return what is known of a tensor; weights, and others that no operator made, are constants."""
        found = self.known.get(tensor)
        if found is not None:
            return found
        for other, theirs in self.known.aliases(tensor):
            if not (isinstance(theirs, Symmetry) and not theirs.image):
                return theirs if region(other) == region(tensor) else Lost(self._layer_name())
        if not isinstance(tensor, nn.Parameter):
            # Values computed outside torch are not constants: other images give other values.
            self.run.trace.append(f"constant {tuple(tensor.shape)} {_checksum(tensor)}")
        return constant(tensor.shape)

    def read(self, tensor: Tensor) -> None:
        """Note that code reads a tensor's values."""
        found = self.tracked(tensor)
        if not self.inside and (isinstance(found, Lost) or found.image):
            self.run.problem = READING

    def _overwrite(self, written: list[Tensor], found: Tracked, sources: list[Tracked]) -> None:
        """Record what an operator wrote into tensors, and mark tensors that share their memory as unknown."""
        for tensor in written:
            random_weight = not any(isinstance(each, Lost) or each.image for each in sources) and tensor not in self.known
            new = constant(tensor.shape) if random_weight else found
            for other, before in self.known.aliases(tensor):
                if region(other) == region(tensor):
                    self.known[other] = new
                elif not (isinstance(before, Symmetry) and not before.image and isinstance(new, Symmetry) and not new.image):
                    self.known[other] = Lost(self._layer_name())
                else:
                    self.known[other] = constant(other.shape)
            self._record([tensor], [new])

    def _record(self, results: Sequence[Tensor], found: Sequence[Tracked]) -> None:
        for tensor, each in zip(results, found, strict=False):
            self.known[tensor] = each
            if (
                tensor.is_floating_point()
                and tensor.numel()
                and torch.finfo(tensor.dtype).eps > torch.finfo(self.run.precision).eps
            ):
                self.run.precision = tensor.dtype if isinstance(each, Lost) or each.image else self.run.precision
            if isinstance(each, Lost):
                self.run.lost += [each] if each.reason != PLACES else []
            elif each.image and each.factors:
                number = len(self.run.maps)
                self.run.maps.append(each)
                if number in self.keep:
                    self.run.kept[number] = tensor.clone()

    def _tidy(self, found: Symmetry) -> Symmetry:
        """Drop the factors of axes with one position: nothing moves there, on a torus."""
        single = [factor for factor in found.factors if factor.size == 1]
        if not single:
            return found
        axes = (tuple(tuple(f for f in part if f.size > 1) for part in axis) for axis in found.axes)
        return replace(found, local=found.local and found.circular).with_axes(axes)

    def _layer_name(self) -> str:
        part = self.stack[-1]
        return f"`{self.names.get(part, type(part).__name__)}` ({type(part).__name__})"

    def _note(self, what: str) -> None:
        part = self.stack[-1]
        note = (self.names.get(part, type(part).__name__), what)
        if what == "unknown":
            note = (self._layer_name(), what)
        if note not in self.run.notes:
            self.run.notes.append(note)


def _seen(lost: Lost, tensor: Tensor) -> Lost:
    """Return the reason for a tensor computed from a lost one; a weighted sum that becomes a map again is no head."""
    return replace(lost, weighs=lost.weighs and tensor.ndim <= 2)


def _moving(size: int, kind: Any) -> Axis:
    return ((Factor(size, kind),) if size > 1 else (),)


def _shows_values(func: Any, name: str, given: dict[str, Any]) -> bool:
    """Return whether an operator's result, or its size, lets code see values of its arguments."""
    if name == "index":  # the size of what a mask picks depends on the mask
        return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in given["indices"])
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return name in READS or not tags.isdisjoint(func.tags)


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _bound(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name."""
    given = {}
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
        given[argument.name] = value
    return given


def _written(func: Any, given: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operator writes into."""
    return [
        each
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for each in tree_leaves(given[argument.name])
        if isinstance(each, Tensor)
    ]


def _plain(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _checksum(tensor: Tensor) -> str:
    with suppress(Exception):
        values = tensor.detach().double().nan_to_num().flatten()
        return repr(float(values @ torch.arange(len(values), dtype=torch.float64, device=values.device).cos()))
    return ""


@contextmanager
def _hooks(model: nn.Module, enter: Any, leave: Any) -> Iterator[None]:
    """Call functions when a part of a model begins and ends."""
    own = {part: is_own(part) for part in model.modules() if not isinstance(part, torch.jit.ScriptModule)}

    def before(module: nn.Module, _: Any) -> None:
        enter(module, own[module])

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        leave(module, own[module], [*args, *kwargs.values()], result)

    with ExitStack() as hooks:
        for part in own:
            hooks.enter_context(part.register_forward_pre_hook(before))
            hooks.enter_context(part.register_forward_hook(after, with_kwargs=True, always_call=True))
        yield
