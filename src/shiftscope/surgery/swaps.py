"""Turn edits of a graph into layers that are swapped inside the model itself.

A graph says where a layer belongs and why. But a model rebuilt from its graph has another class, and code that ran once. So edits
are translated: a layer is replaced, or another one is called before or after it (:mod:`shiftscope.layers.surrounded`), wherever
that does the same in every call of it. What cannot be translated is returned with its reason: arguments of functions, layers
between two functions, and layers that share a value across branches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from shiftscope.graphs.tracing import ModuleCall, calls_of
from shiftscope.layers.polyphase import NormChoice, PhaseLogits, PolyphaseSampling, TakePhase
from shiftscope.layers.surrounded import become, surround, view

__all__ = ["Original", "Swap", "Translation", "apply_swaps", "keep_edits"]

FUNCTION = "it is called as a function"
SHARED = "it shares its phase with another layer"
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BETWEEN = "its place is between functions in the code of `forward`"
UNEQUAL = "the layer is called several times, and not every call changes alike"


@dataclass(frozen=True)
class Inserted:
    """A layer that an edit inserts between two nodes.

    Attributes:
        nodes: its nodes in the edited graph.
        layer: the layer; polyphase sampling where a choice and what takes the chosen phase follow each other.
    """

    nodes: tuple[fx.Node, ...]
    layer: nn.Module


@dataclass(frozen=True)
class Swap:
    """What becomes of one layer or block of the model.

    Attributes:
        name: of the layer.
        becomes: the layer that replaces it; None where it stays.
        before, after: layers called on its input and on its output.
    """

    name: str
    becomes: nn.Module | None
    before: tuple[nn.Module, ...]
    after: tuple[nn.Module, ...]


@dataclass
class Treatment:
    """What edits do to one call of a layer."""

    becomes: nn.Module | None = None
    before: tuple[Inserted, ...] = ()
    after: tuple[Inserted, ...] = ()

    def signature(self) -> tuple[Any, ...]:
        """Return a value that is equal for treatments that do the same."""
        inserted = [[_signature(each.layer) for each in side] for side in (self.before, self.after)]
        return self.becomes and _signature(self.becomes), *map(tuple, inserted)


@dataclass(frozen=True)
class Edge:
    """A value that a node used in the original graph, and the layers that edits insert on its way."""

    user: fx.Node
    place: int
    chain: tuple[Inserted, ...]


class Original:
    """A traced graph as it was before any edit.

    Args:
        traced: the graph, of :mod:`shiftscope.graphs.tracing` or :mod:`shiftscope.graphs.recording`.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.nodes = {node: (node.target, _leaves(node)) for node in traced.graph.nodes}
        self.calls = calls_of(traced)
        self.number: dict[str, int] = defaultdict(int)
        for call in self.calls:
            self.number[call.name] += 1
        self.parts = {str(node.target): self._part(node) for node in self.nodes if node.op == "call_module"}
        self.leaves = {call.output: call for call in self.calls if call.output and str(call.output.target) == call.name}
        self.users: dict[fx.Node, list[fx.Node]] = {node: list(node.users) for node in self.nodes}

    def hosts(self, node: fx.Node, users: Iterable[fx.Node]) -> list[ModuleCall]:
        """Return the calls after which a layer inserted behind a node would reach exactly these users, inner calls first."""
        outside = set(users)
        found = [
            call
            for call in self.calls
            if call.output is node
            and node in call.inner
            and not outside & call.inner
            and not isinstance(call.part, nn.Sequential)  # its last layer is as good, and its layers are counted
        ]
        return sorted(found, key=lambda call: self.number[call.name] > 1)

    def before(self, user: fx.Node, place: int) -> ModuleCall | None:
        """Return the call of a layer whose first input is at a place of a node's arguments; None where it is another."""
        return self.leaves.get(user) if place == 0 else None

    def has_place_after(self, node: fx.Node) -> bool:
        """Return whether a layer inserted behind a node can be swapped into the model."""
        if any(self.number[call.name] == 1 for call in self.hosts(node, self.users[node])):
            return True
        user, *others = self.users[node]
        call = self.leaves.get(user)
        return not others and call is not None and self.number[call.name] == 1 and self.nodes[user][1][0] is node

    def _part(self, node: fx.Node) -> nn.Module:
        return self.traced.get_submodule(str(node.target))


@dataclass
class Translation:
    """The edits of a graph as swaps.

    Attributes:
        original: the graph before the edits.
        problems: node -> reason, for edits that only the graph can express.
    """

    original: Original
    problems: dict[fx.Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.treatments: dict[ModuleCall, Treatment] = defaultdict(Treatment)
        self.present = set(self.original.traced.graph.nodes)
        self.replaced: list[tuple[nn.Module, nn.Module]] = []
        edges: dict[fx.Node, list[Edge]] = defaultdict(list)
        for node in self.original.nodes:
            self._read(node, edges)
        self.common = {node: _common([edge.chain for edge in users]) for node, users in edges.items()}
        for node, users in edges.items():
            if any(edge.chain for edge in users):
                self._place(node, users)

    def swaps(self) -> list[Swap]:
        """Return the swaps; add to the problems where calls of one layer would differ."""
        names: dict[str, list[Treatment]] = {call.name: [] for call in self.treatments}
        for call in self.original.calls:
            if call.name in names:
                names[call.name].append(self.treatments.get(call, Treatment()))
        found = []
        for name, treatments in names.items():
            first, *others = treatments
            if any(first.signature() != other.signature() for other in others):
                self._refuse((inserted for each in treatments for inserted in (*each.before, *each.after)), UNEQUAL)
            if len({each.becomes and _signature(each.becomes) for each in treatments}) > 1:
                self.problems.update({call.output: UNEQUAL for call in self.original.calls if call.name == name and call.output})
            sides = [tuple(each.layer for each in side) for side in (first.before, first.after)]
            found.append(Swap(name, first.becomes, *sides))
        return found

    def _read(self, node: fx.Node, edges: dict[fx.Node, list[Edge]]) -> None:
        """Compare a node with what it was: collect the layers inserted before it, and what it calls now."""
        target, leaves = self.original.nodes[node]
        now = _leaves(node)
        if node not in self.present:
            self.problems[node] = "it is removed"
            return
        if node.op == "call_module":
            self._read_layer(node, str(target))
        elif node.target != target:
            self.problems[node] = FUNCTION
        if len(leaves) != len(now) or any(_is_other(was, new) for was, new in zip(leaves, now, strict=True)):
            self.problems[node] = FUNCTION
            return
        for place, (was, new) in enumerate(zip(leaves, now, strict=True)):
            if isinstance(was, fx.Node):
                source, chain = self._chain(new)
                if source is not was and not self.problems:
                    self.problems[node] = BETWEEN
                edges[was].append(Edge(node, place, chain))

    def _read_layer(self, node: fx.Node, name: str) -> None:
        was, new = self.original.parts[name], self.original._part(node)
        if new is not was:
            self.replaced.append((was, new))
            if node in self.original.leaves:
                self.treatments[self.original.leaves[node]].becomes = new
            else:
                self.problems[node] = FUNCTION

    def _chain(self, node: fx.Node) -> tuple[fx.Node, tuple[Inserted, ...]]:
        """Return the original node behind inserted ones, and what was inserted, in the order of the data."""
        chain: list[Inserted] = []
        while node not in self.original.nodes:
            inserted = self._inserted(node)
            if inserted is None:
                self.problems[node] = SHARED
                return node, ()
            chain.insert(0, inserted)
            node = node.all_input_nodes[0]
        return node, tuple(chain)

    def _inserted(self, node: fx.Node) -> Inserted | None:
        """Return an inserted layer of one input, or a choice of phase and what takes it; None for other nodes."""
        if node.op != "call_module" or not node.all_input_nodes:
            return None
        layer, (source, *others) = self.original._part(node), node.all_input_nodes
        if not others:
            return Inserted((node,), layer)
        choice = others[0]
        choose = self.original._part(choice) if choice.op == "call_module" else None
        alone = list(choice.users) == [node] and choice.all_input_nodes == [source]
        if alone and isinstance(layer, TakePhase) and isinstance(choose, NormChoice | PhaseLogits):
            return Inserted((node, choice), PolyphaseSampling(choose, layer).train(layer.training))
        return None

    def _place(self, node: fx.Node, edges: list[Edge]) -> None:
        """Find layers that can call what edits insert behind a node."""
        common, users = self.common[node], {edge.user for edge in edges}
        befores = [self.original.before(edge.user, edge.place) for edge in edges]
        host = self._host(node, users) if common else None
        if host is not None and isinstance(host.part, NORMS) and self._takes_alone(befores):
            host = None  # norms are exchanged after a fix, when they are frozen or synchronised, and their filters with them
        if host is not None:
            self.treatments[host].after = common
        elif common and len(users) > 1:
            self._refuse(common, BETWEEN)
            return
        else:
            common = ()
        for edge, call in zip(edges, befores, strict=True):
            rest = edge.chain[len(common) :]
            if rest and call is None:
                self._refuse(rest, BETWEEN)
            elif rest and call is not None:
                self.treatments[call].before = rest

    def _takes_alone(self, calls: list[ModuleCall | None]) -> bool:
        """Return whether a single call, the only one of its layer, takes a value."""
        first, *others = calls
        return not others and first is not None and self.original.number[first.name] == 1

    def _host(self, node: fx.Node, users: set[fx.Node]) -> ModuleCall | None:
        """Return a call after which to call what edits insert behind a node: of a layer whose calls all change alike."""
        for call in self.original.hosts(node, users):
            nodes = [other.output for other in self.original.calls if other.name == call.name]
            chains = {tuple(_signature(each.layer) for each in self.common.get(other, ())) for other in nodes if other}
            if len(chains) == 1 and all(nodes):
                return call
        return None

    def _refuse(self, inserted: Iterable[Inserted], reason: str) -> None:
        self.problems.update({node: reason for each in inserted for node in each.nodes})


def keep_edits(model: nn.Module, original: Original) -> None:
    """Set on a model's layers what edits have set on the views of them that its graph calls."""
    for name, seen in original.parts.items():
        with suppress(AttributeError):  # a layer of the graph alone
            part = model.get_submodule(name)
            if part is not seen:
                vars(part).update({key: value for key, value in vars(seen).items() if key != "_modules"})


def apply_swaps(model: nn.Module, traced: fx.GraphModule, swaps: list[Swap]) -> Callable[[], None]:
    """Swap layers inside a model, and let its graph call the layers as they were. Return a function that undoes it."""
    undo: list[tuple[nn.Module, type[nn.Module], dict[str, Any], dict[str, Any]]] = []
    for swap in swaps:
        part = model.get_submodule(swap.name)
        undo.append((part, type(part), part.__dict__, dict(part._modules)))
        _show(traced, swap.name, part)
        if swap.becomes is not None:
            become(part, swap.becomes)
        surround(part, before=_one(swap.before), after=_one(swap.after))

    def restore() -> None:
        for part, kind, attributes, parts in reversed(undo):
            part.__class__ = kind
            object.__setattr__(part, "__dict__", attributes)
            part._modules.clear()
            part._modules.update(parts)

    return restore


def _show(traced: fx.GraphModule, name: str, part: nn.Module) -> None:
    """Let a graph call a view of a layer that is about to change."""
    nodes = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == name]
    if not nodes or traced.get_submodule(name) is not part:
        return
    traced.add_submodule(name, view(part))


def _one(layers: tuple[nn.Module, ...]) -> nn.Module | None:
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers) if layers else None


def _common(chains: list[tuple[Inserted, ...]]) -> tuple[Inserted, ...]:
    """Return what all chains begin with."""
    length = 0
    while all(len(chain) > length and chain[length].nodes == chains[0][length].nodes for chain in chains):
        length += 1
    return chains[0][:length]


def _leaves(node: fx.Node) -> list[Any]:
    """Return a node's arguments one by one, taken out of lists, tuples, slices and dictionaries."""
    found: list[Any] = []

    def see(value: Any) -> Any:
        found.append(value)
        return value

    fx.node.map_aggregate((node.args, node.kwargs), see)
    return found


def _is_other(was: Any, new: Any) -> bool:
    """Return whether an argument that is no node has changed."""
    if isinstance(was, fx.Node) or isinstance(new, fx.Node):
        return isinstance(was, fx.Node) is not isinstance(new, fx.Node)
    return was is not new and (type(was) is not type(new) or bool(was != new))


def _signature(layer: nn.Module) -> Any:
    """Return a value that is equal for layers that do the same; a layer with weights is equal to itself only."""
    has_state = next(layer.parameters(), None) is not None or next(layer.buffers(), None) is not None
    return id(layer) if has_state else (type(layer), repr(layer))
