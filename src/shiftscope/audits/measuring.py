"""Measure a block of images by all protocols at once. Knows no file and no data set.

Each distinct view is formed and run once, every exhaustive grid goes through the engine, and a few numbers per image remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn

from shiftscope.audits.model import CountedModel
from shiftscope.audits.parts import Changed, Cost, Part, most_changed
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import SCORES, MapOutputs, Sums, ViewOutputs, pixel_agreements, spread_sums
from shiftscope.audits.sequences import NEIGHBOURS, FrameKey, frame_sums, frame_values, is_sequence
from shiftscope.audits.views import BORDERS, Framing, ViewPlan, plan_views, views_of
from shiftscope.engine.answers import answers_of
from shiftscope.engine.checks import evaluating
from shiftscope.engine.formats import module_is_quicker
from shiftscope.engine.outputs import Outputs, Runner, open_runner
from shiftscope.errors import InputError, NotFiniteError
from shiftscope.radii import ShiftGrid, radii_from
from shiftscope.shifts import Mode, grid
from shiftscope.similarity import cosine
from shiftscope.surveys import Survey, from_sums, survey

__all__ = ["ANSWERS", "Grid", "Measurer", "OutputKind", "grid_name", "supported_measures"]

#: What a model returns: scores of ``classes``, embeddings (``vectors``) or segmentation ``maps``; or what a ``task`` reads.
OutputKind = Literal["classes", "vectors", "maps", "task"]
#: An exhaustive grid of shifts: what fills the border, and the largest shift, pixels.
Grid = tuple[Mode, int]
#: The measures of a survey that make sense for embeddings.
VECTOR_MEASURES = ("mcs",)
#: The name of the sums that tell how much unshifted outputs differ between images.
ANSWERS = "answers"
#: Views per forward pass by default.
VIEWS = 64
#: Whether views with a border, by its number, are candidates for the largest change. The others shift by fractions of a pixel.
COMPARABLE = torch.tensor([border in ("zero", "mean", "circular", "crop") for border in BORDERS])


def grid_name(at: Grid) -> str:
    """Return the name of a grid: ``zero 8``."""
    return f"{at[0]} {at[1]}"


def supported_measures(
    protocol: Protocol, *, kind: OutputKind, labels: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the scores and the surveyed measures of a protocol that a kind of output allows.

    Args:
        protocol: a protocol.
        kind: of the outputs.
        labels: whether there are labels.

    Raises:
        InputError: the outputs allow none of the protocol's measures.
    """
    allowed = {
        "classes": {"classes", "vectors", *(["labels"] if labels else [])},
        "vectors": {"vectors"},
        "maps": {"maps"},
        "task": set(),
    }[kind]
    needs = {name: SCORES[name].needs if name in SCORES else "vectors" for name in protocol.scores}
    scores = tuple(name for name in protocol.scores if needs[name] in allowed)
    surveyed = tuple(
        (measure, over)
        for measure, over in protocol.surveyed
        if (kind == "classes" and (labels or measure != "worst_case")) or (kind == "vectors" and measure in VECTOR_MEASURES)
    )
    if not scores and not surveyed:
        reason = {
            "classes": "counts pixels of maps, but the model returns vectors" if "maps" in needs.values() else "needs labels",
            "vectors": "needs a top class, which an embedding does not have",
            "maps": "needs vectors, but the model returns maps, which `segmentation` measures",
            "task": "has no measure for a task",
        }[kind]
        raise InputError(f"{protocol.name} cannot be measured here: it {reason}.", "Leave it out.")
    return scores, surveyed


class Measurer:
    """Measure blocks of images with a model.

    Args:
        model: the model.
        protocols: what to measure.
        framing: how the model's input is cut from the images.
        kind: of the outputs.
        labelled: whether images come with labels.
        batch_size: images per forward pass; by default ``VIEWS``, and in the engine its own choice.

    Raises:
        InputError: a protocol cannot be measured on such outputs or images.
    """

    def __init__(
        self,
        model: CountedModel,
        protocols: Sequence[Protocol],
        framing: Framing,
        *,
        kind: OutputKind,
        labelled: bool,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.protocols, self.framing, self.kind, self.labelled = model, tuple(protocols), framing, kind, labelled
        self.batch_size = batch_size or VIEWS
        self.images_accounted = 0
        self.measures = {each.name: supported_measures(each, kind=kind, labels=labelled) for each in self.protocols}
        for protocol in self.protocols:
            framing.border(protocol)  # raises if crops exceed the margin
        grids: list[Grid] = [(each.mode, int(each.max_shift)) for each in self.protocols if self.measures[each.name][1]]
        self.grids = {at: _GridOutputs(model, at, framing, batch_size) for at in grids}

    def part(self, images: Tensor, labels: Tensor | None, *, indices: Tensor) -> Part:
        """Measure a block of images; :meth:`shiftscope.audits.Session.part` describes the arguments."""
        started = perf_counter()
        with self.model.counting(), evaluating(self.model.model), torch.no_grad():
            surveyed = {at: self._run_grid(outputs, images, int(indices[0])) for at, outputs in self.grids.items()}
            plan = self.plan(indices)
            outputs, reused = self._run_views(plan, images, surveyed)
            radii = self._radii(surveyed, images)
        labels = labels if self.labelled and self.kind == "classes" else None
        correct = None if labels is None else outputs[plan.reference].argmax(-1).eq(labels)
        scores, sums = self._scores(plan, outputs, labels, indices)
        return Part(
            scores=scores,
            surveys={grid_name(at): self._survey(each, labels, correct) for at, each in surveyed.items()},
            sums=sums if self.kind == "maps" else {**sums, ANSWERS: answers_of(outputs[plan.reference])},
            changed=self._changed(plan, outputs, surveyed, indices),
            cost=self._cost(plan, reused, surveyed, len(images), started),
            correct=correct,
            frames=self._frames(plan, outputs),
            radii=radii,
        )

    def plan(self, indices: Tensor) -> ViewPlan:
        """Return the views that are computed one by one for some images, [image], given by their index in the data."""
        return plan_views(self.protocols, self.framing, indices=indices)

    def choose_format(self, example: Tensor, count: int) -> bool:
        """Return whether the model is quicker on images in the format channels last, where convolutions make that likely.

        Args:
            example: [1, channel, height, width], an image.
            count: of the images to measure.
        """
        views = len(self.plan(torch.arange(1)).rows)
        passes = count * (views + sum(len(outputs.shifts) for outputs in self.grids.values()))
        return module_is_quicker(self.model.model, self.model, self.framing.centre(example), passes=passes)

    def _run_grid(self, outputs: _GridOutputs, images: Tensor, seed: int) -> Outputs:
        try:
            return outputs(self.framing.centre(images), seed=seed)
        except NotFiniteError:
            for batch in self.framing.centre(images).split(self.batch_size):
                self.model(batch)  # its error counts the images, the engine's counts shifts of them
            raise

    def _radii(self, surveyed: dict[Grid, Outputs], images: Tensor) -> dict[str, Tensor]:
        """Return by grid each image's radius; none where outputs are no classes."""
        if self.kind != "classes":
            return {}
        centred = self.framing.centre(images)
        return {grid_name(at): self.grids[at].radii(outputs, centred) for at, outputs in surveyed.items()}

    def _run_views(self, plan: ViewPlan, images: Tensor, surveyed: dict[Grid, Outputs]) -> tuple[Tensor, int]:
        """Return the model's output on each row, and how many rows an exhaustive grid already holds."""
        known, from_grid = torch.zeros(len(plan.rows), dtype=torch.bool), list[tuple[Tensor, Tensor]]()
        for (mode, reach), outputs in surveyed.items():
            borders, steps = plan.rows[:, 0], plan.steps
            inside = (borders == 0) | (borders == BORDERS.index(mode))
            inside &= (steps.abs().amax(dim=1) <= reach) & plan.whole_pixels & ~known
            place = ((steps[:, 0] + reach) * (2 * reach + 1) + steps[:, 1] + reach).long()
            from_grid.append((inside, outputs.values[plan.images[inside], place[inside]]))
            known |= inside
        missing = (~known).nonzero()[:, 0]
        computed = [(rows, self._run(plan, rows, images)) for rows in (missing.split(self.batch_size) if len(missing) else ())]
        found: Tensor | None = None
        for rows, values in [*computed, *from_grid]:
            found = values.new_empty(len(plan.rows), *values.shape[1:]) if found is None else found
            found[rows] = values
        assert found is not None  # the unshifted images are always there
        return found, int(known.sum())

    def _run(self, plan: ViewPlan, rows: Tensor, images: Tensor) -> Tensor:
        """Run the model on some views once; of maps return the top class of each pixel."""
        output = self.model(views_of(plan, rows, images, self.framing))
        return _pixel_classes(output, self.framing.size) if self.kind == "maps" else output

    def _scores(
        self, plan: ViewPlan, outputs: Tensor, labels: Tensor | None, indices: Tensor
    ) -> tuple[dict[tuple[str, str], Tensor], dict[str, Sums]]:
        scores: dict[tuple[str, str], Tensor] = {}
        sums: dict[str, Sums] = {}
        reference = outputs[plan.reference]
        for protocol in self.protocols:
            names, _ = self.measures[protocol.name]
            if not names:
                continue
            values, shifts = outputs[plan.views[protocol.name]], plan.shifts[protocol.name]
            given = (
                MapOutputs(values, reference, shifts, protocol.mode == "circular")
                if self.kind == "maps"
                else ViewOutputs(values, reference, shifts, self.framing.size, labels)
            )
            for name in names:
                if name in SCORES:
                    scores[protocol.name, name] = SCORES[name].of(given).float()  # type: ignore[arg-type]  # by its needs
                else:
                    sums[protocol.name] = spread_sums(values, indices=indices)
        return scores, sums

    def _frames(self, plan: ViewPlan, outputs: Tensor) -> dict[FrameKey, Sums]:
        """Return sums over images at each frame of the protocols that compare neighbours along a path."""
        found: dict[FrameKey, Sums] = {}
        for protocol in self.protocols:
            if not is_sequence(protocol) or not any(name in NEIGHBOURS for name in self.measures[protocol.name][0]):
                continue
            values, shifts = outputs[plan.views[protocol.name]], plan.shifts[protocol.name]
            given = ViewOutputs(values, outputs[plan.reference], shifts, self.framing.size, None)
            found |= {(protocol.name, *key): frame_sums(each) for key, each in frame_values(given).items()}
        return found

    def _survey(self, outputs: Outputs, labels: Tensor | None, correct: Tensor | None) -> Survey:
        found = survey([outputs], labels=labels)
        if self.kind == "classes":
            return replace(found, right=correct)
        values = {key: tensor for key, tensor in found.values.items() if key[0] in VECTOR_MEASURES}
        sums, squares = ({name: each[name] for name in VECTOR_MEASURES} for each in (found.sums, found.squares))
        return from_sums(values, sums, squares, found.shifts, None)

    def _cost(self, plan: ViewPlan, reused: int, surveyed: dict[Grid, Outputs], images: int, started: float) -> Cost:
        run, shifts = len(plan.rows) - reused, sum(len(outputs.shifts) for outputs in surveyed.values())
        direct = sum(images * len(outputs.shifts) for outputs in surveyed.values() if outputs.method == "direct")
        seen, self.images_accounted = self.model.images_seen - self.images_accounted, self.model.images_seen
        return Cost(
            images=images,
            asked=plan.requested + shifts * images,
            distinct=run + shifts * images - images * max(len(surveyed) - 1, 0),  # grids share the unshifted image
            forward=run + direct,
            checks=seen - run - direct,
            dense=images * sum(outputs.method == "dense" for outputs in surveyed.values()),
            fallen_back=images * any(outputs.fell_back for outputs in surveyed.values()),
            seconds=perf_counter() - started,
        )

    def _changed(self, plan: ViewPlan, outputs: Tensor, surveyed: dict[Grid, Outputs], indices: Tensor) -> tuple[Changed, ...]:
        """Return the images that change most, each at the shift that changes it most."""
        reference = outputs[plan.reference]
        candidates = [self._changed_views(plan, outputs, reference)]
        candidates += [_changed_in_grid(mode, each) for (mode, _), each in surveyed.items()]
        similarity, rows, after = (torch.cat(each) for each in zip(*candidates, strict=True))
        worst: dict[int, int] = {}
        for place in similarity.argsort(stable=True).tolist():
            worst.setdefault(int(rows[place, 1]), place)
        classes = self.kind == "classes"
        return most_changed(
            Changed(
                image=int(indices[image]),
                shift=(float(rows[place, 2]), float(rows[place, 3])),
                border=str(BORDERS[int(rows[place, 0])]),
                similarity=float(similarity[place]),
                before=int(reference[image].argmax()) if classes else None,
                after=int(after[place].argmax()) if classes else None,
            )
            for image, place in worst.items()
        )

    def _changed_views(self, plan: ViewPlan, outputs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return similarity to the unshifted output, row of the plan, and output of each comparable view."""
        comparable = COMPARABLE[plan.rows[:, 0].long()]
        if self.kind != "maps":
            rows = comparable.nonzero()[:, 0]
            similarity = cosine(outputs[rows], reference[plan.images[rows]])
        else:
            rows = (comparable & plan.whole_pixels).nonzero()[:, 0]
            similarity = torch.empty(len(rows))
            for place, row in enumerate(rows.split(1)):
                circular = BORDERS[int(plan.rows[row, 0])] == "circular"
                pair = MapOutputs(outputs[row][:, None], reference[plan.images[row]], plan.steps[row][:, None], circular)
                similarity[place] = pixel_agreements(pair)[0, 0]
        return similarity.double(), plan.rows[rows], outputs[rows]


def _changed_in_grid(mode: Mode, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return, at each image's worst shift of a grid, its similarity, its row as in a plan, and its output."""
    similarity = cosine(outputs.values, outputs.reference[:, None].expand_as(outputs.values))
    worst = similarity.argmin(dim=1)
    images = torch.arange(len(worst))
    border = torch.full((len(worst), 1), float(BORDERS.index(mode)), dtype=torch.float64)
    rows = torch.cat([border, images[:, None].double(), outputs.shifts.double()[worst]], dim=1)
    return similarity[images, worst].double(), rows, outputs.values[images, worst]


class _GridOutputs:
    """Outputs under every shift of a grid. The engine reads the model's graph once; each block decides for itself."""

    def __init__(self, model: CountedModel, at: Grid, framing: Framing, batch_size: int | None) -> None:
        self.model, self.mode, self.framing, self.batch_size = model, at[0], framing, batch_size
        self.reach, self.shifts = at[1], grid(at[1])
        self._runner: Runner | None = None

    def __call__(self, images: Tensor, *, seed: int) -> Outputs:
        """Return the outputs of a block under every shift; the seed draws what dense is compared on."""
        if self._runner is None:
            self._runner = open_runner(
                self.model.for_engine(),
                images,
                self.shifts,
                mode=self.mode,
                batch_size=self.batch_size,
                device=self.model.device,
                fill=torch.tensor(self.framing.fill),
            )
        self._runner.direct.channels_last = self.model.channels_last
        return self._runner(images, self.shifts, seed=seed)

    def radii(self, outputs: Outputs, images: Tensor) -> Tensor:
        """Return the radius of each image from its outputs; what is too close to call runs through the model again."""
        assert self._runner is not None  # it computed the outputs
        return radii_from(outputs, self._runner, images, ShiftGrid(self.reach)).radii.to(torch.int16)


def _pixel_classes(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the top class of each pixel of the input; maps of another size are enlarged bilinearly first."""
    if tuple(maps.shape[2:]) != size:
        maps = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps.max(dim=1).indices  # in less than half the time of argmax
