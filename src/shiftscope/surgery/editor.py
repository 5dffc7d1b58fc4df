"""Edit a copy of a model's graph: insert and replace layers, and record what became of each layer."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope.errors import InputError, UntraceableError, first_line
from shiftscope.graphs.operators import IDLE
from shiftscope.graphs.probing import difference
from shiftscope.graphs.recording import record, uncalled
from shiftscope.graphs.sites import Site, TracedModel, check_layer
from shiftscope.surgery.copying import State, copied, graph_to_edit, is_opaque, keep_frozen
from shiftscope.surgery.plan import Change, Cost, Surgery, cost
from shiftscope.surgery.swaps import Original, Swap, Translation, apply_swaps, keep_edits

__all__ = ["Editor", "source_of"]

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv, operator.imod)
#: The reason of a layer that the caller left out.
SKIPPED = "left out by `only` or `skip`"
#: What the copy is.
SWAPPED = "Layers are swapped inside a copy of the model, which keeps its class, code and weight names."
FOUND_BY_RUNNING = "Layers were found by running the model, because its graph could not be read"
GRAPH = "The copy is a traced graph of the model, because swapped layers"
#: Layers called as functions, which cannot be changed.
FUNCTIONS = (functional.adaptive_max_pool2d,)


class Editor(TracedModel):
    """The graph of a copy of a model, and the changes made to it.

    Args:
        model: the model to copy; it is not changed.
        image: (channels, height, width), to count costs; None does not count them.
        only: names of the layers to change; None for all.
        skip: names of layers that stay as they are.
        by_running: where the graph cannot be traced, or gives other outputs, find the layers by running the model, and only swap
            layers inside it.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, or its graph gives other outputs.
        InputError: the model cannot be copied, has lazy layers without weights, or has no layer of such a name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image: tuple[int, int, int] | None,
        only: Sequence[str] | None,
        skip: Sequence[str],
        by_running: bool = False,
    ) -> None:
        self.copy = copied(model)
        self.image, self.before = image, cost(self.copy, image) if image else None
        self.changes: list[Change] = []
        self.unreadable: UntraceableError | None = None
        self.evaluation_only = ""
        try:
            self.module, self.evaluation_only = graph_to_edit(self.copy, image)
        except UntraceableError as error:
            if not by_running or next(self.copy.parameters(), None) is None:  # its layers are in a file, such as an ONNX one
                raise
            self.module, self.unreadable = record(self.copy, image, error), error
        self.graph = self.module.graph
        self.original = Original(self.module)
        self.module.meta.pop("calls", None)  # nodes refer to each other, so that deep graphs could not be copied
        self.state = State(self.copy, self.module)
        modes = {name: part.training for name, part in self.copy.named_modules()}
        for name, part in self.module.named_modules():
            part.training = modes.get(name, self.copy.training)
        self.made: dict[int, list[fx.Node]] = {}
        self.wanted, self.skipped = self._known(only), self._known(skip) or set()

    def choose(self, site: Site) -> bool:
        """Return whether to change a site; record the reason where not."""
        if not self.wants(site.name):
            self.keep(site.name, site.title, SKIPPED)
        elif refusal := self._refusal(site):
            self.keep(site.name, site.title, f"unsupported: {refusal}")
        return self.wants(site.name) and not self._refusal(site)

    def _refusal(self, site: Site) -> str:
        """Return why a site cannot be changed; empty where it can."""
        if self.unreadable and site.module is None:
            return "called as a function in code that cannot be traced"
        return site.refusal

    def wants(self, name: str) -> bool:
        """Return whether the caller wants a layer of this name changed."""
        return name not in self.skipped and (self.wanted is None or name in self.wanted)

    def keep(self, layer: str, was: str, why: str) -> None:
        """Record a layer that stays as it is."""
        self.changes.append(Change(layer, was, "", why))

    def record(self, layer: str, was: str, becomes: str, why: str) -> None:
        """Record a layer that was changed, by the nodes that were added since the last such record."""
        known = {node for nodes in self.made.values() for node in nodes} | set(self.original.nodes)
        self.made[len(self.changes)] = [node for node in self.graph.nodes if node not in known]
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
        if self.wanted is not None and base in self.wanted:
            self.wanted = {*self.wanted, name}
        module.train(self.module.training)
        parameter = next((each for each in self.module.parameters() if each.is_floating_point()), None)
        if parameter is not None:
            module.to(parameter.device, parameter.dtype)
        self.module.add_submodule(name, module)
        return name

    def end_of_chain(self, node: fx.Node) -> tuple[fx.Node, bool]:
        """Return the last of the norms and activations that follow a node, and whether one of them is an activation.

        The chain ends where a value has several users; where the graph cannot be read, also where no layer can be inserted.
        """
        active = False
        last = node, active
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
            if not self.unreadable or node not in self.original.nodes or self.original.has_place_after(node):
                last = node, active
        return last

    def finish(self) -> Surgery:
        """Return the changed model, its changes and its costs.

        Layers are swapped inside the copy of the model, if that expresses every change and gives the outputs of the edited graph.
        Otherwise the edited graph is the copy.

        Raises:
            InputError: the changed model does not run on ``image``.
            UntraceableError: the model cannot be traced, and layers swapped inside it do not do what was planned.
        """
        self._record_unsupported()
        _sort(self.graph)
        translation = Translation(self.original)
        swaps = translation.swaps()
        for was, new in translation.replaced:
            keep_frozen(was, new)
        keep_edits(self.copy, self.original)
        if self.unreadable:
            return self._run_as_planned(swaps, translation.problems, self.unreadable.problem)
        self._clean()
        problem = "" if isinstance(self.copy, fx.GraphModule) or translation.problems else self._swap(swaps)
        if isinstance(self.copy, fx.GraphModule) or translation.problems or problem:
            return self._graph_as_copy(translation.problems, problem)
        return self._surgery(self.copy, SWAPPED)

    def _swap(self, swaps: list[Swap]) -> str:
        """Swap layers inside the copy; return why they were put back, or nothing."""
        undo = apply_swaps(self.copy, self.module, swaps)
        if not swaps:
            return ""
        problem = difference(self.module, self.copy, self.image, owner=self.copy)
        if not problem and not self.evaluation_only:
            problem = difference(self.module, self.copy, self.image, owner=self.copy, training=True)
        if problem:
            undo()
        return problem

    def _run_as_planned(self, swaps: list[Swap], problems: dict[fx.Node, str], unreadable: str) -> Surgery:
        """Swap layers inside a copy whose graph cannot be read (``unreadable`` says why), and check that each is called."""
        reason = next(iter(problems.values()), "")
        if not reason:
            apply_swaps(self.copy, self.module, swaps)
            reason = uncalled(self.copy, [swap.name for swap in swaps], self.image)
        if reason:
            raise UntraceableError(f"{unreadable} Layers cannot be swapped in it ({reason}).")
        why = unreadable.rstrip(".")
        return self._surgery(self.copy, f"{FOUND_BY_RUNNING} ({why[:1].lower()}{why[1:]}).")

    def _graph_as_copy(self, problems: dict[fx.Node, str], problem: str) -> Surgery:
        """Return the edited graph, and mark every change that only the graph can express."""
        if self.evaluation_only:
            why = f"unsupported: the copy behaves as in evaluation mode ({self.evaluation_only})"
            self.keep(type(self.copy).__name__, "training mode", why)
        named: dict[str, list[str]] = {}
        for place, change in enumerate(self.changes):
            nodes = self.made.get(place, [])
            reasons = [reason for node, reason in problems.items() if node in nodes or self._name(node) == change.layer]
            if change.becomes and reasons:
                self.changes[place] = replace(change, why=f"{change.why}; in the traced graph, because {reasons[0]}")
                named.setdefault(reasons[0], []).append(change.layer)
        self.module.delete_all_unused_submodules()
        self.state.restore(self.module)
        if isinstance(self.copy, fx.GraphModule):
            return self._surgery(self.module, "The copy is a traced graph, as the model is.")
        listed = "; ".join(
            f"`{first}`{f' and {len(others)} more' * bool(others)}: {why}" for why, (first, *others) in named.items()
        )
        why = "do not give the same outputs" if problem else f"cannot express every change ({listed or 'of functions'})"
        return self._surgery(self.module, f"{GRAPH} {why}.")

    def _name(self, node: fx.Node) -> str:
        """Return the name under which a change names a node of the original graph."""
        return str(self.original.nodes[node][0]) if node.op == "call_module" and node in self.original.nodes else node.name

    def _clean(self) -> None:
        """Remove nodes that the edited graph does not use."""
        self.graph.eliminate_dead_code(self._has_effects)
        self.graph.lint()
        self.module.recompile()

    def _surgery(self, model: nn.Module, form: str) -> Surgery:
        return Surgery(model, tuple(self.changes), self.before, self._cost_after(model), form)

    def _record_unsupported(self) -> None:
        for node in self.graph.nodes:
            part = self.part(node)
            if part is not None and is_opaque(part):
                self.keep(str(node.target), type(part).__name__, "unsupported: its code cannot be traced")
            elif node.target in FUNCTIONS:
                self.keep(node.name, str(getattr(node.target, "__name__", node.target)), "unsupported: called as a function")

    def _cost_after(self, model: nn.Module) -> Cost | None:
        if self.image is None:
            return None
        try:
            return cost(model, self.image)
        except (RuntimeError, InputError) as error:
            raise InputError(
                f"The changed model does not run on an image of {self.image}: {first_line(error).rstrip('.')}.",
                "Average over positions before the head (`gap`, in front of the others), or use another image size.",
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
