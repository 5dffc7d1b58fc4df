"""``certify``: the largest radius within which every shift keeps a model's answer, for each of many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shiftscope.audits.model import CountedModel, chosen_task, model_checksum
from shiftscope.audits.task_measuring import views_at_once
from shiftscope.certificates.certificate import Certificate, Part, merge
from shiftscope.engine.answers import LOOKED_AT, add_answers, image_warnings, same_class
from shiftscope.engine.batches import Images, Labels, batches_of, images_in, input_size
from shiftscope.engine.checks import check_classes, check_fill, check_model, device_of, evaluating
from shiftscope.engine.dense import Method
from shiftscope.engine.dependence import batch_rounding, dependence
from shiftscope.engine.direct import Canvas
from shiftscope.engine.framing import Border, check_max_shift, frame, inner_size
from shiftscope.engine.outputs import Runner, open_runner
from shiftscope.engine.precision import full_precision
from shiftscope.engine.task_trials import reference_doubts, returns_embeddings
from shiftscope.errors import InputError
from shiftscope.radii import ROUNDING, Found, ShiftGrid, find_radii, find_task_radii
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import provenance
from shiftscope.tasks import Task

__all__ = ["BLOCK", "Certifier", "certify"]

#: Images that are searched together, fewer where their outputs at all shifts would hold more values than this.
BLOCK, VALUES = 64, 30_000_000
#: Outputs may differ by so many times as much as those of one image do alone and in a batch.
MARGIN = 4
#: What computing in a type of numbers is called; the first one that a model holds counts.
PRECISIONS = {torch.bfloat16: "bfloat16", torch.float16: "half precision", torch.float64: "double precision"}


def certify(
    model: Callable[[Tensor], Any],
    images: Images,
    labels: Labels | None = None,
    *,
    radius: int | None = None,
    mode: Border | None = None,
    parts: int = 1,
    size: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] = 0.0,
    output: str | int | None = None,
    task: str | Task | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    report: Report = silent,
) -> Certificate:
    """Find for every image the largest r such that every whole-pixel shift (dy, dx) with |dy|, |dx| <= r keeps the answer.

    Every such shift is tried, so the radius is exact for this image and border: no probability, no bound. An image whose answer
    changed needs no larger shifts, and where the engine is exact all shifts run at once.

    Args:
        model: any callable from images [image, channel, height, width] in [0, 1] to classes [image, class]; or to several
            outputs, of which ``output`` names one; or to anything that a task reads.
        images: a tensor; or a DataLoader, a list or another iterable of batches, each a tensor of images or a pair (images,
            labels), of which one batch at a time is in memory.
        labels: classes of all images, in order, where the batches do not hold them.
        radius: the largest radius to try, pixels; by default 8, or the margin of larger images if that is less, or an eighth of
            the input.
        mode: what comes in at the border: the background (``zero``), what larger images hold there (``crop``), or what left on
            the other side (``circular``). By default ``crop`` where images are larger than the input, else ``zero``.
        parts: points per pixel along an axis. 1 tries every whole-pixel shift; more also try shifts by fractions, interpolated as
            :func:`shiftscope.shifts.translate_by_parts` does: a grid, not a proof for the shifts between.
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        output: name or position of the output to certify, if the model returns several.
        task: what the outputs are, with what keeps an answer: a name of :data:`shiftscope.tasks.TASKS`, with settings as in
            ``boxes:threshold=0.3`` or ``segmentation:kept=0.95``, or a task. By default detected: classes, or the
            task that recognises them.
        method: ``dense`` computes all shifts at once, ``direct`` one by one; ``auto`` takes dense where it is exact.
        batch_size: images a forward pass.
        device: where to compute; the model's own by default.
        report: called with progress events.

    Raises:
        InputError: there is no image; the model returns neither classes nor what a task reads, or fails; labels are not its
            classes; or the radius does not fit the images.

    >>> bright = lambda images: torch.stack([images.sum((1, 2, 3)), torch.full((len(images),), 3.5)], dim=1)
    >>> image = torch.zeros(1, 1, 7, 7)
    >>> image[:, :, 1:3, 1:3] = 1  # four bright pixels, one of which leaves the image if it moves by two
    >>> certify(bright, image, radius=3).radii.tolist()
    [1]
    """
    batches = batches_of(images, labels)
    first = next(batches, None)
    if first is None or len(first[0]) == 0:
        raise InputError("`images` must hold at least one image, got none.", "Give some.")
    certifier = Certifier(
        model,
        first[0][:1],
        radius=radius,
        mode=mode,
        parts=parts,
        size=input_size(images, size),
        fill=fill,
        output=output,
        task=task,
        method=method,
        batch_size=batch_size,
        device=device,
    )
    warnings = image_warnings(model, certifier.unshifted(first[0][:LOOKED_AT]), fill=fill)
    found, done, total = [], 0, images_in(images, labels) or 0
    while first is not None:
        count = len(first[0])
        found.append(certifier.part(*first, numbers=torch.arange(done, done + count), report=report, total=total))
        done, first = done + count, next(batches, None)
    return certifier.certificate(merge(found), warnings=warnings, provenance={"model_sha256": model_checksum(model)})


class Certifier:
    """Certify blocks of images, in any order.

    Args:
        model: as :func:`certify` takes it, and all that follows.
        example: [1, channel, height, width], an image; the model runs on it once.
        radius, mode, parts, size, fill, output, task, method, batch_size, device: of :func:`certify`.
        embedding: whether outputs are not classes.

    Attributes:
        classes: number of classes of the model; 0 where a task reads its outputs.
        rounding: share of an output's norm below which a class's lead is rounding.
        precision: that the model computes in, in words.
        task: that reads the outputs; None for classes.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        example: Tensor,
        *,
        radius: int | None = None,
        mode: Border | None = None,
        parts: int = 1,
        size: int | tuple[int, int] | None = None,
        fill: float | Sequence[float] = 0.0,
        output: str | int | None = None,
        task: str | Task | None = None,
        method: Method = "auto",
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        embedding: bool = False,
    ) -> None:
        if parts < 1:
            raise InputError(f"`parts` must be 1 or more points per pixel, got {parts}.", "1 tries whole-pixel shifts only.")
        if radius is not None:
            check_max_shift(radius, inner_size(size, (example.shape[2], example.shape[3])), "radius")
        embedding = embedding or (task is None and returns_embeddings(model, output))
        framed = frame(example, size, mode, radius)
        self.border, self.size, self.shape = framed.border, framed.size, tuple(example.shape[1:])
        self.shifts = ShiftGrid(framed.max_shift, parts)
        check_fill(example, torch.as_tensor(fill))
        self.fill = torch.as_tensor(fill, dtype=torch.float32).reshape(-1).expand(example.shape[1])
        check_model(model)
        self.model = CountedModel(model, output=output, device=device_of(model, device))
        self.method, self.batch_size = method, batch_size
        with evaluating(model), torch.no_grad():
            unshifted = frame(example, size, "zero", None).images
            raw = self.model.raw(unshifted)
            self.task = chosen_task(self.model, raw, task, self.size, recognise=not embedding)
            self.classes, self.precision = self._classes(raw, embedding=embedding), _precision(model, raw)
            batched = self.task is None and batch_size != 1
            self.rounding = max(ROUNDING, MARGIN * batch_rounding(self.model.raw, unshifted) if batched else 0.0)
        views = len(self.shifts.shifts) * max(self.classes, 1)
        self.block = max(1, min(BLOCK, VALUES // views))
        self._runner: Runner | None = None
        self._tried = False

    def _classes(self, raw: Any, *, embedding: bool) -> int:
        """Return the number of the model's classes; 0 if a task reads its output.

        Raises:
            InputError: it can be certified as neither.
        """
        if self.task is None:
            outputs = self.model.checked(raw, 1)
            if embedding or outputs.ndim != 2:
                what, name = ("embeddings", "embedding") if outputs.ndim == 2 else ("maps", "segmentation")
                raise InputError(
                    f"a certificate needs classes, but the model returns {what}.", f"Certify them with --task {name}."
                )
            return outputs.shape[1]
        if not self.task.rule(self.shifts.reach):
            raise InputError(f"task {self.task.name!r} does not define when an answer is kept.", self.task.no_rule())
        if self.shifts.parts != 1:
            raise InputError(
                f"`parts` must be 1 for task {self.task.name!r}, got {self.shifts.parts}: answers move back by whole pixels.",
                "Leave it out.",
            )
        return 0

    def part(self, images: Tensor, labels: Tensor | None, *, numbers: Tensor, report: Report = silent, total: int = 0) -> Part:
        """Return the radii of some images.

        Args:
            images: [image, channel, height, width] in [0, 1], margin included.
            labels: their classes; None where they are unknown.
            numbers: their indices in the data, increasing.
            report: called with progress events.
            total: number of all images, for these.

        Raises:
            InputError: images have another shape than the example, labels are not classes of the model, the model fails, or its
                outputs for an image depend on chance or on the other images of a batch.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"`images` must all have one shape, got {self.shape} and {tuple(images.shape[1:])}.")
        if self.task is None:
            check_classes(labels, self.classes)
        images = frame(images, self.size, self.border, self.shifts.reach).images
        if not self._tried:
            self._check_alone(self._canvas.centre(images[:1]))
            self._tried = True
        found = []
        for block, each in zip(images.split(self.block), numbers.split(self.block), strict=True):
            found.append(self._found(block, int(each[0])))
            report(Stage("certifying images", int(each[-1]) + 1, total))
        return Part(
            numbers=numbers,
            radii=torch.cat([each.radii for each in found]),
            tops=torch.cat([each.tops for each in found]),
            labels=labels if self.task is None else None,
            views=sum(each.views for each in found),
            dense=sum(len(each.radii) for each in found if each.dense),
            sums=reduce(add_answers, [each.sums for each in found], {}),
        )

    def unshifted(self, images: Tensor) -> Tensor:
        """Return images with their margin as the model sees them unshifted."""
        return self._canvas.centre(frame(images, self.size, self.border, self.shifts.reach).images)

    def _check_alone(self, image: Tensor) -> None:
        """Try whether an image's outputs depend on anything else.

        Args:
            image: [1, channel, height, width], without margin.

        Raises:
            InputError: they depend on chance or on the other images of a batch.
        """
        with evaluating(self.model.model), torch.no_grad():
            found = dependence(self.model.raw, image, batches=self.batch_size != 1)
        if found == "call":
            raise InputError("the model's outputs for an image differ from call to call, so that no radius of it is certain.")
        if found == "batch":
            raise InputError(
                "the model's outputs for an image depend on the other images of a batch, so that no radius of it is certain.",
                "Set `batch_size` to 1: each view then runs alone.",
            )

    def certificate(self, part: Part, **others: Any) -> Certificate:
        """Return the certificate of all parts, merged.

        Args:
            part: of all images.
            others: names, notes, warnings and provenance of :class:`Certificate`; further warnings are added.
        """
        rule = "" if self.task is None else self.task.rule(self.shifts.reach)
        own = {"border": self.border, "largest radius": f"{self.shifts.reach} pixels", **provenance(self.model.device)}
        own |= {} if self.task is None else {"task": self.task.name, "kept": rule}
        found = {**own, **others.pop("provenance", {})}
        warnings = (*others.pop("warnings", ()), *self._doubts(part))
        notes = (*others.pop("notes", ()), *self._rounding_notes())
        return Certificate(
            part,
            self.shifts.reach,
            self.border,
            self.shifts.parts,
            rule=rule,
            notes=notes,
            warnings=warnings,
            provenance=found,
            precision=self.precision,
            **others,
        )

    def _rounding_notes(self) -> tuple[str, ...]:
        """Return how small a lead counts as changed, where the model rounds more than single precision does."""
        if self.task is not None or self.rounding == ROUNDING:
            return ()
        return (
            "The model's outputs for an image differ by the size of batches: a class that leads by less than "
            f"{self.rounding:.1g} of the outputs' norm counts as changed.",
        )

    def _doubts(self, part: Part) -> tuple[str, ...]:
        """Return why the radii say little about the model: outputs are probably read wrongly, or answers are all the same."""
        if self.task is not None:
            return tuple(reference_doubts(self.task, part.sums, len(part.radii))) if part.sums else ()
        return same_class(torch.bincount(part.tops, minlength=self.classes))

    def _found(self, images: Tensor, seed: int) -> Found:
        """Return the radii of a block."""
        if self.task is None:
            with full_precision(self.model.device):
                return find_radii(self._open(images), images, self.shifts, seed=seed, rounding=self.rounding)
        task = self.task.wrapping() if self.border == "circular" else self.task
        read, batch_size = partial(self.model.read, task=task, size=self.size), self.batch_size or views_at_once(self.size)
        with evaluating(self.model.model), torch.no_grad(), full_precision(self.model.device):
            return find_task_radii(read, self.task, images, self._canvas, self.shifts, batch_size=batch_size)

    @property
    def _canvas(self) -> Canvas:
        return Canvas("circular" if self.border == "circular" else "zero", self.fill, self.size)

    def _open(self, images: Tensor) -> Runner:
        """Return what runs the model; its graph is read once."""
        if self._runner is None:
            self._runner = open_runner(
                self.model.for_engine(),
                images,
                self.shifts.shifts,
                mode="circular" if self.border == "circular" else "zero",
                method=self.method,
                batch_size=self.batch_size,
                device=self.model.device,
                fill=self.fill,
                size=self.size,
            )
        return self._runner


def _precision(model: object, raw: Any) -> str:
    """Return the precision that a model computes in, by its parameters and by what it returned."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    kinds = {each.dtype for each in (*parameters, *tree_leaves(raw)) if isinstance(each, Tensor)}
    return next((words for kind, words in PRECISIONS.items() if kind in kinds), "single precision")
