"""Anti-aliasing a model: a filter before every subsampling, at the place where it does most for least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.surgery.editor import Editor, Site, convolution_padding, pool_options
from shiftscope.surgery.plan import Surgery

__all__ = ["antialias", "fold"]


def antialias(
    model: nn.Module,
    *,
    filter_size: int = 3,
    border: layers.Border = "reflect",
    taps: Sequence[float] | None = None,
    fold: bool = False,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """A copy of a model that filters before it subsamples.

    A strided pool keeps every position and is followed by a filter that subsamples. A strided convolution likewise, and its
    filter goes behind the norm and nonlinearity that follow, because these make new high frequencies; where none follows (a
    shortcut into a sum), filter and convolution commute, and before a 1x1 convolution the filter saves it most of its positions.
    Weights are kept. A filter of size 1 changes no output, but behind a norm that takes its statistics over positions.

    Args:
        model: whose graph ``torch.fx`` can trace. It is left as it is.
        filter_size: of the binomial filter, 1 to 7.
        border: what the filter sees beyond a map; ``valid`` changes sizes and is refused.
        taps: another filter.
        fold: where a filter follows a convolution directly, put it into the convolution's weights: one strided convolution with
            a larger kernel instead of a dense one and a filter. Inside the map it is the same; within the filter's reach of the
            border it sees the convolution's padding instead of ``border``.
        only: names of the layers to change; all by default.
        skip: names of layers to leave alone.
        image: (channels, height, width), for the costs.

    Returns:
        the copy, what became of each layer and why, and the costs.

    Raises:
        InputError: an untraceable model, an unknown name, an impossible filter.

    Source: Zhang, "Making convolutional networks shift-invariant again", ICML 2019; there the networks are written anew by hand.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    >>> [change.becomes for change in antialias(model).changes]
    ['stride 1, BlurPool2d after the nonlinearity']
    """
    if border == "valid":
        raise InputError("`border` must keep the maps' sizes, got 'valid'. Use reflect, replicate, zero or circular.")
    editor = Editor(model, image=image, only=only, skip=skip)
    for site in editor.sites():
        if not site.is_strided:
            editor.leave(site.name, site.title, "stride 1: nothing is subsampled")
        elif site.rounds_up:
            why = "unsupported: it rounds its size up, which a filter that subsamples does not"
            editor.leave(site.name, site.title, why)
        elif editor.choose(site):
            sizes = [filter_size if step > 1 else 1 for step in site.stride]
            blur = layers.BlurPool2d(sizes, site.stride, border=border, taps=taps)
            _filtered(editor, site, blur, fold=fold)
    for node in editor.slices():
        editor.leave(node.name, "subsampling by slicing", "unsupported: put a BlurPool2d before it in the model's code")
    return editor.finish()


def _filtered(editor: Editor, site: Site, blur: layers.BlurPool2d, *, fold: bool) -> None:
    last, active = editor.end_of_chain(site.node)
    if site.kind == "max" and site.module is not None and not active:
        editor.note(site.name, site.title, "MaxBlurPool2d", "the maximum keeps every position, the filter subsamples")
        _replace(editor, site, blur)
        return
    unstride(site)
    if active:
        editor.after(last, blur, "blur")
        why = "the nonlinearity makes new high frequencies, which the filter must see"
        editor.note(site.name, site.title, "stride 1, BlurPool2d after the nonlinearity", why)
    elif site.kind != "convolution":
        editor.after(site.node, blur, "blur")
        editor.note(site.name, site.title, "stride 1, then BlurPool2d", "the pool keeps every position, the filter subsamples")
    elif site.kernel == (1, 1) and site.padding == (0, 0):
        editor.before_node(site.node, blur, "blur")
        why = "no known nonlinearity follows directly, so the filter goes first: the convolution works on fewer positions"
        editor.note(site.name, site.title, "stride 1, BlurPool2d before", why)
    elif fold and isinstance(site.module, nn.Conv2d) and site.dilation == (1, 1) and _is_centred(blur):
        _fold_in(editor, site, site.module, blur)
    else:
        editor.after(site.node, blur, "blur")
        editor.note(
            site.name,
            site.title,
            "stride 1, BlurPool2d after",
            "no known nonlinearity follows directly, so what follows works on fewer positions",
        )


def _replace(editor: Editor, site: Site, blur: layers.BlurPool2d) -> None:
    """A max pool, at this one place, by a maximum and filter in one."""
    pool = layers.MaxBlurPool2d(
        site.kernel,
        stride=site.stride,
        padding=site.padding,
        dilation=site.dilation,
        border=blur.filter.border,
        taps=blur.filter.taps,
    )
    site.node.target = editor.add(site.node, pool, "blur")


def unstride(site: Site) -> None:
    """Let a site keep every position."""
    if site.module is not None:
        site.module.stride = 1 if site.kind != "convolution" else (1, 1)  # type: ignore[assignment]  # torch types it as a parameter
    else:
        site.node.args, site.node.kwargs = site.node.args[:1], {**pool_options(site.node), "stride": 1}


def _fold_in(editor: Editor, site: Site, convolution: nn.Conv2d, blur: layers.BlurPool2d) -> None:
    folded = fold(convolution, blur)
    site.node.target = editor.add(site.node, folded, "folded")
    form = "x".join(map(str, folded.kernel_size))
    why = "no known nonlinearity follows directly: one strided convolution"
    editor.note(site.name, site.title, f"convolution {form} with the filter in its weights", why)


def _is_centred(blur: layers.BlurPool2d) -> bool:
    return all(before == after for before, after in blur.filter.margins)


def fold(convolution: nn.Conv2d, blur: layers.BlurPool2d) -> nn.Conv2d:
    """One strided convolution that does what a convolution at stride 1 and a filter after it do, inside the map.

    Args:
        convolution: undilated; its stride is not looked at.
        blur: with margins alike on both sides (an odd filter).

    Returns:
        weights [out, in / groups, kernel + filter - 1, ...], the full correlation of the convolution's with the filter; it pads
        by both paddings together, in the convolution's own way.

    >>> blur = layers.BlurPool2d(3, 2, border="circular")
    >>> plain = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    >>> maps = torch.rand(1, 2, 8, 8)
    >>> bool(torch.allclose(fold(plain, blur)(maps), blur(plain(maps)), atol=1e-5))
    True
    """
    weight, by = convolution.weight.detach(), blur.filter
    taps = torch.outer(*(torch.tensor(axis, dtype=weight.dtype, device=weight.device) for axis in by.taps))
    wide = nn.functional.conv_transpose2d(weight.reshape(-1, 1, *weight.shape[2:]), taps[None, None])
    wide = wide.reshape(*weight.shape[:2], *wide.shape[2:])
    (up, _), (left, _) = by.margins
    down, right = convolution_padding(convolution)
    folded = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (wide.shape[2], wide.shape[3]),
        (by.stride[0], by.stride[1]),
        (up + down, left + right),
        groups=convolution.groups,
        bias=convolution.bias is not None,
        padding_mode=convolution.padding_mode,
    ).to(weight)
    folded.weight.data.copy_(wide)
    if convolution.bias is not None and folded.bias is not None:
        folded.bias.data.copy_(convolution.bias.detach() * taps.sum())
    for name, parameter in folded.named_parameters():
        parameter.requires_grad_(getattr(convolution, name).requires_grad)
    return folded
