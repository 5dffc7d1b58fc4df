"""Graphs of models: how they are traced, and which operators act on each value alone, do nothing in evaluation, or add up.

Our own layers are kept whole in a graph, as torch's are, so that what walks it meets them by name.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers

__all__ = [
    "ADDITIONS",
    "IDLE_FUNCTIONS",
    "IDLE_METHODS",
    "IDLE_MODULES",
    "POINTWISE_FUNCTIONS",
    "POINTWISE_METHODS",
    "POINTWISE_MODULES",
    "PRODUCTS",
    "QUOTIENTS",
    "SUBTRACTIONS",
    "traced",
]

#: Operators that act on each value alone, as modules and as functions.
POINTWISE_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
)
POINTWISE_FUNCTIONS = {
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    torch.abs,
    functional.relu,
    functional.relu6,
    functional.leaky_relu,
    functional.elu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.tanh,
    functional.sigmoid,
    functional.hardswish,
    functional.hardtanh,
    functional.softplus,
}
POINTWISE_METHODS = {"relu", "tanh", "sigmoid", "abs", "relu_"}
#: Operators that change nothing in evaluation mode.
IDLE_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
IDLE_FUNCTIONS = {functional.dropout, functional.dropout2d, functional.alpha_dropout}
IDLE_METHODS = {"contiguous", "clone", "float"}
ADDITIONS = {operator.add, operator.iadd, torch.add}
SUBTRACTIONS = {operator.sub, operator.isub, torch.sub}
PRODUCTS = {operator.mul, operator.imul, torch.mul}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div}


class _Tracer(fx.Tracer):
    """Keeps our layers whole, and whatever part of a model cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__module__.startswith(layers.__name__) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, stack = set(self.graph.nodes), OrderedDict(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # whatever the part's Python code raises when it meets a stand-in
            for node in reversed(self.graph.nodes):
                if node not in before:
                    self.graph.erase_node(node)
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


def traced(model: nn.Module) -> fx.GraphModule:
    """The model's graph, with its own parts in it. A part that cannot be traced is kept whole.

    Raises:
        Exception: whatever the model's own Python code raises when it meets a stand-in for a tensor.
    """
    tracer = _Tracer()
    return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
