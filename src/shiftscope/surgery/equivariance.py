"""Make a model equivariant: maps become circular, and every subsampling moves with the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.positions import PADS
from shiftscope.graphs.sites import Pair, Site, pool_arguments
from shiftscope.layers.polyphase import NormChoice, PhaseLogits, TakePhase
from shiftscope.surgery.antialias import unstride
from shiftscope.surgery.editor import Editor
from shiftscope.surgery.head import channels_of
from shiftscope.surgery.plan import Surgery

__all__ = ["Polyphase", "circular", "make_equivariant"]

Polyphase = Literal["aps", "lps"]
CIRCULAR = "what lies beyond the border comes from the opposite one"
#: Functions, methods and modules that take positions away.
POINTS: tuple[Any, ...] = (
    torch.flatten,
    torch.mean,
    functional.adaptive_avg_pool2d,
    "mean",
    "flatten",
    "view",
    "reshape",
)
POINT_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
#: Layers that pad in another way.
OTHER_PADS = tuple(pad for pad in PADS if pad is not nn.CircularPad2d)


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
    _make_pads_circular(editor, split=False)
    for site in editor.sites():
        if _choose(editor, site):
            _make_circular(editor, site)
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
    _make_pads_circular(editor, split=True)
    groups = _phase_groups(editor)
    leaders: dict[int, tuple[Site, fx.Node]] = {}
    for site in editor.sites():
        if not _choose(editor, site):
            continue
        if site.is_strided:
            _make_circular(editor, site, unstrided=True)
            _sample(editor, site, groups[site.node], leaders, method, filter_size)
        else:
            _make_circular(editor, site)
    for node in editor.slices():
        editor.keep(node.name, "subsampling by slicing", "unsupported: use TakePhase in the model's code")
    return editor.finish()


def _sample(
    editor: Editor, site: Site, group: int, leaders: dict[int, tuple[Site, fx.Node]], method: Polyphase, filter_size: int
) -> None:
    """Subsample at a site by the phase that the first site of its group chooses.

    Args:
        editor: the graph.
        site: a site whose stride was set to 1; its ``stride`` is what it had.
        group: number of the group of sites that keep the same phase.
        leaders: the first site of each group and the node of its choice; extended here.
        method: ``aps`` or ``lps``.
        filter_size: width of the filter before the choice, positions.
    """
    last, _ = editor.end_of_chain(site.node) if site.kind == "convolution" else (site.node, False)
    first = group not in leaders
    if first:
        leaders[group] = site, editor.call(_phase_choice(editor, site, last, method, filter_size), "choice", last)
    leader, choice = leaders[group]
    take = TakePhase(site.stride, filter_size)
    if not first and site.kernel == (1, 1):
        editor.insert_before(site.node, take, "phase", choice)
        where = "before it"
    else:
        taken = editor.insert_after(last, take, "phase", choice)
        choice.replace_input_with(taken, last)  # the choice itself is made before subsampling
        where = "after its nonlinearity" if last is not site.node else "after it"
    rule = "of the largest norm" if method == "aps" else "that a learned network points to"
    why = f"keeps the phase {rule}, {where}" if first else f"keeps the phase that `{leader.name}` chose, {where}: they meet again"
    editor.record(site.name, site.title, f"stride 1, circular, {method.upper()}", why)


def _phase_choice(editor: Editor, site: Site, last: fx.Node, method: Polyphase, filter_size: int) -> nn.Module:
    """Return a module that chooses the phase of a node's map."""
    if method == "aps":
        return NormChoice(site.stride, filter_size)
    channels = channels_of(editor, last)
    if channels is None:
        raise InputError(f"The number of channels at `{site.name}` does not follow from the graph.", "Use method 'aps'.")
    return PhaseLogits(channels, site.stride, filter_size=filter_size)


def _make_circular(editor: Editor, site: Site, *, unstrided: bool = False) -> None:
    """Let a site continue its map circularly, so that its window meets every position once.

    Args:
        editor: the graph.
        site: a convolution or pool.
        unstrided: set its stride to 1 and record nothing, because the caller records what replaces the stride.
    """
    margins = _margins(editor, site)
    # A circular pad narrower than the window reads does not let it meet every position.
    fitting = all(sum(pair) == 2 * pad for pair, pad in zip(margins, site.padding, strict=True))
    was_circular = isinstance(site.module, nn.Conv2d) and site.module.padding_mode == "circular" and fitting
    if unstrided:
        unstride(site)
    if was_circular or not any(map(any, margins)):
        if not was_circular and any(site.padding):
            _unpad(site)
        if not unstrided:
            editor.keep(site.name, site.title, "circular already" if was_circular else "it reads nothing beyond the border")
        return
    (top, bottom), (left, right) = margins
    if isinstance(site.module, nn.Conv2d) and top == bottom == site.padding[0] and left == right == site.padding[1]:
        site.module.padding_mode = "circular"
    else:
        editor.insert_before(site.node, nn.CircularPad2d((left, right, top, bottom)), "around")
        _unpad(site)
    if not unstrided:
        editor.record(site.name, site.title, "circular padding", CIRCULAR)


def _margins(editor: Editor, site: Site) -> tuple[Pair, Pair]:
    """Return how far to pad a site's map, before and after, along height and width; nothing after a pad of its own."""
    if _follows_pad(editor, site):
        return (0, 0), (0, 0)
    (high, wide), (up, side) = site.reach, site.padding
    return (min(up, high), max(high - up, 0)), (min(side, wide), max(wide - side, 0))


def _choose(editor: Editor, site: Site) -> bool:
    """Return whether to change a site; record the reason where not."""
    if not editor.choose(site):
        return False
    if _pads_twice(editor, site):
        editor.keep(site.name, site.title, "unsupported: a pad stands before a layer that pads itself")
        return False
    return True


def _pads_twice(editor: Editor, site: Site) -> bool:
    return any(site.padding) and _follows_pad(editor, site)


def _follows_pad(editor: Editor, site: Site) -> bool:
    source = site.node.args[0] if site.node.args else None
    return isinstance(source, fx.Node) and (isinstance(editor.part(source), nn.CircularPad2d) or source.target is functional.pad)


def _unpad(site: Site) -> None:
    """Set a site's own padding to 0, and let no window of a pool extend beyond the border."""
    if isinstance(site.module, nn.Conv2d):
        site.module.padding, site.module.padding_mode = (0, 0), "zeros"
    elif site.module is not None:
        site.module.padding, site.module.ceil_mode = 0, False  # type: ignore[assignment]  # torch types them as parameters
    else:
        arguments = {**pool_arguments(site.node), "padding": 0, "ceil_mode": False}
        site.node.args, site.node.kwargs = site.node.args[:1], arguments


def _make_pads_circular(editor: Editor, *, split: bool) -> None:
    """Make layers that only pad, and filters, circular.

    Args:
        editor: the graph.
        split: let filters keep every position, and put their stride after them as a pool of one position, which then counts as
            a site like any other.
    """
    for node in list(editor.graph.nodes):
        part, name = editor.part(node), str(node.target) if node.op == "call_module" else node.name
        if not editor.wants(name):
            continue
        if isinstance(part, OTHER_PADS):
            node.target = editor.add(node, nn.CircularPad2d(vars(part)["padding"]), "around")
            editor.record(name, type(part).__name__, "CircularPad2d", CIRCULAR)
        elif node.target is functional.pad:
            _make_pad_circular(editor, node)
        elif isinstance(part, layers.BlurPool2d | layers.MaxBlurPool2d):
            _make_filter_circular(editor, node, part, split=split)
            editor.record(name, type(part).__name__, "circular border", CIRCULAR)


def _make_pad_circular(editor: Editor, node: fx.Node) -> None:
    margins = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if not isinstance(margins, list | tuple) or len(margins) > 4:
        editor.keep(node.name, "pad", "unsupported: it pads more than height and width")
        return
    margins = (*margins, *([0] * (4 - len(margins))))
    node.args, node.kwargs = (node.args[0], margins), {"mode": "circular"}
    editor.record(node.name, "pad", "circular pad", CIRCULAR)


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


def _phase_groups(editor: Editor) -> dict[fx.Node, int]:
    """Return the number of each strided site's group; sites whose maps meet again are in one group and keep the same phase.

    Each map carries the list of sites that it was subsampled by. Where maps meet, these lists must have the same strides, and
    their sites are joined one by one.
    """
    # Loaded here, because it takes longer than the rest of this package.
    from scipy.cluster.hierarchy import DisjointSet

    strided = [site for site in editor.sites() if site.is_strided and editor.wants(site.name)]
    sites = {site.node: site for site in strided if not site.refusal and not _pads_twice(editor, site)}
    groups = DisjointSet(sites)
    paths: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in editor.graph.nodes:
        if node.op == "output" or isinstance(editor.part(node), POINT_MODULES) or node.target in POINTS:
            continue  # maps without positions need not be aligned
        path, *others = [paths[source] for source in node.all_input_nodes if paths.get(source)] or [()]
        for other in others:
            _check_strides(node, [sites[each].stride for each in path], [sites[each].stride for each in other])
            for one, two in zip(path, other, strict=True):
                groups.merge(one, two)
        paths[node] = (*path, node) if node in sites else path
    numbers = {node: number for number, group in enumerate(groups.subsets()) for node in group}
    return {node: numbers[node] for node in sites}


def _check_strides(node: fx.Node, one: list[Pair], other: list[Pair]) -> None:
    if one != other:
        raise InputError(
            f"At `{node.name}` branches meet after different strides ({one} and {other}), so that they cannot keep one phase.",
            "Leave one out with `skip`.",
        )
