"""``certify``: the largest radius within which every shift keeps a model's answer, for each of many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shiftscope.audits.model import CountedModel, model_checksum
from shiftscope.certificates.certificate import Certificate, Part, merge
from shiftscope.engine.batches import Images, batches_of, images_in
from shiftscope.engine.checks import check_classes, check_fill, device_of, evaluating
from shiftscope.engine.dense import Method
from shiftscope.engine.framing import Border, check_max_shift, frame
from shiftscope.engine.outputs import Runner, open_runner
from shiftscope.errors import InputError
from shiftscope.radii.search import ShiftGrid, find_radii
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import provenance

__all__ = ["BLOCK", "Certifier", "certify"]

#: Images that are searched together, fewer where their outputs at all shifts would hold more values than this.
BLOCK, VALUES = 64, 30_000_000


def certify(
    model: Callable[[Tensor], Any],
    images: Images,
    labels: Int[Tensor, " image"] | None = None,
    *,
    radius: int | None = None,
    mode: Border | None = None,
    parts: int = 1,
    size: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] = 0.0,
    output: str | int | None = None,
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
            outputs, of which ``output`` names one.
        images: a tensor; or a DataLoader, a list or another iterable of batches, each a tensor of images or a pair (images,
            labels), of which one batch at a time is in memory.
        labels: classes of all images, in order, where the batches do not hold them.
        radius: the largest radius to try, pixels; by default 8, or the margin of larger images if that is less, or an eighth of
            the input.
        mode: what comes in at the border: the background (``zero``), what larger images hold there (``crop``), or what left on
            the other side (``circular``). By default ``crop`` where images are larger than the input, else ``zero``.
        parts: points a pixel along an axis. 1 tries every whole-pixel shift; more also try shifts by fractions, interpolated as
            :func:`shiftscope.shifts.translate_by_parts` does: a grid, and no proof for the shifts between.
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        fill: the canvas's colour in mode ``zero``, one value or one a channel.
        output: name or position of the output to certify, if the model returns several.
        method: ``dense`` computes all shifts at once, ``direct`` one by one; ``auto`` takes dense where it is exact.
        batch_size: images a forward pass.
        device: where to compute; the model's own by default.
        report: called with progress events.

    Raises:
        InputError: there is no image; the model returns no classes, or fails; labels are not its classes; or the radius does not
            fit the images.

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
        size=size,
        fill=fill,
        output=output,
        method=method,
        batch_size=batch_size,
        device=device,
    )
    found, done, total = [], 0, images_in(images, labels) or 0
    while first is not None:
        count = len(first[0])
        found.append(certifier.part(*first, numbers=torch.arange(done, done + count), report=report, total=total))
        done, first = done + count, next(batches, None)
    return certifier.certificate(merge(found), provenance={"model_sha256": model_checksum(model)})


class Certifier:
    """Certify blocks of images, in any order.

    Args:
        model: as :func:`certify` takes it, and all that follows.
        example: [1, channel, height, width], an image; the model runs on it once.
        radius, mode, parts, size, fill, output, method, batch_size, device: of :func:`certify`.
        embedding: whether outputs are not classes.

    Attributes:
        classes: number of classes of the model.
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
        method: Method = "auto",
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        embedding: bool = False,
    ) -> None:
        if parts < 1:
            raise InputError(f"`parts` must be 1 or more points a pixel, got {parts}.", "1 tries whole-pixel shifts only.")
        if radius is not None:
            inner = example.shape[2:] if size is None else (size,) if isinstance(size, int) else size
            check_max_shift(radius, tuple(inner), "radius")
        framed = frame(example, size, mode, radius)
        self.border, self.size, self.shape = framed.border, framed.size, tuple(example.shape[1:])
        self.shifts = ShiftGrid(framed.max_shift, parts)
        check_fill(example, torch.as_tensor(fill))
        self.fill = torch.as_tensor(fill, dtype=torch.float32).reshape(-1).expand(example.shape[1])
        self.model = CountedModel(model, output=output, device=device_of(model) if device is None else torch.device(device))
        self.method, self.batch_size = method, batch_size
        with evaluating(model), torch.inference_mode():
            outputs = self.model(frame(example, size, "zero", None).images)
        if embedding or outputs.ndim != 2:
            raise InputError(
                f"a certificate needs classes, but the model returns {'embeddings' if outputs.ndim == 2 else 'maps'}.",
                "Choose a classifier, or one of its outputs; `audit` measures the others.",
            )
        self.classes = outputs.shape[1]
        views = len(self.shifts.shifts) * self.classes
        self.block = max(1, min(BLOCK, VALUES // views))
        self._runner: Runner | None = None

    def part(self, images: Tensor, labels: Tensor | None, *, numbers: Tensor, report: Report = silent, total: int = 0) -> Part:
        """Return the radii of some images.

        Args:
            images: [image, channel, height, width] in [0, 1], margin included.
            labels: their classes; None where they are unknown.
            numbers: their indices in the data, increasing.
            report: called with progress events.
            total: number of all images, for these.

        Raises:
            InputError: images have another shape than the example, labels are not classes of the model, or the model fails.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"`images` must all have one shape, got {self.shape} and {tuple(images.shape[1:])}.")
        check_classes(labels, self.classes)
        images = frame(images, self.size, self.border, self.shifts.reach).images
        found = []
        for block, each in zip(images.split(self.block), numbers.split(self.block), strict=True):
            found.append(find_radii(self._open(block), block, self.shifts, seed=int(each[0])))
            report(Stage("certifying images", int(each[-1]) + 1, total))
        return Part(
            numbers=numbers,
            radii=torch.cat([each.radii for each in found]),
            tops=torch.cat([each.tops for each in found]),
            labels=labels,
            views=sum(each.views for each in found),
            dense=sum(len(each.radii) for each in found if each.dense),
        )

    def certificate(self, part: Part, **others: Any) -> Certificate:
        """Return the certificate of all parts, merged.

        Args:
            part: of all images.
            others: names, notes and provenance of :class:`Certificate`.
        """
        own = {"border": self.border, "largest radius": f"{self.shifts.reach} pixels", **provenance(self.model.device)}
        found = {**own, **others.pop("provenance", {})}
        return Certificate(part, self.shifts.reach, self.border, self.shifts.parts, provenance=found, **others)

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
