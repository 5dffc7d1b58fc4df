"""What a task is: it reads a model's raw output, and compares the answers to an image and to a shifted view of it.

A new task is a subclass of :class:`Task` in a file of its own, and its line in :mod:`shiftscope.tasks.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.truth_files import Placement, named_values

__all__ = ["ROUNDING", "Pair", "Task", "Totals", "Truth", "View"]

#: A continuous value that lies no further than this on the right side of its limit may be rounding, and is not certified.
ROUNDING = 1e-5

#: Ground truth of all images, by index: a tensor [image, ...], a list, or anything that reads one when it is asked for.
Truth = Tensor | Sequence[Any]


@dataclass(frozen=True)
class View:
    """How the second of two views of an image lies relative to the first.

    Attributes:
        shift: (dy, dx) in pixels from the first view to the second; positive values move the content down and right.
        size: (height, width) of the model's input, pixels.
        circular: whether content that leaves on one side enters on the other.
        start: (dy, dx) of the first view against the unshifted image, pixels; (0, 0) where the first is unshifted.
        reach: the largest shift of the audit along an axis, pixels.
        image: the image's place in its block.
        references: the answers to all unshifted images of the block, in order, as :meth:`Task.gather` returns them.
    """

    shift: tuple[int | float, int | float]
    size: tuple[int, int]
    circular: bool
    start: tuple[int | float, int | float] = (0.0, 0.0)
    reach: float = 0.0
    image: int = 0
    references: Any = ()


@dataclass(frozen=True)
class Pair:
    """Two answers to compare.

    Attributes:
        before: the answer to the first view.
        after: the answer to the second view.
        view: how the second lies relative to the first.
        truth: of the unshifted image, as :meth:`Task.read_truth` returns it; None without.
    """

    before: Any
    after: Any
    view: View
    truth: Any


@dataclass(frozen=True)
class Totals:
    """Numbers of all images together.

    Attributes:
        estimates: measure -> estimate.
        shifts: [shift, 2], (dy, dx) of the maps; None without maps.
        maps: measure -> [shift], its value at each shift.
        intervals: measure -> [shift, 2], their 95 % intervals.
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    shifts: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    intervals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(ABC):
    """A kind of output.

    Attributes:
        name: short, as ``--task`` takes it.
        measures: names of :data:`shiftscope.measures.MEASURES`; the first leads.
        truth_measures: further ones, which need ground truth.
        total_measures: those of all images together, of :meth:`totals`.
        takes_labels: whether labels of images are ground truth for it.
        moves: whether answers should move along with the image; None where the task does not say.
        kept: least value of the leading measure, or largest of one of which less is better, at which an answer counts as kept;
            None for a task that says it otherwise, or cannot be certified.
        graded: a measure that changes by degrees, which explanations take apart; empty for the leading one.
    """

    moves: ClassVar[bool | None] = None
    graded: ClassVar[str] = ""

    name: str
    measures: tuple[str, ...]
    truth_measures: tuple[str, ...] = ()
    total_measures: tuple[str, ...] = ()
    takes_labels: bool = False
    kept: float | None = None

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether a model's raw output says by itself that it is this task's; arguments as of :meth:`read`."""
        return False

    def ignores_labels(self, classes: int | None) -> str:
        """Return why classes of images are no ground truth for it, in a sentence; empty if they are.

        Args:
            classes: number of classes of the images, if known.
        """
        return "" if self.takes_labels else f"Labels are ignored: task {self.name!r} has no classes of images."

    def nothing(self) -> str:
        """Return why no image may have a value for the leading measure, in a sentence; empty without a reason."""
        return ""

    def all_wrong(self) -> str:
        """Return why the ground truth may never agree with any answer, in a sentence; empty without a reason."""
        return ""

    def knowing(self, model: Any) -> Task:
        """Return the task with what the model itself says of its output, such as its configuration."""
        return self

    def wrapping(self) -> Task:
        """Return the task as it reads outputs for circular images, whose left border continues at the right one."""
        return self

    @abstractmethod
    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Any]:
        """Return an answer for each image, on the CPU.

        Args:
            output: what the model returned for a batch.
            count: images in the batch.
            size: (height, width) of the model's input, pixels.

        Raises:
            InputError: the output is not this task's.
        """

    def gather(self, references: Sequence[Any]) -> Any:
        """Return the answers to all unshifted images of a block as :meth:`compare` finds them in its view."""
        return references

    @abstractmethod
    def compare(self, before: Any, after: Any, view: View, truth: Any) -> dict[str, float]:
        """Return the measures of two answers, the second one moved back by the shift.

        Args:
            before: the answer to the first view.
            after: the answer to the second view.
            view: how the second lies relative to the first.
            truth: of the unshifted image, as :meth:`read_truth` returns it; None without.

        Returns:
            measure -> value; NaN where it is not defined for this image, which leaves it out of means.
        """

    def compare_all(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Return what :meth:`compare` does for each pair; a task whose comparisons are small makes them together."""
        return [self.compare(each.before, each.after, each.view, each.truth) for each in pairs]

    def rule(self, reach: int) -> str:
        """Return what keeps an answer in a clause, for certificates; empty if the task has no such rule.

        Args:
            reach: the largest shift that is tried, pixels.
        """
        if self.kept is None:
            return ""
        lead = MEASURES[self.measures[0]]
        return f"{lead.label} {'at least' if lead.better == 'more' else 'at most'} {self.kept:g}, the answer moved back"

    def no_rule(self) -> str:
        """Return what to do where the task has no rule, in a sentence."""
        return "Certify another task."

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return by how much each answer of the second view is kept: it is where this is 0 or more.

        Args:
            pairs: of which the first view is unshifted; the view's ``reach`` is the largest shift that is tried.

        Returns:
            a number for each pair; NaN where the first answer holds nothing to keep, or nothing of it can be compared.

        Raises:
            InputError: the task has no rule.
        """
        if self.kept is None:
            raise InputError(f"task {self.name!r} does not define when an answer is kept.", self.no_rule())
        name, limit = self.measures[0], self.kept
        sign = 1 if MEASURES[name].better == "more" else -1
        return [sign * (found[name] - limit) for found in self.compare_all(pairs)]

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Any:
        """Return an image's ground truth as :meth:`compare` takes it.

        Args:
            truth: as the user gives it.
            size: (height, width) of the model's input, pixels.

        Raises:
            InputError: it is not this task's, or of another size.
        """
        return truth

    def tally_answers(self, answers: Sequence[Any]) -> dict[str, Tensor]:
        """Return sums over the answers to unshifted images that :meth:`doubts` needs; empty if it needs none."""
        return {}

    def doubts(self, sums: Mapping[str, Tensor]) -> list[str]:
        """Return why a model's outputs are probably read wrongly, in sentences; empty without a reason.

        Args:
            sums: of :meth:`tally_answers`, over all images.
        """
        return []

    def tally(self, before: Any, after: Any, view: View, truth: Any) -> dict[str, Tensor]:
        """Return sums of two answers that add up over images and shifts; empty if the task has none."""
        return {}

    def units(self, sums: Mapping[str, Tensor]) -> Tensor | None:
        """Return a value for each class or unit from the sums of :meth:`tally`; None without."""
        return None

    def records(self, after: Any, view: View, truth: Any) -> Tensor | None:
        """Return what numbers of all images together need of one view, [row, column]; None if the task has no such numbers."""
        return None

    def records_all(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """Return what :meth:`records` does for each pair."""
        return [self.records(each.after, each.view, each.truth) for each in pairs]

    def total_differences(self, before: Tensor, after: Tensor) -> dict[str, Estimate]:
        """Return by how much numbers of all images together differ between two models on the same images and shifts.

        Args:
            before: the records of one model, as of :meth:`totals`.
            after: those of the other one.
        """
        return {}

    def pack(self, records: Tensor) -> Tensor:
        """Return the records of a block of images as they are kept: in less memory, or by default as they are.

        Args:
            records: the rows of :meth:`records` of the block's views, in order, each after its image's index and its shift
                (dy, dx): [row, 3 + column].
        """
        return records

    def totals(self, records: Tensor) -> Totals:
        """Return numbers of all images together.

        Args:
            records: what :meth:`pack` returns for the blocks of a protocol, in order, one after the other along the first axis.
        """
        return Totals()

    def place_back(self, output: Any, placing: Placing) -> Any:
        """Return a model's raw output for a batch as one for the images that were placed before the model saw them.

        Args:
            output: what the model returned.
            placing: where what it saw lies in the images.

        Returns:
            what :meth:`read` takes: of an equivariant task moved along, of an invariant one unchanged.

        Raises:
            InputError: the output is not this task's, or the task does not say how its answers move.
        """
        raise InputError(
            f"task {self.name!r} does not say how its answers move with an image.", "Define `place_back` in its class."
        )

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Any:
        """Return the mean of a model's raw outputs for several views of a batch, each moved back, as :meth:`read` takes it.

        Args:
            outputs: what the model returned for each view, and where that lies in the images.

        Raises:
            InputError: answers of this task have no mean.
        """
        moved = type(self).place_back is not Task.place_back
        instead = "Use `canonical`, which takes one pass, or change" if moved else "Change"
        raise InputError(self.no_mean(), f"{instead} layers with `blur` or `aps`.")

    def no_mean(self) -> str:
        """Return why answers at several shifts have no mean, in a sentence; empty if they have one."""
        return f"answers of task {self.name!r} have no mean over shifts."

    def text(self, answer: Any) -> str:
        """Return an answer in a few words, for readers; empty if it has none."""
        return ""

    def caption(self, answer: Any) -> str:
        """Return an answer in a few words with its confidences, below a frame; by default :meth:`text`."""
        return self.text(answer)

    def draw(self, picture: Tensor, answer: Any, view: View) -> Tensor | None:
        """Draw an answer, moved back, over the unshifted image; None if there is nothing to draw.

        Args:
            picture: the image, [3, height, width] in [0, 1].
            answer: to draw.
            view: how the answer's view lies relative to the unshifted image; its only reference is the answer to that.

        Returns:
            [3, height, width] in [0, 1].
        """
        return None

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the leading measure in a sentence; empty for a generic one.

        Args:
            share: the measure in per cent.
            value: the measure as a number.
            moved: how images move: "by up to 8 pixels".
        """
        return ""

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> Truth:
        """Return the ground truth of images that a file or a folder holds, each read when it is asked for.

        Args:
            path: by default of a JSON file that maps the names of images to values.
            names: of the images, in order.
            placement: how images lie in the model's input.

        Raises:
            InputError: it cannot be read, or is about none of the images.
        """
        return named_values(path, names)
