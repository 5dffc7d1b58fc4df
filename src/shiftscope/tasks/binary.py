"""Yes or no: one logit for each image, or one for each of several labels. Invariant: a shift should change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.reading import finite_rows, select_output
from shiftscope.tasks.task import ROUNDING, Pair, Task, View

__all__ = ["Binary", "MultiLabel"]

#: What logits of 0 and 1 are as probabilities, with room for the rounding of any processor.
SIGMOID_OF_0, SIGMOID_OF_1 = 0.5 - 1e-9, 0.7310585786 + 1e-9
#: Logits of fewer images may well all lie between 0 and 1.
FEW_IMAGES = 8


@dataclass(frozen=True)
class MultiLabel(Task):
    """Labels that hold or not, each by itself: [image, label].

    Attributes:
        threshold: a label holds from this probability on.
        given: what the outputs are, ``logits`` or ``probabilities``.
    """

    moves: ClassVar[bool | None] = False
    graded: ClassVar[str] = "label_probability_change"
    name: str = "multilabel"
    measures: tuple[str, ...] = ("label_set_change", "label_flips", "label_probability_change")
    truth_measures: tuple[str, ...] = ("labels_right",)
    threshold: float = 0.5
    given: str = "logits"

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Tensor]:
        """Return each image's probabilities, [label]."""
        values = finite_rows(self._chosen(output, count)).double()
        if self.given == "logits":
            return list(values.sigmoid())
        if float(values.min()) < 0 or float(values.max()) > 1:
            raise InputError(
                f"the model returns {float(values.min()):.3g} to {float(values.max()):.3g}, which are not probabilities.",
                "Leave `given` out for logits.",
            )
        return list(values)

    def place_back(self, output: Any, placing: Placing) -> Tensor:
        """Return the outputs as they are: a shift should change nothing."""
        return self._chosen(output, len(placing.corners))

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Tensor:
        """Return the mean probabilities, [image, label], as logits if the model returns these."""
        own = [self._chosen(raw, len(place.corners)) for raw, place in outputs]
        found = torch.stack(own).double()
        if self.given == "probabilities":
            return found.mean(dim=0).to(own[0].dtype)
        # The logarithm of mean p over mean 1 - p; the numbers of views cancel, and no probability is rounded to 1.
        mean = functional.logsigmoid(found).logsumexp(dim=0) - functional.logsigmoid(-found).logsumexp(dim=0)
        return mean.to(own[0].dtype)

    def no_mean(self) -> str:
        """Return nothing: there is a mean."""
        return ""

    def _chosen(self, output: Any, count: int) -> Tensor:
        """Return the tensor of the outputs, [image, label]."""
        found = select_output(output, None)
        if found.ndim != 2 or len(found) != count:
            raise InputError(
                f"task {self.name!r} needs [image, {'1' if self.name == 'binary' else 'label'}] for "
                f"{number_of(count, 'image')}, got shape {tuple(found.shape)}.",
                "Choose another --task or `output`.",
            )
        if self.given not in ("logits", "probabilities"):
            raise InputError(f"`given` of task {self.name!r} must be logits or probabilities, got {self.given!r}.")
        return found

    def compare(
        self, before: Float[Tensor, " label"], after: Float[Tensor, " label"], view: View, truth: Tensor | None
    ) -> dict[str, float]:
        """Return whether any label flips, the share that does, and the mean change of a probability."""
        flips = (before >= self.threshold) != (after >= self.threshold)
        found = {
            "label_set_change": float(flips.any()),
            "label_flips": float(flips.double().mean()),
            "label_probability_change": float((after - before).abs().mean()),
        }
        if truth is not None:
            if truth.numel() != after.numel():
                raise InputError(
                    f"`truth` of task {self.name!r} must hold {after.numel()} labels for each image, got {truth.numel()}.",
                    "Give 0 or 1 for each label of the model.",
                )
            found["labels_right"] = float(((after >= self.threshold) == truth).double().mean())
        return found

    def rule(self, reach: int) -> str:
        """Return where probabilities stay."""
        which = "the probability stays on its" if self.name == "binary" else "the probability of every label stays on its"
        return f"{which} side of {self.threshold:g}, by more than rounding"

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return how far the label nearest to its limit, or furthest beyond it, lies on its side."""
        sides = [
            (each.after - self.threshold).where(each.before >= self.threshold, self.threshold - each.after) for each in pairs
        ]
        return [float(each.min()) - ROUNDING for each in sides]

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Tensor:
        """Return whether each label holds, [label]."""
        found = torch.as_tensor(truth).reshape(-1)
        if not bool(((found == 0) | (found == 1)).all()):
            raise InputError(f"`truth` of task {self.name!r} must be 0 or 1, got {found.tolist()[:5]}.", "Give one per label.")
        return found.bool()

    def tally(self, before: Tensor, after: Tensor, view: View, truth: Any) -> dict[str, Tensor]:
        """Return how often each label flips, and of how many."""
        flips = (before >= self.threshold) != (after >= self.threshold)
        return {"flips": flips.double(), "count": torch.ones(1, dtype=torch.float64)}

    def units(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Return the share of views in which each label flips."""
        return sums["flips"] / sums["count"]

    def tally_answers(self, answers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return how many images there are, and for how many an output that is read as a logit is no probability."""
        read = torch.stack(list(answers))
        outside = ((read < SIGMOID_OF_0) | (read > SIGMOID_OF_1)).any(dim=1)
        return {"images": torch.tensor(float(len(read))), "outside": outside.double().sum()}

    def doubts(self, sums: Mapping[str, Tensor]) -> list[str]:
        """Return that outputs look like probabilities, where they are read as logits."""
        if self.given != "logits" or not sums or float(sums["outside"]) or float(sums["images"]) < FEW_IMAGES:
            return []
        return [
            f"All outputs lie between 0 and 1, and are read as logits, of which none is below 0: if the model ends in a sigmoid, "
            f"add --task {self.name}:given=probabilities."
        ]

    def text(self, answer: Tensor) -> str:
        """Return which labels hold, by number."""
        return ", ".join(map(str, (answer >= self.threshold).nonzero()[:, 0].tolist())) or "none"

    def words(self, share: str, value: str, moved: str) -> str:
        """Return how often labels change in a sentence."""
        return f"The labels change for {share} of images when they move {moved}."


@dataclass(frozen=True)
class Binary(MultiLabel):
    """One logit per image, [image, 1] or [image]."""

    name: str = "binary"
    measures: tuple[str, ...] = ("label_flips", "label_probability_change")
    takes_labels: bool = True

    def ignores_labels(self, classes: int | None) -> str:
        """Return that yes and no are two classes, where the images have another number of them."""
        return (
            "" if classes in (None, 2) else f"Labels are ignored: the model says yes or no, and the data have {classes} classes."
        )

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether the output is one number per image."""
        found = getattr(output, "logits", output)
        return isinstance(found, Tensor) and found.is_floating_point() and tuple(found.shape) in ((count,), (count, 1))

    def _chosen(self, output: Any, count: int) -> Tensor:
        """Return the tensor of the outputs, [image, 1]."""
        found = select_output(output, None)
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim == 2 and found.shape[1] != 1:
            raise InputError(
                f"task 'binary' needs one value for each image, got shape {tuple(found.shape)}.", "Use --task multilabel."
            )
        return super()._chosen(found, count)

    def text(self, answer: Tensor) -> str:
        """Return yes or no, and the probability."""
        return f"{'yes' if float(answer[0]) >= self.threshold else 'no'}, {100 * float(answer[0]):.1f} %"

    def words(self, share: str, value: str, moved: str) -> str:
        """Return how often the answer flips in a sentence."""
        return f"The answer flips for {share} of images when they move {moved}."
