"""A block's part as named tensors, for a safetensors file. Files of unfinished audits hold these names."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import lru_cache

import torch
from torch import Tensor

from shiftscope.audits.parts import Changed, Cost, Part, reach_of
from shiftscope.audits.scores import Sums
from shiftscope.audits.sequences import FrameKey, checked_frames
from shiftscope.audits.views import BORDERS
from shiftscope.radii import NOTHING
from shiftscope.shifts import grid
from shiftscope.surveys import Survey, from_sums

__all__ = ["from_tensors", "to_tensors"]

#: Names of tensors with a number for each image, and what surveys are over.
OF_IMAGES = ("each/score/", "each/survey/", "each/radius/", "each/right")
OVER = re.compile(r"all|radius [0-9]{1,5}|(off )?lattice")
#: Names of the sums over unshifted outputs, as :func:`shiftscope.engine.answers.answers_of` returns them.
OF_ANSWERS, ANSWER_SUMS = "sum/spread/answers/", {"directions", "own", "tops", "probabilities"}


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
    tensors |= {f"each/radius/{name}": radii for name, radii in part.radii.items()}
    for protocol, sums in part.sums.items():
        tensors |= {f"sum/spread/{protocol}/{name}": total for name, total in sums.items()}
    for (protocol, measure, against), sums in part.frames.items():
        tensors |= {f"sum/frame/{protocol}/{measure}/{against}/{name}": total for name, total in sums.items()}
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


def from_tensors(tensors: dict[str, Tensor], *, maps: bool = True) -> Part:
    """Return the part that :func:`to_tensors` stored.

    Args:
        tensors: by name.
        maps: whether to make the maps of its surveys, which a merge makes of all parts.

    Raises:
        Exception: names, types, shapes or values are not a part's.
    """
    _check(tensors)
    scores, values = dict[tuple[str, str], Tensor](), dict[str, dict[tuple[str, str], Tensor]]()
    records, frames, radii = dict[str, Tensor](), dict[FrameKey, Sums](), dict[str, Tensor]()
    sums, totals, cost = dict[str, Sums](), dict[tuple[str, str], Sums](), dict[str, float]()
    for name, tensor in tensors.items():
        match name.split("/"):
            case ["each", "score", protocol, measure]:
                scores[protocol, measure] = tensor
            case ["each", "record", protocol]:
                records[protocol] = tensor
            case ["each", "radius", grid_name]:
                radii[grid_name] = _checked_radii(tensor, reach_of(grid_name))
            case ["each", "survey", grid_name, measure, over]:
                values.setdefault(grid_name, {})[measure, over] = tensor
            case ["sum", "survey", grid_name, what, measure]:
                totals.setdefault((grid_name, what), {})[measure] = tensor
            case ["sum", "spread", protocol, what]:
                sums.setdefault(protocol, {})[what] = tensor
            case ["sum", "frame", protocol, measure, against, what]:
                frames.setdefault((protocol, measure, against), {})[what] = tensor
            case ["sum", "cost", figure]:
                cost[figure] = float(tensor) if figure == "seconds" else int(tensor)
    correct = tensors.get("each/right")
    surveys = {name: _survey(name, each, totals, correct, maps=maps) for name, each in values.items()}
    return Part(
        scores=scores,
        surveys=surveys,
        sums=sums,
        changed=tuple(_changed(row) for row in tensors.get("most/changed", torch.zeros(0, 7)).tolist()),
        cost=Cost(**cost),  # type: ignore[arg-type]  # by name
        correct=correct,
        damaged=tuple(bytes(tensors["each/damaged"].tolist()).decode().splitlines()),
        records=records,
        frames=checked_frames(frames),
        radii=radii,
    )


def _check(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless numbers are real, each image has one of each kind, and parts of grids have names that are known."""
    if any(tensor.is_complex() for tensor in tensors.values()):
        raise ValueError("a part holds real numbers")
    of_images = {tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(OF_IMAGES)}
    if len(of_images) > 1 or any(len(shape) != 1 for shape in of_images):
        raise ValueError("a part holds one number of each kind for each of its images")
    overs = (name.rpartition("/")[2] for name in tensors if name.startswith("each/survey/"))
    if not all(OVER.fullmatch(over) for over in overs):
        raise ValueError("a part's surveys are over all shifts, or over rings or the lattice of them")
    answers = {name.rpartition("/")[2] for name in tensors if name.startswith(OF_ANSWERS)}
    if answers not in (set(), ANSWER_SUMS):
        raise ValueError("a part's sums over unshifted outputs are all there or none is")


def _checked_radii(radii: Tensor, limit: int) -> Tensor:
    """Return radii that were read from a file.

    Raises:
        ValueError: they are no whole numbers, or beyond what was tried: a wrong one would certify what is false.
    """
    if radii.dtype != torch.int16 or (len(radii) and not NOTHING <= int(radii.min()) <= int(radii.max()) <= limit):
        raise ValueError("a part's radii are among those that were tried")
    return radii


def _survey(
    name: str, values: dict[tuple[str, str], Tensor], totals: dict[tuple[str, str], Sums], correct: Tensor | None, *, maps: bool
) -> Survey:
    """Return a part's survey of a grid.

    Raises:
        ValueError: its sums have no value for each shift.
    """
    shifts = _grid(reach_of(name))
    sums, squares, counts = totals[name, "sums"], totals[name, "squares"], totals.get((name, "counts"))
    if any(total.shape != (len(shifts),) for each in (sums, squares, counts or {}) for total in each.values()):
        raise ValueError("a part's maps have a value for each shift")
    return from_sums(values, sums, squares, shifts, correct, counts, maps=maps)


@lru_cache(maxsize=8)
def _grid(reach: int) -> Tensor:
    return grid(reach)


def _changed(row: list[float]) -> Changed:
    similarity, image, border, dy, dx, before, after = row
    classes = (None, None) if before < 0 else (int(before), int(after))
    return Changed(int(image), (dy, dx), str(BORDERS[int(border)]), similarity, *classes)


def _number(top: int | None) -> int:
    return -1 if top is None else top
