"""Everything about one model: what its graph guarantees, what shifts cost by cause and by layer, and which fix to try."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from shlex import quote
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope.display import Shown
from shiftscope.engine.answers import answers_of, output_warnings
from shiftscope.engine.batches import Images, Labels, gather, input_size
from shiftscope.engine.checks import check_classes, check_images, check_labels, check_model, device_of, evaluating, unwrapped
from shiftscope.engine.dependence import model_warnings
from shiftscope.engine.framing import Border, Shifting
from shiftscope.engine.task_trials import returns_embeddings, task_for
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.causes import Causes, causes_of
from shiftscope.explanations.guarantee import Guarantee, describe, guarantee_of
from shiftscope.explanations.layers import BATCH, Layers, layer_responses
from shiftscope.explanations.ranking import Fixes, try_fixes
from shiftscope.explanations.task_explanation import TaskExplanation, explain_task
from shiftscope.explanations.trial import Trial, draw_shifts
from shiftscope.explanations.wording import fix_sentence, short_verdict
from shiftscope.graphs.geometry import read_geometry
from shiftscope.graphs.tokens import read_tokens
from shiftscope.runtime.progress import Report, silent
from shiftscope.tables import Summary, Table
from shiftscope.tasks import Task, Truth

__all__ = ["Explanation", "explain"]

#: A terminal shows so many layers, and so many fixes.
LAYERS, FIXES = 4, 3


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """Why a model's outputs change under shifts.

    Attributes:
        name: of the model.
        similarity: mean cosine between the outputs before and after a shift.
        guarantee: what the model's graph guarantees.
        causes: the loss, 1 - mean cosine, by cause.
        layers: how every layer responds to shifts.
        fixes: what each fix would gain.
        settings: how it was measured, name -> value.
        notes: what a reader needs to know about the images.
        warnings: reasons why the numbers say little about the model.
    """

    json_file: ClassVar[str] = "explanation"
    table_files: ClassVar[tuple[str, ...]] = ("causes", "layers", "fixes")

    name: str
    similarity: Estimate
    guarantee: Guarantee
    causes: Causes
    layers: Layers
    fixes: Fixes
    settings: dict[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What makes the result say little, the main cause, the layer where similarity falls most, the fix to try first."""
        found = (*self.warnings, self.causes.verdict, self._layer_sentence(), self._fix_sentence())
        return " ".join(text for text in found if text)

    def words(self) -> str:
        """Return the verdict."""
        return self.verdict

    def table(self) -> Table:
        """Return the loss by cause, with the verdict and the guarantee in the notes."""
        table = self.causes.table()
        graph = describe(self.guarantee.geometry) if self.guarantee.geometry is not None else ""
        notes = (self.verdict, graph, self.guarantee.sentence, self.guarantee.exact_at, *self.notes, *table.notes[1:])
        title = f"{self.name}: mean cosine {self.similarity}; what shifts cost, by cause"
        return Table(title, table.columns, table.rows, tuple(filter(None, notes)), self.settings)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of causes, of layers and of fixes."""
        return self.table(), self.layers.table(), self.fixes.table()

    def summary(self) -> Summary:
        """Return the result for a terminal: the verdict, causes, the layers where most is lost, fixes, and the next command."""
        causes, layers, fixes = self.causes.table().narrowed(), self.layers.falls(LAYERS), self.fixes.table().narrowed()
        causes = replace(causes, rows=tuple(row for row in causes.rows if not str(row["cause"]).startswith("of ")), notes=())
        works = [each for each in self.fixes.ranked if each.works]
        fixes = replace(fixes, rows=fixes.rows[: min(FIXES, len(works))], notes=())
        images, shifts, border = (self.settings[name] for name in ("images", "shifts of each image", "border"))
        return Summary(
            " ".join(self.warnings)
            + " " * bool(self.warnings)
            + short_verdict(
                self.similarity,
                self.settings["largest shift"],
                self.causes.before,
                self.causes.causes,
                self.fixes,
                main=self.causes.main,
                status=self.guarantee.status,
            ),
            tuple(table for table in (causes, layers, fixes) if table.rows),
            (
                *self.notes,
                f"Loss: 1 - mean cosine ({images} images, {shifts} shifts each, border {border}, 95 % intervals)."
                + (" Audits with border zero give other numbers." if border == "crop" else "")
                + (" Fixes: most loss removed for their multiply-adds first." if len(fixes.rows) > 1 else "")
                + " --wide: all.",
            ),
            (works[0].command,) if works else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Return verdict, guarantee and tables as plain data."""
        geometry = self.guarantee.geometry
        graph: dict[str, Any] = {
            "status": self.guarantee.status,
            "sentence": self.guarantee.sentence,
            "exact_at": self.guarantee.exact_at,
        }
        if geometry is not None:
            graph |= {
                "factor": None if geometry.basis == "unknown" else list(geometry.factor),
                "factor_from": geometry.basis,
                "receptive_field": list(geometry.last.receptive_field),
                "receptive_field_from": geometry.field_basis,
                "head": geometry.head,
                "borders": geometry.borders,
                "subsamplings": [asdict(each) for each in geometry.subsamplings],
            }
        causes, layers, fixes = (table.to_json() for table in self.tables())
        return {
            "model": self.name,
            "verdict": self.verdict,
            "main_cause": self.causes.main,
            "similarity": asdict(self.similarity),
            "graph": graph,
            "causes": causes,
            "layers": layers,
            "fixes": fixes,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "settings": self.settings,
        }

    def _layer_sentence(self) -> str:
        worst = next(iter(self.layers.falls(1).rows), None)
        if worst is None or not self.causes.main:
            return ""
        after, fall = worst["similarity"], worst["fall"]
        assert isinstance(after, Estimate)
        assert isinstance(fall, float)
        return (
            f"The similarity of feature maps falls most at `{worst['layer']}` ({worst['kind']}), "
            f"from {after.value + fall:.3f} to {after.value:.3f}."
        )

    def _fix_sentence(self) -> str:
        return fix_sentence(self.fixes) if self.causes.main else ""


def explain(
    model: nn.Module,
    images: Images,
    labels: Labels | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    max_shift: int | None = None,
    shifts: int = 4,
    mode: Border | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    embedding: bool = False,
    task: Task | str | None = None,
    truth: Truth | None = None,
    output: str | int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    device: torch.device | str | None = None,
    name: str = "MODEL",
    arguments: str = "",
    savable: bool = True,
    report: Report = silent,
) -> Explanation | TaskExplanation:
    """Explain why a model's outputs change under shifts, by cause and by layer, and which fix to try first.

    Every number is a mean over images with a 95 % interval. Each image has its own shifts, and the model, its copies without one
    cause, and its copies with a fix are all measured under the same ones. Nothing is trained, and the model is not changed.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class], or what a task reads.
        images: unshifted images, canvas included; at least 2. Or a DataLoader, a list or another iterable of batches, each a
            tensor of images or a pair (images, labels).
        labels: class of each image, for the accuracy with each fix, where the batches do not hold them.
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        max_shift: the largest shift along an axis, pixels; by default 8, or what larger images leave around the input, or an
            eighth of the input, if that is less.
        shifts: number of shifts of each image, drawn uniformly without the zero shift.
        mode: what comes in at the border: the ``fill`` (``zero``), what larger images hold there (``crop``), or what left on the
            other side (``circular``). By default ``crop`` for larger images, else ``zero``.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        embedding: whether outputs are not class scores; labels are then ignored.
        task: what the outputs are: a name of :data:`shiftscope.tasks.TASKS`, with settings as in ``boxes:threshold=0.3``, or a
            task. By default detected: classes, maps of classes, or the task that recognises them.
        truth: ground truth of each image, as the task takes it.
        output: name or position of the output that the task reads, of a model with several.
        seed: draws the shifts.
        batch_size: images a forward pass.
        device: where to compute; the model's own by default.
        name: of the model, for titles.
        arguments: of the command line that name the same model and images, for the commands that are recommended; by default the
            name.
        savable: whether ``shiftscope fix`` can save a copy of the model, for these commands.
        report: called with progress events.

    Returns:
        the explanation. For a model that ``torch.fx`` cannot trace it holds measured results only, and the reason. Of a task,
        that of :func:`shiftscope.explanations.task_explanation.explain_task`.

    Raises:
        InputError: there are fewer than 2 images, the labels are not one an image, a shift is larger than the image, or what
            :func:`shiftscope.explanations.layers.layer_responses` says.

    >>> convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    >>> model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)).eval()
    >>> explain(model, torch.rand(8, 1, 10, 10), mode="circular", max_shift=2).causes.main
    'head'
    """
    model = unwrapped(model)
    size = input_size(images, size)
    images, labels = gather(images, labels)
    embedding = embedding or (task is None and returns_embeddings(model, output))
    labels = None if embedding else labels
    _check(model, images, labels, shifts, mode)
    under = Shifting(size, max_shift, mode, fill, seed)
    framed = under.frame(images)
    found = task_for(model, under.unshifted(images[:1]), task, output=output, embedding=embedding)
    if found is not None:
        return explain_task(
            model,
            found,
            images,
            under,
            shifts=shifts,
            truth=labels if truth is None and found.takes_labels else truth,
            output=output,
            device=device,
            name=name,
            arguments=arguments,
            savable=savable,
            report=report,
        )
    check_labels(labels)
    if truth is not None:
        raise InputError("`truth` is ground truth for a task, but the output does not tell which.", "Name it with `task`.")
    if model.training:
        warnings.warn("the model is in training mode; it is evaluated, and returned to training mode.", stacklevel=2)
    steps = draw_shifts(len(images), shifts, framed.max_shift, torch.Generator().manual_seed(seed))
    trial = Trial(framed.images, steps, framed.mode, fill, labels, batch_size, device, report, framed.size)
    with evaluating(model):
        explained = _explain_classes(model, trial, seed, name, arguments or quote(name), savable=savable, classes=not embedding)
    return replace(explained, settings=framed.settings(shifts, seed))


def _explain_classes(
    model: nn.Module, trial: Trial, seed: int, name: str, arguments: str, *, savable: bool, classes: bool
) -> Explanation:
    """Explain a model in evaluation mode that returns a vector for each image, without the settings."""
    geometry = read_geometry(model, trial.image)
    guarantee = guarantee_of(model, geometry=geometry, image=trial.image)
    measured = trial.measure(model, "the unchanged model")
    check_classes(trial.labels, measured.reference.shape[1])
    tokens = read_tokens(model, trial.inputs[:1].to(device_of(model)))
    layers = layer_responses(
        model,
        trial.images,
        trial.shifts,
        mode=trial.mode,
        fill=trial.fill,
        size=trial.size,
        geometry=geometry,
        batch_size=max(2, trial.batch_size or BATCH),
        device=trial.device,
        report=trial.report,
    )
    causes = causes_of(model, trial, guarantee.geometry, measured, tokens=tokens, seed=seed)
    fixes = try_fixes(
        model, trial, guarantee.geometry, measured, tokens=tokens, arguments=arguments, classes=classes, savable=savable
    )
    of_outputs = output_warnings(answers_of(measured.reference), classes=classes)
    doubts = (*model_warnings(model, trial.inputs, fill=trial.fill), *of_outputs)
    similarity = mean(1 - measured.loss, bounds=(-1.0, 1.0))
    return Explanation(name, similarity, guarantee, causes, layers, fixes, {}, warnings=doubts)


def _check(model: object, images: Tensor, labels: Tensor | None, shifts: int, mode: str | None) -> None:
    """Raise InputError unless all of them can be used."""
    check_model(model)
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.", "Wrap it in one.")
    if len(images) < 2:
        raise InputError(f"`images` must hold 2 or more images, so that intervals can be computed, got {len(images)}.")
    check_images(images)
    if labels is not None and len(labels) != len(images):
        raise InputError(f"`labels` must hold one label per image, got {len(labels)} for {len(images)} images.")
    if mode is not None and mode not in get_args(Border):
        raise InputError(f"`mode` must be 'zero', 'crop' or 'circular', got {mode!r}.")
    if shifts < 1:
        raise InputError(f"`shifts` must be 1 or more an image, got {shifts}.")
