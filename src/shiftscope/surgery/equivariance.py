"""Making a model equivariant: maps become tori, and every subsampling moves with the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.layers.polyphase import NormChoice, PhaseLogits, TakePhase
from shiftscope.surgery.antialias import unstride
from shiftscope.surgery.editor import Editor, Pair, Site, pool_options
from shiftscope.surgery.head import channels_of
from shiftscope.surgery.plan import Surgery

__all__ = ["Polyphase", "circular", "make_equivariant"]

Polyphase = Literal["aps", "lps"]
AROUND = "what lies beyond the border comes from the opposite one"
#: What takes positions away, as modules and as calls.
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
PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)


def circular(
    model: nn.Module,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """A copy of a model whose maps continue at their other end: nothing is special about a border any more.

    Convolutions and pools read what lies beyond the border from the opposite one, and keep the size of their map but for their
    stride. Weights are kept. A model that shrinks its maps (``valid`` convolutions) gets larger ones; where its head flattens
    them, that is told, and :func:`global_pool` first is the remedy.

    Args:
        model: whose graph ``torch.fx`` can trace. It is left as it is.
        only: names of the layers to change; all by default.
        skip: names of layers to leave alone.
        image: (channels, height, width), for the costs.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        InputError: an untraceable model, an unknown name, a head that does not fit any more.
    """
    editor = Editor(model, image=image, only=only, skip=skip)
    _prepare(editor, split=False)
    for site in editor.sites():
        if _choose(editor, site):
            _around(editor, site)
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
    """A copy of a model that is exactly equivariant to circular shifts: circular maps, and polyphase sampling for every stride.

    Branches that meet again (a residual block and its shortcut) subsample by one choice, made on the one that comes first; else
    they would no longer lie on top of each other. With a head that sees positions (flatten) the outputs still change;
    :func:`global_pool` takes that away, and then they are the same at every circular shift, before any training. Weights are
    kept; the small networks of ``lps`` are new and untrained.

    Args:
        model: whose graph ``torch.fx`` can trace. It is left as it is.
        method: adaptive (``aps``: the phase of the largest norm) or learned (``lps``) polyphase sampling.
        filter_size: of a binomial filter before each choice; 1 does not filter.
        only: names of the layers to change; all by default. Layers that are left out break the exactness.
        skip: names of layers to leave alone.
        image: (channels, height, width), for the costs; height and width must be multiples of the model's subsampling factor.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        InputError: an untraceable model, an unknown name or method, branches that meet with different strides behind them.

    Source: Chaman and Dokmanic 2021; Rojas-Gomez et al. 2022; there the networks are written anew by hand.
    """
    if method not in get_args(Polyphase):
        raise InputError(f"`method` must be 'aps' or 'lps', got {method!r}.")
    editor = Editor(model, image=image, only=only, skip=skip)
    _prepare(editor, split=True)
    groups = _groups(editor)
    chosen: dict[int, tuple[Site, fx.Node]] = {}
    for site in editor.sites():
        if not _choose(editor, site):
            continue
        if not site.is_strided:
            _around(editor, site)
            continue
        _around(editor, site, keep_every_position=True)
        _sampled(editor, site, groups[site.node], chosen, method, filter_size)
    for node in editor.slices():
        editor.leave(node.name, "subsampling by slicing", "unsupported: use TakePhase in the model's code")
    return editor.finish()


def _sampled(
    editor: Editor, site: Site, group: int, chosen: dict[int, tuple[Site, fx.Node]], method: Polyphase, filter_size: int
) -> None:
    """Subsample by the group's choice, which the first of the group makes."""
    last, _ = editor.end_of_chain(site.node) if site.kind == "convolution" else (site.node, False)
    first = group not in chosen
    if first:
        choice = NormChoice(site.stride, filter_size)
        module: nn.Module = choice
        if method == "lps":
            channels = channels_of(editor, last)
            if channels is None:
                raise InputError(
                    f"`{site.name}`: how many channels its map has does not follow from the graph. Use method 'aps'."
                )
            module = PhaseLogits(channels, site.stride, filter_size=filter_size)
        chosen[group] = site, editor.call(module, "choice", last)
    leader, node = chosen[group]
    take = TakePhase(site.stride, filter_size)
    if not first and site.kernel == (1, 1):
        editor.before_node(site.node, take, "phase", node)
        where = "before it"
    else:
        taken = editor.after(last, take, "phase", node)
        node.replace_input_with(taken, last)  # the choice itself is made on what is not yet subsampled
        where = "after its nonlinearity" if last is not site.node else "after it"
    rule = "of the largest norm" if method == "aps" else "that a learned network points to"
    why = f"keeps the phase {rule}, {where}" if first else f"keeps the phase that `{leader.name}` chose, {where}: they meet again"
    editor.note(site.name, site.title, f"stride 1, circular, {method.upper()}", why)


def _around(editor: Editor, site: Site, *, keep_every_position: bool = False) -> None:
    """Let a site continue its map at the other end, so that its window finds every position once."""
    margins = _margins(editor, site)
    # Narrower than the window reads, a circular pad does not let it find every position.
    fitting = all(sum(pair) == 2 * pad for pair, pad in zip(margins, site.padding, strict=True))
    was_circular = isinstance(site.module, nn.Conv2d) and site.module.padding_mode == "circular" and fitting
    if keep_every_position:
        unstride(site)
    if was_circular or not any(map(any, margins)):
        if not was_circular and any(site.padding):
            _unpad(site)
        if not keep_every_position:
            editor.leave(site.name, site.title, "circular already" if was_circular else "it reads nothing beyond the border")
        return
    (top, bottom), (left, right) = margins
    if isinstance(site.module, nn.Conv2d) and top == bottom == site.padding[0] and left == right == site.padding[1]:
        site.module.padding_mode = "circular"
    else:
        editor.before_node(site.node, nn.CircularPad2d((left, right, top, bottom)), "around")
        _unpad(site)
    if not keep_every_position:
        editor.note(site.name, site.title, "circular padding", AROUND)


def _margins(editor: Editor, site: Site) -> tuple[Pair, Pair]:
    """What to continue the map by, before and after, along height and width; nothing behind a pad that does it already."""
    if _follows_pad(editor, site):
        return (0, 0), (0, 0)
    (high, wide), (up, side) = site.reach, site.padding
    return (min(up, high), max(high - up, 0)), (min(side, wide), max(wide - side, 0))


def _choose(editor: Editor, site: Site) -> bool:
    """Whether a site is to be changed; if not, says so."""
    if not editor.choose(site):
        return False
    if _pads_twice(editor, site):
        editor.leave(site.name, site.title, "unsupported: a pad stands before a layer that pads itself")
        return False
    return True


def _pads_twice(editor: Editor, site: Site) -> bool:
    return any(site.padding) and _follows_pad(editor, site)


def _follows_pad(editor: Editor, site: Site) -> bool:
    source = site.node.args[0] if site.node.args else None
    return isinstance(source, fx.Node) and (isinstance(editor.part(source), nn.CircularPad2d) or source.target is functional.pad)


def _unpad(site: Site) -> None:
    """Let a site pad nothing itself, in no mode, and let no window of a pool hang over the border."""
    if isinstance(site.module, nn.Conv2d):
        site.module.padding, site.module.padding_mode = (0, 0), "zeros"
    elif site.module is not None:
        site.module.padding, site.module.ceil_mode = 0, False  # type: ignore[assignment]  # torch types them as parameters
    else:
        site.node.args, site.node.kwargs = site.node.args[:1], {**pool_options(site.node), "padding": 0, "ceil_mode": False}


def _prepare(editor: Editor, *, split: bool) -> None:
    """Pads of their own become circular, and filters too; ``split`` lets a filter keep every position, before a bare stride."""
    for node in list(editor.graph.nodes):
        part, name = editor.part(node), str(node.target) if node.op == "call_module" else node.name
        if not editor.wants(name):
            continue
        if isinstance(part, PADS):
            node.target = editor.add(node, nn.CircularPad2d(part.padding), "around")
            editor.note(name, type(part).__name__, "CircularPad2d", AROUND)
        elif node.target is functional.pad:
            _circular_pad(editor, node)
        elif isinstance(part, layers.BlurPool2d | layers.MaxBlurPool2d):
            _circular_filter(editor, node, part, split=split)
            editor.note(name, type(part).__name__, "circular border", AROUND)


def _circular_pad(editor: Editor, node: fx.Node) -> None:
    margins = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if not isinstance(margins, list | tuple) or len(margins) > 4:
        editor.leave(node.name, "pad", "unsupported: it pads more than height and width")
        return
    margins = (*margins, *([0] * (4 - len(margins))))
    node.args, node.kwargs = (node.args[0], margins), {"mode": "circular"}
    editor.note(node.name, "pad", "circular pad", AROUND)


def _circular_filter(editor: Editor, node: fx.Node, part: layers.BlurPool2d | layers.MaxBlurPool2d, *, split: bool) -> None:
    """A filter on a torus, taken apart: the maximum and the bare stride become places that are changed like any other."""
    taps, stride = part.filter.taps, part.filter.stride
    blur = layers.BlurPool2d(stride=1 if split else stride, taps=taps, border="circular")
    if isinstance(part, layers.MaxBlurPool2d):
        node.target = editor.add(node, nn.MaxPool2d(part.kernel_size, 1, part.padding, part.dilation), "maximum")
        node = editor.after(node, blur, "around")
    else:
        node.target = editor.add(node, blur, "around")
    if split and stride != (1, 1):
        editor.after(node, nn.MaxPool2d(1, stride), "stride")


def _groups(editor: Editor) -> dict[fx.Node, int]:
    """For each strided site the number of its choice; sites whose maps meet again share one.

    Each map carries the choices made on its way. Where maps meet, their choices must be as many, of the same strides, and become
    the same one by one.
    """
    parents: list[int] = []
    strides: list[Pair] = []
    strided = [site for site in editor.sites() if site.is_strided and editor.wants(site.name)]
    sites = {site.node: site for site in strided if not site.refusal and not _pads_twice(editor, site)}
    own: dict[fx.Node, int] = {}
    ways: dict[fx.Node, tuple[int, ...]] = {}

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for node in editor.graph.nodes:
        if node.op == "output" or isinstance(editor.part(node), POINT_MODULES) or node.target in POINTS:
            continue  # what follows has no positions that must lie on top of each other
        met = [ways[other] for other in node.all_input_nodes if ways.get(other)]
        way = met[0] if met else ()
        for other in met[1:]:
            if [strides[each] for each in way] != [strides[each] for each in other]:
                raise InputError(
                    f"at `{node.name}` branches meet that were subsampled differently ({[strides[each] for each in way]} and "
                    f"{[strides[each] for each in other]}), so that no common choice of phases exists. Leave one out with `skip`."
                )
            for one, two in zip(way, other, strict=True):
                low, high = sorted((root(one), root(two)))
                parents[high] = low
        if node in sites:
            own[node] = len(parents)
            parents.append(len(parents))
            strides.append(sites[node].stride)
            way = (*way, own[node])
        ways[node] = way
    return {node: root(number) for node, number in own.items()}
