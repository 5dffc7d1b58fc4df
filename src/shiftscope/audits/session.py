"""``audit``: measure how stable any model is, by several protocols in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from shiftscope.audits.blocks import check_block, count_views, in_blocks
from shiftscope.audits.measuring import Measurer, OutputKind
from shiftscope.audits.model import CountedModel, chosen_task, model_checksum
from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.protocols import Protocol, find_protocols
from shiftscope.audits.results import Audit, assemble
from shiftscope.audits.sequences import is_sequence
from shiftscope.audits.task_measuring import TaskMeasurer
from shiftscope.audits.views import Framing, framing_of
from shiftscope.audits.wording import map_words
from shiftscope.engine.answers import LOOKED_AT, image_warnings
from shiftscope.engine.batches import Images, Labels, batches_of, images_in, input_size
from shiftscope.engine.checks import check_classes, check_model, device_of, evaluating
from shiftscope.engine.dependence import dependence_warnings
from shiftscope.engine.framing import Border, check_max_shift
from shiftscope.engine.passes import Pace
from shiftscope.engine.task_trials import returns_embeddings
from shiftscope.errors import InputError
from shiftscope.runtime.files import checksum
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.provenance import provenance
from shiftscope.tasks import Task, Truth, find_task

__all__ = ["AuditOptions", "Session", "audit", "block_size"]

#: The protocols by default, by the kind of output.
DEFAULTS: dict[OutputKind, tuple[str, ...]] = {
    "classes": ("mouton2020", "zhang2019", "chaman2021-circular", "azulay2018"),
    "vectors": ("mouton2020",),
    "maps": ("segmentation",),
    "task": ("mouton2020", "chaman2021-circular", "azulay2018"),
}
#: The exhaustive map, which is a default too if the input is at most so large.
SENSITIVITY_MAP, SMALL = "myburgh2021", 64
#: Images per block, of inputs up to ``LARGE`` pixels and of larger ones. Only the last bits of outputs depend on it.
BLOCK, BLOCK_OF_LARGE, LARGE = 64, 16, 96
#: Rounding of a length of 1.
UNIT = 1e-4


@dataclass(frozen=True)
class AuditOptions:
    """How to audit a model: the keywords of :func:`audit`, which describes them; truth may wait for the task that reads it."""

    protocols: Sequence[str | Protocol] | None = None
    max_shift: int | None = None
    mode: Border | None = None
    size: int | tuple[int, int] | None = None
    fill: float | Sequence[float] = 0.0
    mean: Sequence[float] | None = None
    output: str | int | None = None
    embedding: bool = False
    seed: int = 0
    batch_size: int | None = None
    device: torch.device | str | None = None
    task: str | Task | None = None
    truth: Truth | Callable[[Task], Truth] | None = None


def audit(
    model: Callable[[Tensor], Any],
    images: Images,
    labels: Labels | None = None,
    *,
    protocols: Sequence[str | Protocol] | None = None,
    max_shift: int | None = None,
    mode: Border | None = None,
    size: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] = 0.0,
    mean: Sequence[float] | None = None,
    output: str | int | None = None,
    embedding: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    task: str | Task | None = None,
    truth: Truth | None = None,
    report: Report = silent,
) -> Audit:
    """Measure how stable a model is under shifts, by several protocols in one pass.

    The distinct views that all protocols need run once. Memory grows with the images only by a few numbers per image.

    Args:
        model: any callable from images [image, channel, height, width] in [0, 1] to classes [image, class] before the softmax, to
            embeddings [image, feature], or to segmentation maps [image, class, height, width]; or to a mapping, a tuple or an
            object with several of these; or to anything that a task reads.
        images: a tensor; or a DataLoader, a list or another iterable of batches, each a tensor of images or a pair (images,
            labels), of which one block at a time is in memory.
        labels: classes of all images, in order, where the batches do not hold them.
        protocols: names of :data:`shiftscope.audits.protocols.PROTOCOLS`, or protocols; by default those that suit the output.
        max_shift: the largest shift of all protocols, pixels; by default each one's own.
        mode: what comes in at the border, ``zero``, ``crop`` or ``circular``: measure only protocols that say so. By default all.
        size: (height, width) of the model's input; crops are cut from larger images. By default as opened, or that of the images.
        fill: the canvas's colour in [0, 1], one value or one per channel.
        mean: the mean colour in [0, 1], one value per channel, for protocols that fill with it.
        output: name or position of the output to measure, if the model returns several.
        embedding: whether outputs are not classes; then only cosines are measured.
        seed: of the random shifts.
        batch_size: images per forward pass.
        device: where to compute; the model's own by default.
        task: what the outputs are: a name of :data:`shiftscope.tasks.TASKS`, with settings as in ``segmentation:ignored=0``, or a
            task. By default detected: classes, maps of classes, or the task that recognises them.
        truth: ground truth of each image, by its index, as the task takes it.
        report: called with each :class:`shiftscope.runtime.progress.Stage`.

    Raises:
        InputError: there is no image, or images are integers or not finite; the model fails on them, or returns NaN or what
            cannot be measured; labels do not fit; a protocol is unknown or cannot be measured here.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> found = audit(model.eval(), torch.rand(20, 1, 16, 16), protocols=["mouton2020", "chaman2021-circular"])
    >>> [(row.protocol, row.measure) for row in found.rows]
    [('mouton2020', 'mcs'), ('mouton2020', 'top1_change'), ('chaman2021-circular', 'all_agree')]
    >>> found.cost.forward == found.cost.distinct < found.cost.asked
    True
    """
    batches = batches_of(images, labels)
    first = next(batches, None)
    if first is None or len(first[0]) == 0:
        raise InputError("`images` must hold at least one image, got none.", "Give some.")
    size = input_size(images, size)
    options = AuditOptions(protocols, max_shift, mode, size, fill, mean, output, embedding, seed, batch_size, device, task, truth)
    if truth is not None and isinstance(images, Tensor) and len(truth) != len(images):
        raise InputError(
            f"`truth` must hold one entry for each of {len(images)} images, got {len(truth)}.", "Give them in order."
        )
    session = Session.start(model, first[0][:1], options, labelled=first[1] is not None)
    some = first[0][:LOOKED_AT]
    found = (*session.dependence(some[:1]), *image_warnings(model, session.framing.centre(some), fill=fill))
    seen: list[str] = []
    merged = merge_parts(_parts(session, chain([first], batches), seen, images_in(images, labels), report))
    facts = {**session.facts, "data_sha256": sha256("".join(seen).encode()).hexdigest(), "seed": str(seed)}
    return session.result(merged, provenance={**facts, **provenance(session.measurer.model.device)}, warnings=found)


def block_size(size: Sequence[int]) -> int:
    """Return how many images of (height, width) are measured together."""
    return BLOCK if max(size) <= LARGE else BLOCK_OF_LARGE


@dataclass(frozen=True)
class Session:
    """An audit in progress: it measures blocks of images, in any order.

    Attributes:
        measurer: measures a block.
        framing: how the model's input is cut from the images.
        kind: of the model's outputs.
        classes: length of an output.
        shape: (channels, height, width) of the images, margin included.
        notes: what a reader needs to know.
        task: that reads the outputs; None for classes, vectors and maps.
    """

    measurer: Measurer | TaskMeasurer
    framing: Framing
    kind: OutputKind
    classes: int
    shape: tuple[int, ...]
    notes: tuple[str, ...]
    task: Task | None = None

    @classmethod
    def start(
        cls,
        model: Callable[[Tensor], Any],
        example: Tensor,
        options: AuditOptions,
        *,
        labelled: bool,
        classes: int | None = None,
    ) -> Session:
        """Start an audit.

        Args:
            model: as :func:`audit` takes it.
            example: [1, channel, height, width], one of the images; the model runs on it once, to see what it returns.
            options: how to audit.
            labelled: whether the images have labels.
            classes: number of classes of the labels, if known. If the model has another number, the audit ignores the labels, and
                a note says so.

        Raises:
            InputError: see :func:`audit`.
        """
        if options.batch_size is not None and options.batch_size < 1:
            raise InputError(
                f"`batch_size` must be 1 or more images, got {options.batch_size}.", "Leave it out to choose automatically."
            )
        check_block(example, tuple(example.shape[1:]))
        if options.task is None and returns_embeddings(model, options.output):
            options = replace(options, embedding=True)
        framing = framing_of(example, options.size, options.fill, options.mean)
        check_model(model)
        device = device_of(model, options.device)
        counted = CountedModel(model, output=options.output, device=device)
        with counted.counting(), evaluating(model), torch.no_grad():
            raw = counted.raw(framing.centre(example))
            task = _task(counted, raw, options, framing) or _task_of_pan(counted, raw, options)
        if task is not None:
            ignored = task.ignores_labels(classes) if labelled and options.truth is None else ""
            return cls._of_task(counted, task, framing, options, tuple(example.shape[1:]), labelled=labelled, ignored=ignored)
        output = counted.checked(raw, 1)
        kind: OutputKind = "maps" if output.ndim == 4 else "vectors" if options.embedding else "classes"
        mismatch = _label_mismatch(kind, output.shape[1], classes) if labelled else ""
        protocols = _protocols(options, kind, framing)
        measurer = Measurer(
            counted, protocols, framing, kind=kind, labelled=labelled and not mismatch, batch_size=options.batch_size
        )
        doubt = _unit_length(output) if kind == "classes" else map_words(*output.shape[1:]) if kind == "maps" else ""
        notes = (mismatch, doubt, *_notes(protocols, framing, kind))
        return cls(measurer, framing, kind, output.shape[1], tuple(example.shape[1:]), tuple(note for note in notes if note))

    @classmethod
    def _of_task(
        cls,
        model: CountedModel,
        task: Task,
        framing: Framing,
        options: AuditOptions,
        shape: tuple[int, ...],
        *,
        labelled: bool,
        ignored: str,
    ) -> Session:
        truth = options.truth(task) if callable(options.truth) else options.truth
        protocols = _protocols(options, "task", framing)
        if truth is not None and not (task.truth_measures or task.total_measures):
            raise InputError(f"task {task.name!r} takes no ground truth.", "Leave it out.")
        labelled = labelled and not ignored
        measurer = TaskMeasurer(model, task, protocols, framing, truth=truth, labelled=labelled, batch_size=options.batch_size)
        notes = [ignored] if ignored else []
        if "retrieval" in task.measures:
            block = block_size(framing.size)
            notes.append(
                f"Retrieval and ranks search the unshifted images of a block of up to {block}, not all images: with "
                "more or fewer to search they differ."
            )
        return cls(measurer, framing, "task", 0, shape, (*notes, *_notes(protocols, framing, "task")), task)

    @property
    def facts(self) -> dict[str, str]:
        """What is measured, name -> value."""
        canvas = " ".join(f"{value:.3g}" for value in self.framing.fill)
        size = "x".join(map(str, (self.shape[0], *self.framing.size)))
        return {"input": size, "canvas": canvas, "model_sha256": model_checksum(self.measurer.model.model)}

    @property
    def takes_labels(self) -> bool:
        """Whether class labels can be compared with the outputs."""
        return self.kind == "classes" or (self.task is not None and self.task.takes_labels)

    def dependence(self, image: Tensor) -> tuple[str, ...]:
        """Return a warning if outputs depend on more than the image, [1, channel, height, width] with its margin."""
        model = self.measurer.model
        with model.counting(), evaluating(model.model):
            return dependence_warnings(model.raw, self.framing.centre(image), batches=self.measurer.batch_size != 1)

    def part(self, images: Tensor, labels: Tensor | None, *, indices: Tensor) -> Part:
        """Measure a block of images.

        Args:
            images: [image, channel, height, width] in [0, 1], margin included.
            labels: [image], their classes.
            indices: [image], of the images in the data, increasing.

        Raises:
            InputError: the images have another shape than the example, labels are not classes of the model, or the model fails.
        """
        check_block(images, self.shape)
        if self.measurer.labelled and self.task is None:
            check_classes(labels, self.classes)
        return self.measurer.part(images, labels, indices=indices)

    @cached_property
    def _views_of_an_image(self) -> int:
        return sum(count_views(self.measurer, 1))

    def reported_part(
        self, images: Tensor, labels: Tensor | None, *, indices: Tensor, done: tuple[int, int], total: int, report: Report
    ) -> Part:
        """Measure a block as :meth:`part` does, and report as many of its images as done as the share of its views that ran.

        Args:
            images: of the block.
            labels: of the images.
            indices: of the images.
            done: number of images before and after the block.
            total: number of all images; 0 where it is unknown.
            report: called with a stage twice a second, and after the block.
        """
        model, views = self.measurer.model, self._views_of_an_image * len(images)
        pace = Pace(report, "measuring images", views=views, done=done, total=total)
        model.seen = pace.add
        try:
            part = self.part(images, labels, indices=indices)
        finally:
            model.seen = None
        pace.end()
        return part

    def result(self, merged: Part, *, provenance: dict[str, str] | None = None, warnings: Sequence[str] = ()) -> Audit:
        """Return the audit.

        Args:
            merged: all parts, merged by :func:`shiftscope.audits.merge_parts`.
            provenance: how it was made, name -> value.
            warnings: reasons why the numbers may say little about the model.
        """
        protocols = self.measurer.protocols
        borders = {each.name: self.framing.border(each) for each in protocols}
        return assemble(
            merged,
            protocols,
            kind=self.kind,
            borders=borders,
            notes=self.notes,
            provenance=provenance,
            warnings=warnings,
            task=self.task,
        )


def _task(model: CountedModel, raw: Any, options: AuditOptions, framing: Framing) -> Task | None:
    """Return the task of an audit; None for classes, vectors and maps."""
    task = chosen_task(model, raw, options.task, framing.size, recognise=not options.embedding)
    if task is None and options.truth is not None:
        raise InputError("`truth` is ground truth for a task, but the output does not tell which.", "Name the task with --task.")
    return task


def _task_of_pan(model: CountedModel, raw: Any, options: AuditOptions) -> Task | None:
    """Return the task of maps of classes, or of vectors, of which only a task compares neighbours along a path; else None."""
    chosen = () if options.protocols is None or isinstance(options.protocols, str) else options.protocols
    if not any(isinstance(each, Protocol) and is_sequence(each) for each in chosen):
        return None
    name = "embedding" if options.embedding else "segmentation" if model.checked(raw, 1).ndim == 4 else ""
    return find_task(name) if name else None


def _label_mismatch(kind: OutputKind, outputs: int, classes: int | None) -> str:
    """Return why labels do not fit the model; empty if they do."""
    if kind != "classes":
        return "Labels are ignored: the model returns no classes."
    if classes is not None and outputs != classes:
        return f"Labels are ignored: the model has {outputs} classes, the data {classes}. Of features, pass `embedding`."
    return ""


def _unit_length(output: Tensor) -> str:
    """Return a note on outputs [image, class] that have length 1, as normalised features do; empty for others."""
    values = output.double()
    alike = ((values.norm(dim=1) - 1).abs() < UNIT).all() and values.shape[1] > 1
    if not alike or ((values >= 0).all() and ((values.sum(dim=1) - 1).abs() < UNIT).all()):
        return ""
    return "Outputs have length 1, as embeddings do, and are taken as class scores: if they are none, pass `embedding`."


def _notes(protocols: Sequence[Protocol], framing: Framing, kind: OutputKind) -> Iterator[str]:
    yield from (_pan_words(each, framing.border(each), kind) for each in protocols if each.name == "pan")
    if any(each.border == "crop" and each.name != "pan" and framing.border(each) == "zero" for each in protocols):
        yield "Images have no margin around the model's input, so crops are padded with the canvas's colour."
    if any(each.border == "mean" and framing.mean is None for each in protocols):
        yield "The mean colour is unknown; the canvas's colour replaces it."
    if kind == "vectors":
        yield "Outputs are embeddings: the audit measures cosines; task `embedding` also finds whether each is still nearest."


def _pan_words(protocol: Protocol, border: str, kind: OutputKind) -> str:
    """Return how frames of a pan are made, and how answers to them are moved back."""
    (dy, dx), frames = protocol.path[1], len(protocol.path)
    whole = all(float(part).is_integer() for part in (dy, dx))
    how = "" if whole else ", interpolated bilinearly" if border != "circular" else ", interpolated by the Fourier transform"
    filled = {"zero": "the canvas's colour comes in", "crop": "the photo around the input comes in"}.get(border, "circular")
    parts = "" if whole else ": of maps, the change also holds how much they differ from pixel to pixel"
    back = f" Boxes and points are moved back exactly, maps by the nearest whole pixel{parts}." if kind == "task" else ""
    return f"Pan: {frames} frames, each moved by ({dy:g}, {dx:g}) pixels (down, right) from the one before{how}; {filled}.{back}"


def _parts(
    session: Session,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    seen: list[str],
    total: int | None,
    report: Report,
) -> Iterator[Part]:
    """Measure all images, block by block, and append each image's checksum to those seen."""
    first = 0
    for images, labels in in_blocks(batches, block_size(session.framing.size), session.shape):
        stop = first + len(images)
        known = repeat({}) if labels is None else ({"label": each.long()} for each in labels)
        seen += [checksum({"image": image, **label}) for image, label in zip(images, known, strict=False)]
        indices = torch.arange(first, stop)
        yield session.reported_part(images, labels, indices=indices, done=(first, stop), total=total or 0, report=report)
        first = stop


def _protocols(options: AuditOptions, kind: OutputKind, framing: Framing) -> tuple[Protocol, ...]:
    """Return the protocols to measure, each once."""
    size, margin = min(framing.size), min(framing.margin)
    if options.max_shift is not None and options.max_shift > 0:
        check_max_shift(options.max_shift, framing.size)
    chosen = options.protocols
    if chosen is None:
        chosen = (*DEFAULTS[kind], *((SENSITIVITY_MAP,) if size <= SMALL and kind != "maps" else ()))
    if len(chosen) == 0 or isinstance(chosen, str):
        raise InputError(f"`protocols` must be a list of one or more, got {chosen!r}.", 'Give a list, like ["zhang2019"].')
    found: dict[str, Protocol] = {}
    for each in chosen:
        known = (
            (each,)
            if isinstance(each, Protocol)
            else find_protocols(each, max_shift=options.max_shift, size=size, margin=margin, seed=options.seed)
        )
        for protocol in known:
            if found.setdefault(protocol.name, protocol) != protocol:
                raise InputError(f"`protocols` holds two different {protocol.name}.", "Give one of them another name.")
    return _with_border(tuple(found.values()), options)


def _with_border(protocols: tuple[Protocol, ...], options: AuditOptions) -> tuple[Protocol, ...]:
    """Return the protocols whose border is the one asked for."""
    kept = tuple(each for each in protocols if options.mode in (None, each.border))
    if not kept or (options.protocols is not None and len(kept) < len(protocols)):
        other = next(each for each in protocols if each not in kept)
        raise InputError(
            f"`mode` is {options.mode!r}, but the border of {other.name} is {other.border!r}.",
            "Choose other protocols or no mode.",
        )
    return kept
