"""Trace a model with ``torch.fx``, and leave the model exactly as it was.

A trace follows one path through a model's Python code, and ``if self.training`` is decided while it is made. A graph that is only
read may be that of evaluation mode; a copy that somebody trains must follow :meth:`torch.nn.Module.train` as the original does.
:func:`trace_both_modes` compares the graphs of both modes and keeps every part in which they differ as the module it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from shiftscope import layers
from shiftscope.errors import UntraceableError, first_line
from shiftscope.graphs.probing import default_image, difference, restoring, restoring_random_numbers, set_mode
from shiftscope.layers.surrounded import core

__all__ = [
    "ModuleCall",
    "TrainingFlag",
    "calls_of",
    "check_traced",
    "default_image",
    "is_leaf",
    "restoring",
    "trace",
    "trace_both_modes",
]


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A call of a part of the model while it was traced.

    Attributes:
        name: of the part.
        part: the part.
        output: the node whose value the part returned; None if it returned anything else.
        inner: the nodes that its code made.
    """

    name: str
    part: nn.Module
    output: fx.Node | None
    inner: frozenset[fx.Node]


def calls_of(traced: fx.GraphModule) -> tuple[ModuleCall, ...]:
    """Return the calls of all parts of a traced model, inner ones first."""
    found: tuple[ModuleCall, ...] = traced.meta["calls"]
    return found


def is_leaf(part: nn.Module) -> bool:
    """Return whether a part of a model is a single node of its graph: a layer of torch or of :mod:`shiftscope.layers`."""
    home = type_before_parametrizations(core(part)).__module__
    return home.startswith((f"{layers.__name__}.", "torch.nn.", "torch.ao.nn.")) and not isinstance(part, nn.Sequential)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a model's graph in evaluation mode. It shares the model's layers; nothing is copied.

    Layers of torch and of :mod:`shiftscope.layers` are single nodes. So is every part of the model that cannot be traced.

    Args:
        model: the model; its modes, attributes and buffers are restored afterwards.

    Raises:
        UntraceableError: the model's own ``forward`` cannot be traced.

    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())).graph
    >>> [str(node.target) for node in graph.nodes if node.op == "call_module"]
    ['0', '1']
    """
    return _traced(model, training=False, opaque=())


def trace_both_modes(model: nn.Module) -> tuple[fx.GraphModule, str]:
    """Return a graph that follows the model's mode: in training, batch norms update their statistics and dropout drops.

    Parts whose code takes another path in training mode (a norm with an activation inside, stochastic depth) stay single nodes.
    Functions with a ``training`` argument receive the mode of the moment from a :class:`TrainingFlag`.

    Args:
        model: the model; it is left as it was.

    Returns:
        the traced model, and why it does not follow the mode (``""`` if it does); one that does not is traced in evaluation mode.

    Raises:
        UntraceableError: the model's own ``forward`` cannot be traced in evaluation mode.

    >>> import torch
    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.dropout(x, 0.5, training=self.training)
    >>> traced, problem = trace_both_modes(Net())
    >>> traced.train()(torch.ones(4, 1000)).eq(0).any().item(), traced.eval()(torch.ones(4)).tolist(), problem
    (True, [1.0, 1.0, 1.0, 1.0], '')
    """
    opaque: set[type[nn.Module]] = set()
    while True:
        traced = _traced(model, training=False, opaque=opaque)
        versions = _versions(model)
        try:
            with restoring_random_numbers() as used:
                other = _traced(model, training=True, opaque=opaque)
        except UntraceableError as error:
            return traced, error.problem
        if any(used):
            return traced, f"The code of {type(model).__name__} draws random numbers while it is traced."
        different, flags = _compare(list(traced.graph.nodes), list(other.graph.nodes))
        # A norm that counts its batches while it is traced would not count them in the graph.
        found = {part for part, version in _versions(model).items() if version != versions[part]}
        if different is not None:
            found.add(_innermost(model, different))
        if not found:
            _set_flags(traced, flags)
            return traced, _own_train(model, traced)
        kinds = {type(part) for part in found}
        if model in found or kinds <= opaque:
            return traced, f"The code of {type(model).__name__} does something else in training mode."
        opaque |= kinds


def _own_train(model: nn.Module, traced: nn.Module) -> str:
    """Return a sentence on a part whose own ``train`` method the graph lacks; empty if there is none."""
    kept = set(traced.modules())
    own = [part for part in model.modules() if part not in kept and type(part).train is not nn.Module.train]
    return f"{type(own[0]).__name__} has a `train` method of its own." if own else ""


def check_traced(model: nn.Module, traced: fx.GraphModule, image: tuple[int, int, int] | None = None) -> None:
    """Compare a graph's outputs on random images with those of the model it was traced from.

    A trace follows one path through a model's code: a branch on the type of a value, a hook on the model, or an argument of its
    forward can make it another model.

    Args:
        model: the model; it is left as it was.
        traced: its graph.
        image: (channels, height, width) of its input; by default common sizes. A model that takes none of them passes.

    Raises:
        UntraceableError: the outputs differ, or the graph fails where the model does not.
    """
    if problem := difference(model, traced, image):
        raise UntraceableError(
            f"The graph of {type(model).__name__} {problem}.",
            "Look for hooks, and for branches on the type or the value of a tensor, in its code.",
        )


class TrainingFlag(nn.Module):
    """Returns whether it is in training mode: ``self.training`` as a value in a graph."""

    def forward(self) -> bool:
        """Return ``self.training``."""
        return self.training


def _versions(model: nn.Module) -> dict[nn.Module, list[int]]:
    """Return how often each part's own buffers were changed in place."""
    return {
        part: [0 if each.is_inference() else each._version for each in part.buffers(recurse=False)] for part in model.modules()
    }


def _traced(model: nn.Module, *, training: bool, opaque: Collection[type[nn.Module]]) -> fx.GraphModule:
    tracer = _Tracer(opaque)
    try:
        with restoring(model):
            set_mode(model, training)
            graph = tracer.trace(model)
            for node in graph.nodes:
                node.type = None  # annotations that are text, as with `from __future__ import annotations`, cannot be pickled
            traced = fx.GraphModule(model, graph, type(model).__name__)
            traced.meta["calls"] = tuple(tracer.calls)
            show_cores(traced)
            _name_no_inputs(traced)
            return traced
    except Exception as error:  # whatever a model's Python code raises when it gets a proxy instead of a tensor
        raise UntraceableError(
            f"The graph of {type(model).__name__} cannot be traced ({first_line(error).rstrip('.')}).",
            "Put layers of shiftscope.layers into its code instead.",
        ) from error


def show_cores(traced: fx.GraphModule) -> None:
    """Let nodes call layers without those inserted before and after them, which are nodes of their own."""
    for node in traced.graph.nodes:
        if node.op == "call_module" and (part := traced.get_submodule(str(node.target))) is not core(part):
            traced.set_submodule(str(node.target), core(part))


def _name_no_inputs(traced: fx.GraphModule) -> None:
    """Pass a map that torch's layers and functions receive by keyword (``conv(input=x)``) as first argument."""
    for node in traced.graph.nodes:
        target = traced.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        home = type(target).__module__ if node.op == "call_module" else str(getattr(target, "__module__", ""))
        if node.op in ("call_module", "call_function") and not node.args and "input" in node.kwargs and home.startswith("torch"):
            node.args, node.kwargs = (
                (node.kwargs["input"],),
                {name: value for name, value in node.kwargs.items() if name != "input"},
            )
    traced.recompile()


def _compare(nodes: list[fx.Node], others: list[fx.Node]) -> tuple[list[fx.Node] | None, list[tuple[fx.Node, Any]]]:
    """Return the first nodes at which two graphs differ, and the nodes whose arguments differ only by False and True."""
    same: dict[fx.Node, fx.Node] = {}
    flags: list[tuple[fx.Node, Any]] = []
    for node, other in zip_longest(nodes, others):
        if node is None or other is None:
            return [each for each in (node, other) if each is not None], flags
        matching = _match((node.args, node.kwargs), (other.args, other.kwargs), same)
        if node.op != other.op or node.target != other.target or matching is None:
            return [node, other], flags
        if matching:
            flags.append((node, (other.args, other.kwargs)))
        same[node] = other
    return None, flags


def _match(ours: Any, theirs: Any, same: dict[fx.Node, fx.Node]) -> bool | None:
    """Return whether arguments differ by False and True somewhere; None if they differ otherwise."""
    if isinstance(ours, fx.Node):
        return False if same.get(ours) is theirs else None
    if isinstance(ours, tuple | list) and type(ours) is type(theirs) and len(ours) == len(theirs):
        return _any(_match(one, two, same) for one, two in zip(ours, theirs, strict=True))
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        return _any(_match(value, theirs[name], same) for name, value in ours.items())
    if isinstance(ours, slice) and isinstance(theirs, slice):
        return _match((ours.start, ours.stop, ours.step), (theirs.start, theirs.stop, theirs.step), same)
    if ours is False and theirs is True:
        return True
    equal = ours is theirs or (type(ours) is type(theirs) and not isinstance(ours, Tensor) and ours == theirs)
    return False if equal else None


def _any(found: Iterator[bool | None]) -> bool | None:
    every = list(found)
    return None if None in every else any(every)


def _set_flags(traced: fx.GraphModule, flags: list[tuple[fx.Node, Any]]) -> None:
    """Replace every False that is True in training mode by the mode of the moment."""
    if not flags:
        return
    traced.add_submodule("training_flag", TrainingFlag().train(traced.training))
    first = next(node for node in traced.graph.nodes if node.op != "placeholder")
    with traced.graph.inserting_before(first):
        flag = traced.graph.call_module("training_flag")

    def flagged(ours: Any, theirs: Any) -> Any:
        if isinstance(ours, tuple | list):
            return type(ours)(flagged(one, two) for one, two in zip(ours, theirs, strict=True))
        if isinstance(ours, dict):
            return {name: flagged(value, theirs[name]) for name, value in ours.items()}
        return flag if ours is False and theirs is True else ours

    for node, (args, kwargs) in flags:
        node.args, node.kwargs = flagged(tuple(node.args), args), flagged(dict(node.kwargs), kwargs)
    traced.recompile()


def _innermost(model: nn.Module, nodes: list[fx.Node]) -> nn.Module:
    """Return the innermost part of a model whose code made one of the nodes, which may be the model itself."""
    stacks = []
    for node in nodes:
        stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
        if node.op == "call_module" and stack[-1:] == [str(node.target)]:
            stack.pop()  # a single node differs because of the code that calls it
        stacks.append(stack)
    deepest = max(stacks, key=len)
    return model.get_submodule(deepest[-1]) if deepest else model


class _Tracer(fx.Tracer):
    """Keeps layers of :mod:`shiftscope.layers` as single nodes, and parts of a model that cannot be traced."""

    def __init__(self, opaque: Collection[type[nn.Module]] = ()) -> None:  # pickle makes one of a graph without arguments
        super().__init__()
        self.opaque = opaque
        self.calls: list[ModuleCall] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:  # noqa: ARG002 - torch.fx passes it
        return type(core(module)) in self.opaque or is_leaf(module)

    def call_module(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        last, name = next(iter(reversed(self.graph.nodes)), None), self.path_of_module(module)
        result = self._call(module, forward, args, kwargs)
        inner = takewhile(lambda node: node is not last, reversed(self.graph.nodes))
        output = result.node if isinstance(result, fx.Proxy) else None
        self.calls.append(ModuleCall(name, module, output, frozenset(inner)))
        return result

    def _call(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, stack, calls = set(self.graph.nodes), OrderedDict(self.module_stack), len(self.calls)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # whatever the part's Python code raises when it gets a proxy
            for node in reversed(self.graph.nodes):
                if node not in before:
                    self.graph.erase_node(node)
            self.module_stack = stack
            del self.calls[calls:]
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)
