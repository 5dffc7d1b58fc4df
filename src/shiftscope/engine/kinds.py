"""Which operators act on each value alone, which change nothing in evaluation, and which are arithmetic."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional

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
