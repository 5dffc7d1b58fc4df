"""A block of images measured by all protocols at once. It knows no file and no data set.

The views that differ are formed and run once, every exhaustive grid goes through the engine, and what is left is a few numbers
for each image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.audits.model import Asked
from shiftscope.audits.parts import Part, most_changed
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import SCORES, Answers, MapAnswers, pixel_agreements
from shiftscope.audits.spread import spread_sums
from shiftscope.audits.views import BORDERS, Plan, Scene, planned
from shiftscope.engine.checks import evaluating
from shiftscope.engine.outputs import Outputs, stream_outputs
from shiftscope.errors import InputError, NotFiniteError
from shiftscope.shifts import Mode, grid
from shiftscope.similarity import cosine
from shiftscope.surveys import survey

__all__ = ["Grid", "Measurer", "applicable", "grid_name"]

Grid = tuple[Mode, int]
#: Measures of a survey that mean something for outputs without classes.
OF_VECTORS = ("mcs",)
#: Views run at once.
VIEWS = 64
#: Borders whose views tell how much an image changes.
TELLING = torch.tensor([border in ("zero", "mean", "circular", "crop") for border in BORDERS])


def grid_name(at: Grid) -> str:
    """How tensors of an exhaustive grid are named."""
    return f"{at[0]} {at[1]}"


def applicable(protocol: Protocol, *, kind: str, labels: bool) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The scores and the surveyed measures that a kind of output allows.

    Args:
        protocol: which.
        kind: of the outputs: ``classes``, ``vectors`` (embeddings) or ``maps``.
        labels: whether there are any.

    Raises:
        InputError: none of what the protocol counts can be counted.
    """
    allowed = {"classes": {"classes", "vectors", *(["labels"] if labels else [])}, "vectors": {"vectors"}, "maps": {"maps"}}[kind]
    scores = tuple(name for name in protocol.scores if name == "normalised_variance" or SCORES[name].needs in allowed)
    if kind == "maps":
        scores = tuple(name for name in scores if name != "normalised_variance")
    surveyed = tuple(
        (measure, over)
        for measure, over in protocol.surveyed
        if (kind == "classes" and (labels or measure != "worst_case")) or (kind == "vectors" and measure in OF_VECTORS)
    )
    if not scores and not surveyed:
        maps = any(name in SCORES and SCORES[name].needs == "maps" for name in protocol.scores)
        reason = {
            "classes": "counts pixels of maps, and the model answers with vectors" if maps else "needs labels",
            "vectors": "counts top classes, which an embedding does not have",
            "maps": "counts vectors, and the model answers with maps; `segmentation` counts these",
        }[kind]
        raise InputError(f"{protocol.name} cannot be measured here: it {reason}. Leave it out.")
    return scores, surveyed


class Measurer:
    """A model and what is asked about it.

    Args:
        asked: the model, counted.
        protocols: what is asked.
        scene: what surrounds the images.
        kind: of the outputs: ``classes``, ``vectors`` or ``maps``.
        labelled: whether images come with labels.
        batch_size: images a forward pass; ``VIEWS`` views, and what the engine chooses, if None.
    """

    def __init__(
        self,
        asked: Asked,
        protocols: Sequence[Protocol],
        scene: Scene,
        *,
        kind: str,
        labelled: bool,
        batch_size: int | None = None,
    ) -> None:
        self.asked, self.protocols, self.scene, self.kind, self.labelled = asked, tuple(protocols), scene, kind, labelled
        self.batch_size = batch_size or VIEWS
        self.seen = 0  # passes accounted for
        self.counted = {each.name: applicable(each, kind=kind, labels=labelled) for each in self.protocols}
        for protocol in self.protocols:
            scene.border(protocol)
        self.grids = {
            (each.mode, int(each.max_shift)): _Exhaustive(asked, (each.mode, int(each.max_shift)), scene, batch_size)
            for each in self.protocols
            if self.counted[each.name][1]
        }

    def part(self, images: Tensor, labels: Tensor | None, *, numbers: Tensor) -> Part:
        """All that is needed of a block of images.

        Args:
            images: [image, channel, height, width] in [0, 1], margin included.
            labels: of these images.
            numbers: of these images among all, rising.

        Raises:
            InputError: the model fails, or returns what cannot be measured.
        """
        started = perf_counter()
        with self.asked.counting(), evaluating(self.asked.model), torch.inference_mode():
            surveyed = {at: self._surveyed(every, images) for at, every in self.grids.items()}
            plan = planned(self.protocols, self.scene, numbers=numbers)
            answers, served = self._answers(plan, images, surveyed)
        part = self._scores(plan, answers, labels, numbers)
        for at, outputs in surveyed.items():
            part |= self._survey(at, outputs, labels)
        part["most/changed"] = self._changed(plan, answers, surveyed, numbers)
        run, grids = len(plan.rows) - served, sum(len(every.shifts) for every in self.grids.values()) * len(images)
        dense = sum(len(images) for outputs in surveyed.values() if outputs.method == "dense")
        spent, self.seen = self.asked.passes - self.seen, self.asked.passes
        by_engine = sum(len(images) * len(outputs.shifts) for outputs in surveyed.values() if outputs.method == "direct")
        figures = {
            "images": len(images),
            "asked": plan.asked + grids,
            "distinct": run + grids - len(images) * max(len(surveyed) - 1, 0),  # grids share the unshifted image
            "forward": run + by_engine,
            "checks": spent - run - by_engine,
            "dense": dense,
            "seconds": perf_counter() - started,
        }
        part |= {f"sum/cost/{name}": torch.tensor(float(figure), dtype=torch.float64) for name, figure in figures.items()}
        return {name: tensor.clone() for name, tensor in part.items()}

    def _surveyed(self, every: _Exhaustive, images: Tensor) -> Outputs:
        try:
            return every(self.scene.centre(images))
        except NotFiniteError:
            for batch in self.scene.centre(images).split(self.batch_size):
                self.asked(batch)  # raises an error that counts the images
            raise

    def _answers(self, plan: Plan, images: Tensor, surveyed: dict[Grid, Outputs]) -> tuple[Tensor, int]:
        """The model's answer to each row, and how many of them an exhaustive grid had already."""
        known, from_grid = torch.zeros(len(plan.rows), dtype=torch.bool), list[tuple[Tensor, Tensor]]()
        for (mode, reach), outputs in surveyed.items():
            numbers, steps = plan.rows[:, 0], plan.rows[:, 2:]
            inside = (numbers == 0) | (numbers == BORDERS.index(mode))
            inside &= (steps.abs().amax(dim=1) <= reach) & (steps == steps.round()).all(dim=1) & ~known
            place = ((steps[:, 0] + reach) * (2 * reach + 1) + steps[:, 1] + reach).long()
            from_grid.append((inside, outputs.values[plan.images[inside], place[inside]]))
            known |= inside
        found: Tensor | None = None
        missing = (~known).nonzero()[:, 0]
        for rows in missing.split(self.batch_size) if len(missing) else ():
            answer = self._answer(plan, rows, images)
            found = answer.new_empty(len(plan.rows), *answer.shape[1:]) if found is None else found
            found[rows] = answer
        for inside, values in from_grid:
            found = values.new_empty(len(plan.rows), values.shape[1]) if found is None else found
            found[inside] = values
        assert found is not None  # noqa: S101 - there is always the unshifted image
        return found, int(known.sum())

    def _answer(self, plan: Plan, rows: Tensor, images: Tensor) -> Tensor:
        """One forward pass; of maps the top class of each pixel."""
        picked = plan.rows[rows]
        batch = images.new_empty(len(rows), images.shape[1], *self.scene.size)
        # Whole pixels and parts of them are formed apart.
        kinds = picked[:, 0] * 2 + (picked[:, 2:] != picked[:, 2:].round()).any(dim=1)
        for kind in kinds.unique():
            chosen = (kinds == kind).nonzero()[:, 0]
            shifts, border = picked[chosen, 2:], BORDERS[int(kind) // 2]
            batch[chosen] = self.scene.view(images[picked[chosen, 1].long()], shifts, border)
        answer = self.asked(batch)
        return _classes(answer, self.scene.size) if self.kind == "maps" else answer

    def _scores(self, plan: Plan, answers: Tensor, labels: Tensor | None, numbers: Tensor) -> Part:
        part: Part = {}
        reference = answers[plan.reference]
        if self.labelled and labels is not None and self.kind == "classes":
            part["each/right"] = reference.argmax(-1) == labels
        for protocol in self.protocols:
            scores, _ = self.counted[protocol.name]
            if not scores:
                continue
            values, shifts = answers[plan.views[protocol.name]], plan.shifts[protocol.name]
            given: Any
            if self.kind == "maps":
                given = MapAnswers(values, reference, shifts, protocol.mode == "circular")
            else:
                given = Answers(values, reference, shifts, self.scene.size, labels)
            for name in scores:
                if name == "normalised_variance":
                    sums = spread_sums(values, numbers=numbers)
                    part |= {f"sum/spread/{protocol.name}/{what}": total for what, total in sums.items()}
                else:
                    part[f"each/score/{protocol.name}/{name}"] = SCORES[name].of(given).float()
        return part

    def _survey(self, at: Grid, outputs: Outputs, labels: Tensor | None) -> Part:
        found = survey([outputs], labels=labels if self.labelled and self.kind == "classes" else None)
        name = grid_name(at)
        kept = OF_VECTORS if self.kind == "vectors" else tuple({measure for measure, _ in found.values})
        part = {
            f"each/survey/{name}/{measure}/{over}": values for (measure, over), values in found.values.items() if measure in kept
        }
        for measure in found.sums:
            if measure in kept:
                part[f"sum/survey/{name}/sums/{measure}"] = found.sums[measure]
                part[f"sum/survey/{name}/squares/{measure}"] = found.squares[measure]
        return part

    def _changed(self, plan: Plan, answers: Tensor, surveyed: dict[Grid, Outputs], numbers: Tensor) -> Tensor:
        """(similarity, image, border, dy, dx, class before and after) of the images that change most, at their worst shift."""
        reference = answers[plan.reference]
        telling = TELLING[plan.rows[:, 0].long()].nonzero()[:, 0]
        rows = []
        if len(telling):
            if self.kind == "maps":
                whole = telling[(plan.rows[telling, 2:] == plan.rows[telling, 2:].round()).all(dim=1)]
                similar = self._map_similarity(plan, answers, reference, whole)
                telling = whole
            else:
                similar = cosine(answers[telling], reference[plan.images[telling]])
            rows.append(self._told(similar, plan.rows[telling], reference, answers[telling]))
        for (mode, _), outputs in surveyed.items():
            steps = outputs.shifts.double()
            similar = cosine(outputs.values, outputs.reference[:, None].expand_as(outputs.values))
            worst = similar.argmin(dim=1)
            images = torch.arange(len(worst))
            border = torch.full((len(worst), 1), float(BORDERS.index(mode)), dtype=torch.float64)
            at = torch.cat([border, images[:, None].double(), steps[worst]], dim=1)
            rows.append(self._told(similar[images, worst], at, reference, outputs.values[images, worst]))
        if not rows:
            return torch.zeros(0, 7, dtype=torch.float64)
        every = torch.cat(rows)
        every = every[every[:, 0].argsort(stable=True)]
        seen: dict[int, int] = {}
        for place, image in enumerate(every[:, 1].long().tolist()):
            seen.setdefault(image, place)
        kept = every[list(seen.values())]
        kept[:, 1] = numbers[kept[:, 1].long()].double()
        return most_changed(kept)

    def _told(self, similar: Tensor, rows: Tensor, reference: Tensor, after: Tensor) -> Tensor:
        if self.kind == "classes":
            classes = torch.stack([reference[rows[:, 1].long()].argmax(-1), after.argmax(-1)], dim=1).double()
        else:
            classes = torch.full((len(rows), 2), -1.0, dtype=torch.float64)
        return torch.cat([similar[:, None].double(), rows[:, 1:2], rows[:, :1], rows[:, 2:], classes], dim=1)

    def _map_similarity(self, plan: Plan, answers: Tensor, reference: Tensor, rows: Tensor) -> Tensor:
        found = []
        for row in rows.split(1):
            border = BORDERS[int(plan.rows[row, 0])]
            given = MapAnswers(
                answers[row][:, None], reference[plan.images[row]], plan.rows[row, 2:][:, None], border == "circular"
            )
            found.append(pixel_agreements(given)[:, 0])
        return torch.cat(found) if found else torch.zeros(0)


class _Exhaustive:
    """Every shift of a grid: blocks of images through one stream of the engine, which traces the model once."""

    def __init__(self, asked: Asked, at: Grid, scene: Scene, batch_size: int | None) -> None:
        self.asked, self.mode, self.scene, self.batch_size = asked, at[0], scene, batch_size
        self.shifts = grid(at[1])
        self._given: list[Tensor] = []
        self._stream: Iterator[Outputs] | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs of a block under every shift."""
        self._given.append(images)
        if self._stream is None:
            self._stream = stream_outputs(
                self.asked.for_engine(),
                self._blocks(),
                self.shifts,
                mode=self.mode,
                batch_size=self.batch_size,
                device=self.asked.device,
                fill=torch.tensor(self.scene.fill),
            )
        parts: list[Outputs] = []
        while sum(len(part.reference) for part in parts) < len(images):
            parts.append(next(self._stream))
        values, reference = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "reference"))
        return Outputs(values, reference, self.shifts, parts[0].method, parts[0].reason)

    def _blocks(self) -> Iterator[Tensor]:
        while self._given:
            yield self._given.pop()


def _classes(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The top class of each pixel of the input, maps of another size enlarged bilinearly before."""
    if tuple(maps.shape[2:]) != size:
        maps = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps.argmax(dim=1)
