"""Check that stability under shifts means something for these images and outputs; each finding is a sentence.

A model that answers the same for every image is perfectly stable, which means nothing. If images lie outside [0, 1], the border's
0 is not black. Images that are not normalised as in training are unlike any that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.checks import device_of, evaluating
from shiftscope.engine.outputs import Outputs

__all__ = ["LOOKED_AT", "add_answers", "answers_of", "image_warnings", "output_warnings", "same_class", "watched"]

#: Outputs of different images whose mean cosine is above this say little about the image.
ALIKE = 0.99
#: Rounding of the sum of an image's probabilities, in half precision too.
SUM_ROUNDING = 1e-2
#: With fewer images, equal answers mean nothing.
FEW_IMAGES = 4
#: The first batch norm's input differs from training if its variance is so many times less or more, in the median channel.
VARIANCE_RATIO = 8.0
#: Images whose largest value is below this are probably scaled by too much: 12 bits in 16 reach 0.06, 10,000 of 65,535 0.15.
DARK = 0.2
#: Number of images checked.
LOOKED_AT = 16

#: Sums over images, which add up over blocks.
Answers = Mapping[str, Tensor]


def answers_of(reference: Float[Tensor, "image class"]) -> dict[str, Tensor]:
    """Return sums over unshifted outputs that show how much outputs differ between images.

    Args:
        reference: the model's outputs on unshifted images.

    Returns:
        ``directions``, the sum of the outputs scaled to length 1; ``own``, the sum of these lengths' squares (1, or 0 for zero
        outputs); ``tops``, how often each class is on top; ``probabilities``, how many outputs are positive and sum to 1.
    """
    directions = functional.normalize(reference.double(), dim=1)
    probable = (reference >= 0).all(dim=1) & ((reference.double().sum(dim=1) - 1).abs() < SUM_ROUNDING)
    return {
        "directions": directions.sum(dim=0),
        "own": directions.square().sum(),
        "tops": torch.bincount(reference.argmax(dim=1), minlength=reference.shape[1]).double(),
        "probabilities": probable.double().sum(),
    }


def add_answers(one: Answers, other: Answers) -> dict[str, Tensor]:
    """Return the sums of two blocks of images together."""
    return {name: one[name] + value for name, value in other.items()} if one else dict(other)


def watched(blocks: Iterable[Outputs], answers: dict[str, Tensor]) -> Iterator[Outputs]:
    """Yield blocks of outputs, and add their sums to ``answers``."""
    for block in blocks:
        answers.update(add_answers(answers, answers_of(block.reference)))
        yield block


def output_warnings(answers: Answers, *, classes: bool) -> tuple[str, ...]:
    """Return a sentence on outputs that differ little between images, and one on probabilities that are read as logits.

    Args:
        answers: what :func:`answers_of` returned, added up over all images.
        classes: whether outputs are class scores.

    >>> output_warnings(answers_of(torch.tensor([[1.0, 2.0]] * 8)), classes=True)[0]
    'All 8 images get the same answer (class 1), so their stability says nothing about the model.'
    """
    if not answers:
        return ()
    count = int(answers["tops"].sum())
    if count < FEW_IMAGES:
        return ()
    found = list(same_class(answers["tops"])) if classes else []
    between = float((answers["directions"].square().sum() - answers["own"]) / (count * (count - 1)))
    if between >= ALIKE:
        found.append(
            f"Outputs of different images are nearly the same (mean cosine {min(between, 1.0):.4f}), so that high similarity "
            "under shifts says little."
        )
    if classes and int(answers.get("probabilities", 0)) == count:
        found.append(
            "Outputs are probabilities: cosines compare them instead of logits, and a softmax is applied to them once more. Give "
            "the model without its softmax."
        )
    return tuple(found)


def same_class(tops: Shaped[Tensor, " class"]) -> tuple[str, ...]:
    """Return a sentence if all images, unless they are few, get the same class; empty otherwise.

    Args:
        tops: how often each class is on top.
    """
    count, top = int(tops.sum()), int(tops.argmax())
    if count < FEW_IMAGES or int(tops[top]) < count:
        return ()
    return (f"All {count} images get the same answer (class {top}), so their stability says nothing about the model.",)


def image_warnings(
    model: Any, images: Float[Tensor, "image channel height width"], *, fill: float | Sequence[float] | Tensor = 0.0
) -> tuple[str, ...]:
    """Return a sentence for each way in which images are not as the model expects them; empty if there is none.

    Args:
        model: any callable. If it is a module, its own description and its first batch norm are compared with the images.
        images: the model's unshifted input; the first few are checked.
        fill: the canvas's colour; one that is not black was chosen for these images, whatever their range.
    """
    some = images[:LOOKED_AT]
    low, high = float(some.min()), float(some.max())
    found = []
    if low < 0 or high > 1:
        if bool(torch.as_tensor(fill).any()):
            return ()
        found.append(
            f"Images hold values from {low:.3g} to {high:.3g}, outside [0, 1], and shifts fill with 0: give images in [0, 1] "
            "and put their normalisation into the model."
        )
    elif high < DARK:
        found.append(
            f"No value of the images is above {high:.3g}, where white is 1: if they hold fewer bits than their files (12 of 16), "
            "scale them to the whole range first."
        )
    elif isinstance(model, nn.Module):
        found.append(_described_otherwise(model) or _unlike_training(model, some))
    return tuple(filter(None, found))


def _described_otherwise(model: nn.Module) -> str:
    """Return a sentence if a timm model, which describes its normalisation, gets images in [0, 1]."""
    config = getattr(model, "pretrained_cfg", None)
    mean, std = (config.get(name) if isinstance(config, Mapping) else None for name in ("mean", "std"))
    if mean is None or std is None or (not any(mean) and all(value == 1 for value in std)):
        return ""
    return (
        f"Images are not normalised, but the model's pretrained_cfg says mean {tuple(mean)} and std {tuple(std)}: apply "
        "both before the model."
    )


def _unlike_training(model: nn.Module, images: Tensor) -> str:
    """Return a sentence if what reaches the first batch norm is far from its statistics of training."""
    first = next((part for part in model.modules() if isinstance(part, nn.BatchNorm2d)), None)
    known = None if first is None else first.running_var
    if first is None or known is None or bool((known == 1).all()):
        return ""
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double().var(dim=(0, 2, 3))))
    try:
        with evaluating(model), torch.no_grad():
            model(images.to(device_of(model)))
    except Exception:  # whatever the model raises; measuring reports it
        return ""
    finally:
        handle.remove()
    if not seen:
        return ""
    ratio = float((seen[0] / known.double().clamp_min(1e-12)).median())
    if 1 / VARIANCE_RATIO <= ratio <= VARIANCE_RATIO:
        return ""
    return (
        "Images do not seem to be normalised as in training: the variance before the first batch norm is "
        f"{ratio:.2g} times that of training. Give the model's mean and std."
    )
