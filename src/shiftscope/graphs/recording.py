"""Record a graph of a model that cannot be traced, by running it once on random images.

Every layer that is called becomes a node, and so does every function of torch that the code between layers calls on a tensor that
depends on the images. The graph shows the order of layers on the path that these images take. It cannot be run, and other images
may take another path.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from shiftscope.errors import UntraceableError, first_line
from shiftscope.graphs.probing import Shape, image_shapes, probe_images, reproducible, restoring, set_mode
from shiftscope.graphs.tracing import ModuleCall, is_leaf, show_cores

__all__ = ["record", "uncalled"]

#: Operators under the names of a tensor's methods.
OPERATORS = {
    **{f"__{name}__": getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "iadd", "isub", "imul", "getitem")},
    "add": operator.add,
    "__radd__": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "__rmul__": operator.mul,
}
PLAIN = (int, float, bool, str, slice, type(None), type(Ellipsis), torch.dtype, torch.device)


def record(model: nn.Module, image: Shape | None, error: UntraceableError) -> fx.GraphModule:
    """Return the graph of the layers and functions that a model calls on random images, in evaluation mode.

    Args:
        model: the model; it is left as it was.
        image: (channels, height, width) of its input; common ones by default.
        error: why it cannot be traced.

    Raises:
        UntraceableError: the same, because the model takes no such images either.
    """
    for shape in image_shapes(model, image):
        recorder = _Recorder(model)
        with suppress(Exception):  # whatever the model raises on images that do not suit it
            return recorder.record(probe_images(model, shape)[0])
    raise error


def uncalled(model: nn.Module, names: list[str], image: Shape | None) -> str:
    """Return why a run on random images does not call all layers as modules; empty if it does.

    Args:
        model: the model; it is left as it was.
        names: of layers, and of blocks with layers inserted before or after them.
        image: (channels, height, width) of its input; common ones by default.
    """
    parts = [part for name in names for part in model.get_submodule(name).modules()]
    seen, reason = set[nn.Module](), ""
    for shape in image_shapes(model, image):
        seen.clear()
        try:
            with _running(model), ExitStack() as stack:
                for part in parts:
                    stack.callback(part.register_forward_hook(lambda part, *_: seen.add(part)).remove)
                model(probe_images(model, shape)[0])
        except Exception as error:  # whatever the model raises
            reason = reason or first_line(error).rstrip(".")
            continue
        missing = [part for part in parts if part not in seen and is_leaf(part)]
        return f"{type(missing[0]).__name__} is not called" if missing else ""
    return reason


def elsewhere(*_: Any) -> Any:
    """Stand in, in a recorded graph, for functions without a name and for values that do not depend on the images.

    Raises:
        UntraceableError: always; the graph is read, never run.
    """
    raise UntraceableError(
        "A recorded graph cannot be run: it lacks functions that the model's code calls.", "Run the model itself."
    )


class _Recorder(TorchFunctionMode):
    """Records one run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.graph = model, fx.Graph()
        self.names = {part: name for name, part in model.named_modules()}
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Any] = []  # so that no other tensor gets the identity of one that was recorded
        self.calls: list[ModuleCall] = []
        self.open: list[tuple[nn.Module, fx.Node | None, Any]] = []
        self.depth = 0

    def record(self, images: Tensor) -> fx.GraphModule:
        """Run the model, and return what it called."""
        self._keep(images, self.graph.placeholder("images"))
        with _running(self.model), ExitStack() as stack:
            for part in self.model.modules():
                if part is not self.model and not isinstance(part, torch.jit.ScriptModule):
                    stack.callback(part.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True).remove)
                    stack.callback(part.register_forward_hook(self._leave, with_kwargs=True).remove)
            with self:
                output = self.model(images)
        self.graph.output(tuple(self.nodes[id(each)] for each in tree_leaves(output) if id(each) in self.nodes))
        recorded = fx.GraphModule(self.model, self.graph, type(self.model).__name__)
        recorded.meta["calls"] = tuple(self.calls)
        show_cores(recorded)
        return recorded

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.depth and any(id(each) in self.nodes for each in tree_leaves((args, kwargs))):
            self._record_function(func, args, kwargs or {}, output)
        return output

    def _record_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not any(isinstance(each, Tensor) for each in tree_leaves(output)):
            return  # a size, a type or a number
        name = getattr(func, "__name__", "")
        if name in OPERATORS:
            self._keep(output, self.graph.call_function(OPERATORS[name], *self._arguments(args, kwargs)))
        elif getattr(Tensor, name, None) is func:
            self._keep(output, self.graph.call_method(name, *self._arguments(args, kwargs)))
        else:
            self._keep(output, self.graph.call_function(_named(func), *self._arguments(args, kwargs)))

    def _enter(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.open.append((part, next(iter(reversed(self.graph.nodes)), None), (args, kwargs)))
        self.depth += is_leaf(part)

    def _leave(self, part: nn.Module, *called: Any) -> None:
        self.depth -= is_leaf(part)
        part, last, inputs = self.open.pop()
        output = called[-1]
        if self.depth:
            return
        if is_leaf(part):
            node = self.graph.call_module(self.names[part], *self._arguments(*inputs))
            self._keep(output, node)
        inner = frozenset(takewhile(lambda node: node is not last, reversed(self.graph.nodes)))
        self.calls.append(ModuleCall(self.names[part], part, self.nodes.get(id(output)), inner))

    def _keep(self, output: Any, node: fx.Node) -> None:
        self.alive.append(output)
        self.nodes.update({id(each): node for each in tree_leaves(output) if isinstance(each, Tensor)})

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Return arguments with nodes for tensors."""
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
        return tree_map(self._argument, tuple(args)), tree_map(self._argument, dict(kwargs))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.nodes[id(value)] if id(value) in self.nodes else self.graph.call_function(elsewhere)
        return value if isinstance(value, PLAIN) and not isinstance(value, torch.Size) else None


def _named(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function if code can refer to it, else a stand-in."""
    try:
        return func if _get_qualified_name(func).startswith(("torch.", "_operator.")) else elsewhere
    except Exception:  # whatever fx raises for what has no name
        return elsewhere


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, and restore it."""
    with restoring(model), torch.no_grad(), reproducible(model):
        set_mode(model, training=False)
        yield
