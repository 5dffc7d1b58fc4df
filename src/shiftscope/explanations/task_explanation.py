"""Why a task's answers change under shifts (boxes, maps, vectors, labels): by cause, by layer, by lattice, and by fix.

What cannot be read is unknown, with the reason, and the rest is measured: layers with hooks, which need no graph, and the lattice
with shifts alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from shlex import quote
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shiftscope.display import Shown
from shiftscope.engine.checks import evaluating
from shiftscope.engine.dependence import model_warnings
from shiftscope.engine.framing import Shifting
from shiftscope.engine.task_trials import TaskTrial, TaskValues, graded
from shiftscope.errors import InputError, UntraceableError
from shiftscope.estimates import Estimate
from shiftscope.explanations.lattice import ROUNDING, Lattice, lattice_of
from shiftscope.explanations.layers import BATCH, Layers, layer_responses
from shiftscope.explanations.task_causes import TaskCauses, task_causes
from shiftscope.explanations.task_ranking import TaskFixes, try_task_fixes
from shiftscope.explanations.trial import draw_shifts
from shiftscope.explanations.wording import has_largest_part, no_largest_part, number, which_is_larger
from shiftscope.graphs.geometry import Geometry, read_geometry
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, silent
from shiftscope.tables import Summary, Table, percent, plus_minus
from shiftscope.tasks import Task, Truth

__all__ = ["TaskExplanation", "explain_task"]

#: A terminal shows so many layers, and so many fixes.
LAYERS, FIXES = 4, 3
#: A factor that is read from the sizes of maps is at most this, pixels.
LARGEST_FACTOR = 32
#: A share up to so much above 1 is 1.
ROUNDED = 0.02


@dataclass(frozen=True, repr=False)
class TaskExplanation(Shown):
    """Why a task's answers change under shifts.

    Attributes:
        name: of the model.
        task: what the outputs are.
        lead: the task's leading measure under the shifts; None where no image has a value.
        causes: the change by cause.
        lattice: the change on and off the lattice of the stride.
        layers: how every layer's maps respond to shifts; None where they cannot be compared.
        fixes: what each fix would gain.
        unread: why the model's graph cannot be traced; empty where it can.
        settings: how it was measured, name -> value.
        notes: what a reader needs to know.
        warnings: reasons why the numbers say little about the model.
    """

    json_file: ClassVar[str] = "explanation"
    table_files: ClassVar[tuple[str, ...]] = ("causes", "lattice", "layers", "fixes")

    name: str
    task: Task
    lead: Estimate | None
    causes: TaskCauses
    lattice: Lattice
    layers: Layers | None
    fixes: TaskFixes
    unread: str
    settings: dict[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The leading measure, the main cause, the lattice, the layer where most is lost, and the fix to try first."""
        found = [*self.warnings, self.headline]
        if self.lead is not None and not self.nothing_changes:
            found += [self.lattice.sentence(), self.layer_sentence(), self.fixes.sentence()]
        return " ".join(filter(None, found))

    @property
    def headline(self) -> str:
        """The leading measure and the main cause."""
        if self.lead is None:
            return self.task.nothing() or "No image has a value for the leading measure."
        cause = "Nothing changes under these shifts." if self.nothing_changes else self._cause_sentence()
        return " ".join(filter(None, (self._lead_sentence(), cause)))

    @property
    def nothing_changes(self) -> bool:
        """Whether the shifts change no answer."""
        total = self.causes.total
        return total is not None and total.value < ROUNDING

    def words(self) -> str:
        """Return the verdict."""
        return self.verdict

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of causes, of the lattice, of layers, and of fixes."""
        causes = self.causes.table()
        notes = tuple(filter(None, (self.verdict, self.measure_words(), *self.notes, *causes.notes)))
        first = replace(causes, title=f"{self.name}: {causes.title[:1].lower()}{causes.title[1:]}", notes=notes)
        layers = self.layers.table() if self.layers is not None else Table("Every layer's response to shifts", (), ())
        return replace(first, provenance=self.settings), self.lattice.table(), layers, self.fixes.table()

    def summary(self) -> Summary:
        """Return the result for a terminal: the verdict, causes, lattice, layers where most is lost, fixes, the next command."""
        causes, fixes = replace(self.causes.table().narrowed(), notes=()), self.fixes.table().narrowed()
        works = [each for each in self.fixes.ranked if each.works]
        fixes = replace(fixes, rows=fixes.rows[: min(FIXES, len(works))], notes=())
        layers = self.layers.falls(LAYERS) if self.layers is not None else Table("", (), ())
        shown = (causes, replace(self.lattice.table(), notes=()), layers, fixes) if self.lead is not None else (layers,)
        notes = (*self.notes, self.measure_words(), self.lattice.period.words() if self.lead is not None else "")
        command = works[0].command if works else ""
        return Summary(
            self.verdict, tuple(table for table in shown if table.rows), tuple(filter(None, notes)), (command,) if command else ()
        )

    def to_json(self) -> dict[str, Any]:
        """Return verdict and tables as plain data."""
        tables = dict(zip(self.table_files, (table.to_json() for table in self.tables()), strict=True))
        period = self.lattice.period
        return {
            "model": self.name,
            "task": self.task.name,
            "measure": graded(self.task),
            "verdict": self.verdict,
            "main_cause": self.causes.main,
            "value": None if self.lead is None else asdict(self.lead),
            "factor": None if self.causes.factor is None else list(self.causes.factor),
            "period": period.pixels,
            "graph": self.unread or "traced",
            **tables,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "settings": self.settings,
        }

    def measure_words(self) -> str:
        """Return what the change is, and over how many images and shifts it is measured."""
        measure = MEASURES[graded(self.task)]
        how = "1 less the " if measure.better == "more" else "the "
        return (
            f"Change: {how}{measure.label} ({measure.sentence.rstrip('.')}); {self.settings['images']} images, "
            f"{self.settings['shifts of each image']} shifts each, 95 % intervals."
        )

    def _lead_sentence(self) -> str:
        assert self.lead is not None
        reach = self.settings["largest shift"]
        moved = f"by up to {'1 pixel' if reach == '1 pixels' else reach}"
        moved += {"circular": ", circularly", "crop": " in the frame"}.get(self.settings["border"], "")
        sentence = self.task.words(percent(self.lead), plus_minus(self.lead), moved)
        label = MEASURES[self.task.measures[0]].label
        return sentence or f"{label[:1].upper()}{label[1:]} when images move {moved}: {plus_minus(self.lead)}."

    def _cause_sentence(self) -> str:
        main = self.causes.main_cause
        others = [each for each in self.causes.causes if each is not main]
        if main is not None and main.part is not None and not has_largest_part(main.part, [each.part for each in others]):
            return no_largest_part(main.name, number(main.part), main.part.count)
        if main is not None and main.share is not None:
            about = "what no step removes" if main.name == "other" else main.phrase
            if main.name == "aliasing" and self.causes.factor is not None:
                about += f": with circular borders it is gone at multiples of {max(self.causes.factor)} pixels"
            value = percent(_as_share(main.share)) if main.share.value <= 1 + ROUNDED else "The largest part"
            what = MEASURES[graded(self.task)]
            change = f"the {what.label}" if what.better == "less" else "the change"
            total = "" if self.causes.total is None else f" ({self.causes.total.value:.3g})"
            return f"{value} of {change}{total} is due to {about}. {which_is_larger(main, others)}".strip()
        unknown = next((each for each in self.causes.causes if each.part is None), None)
        return f"By cause: unknown, because {unknown.reason}." if unknown is not None else ""

    def layer_sentence(self) -> str:
        """Return the layer where the similarity of feature maps falls most; empty without one."""
        worst = next(iter(self.layers.falls(1).rows), None) if self.layers is not None else None
        if worst is None:
            return ""
        after, fall = worst["similarity"], worst["fall"]
        assert isinstance(after, Estimate)
        assert isinstance(fall, float)
        return (
            f"The similarity of feature maps falls most at `{worst['layer']}` ({worst['kind']}), "
            f"from {after.value + fall:.3f} to {after.value:.3f}."
        )


def explain_task(
    model: nn.Module,
    task: Task,
    images: Tensor,
    under: Shifting,
    *,
    shifts: int = 4,
    truth: Truth | None = None,
    output: str | int | None = None,
    device: torch.device | str | None = None,
    name: str = "MODEL",
    arguments: str = "",
    savable: bool = True,
    report: Report = silent,
) -> TaskExplanation:
    """Explain why a task's answers change under shifts.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> what the task reads.
        task: what the outputs are.
        images: unshifted images, canvas included; at least 2.
        under: how images are shifted.
        shifts: number of shifts of each image.
        truth: ground truth of each image, as the task takes it; None without.
        output: name or position of the output that the task reads, of a model with several.
        device: where to compute; the model's own by default.
        name: of the model, for titles.
        arguments: of the command line that name the model, the images and the task; by default the name.
        savable: whether ``shiftscope fix`` can save a copy of the model.
        report: called with progress events.

    Raises:
        InputError: the model fails, its outputs or the truth are not the task's, or a shift does not fit.
    """
    if truth is not None and len(truth) != len(images):
        raise InputError(f"`truth` must hold one for each of {len(images)} images, got {len(truth)}.", "Give them in order.")
    framed = under.frame(images)
    steps = draw_shifts(len(images), shifts, framed.max_shift, torch.Generator().manual_seed(under.seed))
    trial = TaskTrial(task, framed.images, steps, framed.size, framed.mode, under.fill, truth, output, device, report)
    with evaluating(model), torch.no_grad():
        found = trial.measure(model, "the unchanged model")
        reading = read_geometry(model, trial.image)
        geometry = reading if isinstance(reading, Geometry) else None
        layers, why = _layers(model, trial, reading)
        factor, source, sure = _factor(geometry, layers, trial.size)
        known = found.change(task).isfinite()
        causes = task_causes(model, trial, found, factor, traced=geometry is not None, seed=under.seed)
        if not sure and not causes.followed:
            factor, causes = None, replace(causes, factor=None)
        lattice = lattice_of(model, trial, None if factor is None else max(factor), source, traced=geometry is not None)
        fixes = try_task_fixes(model, trial, found, geometry, arguments=arguments or quote(name), savable=savable)
    lead = MEASURES[task.measures[0]].estimate(found.means(task.measures[0])[known]) if known.any() else None
    unread = str(reading).rstrip(".") if isinstance(reading, UntraceableError) else ""
    return TaskExplanation(
        name=name,
        task=task,
        lead=lead,
        causes=causes,
        lattice=lattice,
        layers=layers,
        fixes=fixes,
        unread=unread,
        settings={**framed.settings(shifts, under.seed), "task": task.name},
        notes=tuple(_notes(known, unread, why)),
        warnings=(*model_warnings(model, trial.inputs, fill=trial.fill), *task.doubts(found.answered), *_warnings(found)),
    )


def _as_share(found: Estimate) -> Estimate:
    """Return a share that another cause of the opposite sign lifts a little above 1 as one of at most 1."""
    value, low, high = (min(max(each, 0.0), 1.0) for each in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.count)


def _warnings(found: TaskValues) -> Iterable[str]:
    if found.alike:
        yield "All images get the same answer, so that their stability says nothing about the model."


def _notes(known: Tensor, unread: str, why: str) -> Iterable[str]:
    if not known.all() and known.any():
        yield f"{int((~known).sum())} of {len(known)} images have no value, and are left out."
    if unread:
        yield "The model's graph cannot be traced: layers were found by running the model, and are compared with hooks."
    if why:
        yield f"By layer: unknown, because {why}."


def _layers(model: nn.Module, trial: TaskTrial, reading: Any) -> tuple[Layers | None, str]:
    """Return how every layer's maps respond; or None, and why not."""
    try:
        return layer_responses(
            model,
            trial.images,
            trial.shifts,
            mode=trial.mode,
            fill=trial.fill,
            size=trial.size,
            geometry=reading,
            outputs=False,
            batch_size=min(BATCH, 16 if max(trial.size) > 96 else BATCH),
            device=trial.device,
            report=trial.report,
        ), ""
    except InputError as error:
        return None, error.problem.rstrip(".")


def _factor(geometry: Geometry | None, layers: Layers | None, size: tuple[int, int]) -> tuple[tuple[int, int] | None, str, bool]:
    """Return the subsampling factor along height and width, where it comes from, and whether it is sure without a trial.

    Of sizes of maps it is sure if the image's size is a multiple of it: otherwise the model may resize its input, or cut it.
    """
    if geometry is not None and geometry.basis != "unknown":
        return geometry.lattice, f"The step is the subsampling factor of the model's graph ({max(geometry.lattice)}).", True
    found = [(each.factor, each.size) for each in layers.layers[1:] if each.factor is not None] if layers is not None else []
    fits = [
        each for each in found if max(each[0]) <= LARGEST_FACTOR and all(2 * f <= s for f, s in zip(each[0], size, strict=True))
    ]
    if not fits:
        return None, "", True
    largest, positions = max(fits, key=lambda each: max(each[0]))
    sure = all(f * count == side for f, count, side in zip(largest, positions, size, strict=True))
    return largest, f"The step is the largest factor that the sizes of the maps show ({max(largest)}).", sure
