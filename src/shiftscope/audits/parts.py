"""What blocks of images gave, how blocks are merged, and how a block is stored as named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from shiftscope.audits.scores import Sums
from shiftscope.audits.views import BORDERS
from shiftscope.shifts import grid
from shiftscope.surveys import Survey, from_sums

__all__ = ["Changed", "Cost", "Part", "from_tensors", "merge_parts", "most_changed", "to_tensors"]

Key = TypeVar("Key")
#: So many of the images that change most are reported.
MOST_CHANGED = 12


@dataclass(frozen=True)
class Changed:
    """An image whose outputs change much.

    Attributes:
        image: its index in the data.
        shift: (dy, dx) that changes it most among those measured, pixels.
        border: what fills the border.
        similarity: cosine of the outputs before and after; for maps the share of pixels that keep their class; else ``measure``.
        before: the top class without the shift; None if outputs are not classes.
        after: the top class under the shift; None if outputs are not classes.
        measure: the name of a task's leading measure, whose value ``similarity`` is; empty for cosines and shares of pixels.
    """

    image: int
    shift: tuple[float, float]
    border: str
    similarity: float
    before: int | None
    after: int | None
    measure: str = ""


@dataclass(frozen=True)
class Cost:
    """What an audit computed.

    Attributes:
        images: number of images.
        asked: views that the protocols need, counted for each protocol alone, unshifted images included.
        distinct: different views among them.
        forward: images that went through the model for them; fewer than ``distinct`` if the engine computed all shifts together.
        checks: images that went through the model to see what it returns and to check the engine.
        dense: images for which the engine computed all shifts of a grid together.
        fallen_back: images for which it tried, but the outputs differed from the model's own on sampled shifts, or memory ran
            out; they were computed shift by shift.
        seconds: spent measuring, without reading images.
    """

    images: int = 0
    asked: int = 0
    distinct: int = 0
    forward: int = 0
    checks: int = 0
    dense: int = 0
    fallen_back: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Add two costs, field by field."""
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))

    @property
    def images_per_second(self) -> float:
        """Images per second, all protocols together."""
        return self.images / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Part:
    """What a block of images gave, or several successive blocks together.

    Attributes:
        scores: (protocol, measure) -> one value per image.
        surveys: grid's name -> the outputs under every shift, in numbers.
        sums: protocol -> the sums of its normalised variance.
        changed: the images that change most: those whose top class changes, and then the others, the largest change first.
        cost: what it took.
        correct: whether each unshifted image is classified correctly; None without labels.
        damaged: names of the files that could not be read.
        records: protocol -> what numbers of all images together need of each view, [row, column]
            (:meth:`shiftscope.tasks.Task.records`).
    """

    scores: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    surveys: dict[str, Survey] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    changed: tuple[Changed, ...] = ()
    cost: Cost = Cost()
    correct: Tensor | None = None
    damaged: tuple[str, ...] = ()
    records: dict[str, Tensor] = field(default_factory=dict)


def merge_parts(parts: Iterable[Part]) -> Part:
    """Return successive parts as one. Of each part only the values per image stay in memory.

    Sums add up in the order of the images, so that the result is bit for bit the same however the parts were measured.

    >>> merge_parts([Part(scores={("p", "mcs"): torch.ones(2)}), Part(scores={("p", "mcs"): torch.zeros(1)})]).scores
    {('p', 'mcs'): tensor([1., 1., 0.])}
    """
    every: list[Part] = []
    sums, survey_sums, survey_squares, survey_counts = dict[str, Sums](), dict[str, Sums](), dict[str, Sums](), dict[str, Sums]()
    for part in parts:
        sums = _add(sums, part.sums)
        survey_sums = _add(survey_sums, {name: each.sums for name, each in part.surveys.items()})
        survey_squares = _add(survey_squares, {name: each.squares for name, each in part.surveys.items()})
        survey_counts = _add(survey_counts, {name: each.counts for name, each in part.surveys.items()})
        values_only = {name: Survey(each.values, {}, {}, each.shifts, None) for name, each in part.surveys.items()}
        every.append(replace(part, sums={}, surveys=values_only))
    known = [part.correct for part in every if part.correct is not None]
    correct = torch.cat(known) if known else None
    surveys = {}
    for name in survey_sums:
        blocks = [part.surveys[name] for part in every if name in part.surveys]
        values = _cat([each.values for each in blocks])
        surveys[name] = from_sums(values, survey_sums[name], survey_squares[name], blocks[0].shifts, correct, survey_counts[name])
    return Part(
        scores=_cat([part.scores for part in every]),
        surveys=surveys,
        sums=sums,
        changed=most_changed(each for part in every for each in part.changed),
        cost=sum((part.cost for part in every), Cost()),
        correct=correct,
        damaged=tuple(name for part in every for name in part.damaged),
        records=_cat([part.records for part in every]),
    )


def most_changed(every: Iterable[Changed]) -> tuple[Changed, ...]:
    """Return those whose top class changes, and then the others, of least similarity first; of equal ones the earlier image.

    Of a task whose leading measure is an error, parts hold its negative, so that less is always a larger change.
    """
    return tuple(sorted(every, key=lambda each: (each.before == each.after, each.similarity, each.image))[:MOST_CHANGED])


def _add(totals: dict[str, Sums], more: dict[str, Sums]) -> dict[str, Sums]:
    added = {
        name: {key: totals[name][key] + value for key, value in each.items()} if name in totals else each
        for name, each in more.items()
    }
    return totals | added


def _cat(rows: list[dict[Key, Tensor]]) -> dict[Key, Tensor]:
    columns: dict[Key, list[Tensor]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in columns.items()}


def to_tensors(part: Part) -> dict[str, Tensor]:
    """Return a part as named tensors, for a safetensors file. Files of unfinished audits hold these names.

    ``most/changed`` is [image, 7]: similarity, image, border's number, dy, dx, and the top classes before and after, -1 for None.
    """
    tensors = {f"each/score/{protocol}/{measure}": values for (protocol, measure), values in part.scores.items()}
    for grid_name, each in part.surveys.items():
        tensors |= {f"each/survey/{grid_name}/{measure}/{over}": values for (measure, over), values in each.values.items()}
        tensors |= {f"sum/survey/{grid_name}/sums/{measure}": total for measure, total in each.sums.items()}
        tensors |= {f"sum/survey/{grid_name}/squares/{measure}": total for measure, total in each.squares.items()}
        tensors |= {f"sum/survey/{grid_name}/counts/{measure}": total for measure, total in each.counts.items()}
    tensors |= {f"each/record/{protocol}": rows for protocol, rows in part.records.items()}
    for protocol, sums in part.sums.items():
        tensors |= {f"sum/spread/{protocol}/{name}": total for name, total in sums.items()}
    tensors |= {f"sum/cost/{name}": torch.tensor(float(value), dtype=torch.float64) for name, value in asdict(part.cost).items()}
    if part.correct is not None:
        tensors["each/right"] = part.correct
    rows = [
        (each.similarity, each.image, BORDERS.index(each.border), *each.shift, _number(each.before), _number(each.after))
        for each in part.changed
    ]
    tensors["most/changed"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    names = "".join(f"{name}\n" for name in part.damaged).encode(errors="replace")
    tensors["each/damaged"] = torch.tensor(list(names), dtype=torch.uint8)
    return tensors


def from_tensors(tensors: dict[str, Tensor]) -> Part:
    """Return the part that :func:`to_tensors` stored.

    Raises:
        Exception: names, types, shapes or values are not a part's.
    """
    if any(tensor.is_complex() for tensor in tensors.values()):
        raise ValueError("a part holds real numbers")
    scores, values = dict[tuple[str, str], Tensor](), dict[str, dict[tuple[str, str], Tensor]]()
    records = dict[str, Tensor]()
    sums, totals, cost = dict[str, Sums](), dict[tuple[str, str], Sums](), dict[str, float]()
    for name, tensor in tensors.items():
        match name.split("/"):
            case ["each", "score", protocol, measure]:
                scores[protocol, measure] = tensor
            case ["each", "record", protocol]:
                records[protocol] = tensor
            case ["each", "survey", grid_name, measure, over]:
                values.setdefault(grid_name, {})[measure, over] = tensor
            case ["sum", "survey", grid_name, what, measure]:
                totals.setdefault((grid_name, what), {})[measure] = tensor
            case ["sum", "spread", protocol, what]:
                sums.setdefault(protocol, {})[what] = tensor
            case ["sum", "cost", figure]:
                cost[figure] = float(tensor) if figure == "seconds" else int(tensor)
    correct = tensors.get("each/right")
    surveys = {
        name: from_sums(
            each,
            totals[name, "sums"],
            totals[name, "squares"],
            grid(int(name.split()[1])),
            correct,
            totals.get((name, "counts")),
        )
        for name, each in values.items()
    }
    return Part(
        scores=scores,
        surveys=surveys,
        sums=sums,
        changed=tuple(_changed(row) for row in tensors.get("most/changed", torch.zeros(0, 7)).tolist()),
        cost=Cost(**cost),  # type: ignore[arg-type]  # by name
        correct=correct,
        damaged=tuple(bytes(tensors["each/damaged"].tolist()).decode().splitlines()),
        records=records,
    )


def _changed(row: list[float]) -> Changed:
    similarity, image, border, dy, dx, before, after = row
    classes = (None, None) if before < 0 else (int(before), int(after))
    return Changed(int(image), (dy, dx), str(BORDERS[int(border)]), similarity, *classes)


def _number(top: int | None) -> int:
    return -1 if top is None else top
