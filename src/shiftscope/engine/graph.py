"""A model's traced graph, walked with a rule for each operator.

The rules are in :mod:`shiftscope.engine.operators`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.engine.operators import Rules
from shiftscope.engine.sheets import BatchSize, Flat, Layout, NotDenseError, Pair, Sheet, Spectra, Vectors
from shiftscope.errors import UntraceableError, first_line
from shiftscope.graphs.operators import IDLE
from shiftscope.graphs.tracing import trace as trace_graph
from shiftscope.layers.surrounded import core

__all__ = ["Tracer", "trace"]


class Tracer:
    """A model's graph, which runs on all windows at once.

    Args:
        model: in evaluation mode.

    Raises:
        NotDenseError: the model cannot be traced, carries hooks, or overwrites values that it uses again.
    """

    def __init__(self, model: nn.Module) -> None:
        hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
        if hooked:
            raise NotDenseError(f"`{hooked[0] or 'the model'}` carries a forward hook, which may change its output")
        own = [name for name, part in model.named_modules() if _runs_code_outside_forward(part)]
        if own:
            raise NotDenseError(f"`{own[0] or 'the model'}` has code besides its class's `forward`, which its graph lacks")
        try:
            self.traced = trace_graph(model)
        except UntraceableError as error:
            raise NotDenseError(error.problem.rstrip(".")) from error
        for node in self.traced.graph.nodes:
            _refuse_overwriting(self.traced, node)
        self.spectra: Spectra = {}

    def __call__(self, maps: Tensor, background: Tensor, corner: Pair, layout: Layout) -> Tensor:
        """Return outputs [image, row, column, class] for every window of the layout.

        Args:
            maps: [image, channel, height, width], the images less the background, on a box that holds all that differs from it.
            background: [channel], the colour outside the box.
            corner: where the box begins in P.
            layout: where the windows lie.

        Raises:
            NotDenseError: an operator has no exact rule.
        """
        found: dict[fx.Node, Any] = {}
        rules = Rules(layout, self.spectra)
        for node in self.traced.graph.nodes:
            arguments = fx.node.map_arg(node.args, lambda needed: found[needed])
            options = fx.node.map_arg(node.kwargs, lambda needed: found[needed])
            if node.op == "placeholder":
                if any(isinstance(value, Sheet) for value in found.values()):
                    raise NotDenseError("it takes more than one input")
                found[node] = Sheet(maps, background, corner, (1, 1), layout.size, (0, 0))
            elif node.op == "get_attr":
                found[node] = operator.attrgetter(node.target)(self.traced)
            elif node.op == "output":
                return _result(arguments[0])
            elif not _has_data(arguments, options):
                found[node] = _constant(self.traced, node, arguments, options)
            else:
                found[node] = self._ruled(rules, node, arguments, options)
        raise NotDenseError("its graph has no output")

    def _ruled(self, rules: Rules, node: fx.Node, arguments: Any, options: Any) -> Any:
        """Apply a node's rule; raise NotDenseError for a call whose arguments no rule expects."""
        try:
            if node.op == "call_module":
                return rules.module(str(node.target), self.traced.get_submodule(str(node.target)), *arguments, **options)
            if node.op == "call_method":
                return rules.method(str(node.target), *arguments, **options)
            return rules.function(node.target, *arguments, **options)  # type: ignore[arg-type]  # fx types it as text or callable
        except (TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            if ran_out_of_memory(error):
                raise
            raise NotDenseError(f"`{node.name}` is called in a way that has no rule ({first_line(error)})") from error


def trace(model: Callable[[Tensor], Tensor]) -> Tracer:
    """Return the traced model; raise NotDenseError for a callable that is not a module."""
    if not isinstance(model, nn.Module):
        raise NotDenseError("the model is a plain callable, whose graph cannot be seen")
    return Tracer(model)


def _runs_code_outside_forward(part: nn.Module) -> bool:
    """Return whether calling a module runs code that a trace does not see: of the object, or a ``__call__`` of its class."""
    called = type(core(part)).__call__
    return "forward" in vars(part) or (called is not nn.Module.__call__ and not isinstance(part, fx.GraphModule))


def _refuse_overwriting(graph: fx.GraphModule, node: fx.Node) -> None:
    """Raise NotDenseError if a node overwrites in place what a later node uses: the rules do not work in place."""
    part = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if IDLE.match(node, part):
        return  # dropout in place changes nothing in evaluation mode
    in_place = getattr(part, "inplace", False) or node.kwargs.get("inplace") is True
    in_place = in_place or (node.op == "call_method" and str(node.target).endswith("_"))
    in_place = in_place or node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    if in_place and node.args and isinstance(node.args[0], fx.Node):
        order = {other: place for place, other in enumerate(graph.graph.nodes)}
        users = [user for alias in _aliases(graph, node.args[0]) for user in alias.users]
        if any(order[user] > order[node] for user in users):
            raise NotDenseError(f"`{node.target}` overwrites what is used again later")


def _aliases(graph: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Return all nodes that may share memory with one: what it is a view of, and the views of that."""
    while _is_view(graph, node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    group, fresh = {node}, [node]
    while fresh:
        views = [user for user in fresh.pop().users if _is_view(graph, user) and user not in group]
        group.update(views)
        fresh += views
    return group


def _is_view(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (*IDLE.modules, nn.Flatten))
    if node.op == "call_function":
        return node.target in IDLE.functions or node.target is torch.flatten
    return node.op == "call_method" and node.target in {*IDLE.methods, "view", "reshape", "flatten"}


def _has_data(arguments: Any, options: Any) -> bool:
    """Return whether any argument comes from the images."""
    found: list[Any] = []
    fx.node.map_aggregate((arguments, options), lambda value: found.append(isinstance(value, Sheet | Flat | Vectors | BatchSize)))
    return any(found)


def _constant(graph: fx.GraphModule, node: fx.Node, arguments: Any, options: Any) -> Any:
    """Return the value of a node that depends on weights alone."""
    if node.op == "call_function":
        return node.target(*arguments, **options)  # type: ignore[operator]  # fx types a target as text or callable
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
    return graph.get_submodule(str(node.target))(*arguments, **options)


def _result(value: Any) -> Tensor:
    if not isinstance(value, Vectors) or value.trailing:
        raise NotDenseError("its output is not one vector for each image")
    return value.values
