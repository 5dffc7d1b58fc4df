"""Operators that act on each value alone, that change nothing in evaluation mode, or that combine two values."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

__all__ = ["ADDITIONS", "IDLE", "POINTWISE", "PRODUCTS", "QUOTIENTS", "SUBTRACTIONS", "VOLUMES", "Operators"]


@dataclass(frozen=True)
class Operators:
    """Operators of one kind.

    Attributes:
        modules: their classes, where a model calls them as modules.
        functions: their functions.
        methods: their names as methods of a tensor.
    """

    modules: tuple[type[nn.Module], ...]
    functions: frozenset[Any]
    methods: frozenset[str]

    def match(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Return whether a node calls one of them; ``module`` is the module that the node calls, if it calls one."""
        if node.op == "call_method":
            return node.target in self.methods
        return isinstance(module, self.modules) or (node.op == "call_function" and node.target in self.functions)


#: Operators that act on each value alone.
POINTWISE = Operators(
    modules=(
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
    ),
    functions=frozenset(
        {
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
    ),
    methods=frozenset({"relu", "tanh", "sigmoid", "abs", "relu_"}),
)
#: Operators that return their input in evaluation mode.
IDLE = Operators(
    modules=(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
    functions=frozenset({functional.dropout, functional.dropout2d, functional.alpha_dropout}),
    methods=frozenset({"contiguous", "clone", "float"}),
)
#: Layers of maps with a third axis of positions, as of time or depth.
VOLUMES = Operators(
    modules=(
        *(nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    ),
    functions=frozenset(
        {
            *(functional.conv3d, functional.conv_transpose3d, functional.max_pool3d, functional.avg_pool3d),
            *(functional.adaptive_avg_pool3d, functional.adaptive_max_pool3d),
        }
    ),
    methods=frozenset(),
)
ADDITIONS = {operator.add, operator.iadd, torch.add}
SUBTRACTIONS = {operator.sub, operator.isub, torch.sub}
PRODUCTS = {operator.mul, operator.imul, torch.mul}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div}
