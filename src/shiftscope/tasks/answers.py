"""Answers compared by equality, such as the text of a vision-language model. Invariant: a shift should change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.task import Task, View

__all__ = ["Answers"]


@dataclass(frozen=True)
class Answers(Task):
    """Any values, a list of one for each image, or a tensor of whole numbers [image, ...]; texts without spaces at their ends."""

    moves: ClassVar[bool | None] = False
    name: str = "answers"
    measures: tuple[str, ...] = ("same_answer",)
    truth_measures: tuple[str, ...] = ("answer_right",)
    takes_labels: bool = True
    kept: float | None = 1.0

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether the output is a text for each image."""
        return isinstance(output, list | tuple) and len(output) == count and all(isinstance(each, str) for each in output)

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Any]:
        """Return each image's answer."""
        if isinstance(output, Tensor):
            if output.is_floating_point() or not output.ndim or len(output) != count:
                raise InputError(
                    f"task 'answers' needs a whole number, a text or another value for each of {count} images, got "
                    f"{output.dtype} of shape {tuple(output.shape)}.",
                    "Choose another --task.",
                )
            return list(output.cpu().tolist())
        if not isinstance(output, Sequence) or isinstance(output, str) or len(output) != count:
            what = f"{len(output)}" if isinstance(output, Sequence) and not isinstance(output, str) else type(output).__name__
            raise InputError(f"task 'answers' needs a list of one value for each of {count} images, got {what}.", "Return one.")
        return [each.strip() if isinstance(each, str) else each for each in output]

    def place_back(self, output: Any, placing: Placing) -> Any:
        """Return the answers as they are: a shift should change nothing."""
        return output

    def compare(self, before: Any, after: Any, view: View, truth: Any) -> dict[str, float]:
        """Return whether both answers are equal."""
        found = {"same_answer": float(before == after)}
        if truth is not None:
            found["answer_right"] = float(after == truth)
        return found

    def rule(self, reach: int) -> str:
        """Return that answers are equal."""
        return "the answer equals that without a shift"

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Any:
        """Return the right answer."""
        if isinstance(truth, Tensor):
            return truth.tolist()
        return truth.strip() if isinstance(truth, str) else truth

    def text(self, answer: Any) -> str:
        """Return the answer itself."""
        return str(answer)

    def words(self, share: str, value: str, moved: str) -> str:
        """Return how often the answer stays in a sentence."""
        return f"The answer stays the same for {share} of images when they move {moved}."
