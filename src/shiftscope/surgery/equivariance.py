"""Make a model equivariant: maps become circular, and every subsampling moves with the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.geometry import Geometry, read_graph
from shiftscope.graphs.maps import Value
from shiftscope.graphs.positions import PADS
from shiftscope.graphs.sites import Pair, Site
from shiftscope.graphs.tracing import default_image
from shiftscope.layers.polyphase import AlignPhase, NormChoice, PhaseLogits, TakePhase
from shiftscope.surgery.editor import Editor
from shiftscope.surgery.head import channels_of
from shiftscope.surgery.operators import is_aligned, name_the_rest, strided_nodes
from shiftscope.surgery.phases import Phases, phases_of
from shiftscope.surgery.plan import Surgery
from shiftscope.surgery.promise import try_promise
from shiftscope.surgery.windows import make_windows_circular, own_pad, slice_sites, unstride

__all__ = ["Polyphase", "circular", "make_equivariant"]

Polyphase = Literal["aps", "lps"]
CIRCULAR = "what lies beyond the border comes from the opposite one"


def circular(
    model: nn.Module,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """Return a copy of a model with circular padding everywhere, so that a border is like any other place.

    Convolutions and pools read what lies beyond a border from the opposite one, and keep the size of their map except for their
    stride. Weights are kept. In a model that shrinks its maps (convolutions without padding) maps become larger; a head that
    flattens them then no longer fits, and needs :func:`global_pool` first.

    Args:
        model: a model, which is not changed. Where ``torch.fx`` cannot trace it, layers are found by running it.
        only: names of the layers to change; all by default.
        skip: names of layers that stay as they are.
        image: (channels, height, width), to count costs and to check that the changed model runs.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, and layers cannot be swapped in it either.
        InputError: the model has no layer of such a name, or its head no longer fits its maps.
    """
    editor = Editor(model, image=image, only=only, skip=skip, by_running=True)
    _make_filters_circular(editor, split=False)
    for site in editor.sites():
        if _choose(editor, site):
            _make_circular(editor, site)
    _name_pads(editor)
    return editor.finish()


def make_equivariant(
    model: nn.Module,
    *,
    method: Polyphase = "aps",
    filter_size: int = 1,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """Return a copy of a model that is exactly equivariant to circular shifts.

    Maps become circular, and polyphase sampling replaces every stride. Branches that meet again (a residual block and its
    shortcut) keep the same phase, chosen in the branch that comes first, so that their maps stay aligned. With a head that sees
    positions (flatten) the outputs still change; after :func:`global_pool` they are the same at every circular shift, before any
    training. Weights are kept; the small networks of ``lps`` are new and untrained.

    Args:
        model: a model that ``torch.fx`` can trace; it is not changed.
        method: adaptive (``aps``: the phase of the largest norm) or learned (``lps``) polyphase sampling.
        filter_size: width of a binomial filter before each choice, positions; 1 does not filter.
        only: names of the layers to change; all by default. Every other layer that subsamples or pads breaks the exactness.
        skip: names of layers that stay as they are.
        image: (channels, height, width), to count costs and to check that the changed model runs; height and width must be
            multiples of the model's subsampling factor.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model.
        InputError: the model has no layer of such a name, there is no such method, or branches meet after different strides.

    Sources: Chaman and Dokmanic 2021; Rojas-Gomez et al. 2022. There the networks are rewritten by hand.
    """
    if method not in get_args(Polyphase):
        raise InputError(f"`method` must be 'aps' or 'lps', got {method!r}.")
    editor = Editor(model, image=image, only=only, skip=skip)
    geometry, values = read_graph(editor, editor.module, image or default_image(model))
    sampler = _Sampler(editor, geometry, values, method, filter_size)
    sampler.run()
    _name_pads(editor)
    surgery = name_the_rest(geometry, editor.finish(), "unsupported: it keeps the same positions whatever the map holds")
    return surgery if image is None else replace(surgery, promise=try_promise(surgery.model, editor, geometry.head, image))


@dataclass
class _Sampler:
    """Replaces strides by polyphase sampling.

    Attributes:
        editor: the graph.
        geometry, values: what was read from it before any edit.
        method: ``aps`` or ``lps``.
        filter_size: width of the filter before a choice, positions.
        leaders: name of the first subsampling of each group and the node of its choice.
    """

    editor: Editor
    geometry: Geometry
    values: Mapping[fx.Node, Value]
    method: Polyphase
    filter_size: int
    leaders: dict[int, tuple[str, fx.Node]] = field(default_factory=dict)

    def run(self) -> None:
        """Change all sites, in the order of the graph."""
        _make_filters_circular(self.editor, split=True)
        sites = {site.node: site for site in (*self.editor.sites(), *slice_sites(self.editor, self.values))}
        strides = strided_nodes(self.editor, self.geometry, self.values)
        strides |= {node: site.stride for node, site in sites.items() if site.is_strided}
        chosen = [site for site in sites.values() if _choose(self.editor, site)]
        aligned = [node for node in strides if node not in sites and is_aligned(self.editor, node)]
        managed = [*(site.node for site in chosen if site.is_strided), *aligned]
        phases = phases_of(self.editor.graph, self.values, strides, managed)
        order = {node: place for place, node in enumerate(self.editor.graph.nodes)}
        by_node = {site.node: site for site in chosen}
        for node in sorted([*by_node, *aligned], key=order.__getitem__):
            if node not in by_node:
                self._align(node, strides[node], phases.groups[node])
            elif by_node[node].is_strided:
                self._sample(by_node[node], phases.groups[node])
            else:
                _make_circular(self.editor, by_node[node])
        self._undo(phases, strides)

    def _sample(self, site: Site, group: int) -> None:
        """Subsample at a site by the phase that the first subsampling of its group chooses."""
        first = group not in self.leaders
        if not first:
            self._break_ties(group, site.node)
        unstride(self.editor, site)
        start = _follow(self.editor, site)
        last, _ = self.editor.end_of_chain(start) if site.kind == "convolution" else (start, False)
        if first:
            self.leaders[group] = site.name, self._choice(site.name, site.stride, last)
        leader, choice = self.leaders[group]
        take = TakePhase(site.stride, self.filter_size)
        if not first and site.kernel == (1, 1) and start is site.node and site.kind != "slice":
            self.editor.insert_before(site.node, take, "phase", choice)
            where = "before it"
        else:
            taken = self.editor.insert_after(last, take, "phase", choice)
            choice.replace_input_with(taken, last)  # the choice itself is made before subsampling
            where = "after its nonlinearity" if last is not start else "after it"
        self._record(site.name, site.title, leader if not first else "", where, f"stride 1, circular, {self.method.upper()}")

    def _align(self, node: fx.Node, stride: Pair, group: int) -> None:
        """Roll a map so that its chosen phase comes first, before an operator that takes the first phase."""
        name = str(node.target) if node.op == "call_module" else node.name
        source = node.all_input_nodes[0]
        first = group not in self.leaders
        if first:
            self.leaders[group] = name, self._choice(name, stride, source)
        else:
            self._break_ties(group, node)
        leader, choice = self.leaders[group]
        self.editor.insert_before(node, AlignPhase(stride), "aligned", choice)
        title = f"{_kind(self.editor, node)}, stride {stride[0]}"
        self._record(name, title, leader if not first else "", "before it", f"{self.method.upper()} before it")

    def _break_ties(self, group: int, node: fx.Node) -> None:
        """Let the map that a later subsampling of a group receives break ties of the choice, if it is known by then."""
        choice, source = self.leaders[group][1], node.all_input_nodes[0]
        order = {each: place for place, each in enumerate(self.editor.graph.nodes)}
        if source not in choice.all_input_nodes and order[source] < order[choice]:
            choice.args = (*choice.args, source)

    def _record(self, name: str, title: str, leader: str, where: str, becomes: str) -> None:
        rule = "of the largest norm" if self.method == "aps" else "that a learned network points to"
        why = f"keeps the phase that `{leader}` chose, {where}: they meet again" if leader else f"keeps the phase {rule}, {where}"
        self.editor.record(name, title, becomes, why)

    def _choice(self, name: str, stride: Pair, node: fx.Node) -> fx.Node:
        """Return a node that chooses the phase of a node's map."""
        if self.method == "aps":
            return self.editor.call(NormChoice(stride, self.filter_size), "choice", node)
        channels = channels_of(self.editor, node)
        if channels is None:
            raise InputError(f"The number of channels at `{name}` does not follow from the graph.", "Use method 'aps'.")
        with torch.random.fork_rng(devices=[]):  # the same weights in each copy, and nothing drawn that others draw, too
            torch.default_generator.manual_seed(0)
            choice = PhaseLogits(channels, stride, filter_size=self.filter_size)
        return self.editor.call(choice, "choice", node)

    def _undo(self, phases: Phases, strides: Mapping[fx.Node, Pair]) -> None:
        """Roll upsampled maps back, so that they lie where they lay before the subsamplings that the upsampling undoes."""
        for node, path in phases.undone.items():
            scale, name = (1, 1), str(node.target) if node.op == "call_module" else node.name
            for each in path:
                if each in phases.groups:
                    back = AlignPhase(strides[each], scale=scale, back=True)
                    node = self.editor.insert_after(node, back, "back", self.leaders[phases.groups[each]][1])
                scale = (scale[0] * strides[each][0], scale[1] * strides[each][1])
            self.editor.record(
                name, "upsampling", "rolled by the phases that it undoes", "it meets maps that were not subsampled"
            )


def _kind(editor: Editor, node: fx.Node) -> str:
    part = editor.part(node)
    return type(part).__name__ if part is not None else str(getattr(node.target, "__name__", node.target))


def _make_circular(editor: Editor, site: Site) -> None:
    """Let a site continue its map circularly, and record it."""
    pad = own_pad(editor, site)
    within = pad is None and not any(site.padding) and not site.pads_itself
    if within and all(reach < step for reach, step in zip(site.reach, site.stride, strict=True)):
        editor.keep(site.name, site.title, "it reads nothing beyond the border")
        return
    _, changed = (site.node, False) if pad is not None and not editor.wants(_name(pad)) else make_windows_circular(editor, site)
    if changed:
        _record_pad(editor, pad)
        editor.record(site.name, site.title, "circular padding", CIRCULAR)
    else:
        circular_already = any(site.reach) and site.kind == "convolution"
        editor.keep(site.name, site.title, "circular already" if circular_already else "it reads nothing beyond the border")


def _follow(editor: Editor, site: Site) -> fx.Node:
    """Let a site at stride 1 continue its map circularly; return the node of its result."""
    pad = own_pad(editor, site)
    if pad is not None and not editor.wants(_name(pad)):
        return site.node
    node, changed = make_windows_circular(editor, site)
    if changed:
        _record_pad(editor, pad)
    return node


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _record_pad(editor: Editor, pad: fx.Node | None) -> None:
    if pad is not None and _name(pad) not in {change.layer for change in editor.changes}:
        editor.record(_name(pad), _kind(editor, pad), "circular pad, as wide as its window reads", CIRCULAR)


def _choose(editor: Editor, site: Site) -> bool:
    """Return whether to change a site; record the reason where not."""
    if not editor.choose(site):
        return False
    if any(site.padding) and own_pad(editor, site) is not None:
        editor.keep(site.name, site.title, "unsupported: a pad stands before a layer that pads itself")
        return False
    return True


def _name_pads(editor: Editor) -> None:
    """Name the pads that no window behind them reads."""
    done = {change.layer for change in editor.changes}
    for node in editor.graph.nodes:
        part = editor.part(node)
        pads = isinstance(part, tuple(PADS)) and not _is_ours(part)
        if (pads or node.target is functional.pad) and node in editor.original.nodes and node.users and _name(node) not in done:
            editor.keep(_name(node), _kind(editor, node), "unsupported: it stands before no window that reads all that it adds")


def _is_ours(part: nn.Module | None) -> bool:
    return part is not None and type(part).__module__.startswith(layers.__name__)


def _make_filters_circular(editor: Editor, *, split: bool) -> None:
    """Make filters circular.

    Args:
        editor: the graph.
        split: let filters keep every position, and put their stride after them as a pool of one position, which then counts as
            a site like any other.
    """
    for node in list(editor.graph.nodes):
        part, name = editor.part(node), _name(node)
        if editor.wants(name) and isinstance(part, layers.BlurPool2d | layers.MaxBlurPool2d):
            _make_filter_circular(editor, node, part, split=split)
            editor.record(name, type(part).__name__, "circular border", CIRCULAR)


def _make_filter_circular(editor: Editor, node: fx.Node, part: layers.BlurPool2d | layers.MaxBlurPool2d, *, split: bool) -> None:
    taps, stride = part.filter.taps, part.filter.stride
    blur = layers.BlurPool2d(stride=1 if split else stride, taps=taps, border="circular")
    if isinstance(part, layers.MaxBlurPool2d):
        node.target = editor.add(node, nn.MaxPool2d(part.kernel_size, 1, part.padding, part.dilation), "maximum")
        node = editor.insert_after(node, blur, "around")
    else:
        node.target = editor.add(node, blur, "around")
    if split and stride != (1, 1):
        editor.insert_after(node, nn.MaxPool2d(1, stride), "stride")
