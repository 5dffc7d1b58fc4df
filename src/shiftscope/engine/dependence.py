"""Try whether a model's outputs for an image depend on anything but the image: on chance, or on the other images of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from shiftscope.engine.answers import image_warnings
from shiftscope.engine.checks import device_of, evaluating
from shiftscope.graphs.probing import restoring_random_numbers

__all__ = ["Dependence", "batch_rounding", "dependence", "dependence_warnings", "model_warnings"]

#: What outputs depend on besides the image: nothing, the call, or the batch.
Dependence = Literal["", "call", "batch"]
#: Outputs of an image that differ by more, relative to the largest, differ by more than rounding; looser in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def dependence(model: Callable[[Tensor], Any], image: Tensor, *, batches: bool = True) -> Dependence:
    """Compare an image's outputs with those of a second call, and with those beside an image of noise.

    Args:
        model: in evaluation mode; the caller has switched off gradients.
        image: [1, channel, height, width], on the model's device.
        batches: whether the model sees more than one image at once.
    """
    alone, again = (_of_first(model(image.clone()), 1) for _ in range(2))
    if not _alike(alone, again):
        return "call"
    if not batches:
        return ""
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    beside = _of_first(model(torch.cat([image, noise])), 2)  # the user's other images may all be the same
    return "" if _alike(alone, beside) else "batch"


def batch_rounding(model: Callable[[Tensor], Any], image: Tensor) -> float:
    """Return by how much an image's outputs differ alone and beside an image of noise, relative to their norm.

    Args:
        model: in evaluation mode; the caller has switched off gradients.
        image: [1, channel, height, width], on the model's device.
    """
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    pairs = zip(_of_first(model(image.clone()), 1), _of_first(model(torch.cat([image, noise])), 2), strict=True)
    floats = [(one.double(), other.double()) for one, other in pairs if one.is_floating_point() and one.shape == other.shape]
    return max((float((one - other).norm() / other.norm()) for one, other in floats if other.norm() > 0), default=0.0)


def dependence_warnings(model: Callable[[Tensor], Any], image: Tensor, *, batches: bool = True) -> tuple[str, ...]:
    """Return a sentence if outputs depend on more than the image; arguments as of :func:`dependence`.

    Random numbers are restored. A model that fails says nothing here: measuring it says why.
    """
    try:
        with restoring_random_numbers(), torch.no_grad():
            found = dependence(model, image, batches=batches)
    except Exception:  # whatever a model's code raises
        return ()
    what = {"call": "differ from call to call", "batch": "depend on the other images of a batch"}
    remedy = {"call": "Put it into evaluation mode.", "batch": "Measure with a batch size of 1."}
    return (
        (f"The model's outputs for an image {what[found]}, which counts as an effect of shifts. {remedy[found]}",)
        if found
        else ()
    )


def model_warnings(
    model: Callable[[Tensor], Any], images: Tensor, *, fill: float | Sequence[float] | Tensor = 0.0
) -> tuple[str, ...]:
    """Return reasons why numbers may say little about a model: outputs that depend on more than the image, unsuitable images.

    Args:
        model: any callable.
        images: [image, channel, height, width], the model's unshifted input; the first few are checked.
        fill: the canvas's colour.
    """
    with evaluating(model):
        return (*dependence_warnings(model, images[:1].to(device_of(model))), *image_warnings(model, images, fill=fill))


def _of_first(raw: Any, count: int) -> list[Tensor]:
    """Return what a model returned for the first of some images, tensor by tensor."""
    if isinstance(raw, list | tuple) and len(raw) == count and not isinstance(raw[0], Tensor):
        raw = raw[0]
    tensors = [each for each in tree_leaves(raw) if isinstance(each, Tensor)]
    return [each[:1] if each.ndim and len(each) == count else each for each in tensors]


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether two calls of a model gave the same numbers up to rounding.

    Calls that found different numbers of objects count as alike: rounding moves a detection across its threshold.
    """
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return True
    for one, other in zip(ours, theirs, strict=True):
        if one.is_floating_point() and one.numel():
            tolerance = TOLERANCE if torch.finfo(one.dtype).bits > 16 else HALF_TOLERANCE
            limit = tolerance * float(other.abs().max())
            if float((one.double() - other.double()).abs().max()) > limit:
                return False
    return True
