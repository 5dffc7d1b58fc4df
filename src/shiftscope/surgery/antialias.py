"""Anti-alias a model: insert a low-pass filter before every subsampling, where it helps most for the least computation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.geometry import read_graph
from shiftscope.graphs.sites import Site
from shiftscope.graphs.tracing import default_image
from shiftscope.surgery.editor import SKIPPED, Editor
from shiftscope.surgery.operators import is_aligned, name_the_rest, strided_nodes
from shiftscope.surgery.plan import Surgery
from shiftscope.surgery.windows import slice_sites, surround, unstride

__all__ = ["antialias"]


def antialias(
    model: nn.Module,
    *,
    filter_size: int = 3,
    border: layers.Border = "reflect",
    taps: Sequence[float] | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """Return a copy of a model that filters before it subsamples.

    A strided pool gets stride 1, and a filter after it subsamples. So does a strided convolution; its filter follows the norm and
    activation behind it, because an activation makes new high frequencies. Where no activation follows (a shortcut into a sum),
    filter and convolution commute, and before a 1x1 convolution the filter saves it most of its positions. Weights are kept. A
    filter of size 1 changes no output, except behind a norm that takes its statistics over positions.

    Args:
        model: a model, which is not changed. Where ``torch.fx`` cannot trace it, layers are found by running it.
        filter_size: width of the binomial filter, 1 to 7 positions.
        border: how the filter continues a map beyond its border; ``valid`` changes the maps' sizes and is refused.
        taps: weights of another filter along one axis, instead of ``filter_size``.
        only: names of the layers to change; all by default.
        skip: names of layers that stay as they are.
        image: (channels, height, width), to count costs and to check that the changed model runs.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, and layers cannot be swapped in it either.
        InputError: the model has no layer of such a name, or the filter is impossible.

    Source: Zhang, "Making convolutional networks shift-invariant again", ICML 2019. There the networks are rewritten by hand.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    >>> [change.becomes for change in antialias(model).changes]
    ['stride 1, BlurPool2d after the nonlinearity']
    """
    if border == "valid":
        raise InputError("`border` must keep the maps' sizes, got 'valid'.", "Use reflect, replicate, zero or circular.")
    editor = Editor(model, image=image, only=only, skip=skip, by_running=True)
    geometry, values = read_graph(editor, editor.module, image or default_image(model))
    strided = strided_nodes(editor, geometry, values)
    sites = [*editor.sites(), *slice_sites(editor, values)]
    for site in sites:
        if not site.is_strided:
            editor.keep(site.name, site.title, "stride 1: nothing is subsampled")
        elif site.rounds_up:
            editor.keep(site.name, site.title, "unsupported: its size is rounded up (ceil_mode), which no filter here does")
        elif editor.choose(site):
            sizes = [filter_size if step > 1 else 1 for step in site.stride]
            _filter(editor, site, layers.BlurPool2d(sizes, site.stride, border=border, taps=_along(taps, site.stride)))
    for node in strided.keys() - {site.node for site in sites}:
        if is_aligned(editor, node):
            sizes = [filter_size if step > 1 else 1 for step in strided[node]]
            _filter_before(editor, node, layers.BlurPool2d(sizes, 1, border=border, taps=_along(taps, strided[node])))
    return name_the_rest(geometry, editor.finish(), "unsupported: put a BlurPool2d before it in the model's code")


def _along(taps: Sequence[float] | None, stride: Sequence[int]) -> list[Sequence[float]] | None:
    """Return a filter's weights for each axis: those given where it is subsampled, else a single 1."""
    return None if taps is None else [taps if step > 1 else (1.0,) for step in stride]


def _filter_before(editor: Editor, node: fx.Node, blur: layers.BlurPool2d) -> None:
    """Filter the map of an operator that keeps its stride."""
    part, name = editor.part(node), str(node.target) if node.op == "call_module" else node.name
    title = type(part).__name__ if part is not None else str(getattr(node.target, "__name__", node.target))
    if editor.wants(name):
        editor.insert_before(node, blur, "blur")
        editor.record(name, title, "BlurPool2d before", "the filter keeps every position, and the operator subsamples")
    else:
        editor.keep(name, title, SKIPPED)


def _filter(editor: Editor, site: Site, blur: layers.BlurPool2d) -> None:
    """Put the stride of a site into a filter, and the filter where it belongs."""
    if site.kind == "slice":
        whole = layers.BlurPool2d(stride=1, taps=blur.filter.taps, border=blur.filter.border)
        _filter_before(editor, site.node, whole)
        return
    last, active = editor.end_of_chain(site.node)
    if site.kind == "max" and site.module is not None and not active:
        site.node.target = editor.add(site.node, _max_blur(site, blur), "blur")
        editor.record(site.name, site.title, "MaxBlurPool2d", "the maximum keeps every position, the filter subsamples")
        return
    unstride(editor, site)
    start = surround(editor, site, nn.ZeroPad2d) if site.pads_itself else site.node
    if start is not site.node:
        last, active = editor.end_of_chain(start)
    if active:
        editor.insert_after(last, blur, "blur")
        becomes = "stride 1, BlurPool2d after the nonlinearity"
        why = "the nonlinearity makes new high frequencies, which the filter must see"
    elif site.kind != "convolution":
        editor.insert_after(start, blur, "blur")
        becomes, why = "stride 1, then BlurPool2d", "the pool keeps every position, the filter subsamples"
    elif site.kernel == (1, 1) and site.padding == (0, 0) and start is site.node:
        editor.insert_before(site.node, blur, "blur")
        becomes = "stride 1, BlurPool2d before"
        why = "no known nonlinearity follows directly, so the filter goes first: the convolution works on fewer positions"
    else:
        editor.insert_after(start, blur, "blur")
        becomes = "stride 1, BlurPool2d after"
        why = "no known nonlinearity follows directly, so what follows works on fewer positions"
    editor.record(site.name, site.title, becomes, why)


def _max_blur(site: Site, blur: layers.BlurPool2d) -> layers.MaxBlurPool2d:
    """Return a maximum and a filter in one layer."""
    return layers.MaxBlurPool2d(
        site.kernel,
        stride=site.stride,
        padding=site.padding,
        dilation=site.dilation,
        border=blur.filter.border,
        taps=blur.filter.taps,
    )
