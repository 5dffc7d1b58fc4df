"""Edit a copy of a model's graph: insert and replace layers, and record what became of each layer."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.errors import InputError, first_line
from shiftscope.graphs.operators import IDLE
from shiftscope.graphs.sites import Site, TracedModel, check_layer
from shiftscope.graphs.tracing import check_traced, trace_both_modes
from shiftscope.surgery.plan import Change, Cost, Surgery, cost

__all__ = ["Editor", "source_of"]

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv, operator.imod)
#: The reason of a layer that the caller left out.
SKIPPED = "left out by `only` or `skip`"
#: Layers called as functions, which cannot be changed.
FUNCTIONS = (functional.conv2d, torch.conv2d, functional.adaptive_max_pool2d)


class Editor(TracedModel):
    """The graph of a copy of a model, and the changes made to it.

    Args:
        model: the model to copy; it is not changed.
        image: (channels, height, width), to count costs; None does not count them.
        only: names of the layers to change; None for all.
        skip: names of layers that stay as they are.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, or its graph gives other outputs.
        InputError: the model cannot be copied, or has no layer of such a name.
    """

    def __init__(
        self, model: nn.Module, *, image: tuple[int, int, int] | None, only: Sequence[str] | None, skip: Sequence[str]
    ) -> None:
        self.image, self.before = image, cost(model, image) if image else None
        copy = _copied(model)
        self.module, problem = trace_both_modes(copy)
        check_traced(copy, self.module, image, both_modes=not problem)
        self.graph = self.module.graph
        self.state = _State(copy, self.module)
        modes = {name: part.training for name, part in copy.named_modules()}
        for name, part in self.module.named_modules():
            part.training = modes.get(name, model.training)
        self.changes: list[Change] = []
        if problem:
            self.keep(type(model).__name__, "training mode", f"unsupported: the copy behaves as in evaluation mode ({problem})")
        self.wanted, self.skipped = self._known(only), self._known(skip) or set()

    def choose(self, site: Site) -> bool:
        """Return whether to change a site; record the reason where not."""
        if not self.wants(site.name):
            self.keep(site.name, site.title, SKIPPED)
        elif site.refusal:
            self.keep(site.name, site.title, f"unsupported: {site.refusal}")
        return self.wants(site.name) and not site.refusal

    def wants(self, name: str) -> bool:
        """Return whether the caller wants a layer of this name changed."""
        return name not in self.skipped and (self.wanted is None or name in self.wanted)

    def keep(self, layer: str, was: str, why: str) -> None:
        """Record a layer that stays as it is."""
        self.changes.append(Change(layer, was, "", why))

    def record(self, layer: str, was: str, becomes: str, why: str) -> None:
        """Record a layer that was changed."""
        self.changes.append(Change(layer, was, becomes, why))

    def insert_after(self, node: fx.Node, module: nn.Module, suffix: str, *others: fx.Node) -> fx.Node:
        """Insert a module after a node and return its node: all users of the node use the module's output instead.

        Args:
            node: the node whose value is the module's first input.
            module: the module.
            suffix: of the module's name, after the node's.
            others: nodes whose values are its other inputs.
        """
        users = list(node.users)
        order = {each: place for place, each in enumerate(self.graph.nodes)}
        with self.graph.inserting_after(max((node, *others), key=order.__getitem__)):
            new = self.graph.call_module(self.add(node, module, suffix), (node, *others))
        for user in users:
            user.replace_input_with(node, new)
        return new

    def insert_before(self, node: fx.Node, module: nn.Module, suffix: str, *others: fx.Node) -> fx.Node:
        """Insert a module between a node and its first input, for this node only, and return its node.

        Args:
            node: the node that receives the module's output.
            module: the module.
            suffix: of the module's name, after the node's.
            others: nodes whose values are its other inputs.
        """
        source = source_of(node)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(self.add(node, module, suffix), (source, *others))
        node.args = (new, *node.args[1:])
        return new

    def call(self, module: nn.Module, suffix: str, node: fx.Node) -> fx.Node:
        """Return a new node that calls a module on a node's value and has no users yet."""
        with self.graph.inserting_after(node):
            return self.graph.call_module(self.add(node, module, suffix), (node,))

    def add(self, node: fx.Node, module: nn.Module, suffix: str) -> str:
        """Add a module to the model beside the one that a node calls, and return its name."""
        base = str(node.target) if node.op == "call_module" else node.name
        names = {name for name, _ in self.module.named_modules()}
        name, count = f"{base}_{suffix}", 1
        while name in names:
            count += 1
            name = f"{base}_{suffix}{count}"
        module.train(self.module.training)
        parameter = next((each for each in self.module.parameters() if each.is_floating_point()), None)
        if parameter is not None:
            module.to(parameter.device, parameter.dtype)
        self.module.add_submodule(name, module)
        return name

    def end_of_chain(self, node: fx.Node) -> tuple[fx.Node, bool]:
        """Return the last of the norms and activations that follow a node, and whether one of them is an activation.

        The chain ends where a value has several users.
        """
        active = False
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user.args[:1] != (node,) or any(isinstance(other, fx.Node) for other in user.args[1:]):
                break
            part = self.part(user)
            if self.is_pointwise(user):
                active = True
            elif isinstance(part, NORMS):
                active = active or _has_activation(part)
            elif not IDLE.match(user, part):
                break
            node = user
        return node, active

    def finish(self) -> Surgery:
        """Return the changed model, its changes and its costs.

        Raises:
            InputError: the changed model does not run on ``image``.
        """
        self._record_unsupported()
        _sort(self.graph)
        self.graph.eliminate_dead_code(self._has_effects)
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.state.restore(self.module)
        self.module.recompile()
        return Surgery(self.module, tuple(self.changes), self.before, self._cost_after())

    def _record_unsupported(self) -> None:
        for node in self.graph.nodes:
            part = self.part(node)
            if part is not None and _is_opaque(part):
                self.keep(str(node.target), type(part).__name__, "unsupported: its code cannot be traced")
            elif node.target in FUNCTIONS:
                self.keep(node.name, str(getattr(node.target, "__name__", node.target)), "unsupported: called as a function")

    def _cost_after(self) -> Cost | None:
        if self.image is None:
            return None
        try:
            return cost(self.module, self.image)
        except (RuntimeError, InputError) as error:
            raise InputError(
                f"The changed model does not run on an image of {self.image}: {first_line(error).rstrip('.')}.",
                "Leave layers out with `skip`, give the head one position with `global_pool`, or use another image size.",
            ) from error

    def _has_effects(self, node: fx.Node) -> bool:
        """Return whether a node does something even where its value has no users, such as working in place."""
        in_place = getattr(self.part(node), "inplace", False) or node.kwargs.get("inplace") is True
        name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
        named = name.endswith("_") and not name.endswith("__")
        foreign = node.op == "call_module" and not type(self.part(node)).__module__.startswith(("torch.", "shiftscope."))
        return bool(in_place) or named or foreign or "out" in node.kwargs or node.target in IN_PLACE or node.is_impure()

    def _known(self, names: Sequence[str] | None) -> set[str] | None:
        """Return the names as a set, all of which are layers of the model."""
        if names is None:
            return None
        known = {node.name for node in self.graph.nodes}
        known |= {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for name in names:
            check_layer(name, known)
        return set(names)


class _State:
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


def source_of(node: fx.Node) -> fx.Node:
    """Return the node whose value is a node's first input."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        raise InputError(
            f"`{node.name}` is called without its map as first argument, which is not supported.", "Leave it out with `skip`."
        )
    return first


def _has_activation(norm: nn.Module) -> bool:
    """Return whether a norm of a foreign class has an activation inside: it is no affine function of its map, up to scale."""
    if type(norm).__module__.startswith("torch.nn."):
        return False
    mode, parameter = norm.training, next(norm.parameters(), torch.empty(0))
    channels = next(int(vars(norm)[name]) for name in ("num_features", "num_channels") if name in vars(norm))
    maps = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(0)).to(parameter)
    try:
        norm.eval()
        with torch.no_grad():
            even = norm(maps) + norm(-maps) - 2 * norm(torch.zeros_like(maps))
    finally:
        norm.train(mode)
    return bool(even.abs().max() > 1e-3)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:  # whatever a part's copying code raises
        raise InputError(
            f"The model cannot be copied ({first_line(error).rstrip('.')}), and it is never changed in place.",
            "Detach tensors that it stores.",
        ) from error


def _sort(graph: fx.Graph) -> None:
    """Move nodes that are used before they are computed in front of their first user.

    All other nodes keep their order, which also counts for operators that work in place.
    """
    placed: set[fx.Node] = set()

    def move(node: fx.Node, user: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source not in placed:
                move(source, user)
        user.prepend(node)
        placed.add(node)

    for node in list(graph.nodes):
        if node not in placed:
            for source in node.all_input_nodes:
                if source not in placed:
                    move(source, node)
            placed.add(node)


def _is_opaque(part: nn.Module) -> bool:
    """Return whether a single node of the graph has convolutions or pools inside, which cannot be changed."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    ours = type(part).__module__.startswith(layers.__name__)
    return not ours and any(isinstance(inner, kinds) for inner in part.modules() if inner is not part)
