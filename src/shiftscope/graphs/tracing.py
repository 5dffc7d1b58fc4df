"""Trace a model with ``torch.fx``, and leave the model exactly as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from shiftscope import layers
from shiftscope.errors import UntraceableError, first_line

__all__ = ["trace"]


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
    tracer = _Tracer()
    try:
        with _restoring(model):
            model.eval()
            return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:  # whatever a model's Python code raises when it gets a proxy instead of a tensor
        raise UntraceableError(
            f"The graph of {type(model).__name__} cannot be traced ({first_line(error).rstrip('.')}).",
            "Put layers of shiftscope.layers into its code instead.",
        ) from error


class _Tracer(fx.Tracer):
    """Keeps layers of :mod:`shiftscope.layers` as single nodes, and parts of a model that cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__module__.startswith(layers.__name__) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, stack = set(self.graph.nodes), OrderedDict(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # whatever the part's Python code raises when it gets a proxy
            for node in reversed(self.graph.nodes):
                if node not in before:
                    self.graph.erase_node(node)
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


@contextmanager
def _restoring(model: nn.Module) -> Iterator[None]:
    """Restore every part's modes and attributes afterwards.

    While it is traced, a ``forward`` that stores its maps stores proxies, and torch.fx stores constants in the model.
    """
    before = {part: (dict(vars(part)), dict(part._buffers)) for part in model.modules()}
    try:
        yield
    finally:
        for part, (attributes, buffers) in before.items():
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
