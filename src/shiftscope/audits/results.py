"""What an audit found: estimates, sensitivity maps, the images that change most, what it cost, and a paragraph in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.measuring import applicable, grid_name
from shiftscope.audits.parts import Part
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import SCORES
from shiftscope.audits.spread import normalised_variance
from shiftscope.audits.views import BORDERS
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, proportion
from shiftscope.shifts import grid
from shiftscope.surveys import Survey, summed
from shiftscope.tables import Table

__all__ = ["Audit", "Changed", "Cost", "Row", "assembled"]


@dataclass(frozen=True)
class Row:
    """One measure of one protocol.

    Attributes:
        protocol: its name; ``unshifted`` for the accuracy.
        measure: what is counted.
        border: what came in there.
        max_shift: the largest shift along an axis, pixels.
        views: shifted views of each image.
        estimate: over all images.
        given_right: over those whose unshifted image is right; None without labels, or where none is.
    """

    protocol: str
    measure: str
    border: str
    max_shift: int | float
    views: int
    estimate: Estimate
    given_right: Estimate | None


@dataclass(frozen=True)
class Changed:
    """An image that changes much.

    Attributes:
        image: its number.
        shift: (dy, dx) that changes it most of those that were run, pixels.
        border: what came in there.
        similarity: the cosine of the outputs before and after; of maps the share of pixels that agree.
        before, after: the top classes; None where outputs are not classes.
    """

    image: int
    shift: tuple[float, float]
    border: str
    similarity: float
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Cost:
    """What an audit took.

    Attributes:
        images: measured.
        asked: views that the protocols name, counted for each protocol by itself, unshifted images included.
        distinct: different ones among them.
        forward: images that went through the model for them; fewer than ``distinct`` where all shifts were computed together.
        checks: images that went through the model to find out what it returns, and to check what was computed together.
        dense: images of which all shifts of a grid were computed together.
        seconds: of measuring, reading images apart.
    """

    images: int
    asked: int
    distinct: int
    forward: int
    checks: int
    dense: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images measured by all protocols in a second."""
        return self.images / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Audit:
    """How stable a model is.

    Attributes:
        rows: a measure each.
        changed: the images that change most, the worst first.
        cost: what it took.
        surveys: by grid (``zero 8``), what every shift gave, with the sensitivity maps.
        units: by protocol, values of each unit of the output.
        damaged: names of images that could not be read and were left out.
        notes: what a reader needs.
        provenance: how it was made, name to value.
    """

    rows: tuple[Row, ...]
    changed: tuple[Changed, ...]
    cost: Cost
    surveys: Mapping[str, Survey] = field(default_factory=dict)
    units: Mapping[str, Float[Tensor, " unit"]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, protocol: str, measure: str) -> Estimate:
        """One number.

        Raises:
            InputError: it was not measured.
        """
        for row in self.rows:
            if (row.protocol, row.measure) == (protocol, measure):
                return row.estimate
        known = ", ".join(f"{row.measure} of {row.protocol}" for row in self.rows)
        raise InputError(f"the audit holds no {measure!r} of {protocol!r}. It holds {known}.")

    def table(self) -> Table:
        """A row for each measure of each protocol."""
        right = any(row.given_right is not None for row in self.rows)
        columns = ("protocol", "measure", "border", "max_shift", "views", "estimate", *(["given_right"] if right else []))
        rows = tuple({name: _cell(row, name) for name in columns} for row in self.rows)
        notes = (self.words(), *self.notes, self._cost_in_words(), self._changed_in_words())
        return Table("Stability under shifts", columns, rows, tuple(note for note in notes if note), dict(self.provenance))

    def maps(self) -> dict[str, Float[Tensor, "dy dx"]]:
        """Sensitivity maps by ``grid/measure``: means at each shift, (0, 0) in the middle, and bounds ``/low``, ``/high``."""
        found = {}
        for name, found_there in self.surveys.items():
            side = round(len(found_there.shifts) ** 0.5)
            for measure, values in found_there.maps.items():
                found[f"{name}/{measure}"] = values.reshape(side, side)
                for place, bound in enumerate(("low", "high")):
                    found[f"{name}/{measure}/{bound}"] = found_there.intervals[measure][:, place].reshape(side, side).contiguous()
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; what is not finite as None."""
        return {
            "summary": self.words(),
            "rows": [_plain(asdict(row)) for row in self.rows],
            "changed": [_plain(asdict(each)) for each in self.changed],
            "cost": _plain({**asdict(self.cost), "images_per_second": self.cost.images_per_second}),
            "maps": {name: _plain(values.tolist()) for name, values in self.maps().items()},
            "units": {name: _plain(values.tolist()) for name, values in self.units.items()},
            "damaged": list(self.damaged),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def words(self) -> str:
        """One paragraph in plain words."""
        told = {(row.protocol, row.measure): row for row in self.rows}
        sentences = [f"{self.cost.images:,} images."]
        if ("unshifted", "accuracy") in told:
            sentences.append(f"Unshifted, {_percent(told['unshifted', 'accuracy'].estimate)} of them are classified correctly.")
        first = {measure: row for (_, measure), row in reversed(told.items())}
        sentences += [sentence(first[measure]) for measure, sentence in SENTENCES.items() if measure in first]
        return " ".join(sentences)

    def _cost_in_words(self) -> str:
        cost = self.cost
        together = f", and all shifts of a grid were computed together for {cost.dense:,} images" if cost.dense else ""
        return (
            f"The protocols name {cost.asked:,} views, {cost.distinct:,} of them different; {cost.forward:,} images went through "
            f"the model{together}, {cost.checks:,} more to check. {cost.seconds:.1f} s, {cost.images_per_second:.3g} images/s."
        )

    def _changed_in_words(self) -> str:
        if not self.changed:
            return ""
        told = [f"{each.image} (shift {_step(each.shift)} {each.border}: {each.similarity:.3f})" for each in self.changed[:5]]
        return f"Images that change most, with shift (dy, dx) and similarity: {', '.join(told)}."


def _drawn(row: Row) -> str:
    how = {"circular": "circular shifts", "crop": "crops"}.get(row.border, "shifts")
    return f"{how} of up to {row.max_shift:g} pixels ({row.protocol})"


SENTENCES = {
    "mcs": lambda row: f"Under {_drawn(row)} outputs keep a mean cosine of {row.estimate} with the unshifted ones.",
    "top1_change": lambda row: f"The top class changes for {_percent(row.estimate)} of {_drawn(row)}.",
    "all_agree": lambda row: (
        f"For {_percent(row.estimate)} of the images {'both' if row.views == 2 else f'all {row.views}'} {_drawn(row)} agree."
    ),
    "neighbour_change": lambda row: f"One pixel more changes the class {_percent(row.estimate)} of the time ({row.protocol}).",
    "worst_case": lambda row: f"{_percent(row.estimate)} are right at every one of {row.views} {_drawn(row)}.",
    "mASSC": lambda row: f"{_percent(row.estimate)} of the pixels keep their class under {_drawn(row)}.",
}


def assembled(
    whole: Part,
    protocols: Sequence[Protocol],
    *,
    kind: str,
    borders: Mapping[str, str],
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Audit:
    """The result of all portions.

    Args:
        whole: what :func:`shiftscope.audits.parts.folded` gave.
        protocols: what was asked.
        kind: of the outputs.
        borders: by protocol, what came in there.
        notes: what a reader needs.
        provenance: how it was made.
    """
    right = whole.get("each/right")
    surveys = _surveys(whole, right)
    units: dict[str, Tensor] = {}
    rows = []
    if right is not None:
        rows.append(Row("unshifted", "accuracy", "", 0, 1, proportion(right), None))
    for protocol in protocols:
        scores, surveyed = applicable(protocol, kind=kind, labels=right is not None)
        where = (borders[protocol.name], protocol.max_shift)
        views = len(protocol.draw(1)[0]) if scores else 0
        for name in scores:
            if name == "normalised_variance":
                estimate, units[protocol.name] = normalised_variance(_below(whole, f"sum/spread/{protocol.name}/"))
                rows.append(Row(protocol.name, name, *where, views, estimate, None))
                continue
            values, score = whole[f"each/score/{protocol.name}/{name}"], SCORES[name]
            given = score.estimate(values[right]) if right is not None and right.any() else None
            rows.append(Row(protocol.name, name, *where, views, score.estimate(values), given))
        if surveyed:
            found = surveys[grid_name((protocol.mode, int(protocol.max_shift)))]
            rows += [row for measure, over in surveyed for row in _surveyed_rows(found, protocol, measure, over)]
    cost = _below(whole, "sum/cost/")
    figures = {name: float(cost[name]) if name == "seconds" else int(cost[name]) for name in Cost.__dataclass_fields__}
    return Audit(
        rows=tuple(rows),
        changed=tuple(_changed(row) for row in whole["most/changed"].tolist()),
        cost=Cost(**figures),  # type: ignore[arg-type]  # by name
        surveys=surveys,
        units=units,
        notes=tuple(notes),
        provenance=dict(provenance or {}),
    )


def _surveyed_rows(found: Survey, protocol: Protocol, measure: str, over: str) -> list[Row]:
    """A row, or one a ring."""
    parts = [over]
    if over == "radius":
        parts = [part for name, part in found.values if name == measure and part.startswith("radius") and part != "radius 0"]
    rows = []
    for part in parts:
        estimate = found.estimate(measure, over=part)
        assert estimate is not None  # noqa: S101 - over all images there is always one
        given = found.estimate(measure, over=part, given="right") if found.right is not None else None
        views = len(found.shifts) if part == "all" else int(8 * int(part.removeprefix("radius ")))
        name = measure if part == "all" else f"{measure}, {part}"
        rows.append(Row(protocol.name, name, protocol.mode, protocol.max_shift, views, estimate, given))
    return rows


def _surveys(whole: Part, right: Tensor | None) -> dict[str, Survey]:
    names = dict.fromkeys(name.split("/")[2] for name in whole if name.startswith("each/survey/"))
    found = {}
    for name in names:
        values = {
            (measure, over): tensor
            for path, tensor in _below(whole, f"each/survey/{name}/").items()
            for measure, over in [path.split("/")]
        }
        sums, squares = (_below(whole, f"sum/survey/{name}/{what}/") for what in ("sums", "squares"))
        found[name] = summed(values, sums, squares, grid(int(name.split()[1])), right)
    return found


def _below(whole: Part, prefix: str) -> Part:
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}


def _changed(row: list[float]) -> Changed:
    similarity, image, border, dy, dx, before, after = row
    classes = (None, None) if before < 0 else (int(before), int(after))
    return Changed(int(image), (dy, dx), str(BORDERS[int(border)]), similarity, *classes)


def _cell(row: Row, name: str) -> Any:
    value = getattr(row, name)
    return f"{value:g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _step(shift: tuple[float, float]) -> str:
    return f"({shift[0]:g}, {shift[1]:g})"
