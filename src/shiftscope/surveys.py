"""Turn a model's outputs into numbers per image, and survey every shift of every image.

A survey reads blocks of outputs, one at a time, and stores a few numbers per image and a few per shift, never one per image and
shift. All images share their shifts. Measures (:data:`shiftscope.measures.MEASURES` defines them):

- means over shifts: ``mcs``, ``top1_change``, ``probability_change``;
- over all shifts of an image: ``pair_consistency``, ``all_agree`` and, with labels, ``worst_case``.

Each is computed over ``all`` shifts, over each ``radius r`` (the ring max(|dy|, |dx|) = r, rounded up) and, if the model's
subsampling factor is known, over its ``lattice`` (dy and dx multiples of the factor) and ``off lattice``. With labels, each is
also computed over the images whose unshifted copy is classified correctly: otherwise an accurate model looks stable only because
it is accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shiftscope.display import Shown
from shiftscope.engine.checks import check_labels
from shiftscope.engine.outputs import Outputs
from shiftscope.errors import InputError, shortened
from shiftscope.estimates import ALIKE, Estimate, interval_of_equals, student_t, wilson_interval
from shiftscope.measures import MEASURES
from shiftscope.similarity import cosine
from shiftscope.tables import Table

__all__ = [
    "Survey",
    "centred",
    "correct",
    "cosines",
    "from_sums",
    "intervals",
    "per_shift_cosines",
    "probabilities",
    "survey",
    "survey_of_values",
    "top1_changes",
]


@dataclass(frozen=True, repr=False)
class Survey(Shown):
    """Measures of every shift of every image.

    Attributes:
        values: (measure, over) -> [image], each image's value over those shifts.
        maps: measure -> [shift], means over images: the sensitivity maps (Myburgh, Mouton and Davel 2021).
        intervals: measure -> [shift, 2], the maps' 95 % intervals over images: Wilson's of shares, Student's of means.
        shifts: [shift, 2], (dy, dx) in pixels.
        right: [image], whether the unshifted image is classified correctly; None without labels.
        sums: measure -> [shift], sum over images; with ``squares``, surveys of separate blocks can be added up.
        squares: measure -> [shift], sum over images of the square.
        counts: measure -> [shift], images with a value; empty if every image has one. Values of others are NaN.
    """

    values: dict[tuple[str, str], Float[Tensor, " image"]]
    maps: dict[str, Float[Tensor, " shift"]]
    intervals: dict[str, Float[Tensor, "shift 2"]]
    shifts: Shaped[Tensor, "shift 2"]
    right: Bool[Tensor, " image"] | None
    sums: dict[str, Float[Tensor, " shift"]] = field(default_factory=dict)
    squares: dict[str, Float[Tensor, " shift"]] = field(default_factory=dict)
    counts: dict[str, Float[Tensor, " shift"]] = field(default_factory=dict)

    def estimate(self, measure: str, *, over: str = "all", given: Literal["all", "right"] = "all") -> Estimate | None:
        """Return a measure over some shifts, with its interval over images; None if no image is classified correctly.

        Args:
            measure: a name of :data:`shiftscope.measures.MEASURES`.
            over: ``all``, ``radius r``, ``lattice`` or ``off lattice``.
            given: over ``all`` images, or over those whose unshifted copy is classified ``right``.

        Raises:
            InputError: the survey lacks this measure or these shifts, or `given` is ``right`` without labels.
        """
        if (measure, over) not in self.values:
            known = ", ".join(f"{name} over {part}" for name, part in self.values)
            raise InputError(f"the survey holds no {measure!r} over {over!r}.", f"It holds {shortened(known, 150)}.")
        values = self.values[measure, over]
        if given == "right":
            if self.right is None:
                raise InputError("`given` 'right' needs labels.", "Pass them to `survey`.")
            values = values[self.right]
        values = values[~values.isnan()]
        if len(values) == 0:
            return None
        return MEASURES[measure].estimate(values)

    def words(self) -> str:
        """Return the numbers of shifts and images."""
        return f"{len(self.shifts)} shifts of {len(next(iter(self.values.values()), ()))} images."

    def tables(self) -> tuple[Table, ...]:
        """Return the table alone."""
        return (self.table(),)

    def table(self) -> Table:
        """Return a table with a row for each measure and part of the shifts."""
        rows = []
        for measure, over in self.values:
            row = {"measure": measure, "over": over, "estimate": self.estimate(measure, over=over)}
            if self.right is not None:
                row["given_right"] = self.estimate(measure, over=over, given="right")
            rows.append(row)
        columns = ("measure", "over", "estimate", *(["given_right"] if self.right is not None else []))
        note = f"95 % intervals over {len(next(iter(self.values.values())))} images; {len(self.shifts)} shifts of each."
        return Table("Every shift of every image", columns, tuple(rows), (note,))


def cosines(outputs: Outputs) -> Float[Tensor, " image"]:
    """Return the cosine between each image's output and its outputs under shifts, averaged over its shifts.

    The mean over images is the mean cosine similarity, MCS (Mouton, Myburgh and Davel 2020).
    """
    return per_shift_cosines(outputs).mean(dim=1)


def centred(outputs: Outputs) -> Outputs:
    """Subtract from each output its mean over classes, which the softmax ignores.

    A cosine of raw outputs also depends on that mean. The optimizer determines it (near 0 with SGD, far from it with Adam), so
    networks with the same answers can differ in MCS; with centred outputs they do not. The source has no such measure.

    >>> raw = Outputs(torch.tensor([[[3.0, 5.0]]]), torch.tensor([[7.0, 9.0]]), torch.zeros(1, 2))
    >>> centred(raw).values.tolist(), centred(raw).reference.tolist()
    ([[[-1.0, 1.0]]], [[-1.0, 1.0]])
    """
    values, reference = (each - each.mean(-1, keepdim=True) for each in (outputs.values, outputs.reference))
    return replace(outputs, values=values, reference=reference)


def probabilities(outputs: Outputs) -> Outputs:
    """Return the class probabilities of each output: its softmax."""
    values, reference = (each.softmax(-1) for each in (outputs.values, outputs.reference))
    return replace(outputs, values=values, reference=reference)


def per_shift_cosines(outputs: Outputs) -> Float[Tensor, "image shift"]:
    """Return the cosine between each image's output and each of its outputs under shifts.

    Two zero outputs have cosine 1; a zero output and any other have cosine 0.
    """
    return cosine(outputs.reference[:, None, :], outputs.values).float()


def top1_changes(outputs: Outputs) -> Float[Tensor, " image"]:
    """Return the share of each image's shifts that change its top class.

    Ties go to the class of the lowest index, before and after.
    """
    changed = outputs.values.argmax(-1) != outputs.reference.argmax(-1)[:, None]
    return changed.float().mean(dim=1)


def correct(reference: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Bool[Tensor, " image"]:
    """Return whether each image's top class is its label."""
    return reference.argmax(-1) == labels


def survey(blocks: Iterable[Outputs], *, labels: Int[Tensor, " image"] | None = None, factor: int | None = None) -> Survey:
    """Measure every shift of every image from blocks of outputs.

    Args:
        blocks: outputs of successive images under shared shifts, as :func:`shiftscope.engine.outputs.stream_outputs` yields them.
        labels: the class index of each image, in order.
        factor: the model's subsampling factor in pixels, which defines the lattice.

    Raises:
        InputError: there is no block, images have shifts of their own, or there is not one label per image.

    >>> outputs = Outputs(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 0], [0, 1]]))
    >>> survey([outputs], labels=torch.tensor([0])).estimate("mcs").value
    0.5
    """
    check_labels(labels)
    tally: _Tally | None = None
    for block in blocks:
        tally = tally or _Tally(block.shifts, factor)
        tally.add(block, labels)
    if tally is None:
        raise InputError("`blocks` must hold at least one block of outputs, got none.")
    if labels is not None and len(labels) != tally.count:
        raise InputError(f"`labels` must hold one label per image, got {len(labels)} for {tally.count} images.")
    return tally.survey()


class _Tally:
    """Running sums of a survey."""

    def __init__(self, shifts: Tensor, factor: int | None) -> None:
        if factor is not None and factor < 1:
            raise InputError(f"`factor` must be 1 or more, got {factor}.")
        if shifts.ndim != 2:
            raise InputError("`blocks` must have shifts that all images share, [shift, 2].")
        self.shifts, self.parts = shifts.cpu(), _parts(shifts.cpu(), factor)
        self.values: dict[tuple[str, str], list[Tensor]] = {}
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.rights: list[Tensor] = []
        self.count = 0

    def add(self, block: Outputs, labels: Tensor | None) -> None:
        """Add a block of outputs; ``labels`` are those of all images."""
        if not torch.equal(block.shifts.cpu(), self.shifts):
            raise InputError("`blocks` must have shifts that all images share, but two blocks differ in theirs.")
        expected = None if labels is None else labels[self.count : self.count + len(block.reference)].cpu()
        self.count += len(block.reference)
        if expected is not None and len(expected) < len(block.reference):
            raise InputError(f"`labels` must hold one label per image, got too few for {self.count} images.")
        if expected is not None:
            self.rights.append(block.reference.argmax(-1) == expected)
        for name, values in _by_shift(block).items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + values.double().sum(dim=0)
            self.squares[name] = self.squares.get(name, torch.zeros(())) + values.double().square().sum(dim=0)
            for over, mask in self.parts.items():
                self.values.setdefault((name, over), []).append(values[:, mask].mean(dim=1))
        tops, classes = block.values.argmax(-1), block.values.shape[-1]
        for name, measure in _of_all_shifts(expected).items():
            for over, mask in self.parts.items():
                self.values.setdefault((name, over), []).append(measure(tops[:, mask], classes))

    def survey(self) -> Survey:
        """Return the survey of all blocks added."""
        values = {key: torch.cat(values).float() for key, values in self.values.items()}
        return from_sums(values, self.sums, self.squares, self.shifts, torch.cat(self.rights) if self.rights else None)


def from_sums(
    values: dict[tuple[str, str], Float[Tensor, " image"]],
    sums: dict[str, Float[Tensor, " shift"]],
    squares: dict[str, Float[Tensor, " shift"]],
    shifts: Shaped[Tensor, "shift 2"],
    right: Bool[Tensor, " image"] | None,
    counts: dict[str, Float[Tensor, " shift"]] | None = None,
    *,
    maps: bool = True,
    images: int | None = None,
) -> Survey:
    """Return a survey from values per image and sums over images.

    Args:
        values: (measure, over) -> [image], each image's value over those shifts.
        sums: measure -> [shift], sum over images.
        squares: measure -> [shift], sum over images of the square.
        shifts: [shift, 2], (dy, dx) in pixels.
        right: [image], whether the unshifted image is classified correctly; None without labels.
        counts: measure -> [shift], images with a value, where some have none.
        maps: whether to make maps and their intervals, which a survey that is only added to others does not need.
        images: number of images, needed if no values per image are kept.
    """
    every = len(next(iter(values.values()))) if images is None else images
    counts = counts or {}
    return Survey(
        values=values,
        maps={name: (total / counts.get(name, every)).float() for name, total in sums.items() if maps},
        intervals={name: intervals(name, sums[name], squares[name], counts.get(name), every) for name in sums if maps},
        shifts=shifts,
        right=right,
        sums=sums,
        squares=squares,
        counts=counts,
    )


def survey_of_values(values: dict[str, Float[Tensor, "image shift"]], shifts: Shaped[Tensor, "shift 2"]) -> Survey:
    """Return a survey from a value for each image and shift, NaN where there is none.

    >>> values = {"mcs": torch.tensor([[1.0, 0.5], [torch.nan, 1.0]])}
    >>> survey_of_values(values, torch.tensor([[0, 0], [0, 1]])).maps["mcs"].tolist()
    [1.0, 0.75]
    """
    parts = _parts(shifts, None)
    each = {(name, over): table[:, mask].nanmean(dim=1).float() for name, table in values.items() for over, mask in parts.items()}
    known = {name: (~table.isnan()).double() for name, table in values.items()}
    filled = {name: table.double().nan_to_num(0.0) for name, table in values.items()}
    sums = {name: table.sum(dim=0) for name, table in filled.items()}
    squares = {name: table.square().sum(dim=0) for name, table in filled.items()}
    return from_sums(each, sums, squares, shifts, None, {name: table.sum(dim=0) for name, table in known.items()})


def intervals(
    name: str,
    sums: Float[Tensor, " shift"],
    squares: Float[Tensor, " shift"],
    counts: Float[Tensor, " shift"] | None,
    every: int,
) -> Float[Tensor, "shift 2"]:
    """Return the 95 % interval of a measure's mean over images at each shift, from sums.

    Args:
        name: of the measure.
        sums: over images.
        squares: sum over images of the square.
        counts: images with a value; None if every image has one.
        every: number of images.
    """
    if counts is None or bool((counts == every).all()):
        return _interval(name, sums, squares, every)
    found = torch.tensor(MEASURES[name].bounds).expand(len(sums), 2).clone()
    for count in counts.unique().long().tolist():
        at = counts == count
        if count:
            found[at] = _interval(name, sums[at], squares[at], count)
    return found


def _interval(name: str, sums: Tensor, squares: Tensor, count: int) -> Float[Tensor, "shift 2"]:
    """Return each shift's interval: Wilson's of shares of images, Student's of means, within the measure's bounds."""
    bounds, middle = MEASURES[name].bounds, sums / count
    if count == 1:
        return torch.tensor(bounds).expand(len(sums), 2)
    deviation = ((squares / count - middle.square()).clamp_min(0) / (count - 1)).sqrt()[:, None]
    ends = middle[:, None] + student_t(count) * deviation * torch.tensor([-1.0, 1.0])
    alike = torch.stack(interval_of_equals(middle, count, bounds), dim=1)
    size = middle.abs()[:, None] if bounds[1] == inf else bounds[1] - bounds[0]
    found = torch.where(deviation * count**0.5 <= ALIKE * size, alike, ends)
    if bounds == (0.0, 1.0):
        shares = torch.stack(wilson_interval(middle, count), dim=1)
        found = torch.where((sums == squares)[:, None], shares, found)  # every value is 0 or 1
    return found.clamp(*bounds).float()


def _parts(shifts: Tensor, factor: int | None) -> dict[str, Bool[Tensor, " shift"]]:
    """Return name -> mask of shifts; parts without a shift are left out."""
    radius = shifts.abs().amax(dim=1).ceil().long()
    parts = {"all": torch.ones(len(shifts), dtype=torch.bool)}
    parts |= {f"radius {ring}": radius == ring for ring in radius.unique().tolist()}
    if factor is not None:
        lattice = (shifts % factor == 0).all(dim=1)
        parts |= {"lattice": lattice, "off lattice": ~lattice}
    return {name: mask for name, mask in parts.items() if mask.any()}


def _by_shift(outputs: Outputs) -> dict[str, Float[Tensor, "image shift"]]:
    """Return the measures that have a value for each shift."""
    top = outputs.reference.argmax(-1)[:, None]
    before = outputs.reference.softmax(-1).gather(1, top)
    after = outputs.values.softmax(-1).gather(2, top[:, None].expand(-1, outputs.values.shape[1], -1))[:, :, 0]
    return {
        "mcs": per_shift_cosines(outputs),
        "top1_change": (outputs.values.argmax(-1) != top).float(),
        "probability_change": (after - before).abs(),
    }


def _of_all_shifts(labels: Tensor | None) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Return the measures over all shifts of an image: functions of top classes [image, shift] and the number of classes."""
    measures: dict[str, Callable[[Tensor, int], Tensor]] = {"pair_consistency": _pairs, "all_agree": _all_agree}
    if labels is not None:
        measures["worst_case"] = lambda tops, _: (tops == labels[:, None]).all(dim=1).float()
    return measures


def _pairs(tops: Int[Tensor, "image shift"], classes: int) -> Float[Tensor, " image"]:
    """Return the share of pairs of different shifts that agree: sum over classes of n (n - 1) / N (N - 1), or 1 if N is 1."""
    shifts = tops.shape[1]
    if shifts == 1:
        return torch.ones(len(tops))
    counts = torch.zeros(len(tops), classes).scatter_add_(1, tops, torch.ones(tops.shape))
    return (counts * (counts - 1)).sum(dim=1) / (shifts * (shifts - 1))


def _all_agree(tops: Int[Tensor, "image shift"], _: int) -> Float[Tensor, " image"]:
    return (tops == tops[:, :1]).all(dim=1).float()
