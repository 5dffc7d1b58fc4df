"""A model's loss of similarity on the same images and shifts, whatever the model: what counterfactuals are compared by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.outputs import shift_outputs
from shiftscope.shifts import Mode, sample
from shiftscope.surveys import per_shift_cosines

__all__ = ["Progress", "Trial", "between", "drawn"]

#: Called with what is going on, how many images are done, and of how many.
Progress = Callable[[str, int, int], None]
#: Images between two reports.
BLOCK = 16


@dataclass(frozen=True)
class Trial:
    """Images, each with its own shifts, and the world they lie in.

    Attributes:
        images: unshifted.
        shifts: (dy, dx), pixels.
        mode: what comes in at the border.
        fill: the canvas's colour.
        labels: of the images, if they are known.
        batch_size: images a pass.
        device: where to compute; the model's own if None.
        progress: told how it goes.
    """

    images: Float[Tensor, "image channel height width"]
    shifts: Int[Tensor, "image shift 2"]
    mode: Mode
    fill: Float[Tensor, " channel"] | float
    labels: Int[Tensor, " image"] | None
    batch_size: int | None
    device: torch.device | str | None
    progress: Progress

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def lost(self, model: nn.Module, what: str) -> tuple[Float[Tensor, " image"], Float[Tensor, "image class"]]:
        """1 - cosine of each image's outputs, averaged over its shifts; and the unshifted outputs.

        Args:
            model: under trial.
            what: it is called in messages.

        Raises:
            InputError: what :func:`shiftscope.engine.outputs.shift_outputs` says.
        """
        lost, references = [], []
        for start in range(0, len(self.images), BLOCK):
            self.progress(what, start, len(self.images))
            part = slice(start, start + BLOCK)
            outputs = shift_outputs(
                model,
                self.images[part],
                self.shifts[part],
                mode=self.mode,
                fill=self.fill,
                method="direct",
                batch_size=self.batch_size,
                device=self.device,
            )
            lost.append(1 - per_shift_cosines(outputs).double().mean(dim=1))
            references.append(outputs.reference)
        self.progress(what, len(self.images), len(self.images))
        return torch.cat(lost), torch.cat(references)

    def around(self, factor: tuple[int, int]) -> Trial:
        """The same images and shifts where what leaves on one side comes back on the other.

        Canvases with a fill are first continued by it, at their lower and right edges, to multiples of the factor, on which a
        subsampled map can be a torus.
        """
        images = self.images
        if self.mode == "zero":
            (high, wide), (down, right) = images.shape[2:], factor
            fill = torch.as_tensor(self.fill, dtype=images.dtype).reshape(-1, 1, 1)
            images = functional.pad(images - fill, (0, -wide % right, 0, -high % down)) + fill
        return replace(self, images=images, mode="circular")

    def on_lattice(self, factor: tuple[int, int], generator: torch.Generator) -> Trial | None:
        """The same images under one shift each, a multiple of the factor and not zero; None where none is below the size."""
        counts = [max(1, size // step) for size, step in zip(self.images.shape[2:], factor, strict=True)]
        if counts == [1, 1]:
            return None
        picks = torch.randint(1, counts[0] * counts[1], (len(self.images),), generator=generator)
        steps = torch.stack([picks // counts[1], picks % counts[1]], dim=1) * torch.tensor(factor)
        return replace(self, shifts=steps[:, None])


def between(reference: Float[Tensor, "image class"]) -> Float[Tensor, " image"]:
    """Mean cosine of each image's unshifted output with those of all other images: how alike a model finds different images.

    Where it is near 1, outputs say little, and their similarity under shifts means little. A zero output is like no other.

    >>> between(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])).tolist()
    [0.5, 0.0, 0.5]
    """
    directions = functional.normalize(reference.double(), dim=1)
    itself = directions.square().sum(dim=1)
    return (directions @ directions.sum(dim=0) - itself) / (len(reference) - 1)


def drawn(count: int, shifts: int, max_shift: int, generator: torch.Generator) -> Int[Tensor, "count shifts 2"]:
    """So many shifts for each image, uniform on the square of up to ``max_shift`` pixels, the zero shift left out.

    >>> steps = drawn(4, 3, 1, torch.Generator().manual_seed(0))
    >>> steps.shape, bool((steps == 0).all(dim=2).any())
    (torch.Size([4, 3, 2]), False)
    """
    steps = sample(count * shifts, max_shift, generator)
    while (none := (steps == 0).all(dim=1)).any():
        steps[none] = sample(int(none.sum()), max_shift, generator)
    return steps.reshape(count, shifts, 2)
