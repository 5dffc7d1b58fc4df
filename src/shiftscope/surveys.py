"""Every shift of every image in numbers: overall, by radius, on and off the lattice, and as maps over shifts.

A survey reads blocks of outputs, one at a time, and keeps a few numbers for each image and each shift, never both together.
All images share their shifts. Measures:

- ``mcs``: cosine of outputs (mean cosine similarity), ``top1_change``: whether the top class differs from the unshifted one,
  ``probability_change``: absolute change of the softmax probability of the unshifted top class. Each a mean over shifts.
- ``pair_consistency``: how often two different shifts of an image agree on the top class. ``all_agree``: whether all do.
- ``worst_case``, with labels: whether the image is right at every shift.

They are taken over ``all`` shifts, over each ``radius r`` (the ring max(|dy|, |dx|) = r, rounded up), and, where the model's
subsampling factor is given, over its ``lattice`` (both parts multiples of the factor) and ``off lattice``. A single shift agrees
with itself. With labels, each is also given that the unshifted image is right: an accurate model otherwise looks stable only
because it is accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shiftscope.engine.checks import check_labels
from shiftscope.engine.outputs import Outputs
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, Z
from shiftscope.measures import MEASURES
from shiftscope.similarity import cosine
from shiftscope.tables import Table

__all__ = ["Survey", "centred", "correct", "cosines", "per_shift_cosines", "summed", "survey", "top1_changes"]


@dataclass(frozen=True)
class Survey:
    """What every shift of every image gave.

    Attributes:
        values: (measure, over) -> [image], each image's value over those shifts.
        maps: measure -> [shift], means over images: the sensitivity maps (Myburgh, Mouton and Davel 2021).
        intervals: measure -> [shift, 2], the maps' 95 % intervals over images, from the normal distribution of a mean.
        shifts: [shift, 2], (dy, dx) in pixels.
        right: [image], whether the unshifted image is right; None without labels.
        sums, squares: measure -> [shift], over images, of the measure and its square; from them surveys of portions are put
            together.
    """

    values: dict[tuple[str, str], Float[Tensor, " image"]]
    maps: dict[str, Float[Tensor, " shift"]]
    intervals: dict[str, Float[Tensor, "shift 2"]]
    shifts: Shaped[Tensor, "shift 2"]
    right: Bool[Tensor, " image"] | None
    sums: dict[str, Float[Tensor, " shift"]] = field(default_factory=dict)
    squares: dict[str, Float[Tensor, " shift"]] = field(default_factory=dict)

    def estimate(self, measure: str, *, over: str = "all", given: Literal["all", "right"] = "all") -> Estimate | None:
        """A measure over some shifts, with its interval over images; None if no image is right.

        Args:
            measure: a name of ``MEASURES``.
            over: ``all``, ``radius r``, ``lattice`` or ``off lattice``.
            given: over all images, or over those whose unshifted image is right.

        Raises:
            InputError: no such measure or shifts in this survey, or ``right`` without labels.
        """
        if (measure, over) not in self.values:
            known = ", ".join(f"{name} over {part}" for name, part in self.values)
            raise InputError(f"the survey holds no {measure!r} over {over!r}. It holds {known}.")
        values = self.values[measure, over]
        if given == "right":
            if self.right is None:
                raise InputError("`given` 'right' needs labels. Give them to `survey`.")
            values = values[self.right]
        if len(values) == 0:
            return None
        return MEASURES[measure].estimate(values)

    def table(self) -> Table:
        """A row for each measure and part of the shifts."""
        rows = []
        for measure, over in self.values:
            row = {"measure": measure, "over": over, "estimate": self.estimate(measure, over=over)}
            if self.right is not None:
                row["given_right"] = self.estimate(measure, over=over, given="right")
            rows.append(row)
        columns = ("measure", "over", "estimate", *(["given_right"] if self.right is not None else []))
        note = (
            f"In brackets: 95 % intervals over {len(next(iter(self.values.values())))} images; {len(self.shifts)} shifts of each."
        )
        return Table("Every shift of every image", columns, tuple(rows), (note,))


def cosines(outputs: Outputs) -> Float[Tensor, " image"]:
    """Cosine between each image's output and its outputs under shifts, averaged over its shifts.

    The mean over images is the mean cosine similarity, MCS (Mouton, Myburgh and Davel 2020).
    """
    return per_shift_cosines(outputs).mean(dim=1)


def centred(outputs: Outputs) -> Outputs:
    """Outputs less their mean over classes: what is left decides the softmax, and only that.

    A cosine of raw outputs also counts the part that all classes share. Training leaves that part where the optimiser happens to
    drive it (near 0 by SGD, far from it by Adam), so that networks which answer alike differ in MCS. Of centred outputs they do
    not. This measure is ours.

    >>> raw = Outputs(torch.tensor([[[3.0, 5.0]]]), torch.tensor([[7.0, 9.0]]), torch.zeros(1, 2))
    >>> centred(raw).values.tolist(), centred(raw).reference.tolist()
    ([[[-1.0, 1.0]]], [[-1.0, 1.0]])
    """
    values, reference = (each - each.mean(-1, keepdim=True) for each in (outputs.values, outputs.reference))
    return replace(outputs, values=values, reference=reference)


def per_shift_cosines(outputs: Outputs) -> Float[Tensor, "image shift"]:
    """Cosine between each image's output and each of its outputs under shifts.

    Two zero outputs are alike (1), a zero output is like no other (0).
    """
    return cosine(outputs.reference[:, None, :], outputs.values).float()


def top1_changes(outputs: Outputs) -> Float[Tensor, " image"]:
    """Share of each image's shifts under which its top class differs from the unshifted one.

    Of equal outputs the lowest class is the top one, before and after.
    """
    changed = outputs.values.argmax(-1) != outputs.reference.argmax(-1)[:, None]
    return changed.float().mean(dim=1)


def correct(reference: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Bool[Tensor, " image"]:
    """Whether each image's top class is its label."""
    return reference.argmax(-1) == labels


def survey(blocks: Iterable[Outputs], *, labels: Int[Tensor, " image"] | None = None, factor: int | None = None) -> Survey:
    """Read blocks of outputs into a survey.

    Args:
        blocks: outputs of successive images under shared shifts, as :func:`shiftscope.engine.outputs.stream_outputs` yields them.
        labels: of all images, in order.
        factor: the model's subsampling factor, for the lattice.

    Raises:
        InputError: no block, images with shifts of their own, or labels of another number than images.

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
        raise InputError("a survey needs at least one block of outputs, got none.")
    if labels is not None and len(labels) != tally.count:
        raise InputError(f"`labels` must hold one label an image, got {len(labels)} for {tally.count} images.")
    return tally.survey()


class _Tally:
    """What a survey keeps while it reads."""

    def __init__(self, shifts: Tensor, factor: int | None) -> None:
        if factor is not None and factor < 1:
            raise InputError(f"`factor` must be 1 or more, got {factor}.")
        if shifts.ndim != 2:
            raise InputError("a survey needs shifts that all images share, [shift, 2].")
        self.shifts, self.parts = shifts.cpu(), _parts(shifts.cpu(), factor)
        self.values: dict[tuple[str, str], list[Tensor]] = {}
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.rights: list[Tensor] = []
        self.count = 0

    def add(self, block: Outputs, labels: Tensor | None) -> None:
        """One block's numbers."""
        if not torch.equal(block.shifts.cpu(), self.shifts):
            raise InputError("a survey needs shifts that all images share, but two blocks differ in theirs.")
        expected = None if labels is None else labels[self.count : self.count + len(block.reference)].cpu()
        self.count += len(block.reference)
        if expected is not None and len(expected) < len(block.reference):
            raise InputError(f"`labels` must hold one label an image, got too few for {self.count} images.")
        if expected is not None:
            self.rights.append(block.reference.argmax(-1) == expected)
        for name, values in _by_shift(block).items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + values.double().sum(dim=0)
            self.squares[name] = self.squares.get(name, torch.zeros(())) + values.double().square().sum(dim=0)
            for over, mask in self.parts.items():
                self.values.setdefault((name, over), []).append(values[:, mask].mean(dim=1))
        tops, classes = block.values.argmax(-1), block.values.shape[-1]
        for name, judge in _judges(expected).items():
            for over, mask in self.parts.items():
                self.values.setdefault((name, over), []).append(judge(tops[:, mask], classes))

    def survey(self) -> Survey:
        """All blocks together."""
        values = {key: torch.cat(values).float() for key, values in self.values.items()}
        return summed(values, self.sums, self.squares, self.shifts, torch.cat(self.rights) if self.rights else None)


def summed(
    values: dict[tuple[str, str], Float[Tensor, " image"]],
    sums: dict[str, Float[Tensor, " shift"]],
    squares: dict[str, Float[Tensor, " shift"]],
    shifts: Shaped[Tensor, "shift 2"],
    right: Bool[Tensor, " image"] | None,
) -> Survey:
    """A survey from its images' values and its sums over images.

    Args:
        values: (measure, over) -> [image].
        sums: measure -> [shift].
        squares: measure -> [shift].
        shifts: (dy, dx) in pixels.
        right: whether each unshifted image is right; None without labels.
    """
    count = len(next(iter(values.values())))
    return Survey(
        values=values,
        maps={name: (total / count).float() for name, total in sums.items()},
        intervals={name: _interval(name, sums[name], squares[name], count) for name in sums},
        shifts=shifts,
        right=right,
        sums=sums,
        squares=squares,
    )


def _interval(name: str, sums: Tensor, squares: Tensor, count: int) -> Float[Tensor, "shift 2"]:
    """Mean -+ 1.96 s / sqrt(n), no further than the measure goes; the measure's whole range from a single image."""
    low, high = MEASURES[name].bounds
    if count == 1:
        return torch.tensor([low, high]).expand(len(sums), 2)
    middle = sums / count
    variance = (squares / count - middle.square()).clamp_min(0) * count / (count - 1)
    reach = Z * (variance / count).sqrt()
    return torch.stack([middle - reach, middle + reach], dim=1).clamp(low, high).float()


def _parts(shifts: Tensor, factor: int | None) -> dict[str, Bool[Tensor, " shift"]]:
    """Name -> which shifts; parts without a shift are left out."""
    radius = shifts.abs().amax(dim=1).ceil().long()
    parts = {"all": torch.ones(len(shifts), dtype=torch.bool)}
    parts |= {f"radius {ring}": radius == ring for ring in radius.unique().tolist()}
    if factor is not None:
        lattice = (shifts % factor == 0).all(dim=1)
        parts |= {"lattice": lattice, "off lattice": ~lattice}
    return {name: mask for name, mask in parts.items() if mask.any()}


def _by_shift(outputs: Outputs) -> dict[str, Float[Tensor, "image shift"]]:
    """Measures with a value for each shift."""
    top = outputs.reference.argmax(-1)[:, None]
    before = outputs.reference.softmax(-1).gather(1, top)
    after = outputs.values.softmax(-1).gather(2, top[:, None].expand(-1, outputs.values.shape[1], -1))[:, :, 0]
    return {
        "mcs": per_shift_cosines(outputs),
        "top1_change": (outputs.values.argmax(-1) != top).float(),
        "probability_change": (after - before).abs(),
    }


def _judges(labels: Tensor | None) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Measures that need an image's shifts together: top classes [image, shift] -> [image]."""
    judges: dict[str, Callable[[Tensor, int], Tensor]] = {"pair_consistency": _pairs, "all_agree": _all_agree}
    if labels is not None:
        judges["worst_case"] = lambda tops, _: (tops == labels[:, None]).all(dim=1).float()
    return judges


def _pairs(tops: Int[Tensor, "image shift"], classes: int) -> Float[Tensor, " image"]:
    """Share of ordered pairs of different shifts that agree: sum over classes of n (n - 1) / N (N - 1)."""
    shifts = tops.shape[1]
    if shifts == 1:
        return torch.ones(len(tops))
    counts = torch.zeros(len(tops), classes).scatter_add_(1, tops, torch.ones(tops.shape))
    return (counts * (counts - 1)).sum(dim=1) / (shifts * (shifts - 1))


def _all_agree(tops: Int[Tensor, "image shift"], _: int) -> Float[Tensor, " image"]:
    return (tops == tops[:, :1]).all(dim=1).float()
