"""Measure a block of images for a task: run each distinct view once, compare its answer, and keep numbers only.

A protocol says which shifts; the task says how answers are compared. Every view is compared with the unshifted image, and along a
path also with the view before it (``flicker``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shiftscope.audits.measuring import VIEWS, grid_name
from shiftscope.audits.model import CountedModel
from shiftscope.audits.parts import Changed, Cost, Part, most_changed
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import Sums
from shiftscope.audits.sequences import NEIGHBOURS, FrameKey, frame_sums, is_sequence
from shiftscope.audits.views import BORDERS, Framing, ViewPlan, plan_views, views_of
from shiftscope.engine.checks import evaluating
from shiftscope.engine.formats import module_is_quicker
from shiftscope.engine.task_trials import reference_sums
from shiftscope.errors import InputError
from shiftscope.measures import MEASURES
from shiftscope.radii import ShiftGrid, task_radii
from shiftscope.shifts import grid
from shiftscope.surveys import survey_of_values
from shiftscope.tasks import Pair, Task, Truth, View

__all__ = ["FLICKER", "REFERENCES", "UNSHIFTED", "TaskMeasurer", "task_measures", "views_at_once"]

#: The measure between neighbours along a path.
FLICKER = "flicker"
#: Scores that only outputs of one kind have, and why.
NOT_OF_TASKS = {"normalised_variance": "measures units of a vector"} | {
    f"{power}_derivative_{axis}": "differentiates probabilities" for power in ("squared", "absolute") for axis in ("y", "x")
}
#: What is added to the name of a protocol whose grid is planned as a path.
GRID = " grid"
#: The name of what is measured without a shift, and of sums over the answers without one.
UNSHIFTED, REFERENCES = "unshifted", "references"
#: Views a forward pass of inputs larger than so many pixels.
LARGE, VIEWS_OF_LARGE = 96, 16


def views_at_once(size: tuple[int, int]) -> int:
    """Return how many views of (height, width) run in a forward pass by default."""
    return VIEWS if max(size) <= LARGE else VIEWS_OF_LARGE


def task_measures(task: Task, protocol: Protocol, *, truth: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the measures that a protocol takes of a task over its views, and those at every shift of its grid.

    Raises:
        InputError: the protocol makes no sense for the task.
    """
    reasons = [NOT_OF_TASKS[name] for name in protocol.scores if name in NOT_OF_TASKS]
    if not reasons and protocol.scores and not is_sequence(protocol) and protocol.draw(1).is_floating_point():
        reasons.append("shifts by fractions of a pixel, and answers move back exactly by whole pixels only")
    if reasons:
        raise InputError(f"{protocol.name} cannot be measured for task {task.name!r}: it {reasons[0]}.", "Leave it out.")
    every = (*task.measures, *(task.truth_measures if truth else ()))
    flicker = (FLICKER,) if any(name in NEIGHBOURS for name in protocol.scores) else ()
    compares = any(name not in NEIGHBOURS for name in protocol.scores)
    return (*flicker, *(every if compares else ())), every if protocol.surveyed else ()


@dataclass(frozen=True)
class _Pairs:
    """The comparisons of a block.

    Attributes:
        rows: of the plan: first and second view of each distinct comparison.
        compared: protocol -> comparison of each view with the unshifted image.
        neighbours: protocol -> comparison of each view along a path with the one before it.
    """

    rows: Int[Tensor, "pair 2"]
    compared: dict[str, Int[Tensor, "image view"]]
    neighbours: dict[str, Int[Tensor, "image step"]]


class TaskMeasurer:
    """Measure blocks of images with a model for a task.

    Args:
        model: the model.
        task: what its output is.
        protocols: what to measure.
        framing: how the model's input is cut from the images.
        truth: ground truth of all images, by their index; None without.
        labelled: whether images come with labels, which are ground truth for a task that takes them.
        batch_size: images per forward pass; by default chosen by the size of the input.

    Raises:
        InputError: a protocol cannot be measured for the task or on such images.
    """

    grids: dict[Any, Any]  # of the engine, which runs on vectors only

    def __init__(
        self,
        model: CountedModel,
        task: Task,
        protocols: Sequence[Protocol],
        framing: Framing,
        *,
        truth: Truth | None = None,
        labelled: bool = False,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.task, self.protocols, self.framing, self.truth = model, task, tuple(protocols), framing, truth
        self.batch_size = batch_size or views_at_once(framing.size)
        self.images_accounted, self.labelled, self.grids = 0, labelled and task.takes_labels and truth is None, {}
        self.has_truth = truth is not None or self.labelled
        self.measures = {each.name: task_measures(task, each, truth=self.has_truth) for each in self.protocols}
        for protocol in self.protocols:
            framing.border(protocol)  # raises if crops exceed the margin
        self.reach = float(max(each.max_shift for each in self.protocols))
        self.planned = tuple(_planned(self.protocols))
        self.certified: dict[str, Protocol] = {}
        for each in self.protocols:
            if each.surveyed and task.rule(int(each.max_shift)):  # two protocols may share a grid, which is certified once
                self.certified.setdefault(grid_name((each.mode, int(each.max_shift))), each)

    def plan(self, indices: Tensor) -> ViewPlan:
        """Return the distinct views of some images, [image], by their index in the data."""
        return plan_views(self.planned, self.framing, indices=indices)

    def choose_format(self, example: Tensor, count: int) -> bool:
        """Return whether the model is quicker on images in the format channels last, where convolutions make that likely.

        Args:
            example: [1, channel, height, width], an image.
            count: of the images to measure.
        """
        passes = count * len(self.plan(torch.arange(1)).rows)
        return module_is_quicker(self.model.model, self.model.raw, self.framing.centre(example), passes=passes)

    def part(self, images: Tensor, labels: Tensor | None, *, indices: Tensor) -> Part:
        """Measure a block of images; :meth:`shiftscope.audits.Session.part` describes the arguments."""
        started = perf_counter()
        truths = self._truths(indices, labels)
        plan = self.plan(indices)
        pairs = self._pairs(plan)
        block, wrapping = _Block(self, plan, pairs, truths, indices), self.task.wrapping()
        twice = wrapping is not self.task and bool((plan.rows[:, 0] == BORDERS.index("circular")).any())
        with self.model.counting(), evaluating(self.model.model), torch.no_grad():
            for rows in torch.arange(len(plan.rows)).split(self.batch_size):
                batch = views_of(plan, rows, images, self.framing)
                raw = self.model.raw(batch)
                answers = self._answers(raw, self.task, len(rows))
                wrapped = self._answers(raw, wrapping, len(rows)) if twice else answers
                block.add(rows.tolist(), answers, wrapped)
        return Part(
            scores=block.scores(),
            surveys=block.surveys(),
            sums=block.sums,
            changed=block.changed(),
            cost=self._cost(plan, len(images), started),
            records={name: self.task.pack(torch.cat(rows)) for name, rows in block.records.items()},
            frames=block.frames(),
            radii=block.radii(),
        )

    def _answers(self, raw: Any, task: Task, count: int) -> list[Any]:
        return self.model.answers(raw, task, count, self.framing.size)

    def _truths(self, indices: Tensor, labels: Tensor | None) -> list[Any]:
        if self.truth is None and not self.labelled:
            return [None] * len(indices)
        truth = dict(zip(indices.tolist(), labels, strict=True)) if self.truth is None and labels is not None else self.truth
        assert truth is not None  # labels are there where the measurer is labelled
        try:
            found = [truth[int(each)] for each in indices]
        except IndexError:
            raise InputError(
                f"`truth` must hold ground truth for each image, got {len(truth)} for {int(indices[-1]) + 1} or more.",
                "Give one per image, in the same order.",
            ) from None
        return [None if each is None else self.task.read_truth(each, self.framing.size) for each in found]

    def _pairs(self, plan: ViewPlan) -> _Pairs:
        unshifted = plan.reference[:, None].expand(-1, 2)
        parts, shapes = ([], []) if not self.has_truth else ([unshifted], [("compared", UNSHIFTED, 1)])
        for protocol in self.planned:
            views, reference = plan.views[protocol.name], plan.reference[:, None]
            parts.append(torch.stack([reference.expand_as(views), views], dim=-1).flatten(0, 1))
            shapes.append(("compared", protocol.name, views.shape[1]))
            if any(name in NEIGHBOURS for name in protocol.scores):
                parts.append(torch.stack([views[:, :-1], views[:, 1:]], dim=-1).flatten(0, 1))
                shapes.append(("neighbours", protocol.name, views.shape[1] - 1))
        rows, places = torch.cat(parts).unique(dim=0, return_inverse=True)
        found: dict[str, dict[str, Tensor]] = {"compared": {}, "neighbours": {}}
        for (what, name, count), each in zip(shapes, places.split([len(part) for part in parts]), strict=True):
            found[what][name] = each.reshape(-1, count)
        return _Pairs(rows, found["compared"], found["neighbours"])

    def _cost(self, plan: ViewPlan, images: int, started: float) -> Cost:
        seen, self.images_accounted = self.model.images_seen - self.images_accounted, self.model.images_seen
        views = len(plan.rows)
        return Cost(
            images=images,
            asked=plan.requested,
            distinct=views,
            forward=views,
            checks=seen - views,
            seconds=perf_counter() - started,
        )


def _within(pair: Pair, reach: float) -> Pair:
    """Return a pair among shifts of up to so many pixels."""
    return pair if pair.view.reach == reach else replace(pair, view=replace(pair.view, reach=reach))


class _Block:
    """The comparisons of a block, as answers come in. Answers are dropped once nothing needs them."""

    def __init__(self, measurer: TaskMeasurer, plan: ViewPlan, pairs: _Pairs, truths: list[Any], indices: Tensor) -> None:
        self.measurer, self.task, self.plan, self.pairs, self.truths = measurer, measurer.task, plan, pairs, truths
        self.indices = indices.tolist()
        self.names = (*self.task.measures, *(self.task.truth_measures if measurer.has_truth else ()))
        self._rows: list[list[int]] = pairs.rows.tolist()
        self._found = [[nan] * len(self.names)] * len(self._rows)
        self.sums: dict[str, Sums] = {}
        self.records: dict[str, list[Tensor]] = {}
        self._of_grid = {
            name: set(pairs.compared[_grid_of(each)].flatten().tolist()) for name, each in measurer.certified.items()
        }
        self._leads = {name: [nan] * len(self._rows) for name in measurer.certified}
        self._answers: dict[int, Any] = {}
        self._wrapped: dict[int, Any] = {}
        self._gathered: Any = ()
        self._referenced = False
        self._ready: dict[int, list[int]] = {}
        self._stale: dict[int, list[int]] = {}
        last = dict[int, int]()
        for number, (first, second) in enumerate(self._rows):
            until = max(first, second)
            self._ready.setdefault(until, []).append(number)
            last[first], last[second] = max(last.get(first, 0), until), max(last.get(second, 0), until)
        for row, until in last.items():
            self._stale.setdefault(until, []).append(row)
        #: The protocols that compare a pair with the unshifted image; a protocol and its grid are one.
        self._protocols: dict[int, dict[str, None]] = {}
        for name, table in pairs.compared.items():
            protocol = name.removesuffix(GRID)
            for number in table.flatten().tolist() if name != UNSHIFTED else ():
                self._protocols.setdefault(number, {})[protocol] = None
        self._tallies = type(self.task).tally is not Task.tally
        self._steps, self._borders, self._images = plan.steps.tolist(), plan.rows[:, 0].long().tolist(), plan.images.tolist()

    def add(self, rows: list[int], answers: list[Any], wrapped: list[Any]) -> None:
        """Add the answers to some rows of the plan, in order, and compare those that are complete.

        Args:
            rows: of the plan.
            answers: to these views.
            wrapped: the same as the task reads them for circular images.
        """
        # Unshifted images come first in a plan: all are known before the first comparison that needs another image's.
        self._answers |= dict(zip(rows, answers, strict=True))
        self._wrapped |= dict(zip(rows, wrapped, strict=True))
        count = len(self.plan.reference)
        complete = [row for row in rows if row >= count]
        if not self._referenced and rows[-1] + 1 >= count:
            references = [self._answers[row] for row in range(count)]
            self._gathered = self.task.gather(references)
            self._referenced = True
            self.sums[REFERENCES] = self._references(references)
            complete = [*range(count), *complete]
        if self._referenced:
            self._compare([number for row in complete for number in self._ready.get(row, ())])
            for row in complete:
                for each in self._stale.get(row, ()):
                    del self._answers[each], self._wrapped[each]

    def _references(self, answers: Sequence[Any]) -> Sums:
        """Return sums over unshifted images: by how much answers of neighbours differ, and what the task needs of them."""
        view = View((0, 0), self.measurer.framing.size, circular=False, reach=self.measurer.reach, references=self._gathered)
        return reference_sums(self.task, answers, view)

    @cached_property
    def values(self) -> Float[Tensor, "pair measure"]:
        """Measures of each comparison, NaN where they are not defined; known once all answers are."""
        return torch.tensor(self._found, dtype=torch.float64)

    def _compare(self, numbers: list[int]) -> None:
        """Make some comparisons."""
        pairs = [self._pair(number) for number in numbers]
        for number, found in zip(numbers, self.task.compare_all(pairs), strict=True):
            self._found[number] = [found.get(name, nan) for name in self.names]
        self._certify(numbers, pairs)
        known = [(pair, self._protocols.get(number, {})) for number, pair in zip(numbers, pairs, strict=True)]
        summed = [(pair, names) for pair, names in known if names and pair.view.start == (0.0, 0.0)]
        for pair, names in summed if self._tallies else ():
            for name in names:
                self._tally(name, pair)
        self._record([names for _, names in summed], [pair for pair, _ in summed])

    def _certify(self, numbers: list[int], pairs: list[Pair]) -> None:
        """Note by how much the answers at the shifts of grids are kept."""
        for name, protocol in self.measurer.certified.items():
            chosen = [place for place, number in enumerate(numbers) if number in self._of_grid[name]]
            reach = float(protocol.max_shift)
            some = [_within(pairs[place], reach) for place in chosen]
            for place, lead in zip(chosen, self.task.leads(some), strict=True):
                self._leads[name][numbers[place]] = lead

    def _pair(self, number: int) -> Pair:
        first, second = self._rows[number]
        view = self._view(first, second)
        known = self._wrapped if view.circular else self._answers
        return Pair(known[first], known[second], view, self.truths[view.image])

    def _tally(self, name: str, pair: Pair) -> None:
        known = self.sums.setdefault(name, {})
        for key, total in self.task.tally(pair.before, pair.after, pair.view, pair.truth).items():
            known[key] = known[key] + total if key in known else total

    def _record(self, names: Sequence[Iterable[str]], pairs: list[Pair]) -> None:
        """Keep what numbers of all images together need of some pairs, after the image's index and the shift."""
        found: dict[str, list[tuple[Pair, Tensor]]] = {}
        for protocols, pair, rows in zip(names, pairs, self.task.records_all(pairs), strict=True):
            if rows is not None:
                for name in protocols:
                    found.setdefault(name, []).append((pair, rows))
        for name, kept in found.items():
            where = [[float(self.indices[pair.view.image]), *pair.view.shift] for pair, _ in kept]
            counts, together = torch.tensor([len(each) for _, each in kept]), torch.cat([each for _, each in kept])
            places = torch.tensor(where, dtype=together.dtype).repeat_interleave(counts, dim=0)
            self.records.setdefault(name, []).append(torch.cat([places, together], dim=1))

    def _view(self, first: int, second: int) -> View:
        (top, left), (down, right) = self._steps[first], self._steps[second]
        circular = "circular" in (BORDERS[self._borders[first]], BORDERS[self._borders[second]])
        return View(
            (down - top, right - left),
            self.measurer.framing.size,
            circular,
            (top, left),
            self.measurer.reach,
            self._images[second],
            self._gathered,
        )

    def scores(self) -> dict[tuple[str, str], Tensor]:
        """Return one value per image for each protocol and measure, NaN where none is defined."""
        found: dict[tuple[str, str], Tensor] = {}
        for measure in self.task.truth_measures if self.measurer.has_truth else ():
            found[UNSHIFTED, measure] = self._table(UNSHIFTED, measure)[:, 0].float()
        for protocol in self.measurer.protocols:
            for measure in self.measurer.measures[protocol.name][0]:
                if measure == FLICKER:
                    lead = self.values[:, 0][self.pairs.neighbours[protocol.name]]
                    found[protocol.name, measure] = MEASURES[self.task.measures[0]].as_change(lead).nanmean(dim=1).float()
                else:
                    found[protocol.name, measure] = self._table(protocol.name, measure).nanmean(dim=1).float()
        return found

    def surveys(self) -> dict[str, Any]:
        """Return what every shift of each grid gives."""
        found = {}
        for protocol in self.measurer.protocols:
            names = self.measurer.measures[protocol.name][1]
            if names:
                tables = {name: self._table(_grid_of(protocol), name).float() for name in names}
                reach = int(protocol.max_shift)
                found[grid_name((protocol.mode, reach))] = survey_of_values(tables, grid(reach))
        return found

    def radii(self) -> dict[str, Tensor]:
        """Return by grid each image's radius, where the task has a rule for it."""
        found = {}
        for name, protocol in self.measurer.certified.items():
            leads = torch.tensor(self._leads[name], dtype=torch.float64)[self.pairs.compared[_grid_of(protocol)]]
            found[name] = task_radii(leads, ShiftGrid(int(protocol.max_shift))).to(torch.int16)
        return found

    def frames(self) -> dict[FrameKey, Sums]:
        """Return sums over images of the leading measure at each frame of the protocols that compare neighbours along a path."""
        lead, found = self.names[0], dict[FrameKey, Sums]()
        for name in (each.name for each in self.measurer.protocols if is_sequence(each)):
            found[name, lead, "previous"] = frame_sums(self.values[:, 0][self.pairs.neighbours[name]])
            found[name, lead, "unshifted"] = frame_sums(self._table(name, lead))
        return found

    def _table(self, name: str, measure: str) -> Float[Tensor, "image view"]:
        return self.values[:, self.names.index(measure)][self.pairs.compared[name]]

    def changed(self) -> tuple[Changed, ...]:
        """Return the images that change most, each at the shift that changes it most; errors as their negative."""
        agreement = self.values[:, 0] if MEASURES[self.names[0]].better == "more" else -self.values[:, 0]
        worst: dict[int, int] = {}
        for number in agreement.nan_to_num(nan=float("inf")).argsort(stable=True).tolist():
            first, second = self._rows[number]
            if self._borders[first] == 0 and first != second and not agreement[number].isnan():
                worst.setdefault(self._images[second], number)
        return most_changed(self._changed(image, number, float(agreement[number])) for image, number in worst.items())

    def _changed(self, image: int, number: int, value: float) -> Changed:
        row = int(self.pairs.rows[number, 1])
        down, right = self._steps[row]
        border = str(BORDERS[self._borders[row]])
        return Changed(self.indices[image], (down, right), border, value, None, None, self.names[0])


def _planned(protocols: Sequence[Protocol]) -> Iterator[Protocol]:
    """Yield the protocols as views are planned: an exhaustive grid is a path."""
    for each in protocols:
        if each.scores:
            yield each
        if each.surveyed:
            steps = tuple((int(down), int(right)) for down, right in grid(int(each.max_shift)).tolist())
            yield replace(each, name=_grid_of(each), scores=("grid",), surveyed=(), drawn=0, path=steps)


def _grid_of(protocol: Protocol) -> str:
    return protocol.name + GRID
