"""Copy a model with everything that belongs to it, and choose the graph in which the copy is edited."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from shiftscope import layers
from shiftscope.engine.checks import evaluating
from shiftscope.errors import InputError, first_line
from shiftscope.graphs.probing import check_initialised, difference
from shiftscope.graphs.tracing import check_traced, trace, trace_both_modes

__all__ = ["Function", "State", "copied", "graph_to_edit", "is_opaque", "keep_frozen"]


class Function(nn.Module):
    """A function as a module without layers, which a fix can wrap.

    Args:
        run: images -> outputs.
    """

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Any:
        """Return what the function returns, with the networks that it reaches in evaluation mode."""
        with evaluating(self.run):
            return self.run(images)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy with weights of its own; of a compiled model, a copy of the model that was compiled.

    Raises:
        InputError: the model cannot be copied, or has layers without weights.
    """
    model = getattr(model, "_orig_mod", model)
    check_initialised(model)
    # Weights that a hook computes from others before each pass (weight_norm) are no leaves, which deepcopy refuses.
    held = [value for part in model.modules() for value in tree_leaves(dict(vars(part)))]
    memo: dict[int, Any] = {id(each): each.detach().clone() for each in held if isinstance(each, Tensor) and not each.is_leaf}
    try:
        return deepcopy(model, memo)
    except Exception as error:  # whatever a part's copying code raises
        raise InputError(
            f"The model cannot be copied ({first_line(error).rstrip('.')}), and it is never changed in place.",
            "Detach tensors that it stores.",
        ) from error


def graph_to_edit(model: nn.Module, image: tuple[int, int, int] | None) -> tuple[fx.GraphModule, str]:
    """Return a model's graph, and why it does not follow the model's mode; empty where it does."""
    traced, problem = trace_both_modes(model)
    if not problem and any(is_opaque(part) for part in _called_parts(traced)):
        # Parts that do something else in training mode hide their layers. Swaps keep the mode anyway.
        evaluated = trace(model)
        if sum(map(is_opaque, _called_parts(evaluated))) < sum(map(is_opaque, _called_parts(traced))):
            traced, problem = evaluated, "The code of its parts does something else in training mode."
    check_traced(model, traced, image)
    problem = problem or difference(model, traced, image, training=True)
    return traced, problem


def _called_parts(traced: fx.GraphModule) -> list[nn.Module]:
    return [traced.get_submodule(str(node.target)) for node in traced.graph.nodes if node.op == "call_module"]


def keep_frozen(was: nn.Module, new: nn.Module) -> None:
    """Let the parameters of a layer that replaces another one be trained only where the other's were."""
    before = dict(was.named_parameters())
    for name, parameter in new.named_parameters():
        if name in before:
            parameter.requires_grad_(before[name].requires_grad)


class State:
    """The names in a model's state dict, so that an edited copy has them too.

    A graph lacks the parameters and buffers that evaluation mode does not use, and keeps constants as buffers.

    Args:
        model: the model.
        traced: its graph, not edited yet.
    """

    def __init__(self, model: nn.Module, traced: nn.Module) -> None:
        saved, kept = model.state_dict(keep_vars=True), traced.state_dict()
        self.unused = {name: value for name, value in saved.items() if name not in kept and isinstance(value, Tensor)}
        self.extra = [name for name in kept if name not in saved]

    def restore(self, traced: nn.Module) -> None:
        """Add the names that the graph lacks, and leave out those that it added."""
        for name, value in self.unused.items():
            path, _, leaf = name.rpartition(".")
            owner = _submodule(traced, path)
            if isinstance(value, nn.Parameter):
                owner.register_parameter(leaf, value)
            else:
                owner.register_buffer(leaf, value)
        for name in self.extra:
            path, _, leaf = name.rpartition(".")
            with suppress(AttributeError):  # an edit removed it
                traced.get_submodule(path)._non_persistent_buffers_set.add(leaf)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    """Return a part of a model by its path; empty modules are added where there are none."""
    for name in filter(None, path.split(".")):
        if not isinstance(getattr(model, name, None), nn.Module):
            model.add_module(name, nn.Module())
        model = getattr(model, name)
    return model


def is_opaque(part: nn.Module) -> bool:
    """Return whether a single node of the graph has convolutions or pools inside, which cannot be changed."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    ours = type(part).__module__.startswith(layers.__name__)
    return not ours and any(isinstance(inner, kinds) for inner in part.modules() if inner is not part)
