"""``audit``: how stable any model is, by every protocol asked for, in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shiftscope.audits.measuring import Measurer
from shiftscope.audits.model import Asked
from shiftscope.audits.parts import Part, folded
from shiftscope.audits.protocols import Protocol, find_protocols
from shiftscope.audits.results import Audit, assembled
from shiftscope.audits.views import Scene
from shiftscope.engine.checks import device_of, evaluating
from shiftscope.errors import InputError

__all__ = ["Session", "audit", "block_size"]

#: What is measured where nothing is asked for, by the kind of output; the exhaustive map where the input is small.
DEFAULTS = {
    "classes": ("mouton2020", "zhang2019", "chaman2021-circular", "azulay2018"),
    "vectors": ("mouton2020",),
    "maps": ("segmentation",),
}
MAPPED = ("myburgh2021",)
SMALL = 64
#: Images measured together, small and large ones. Estimates do not depend on it, the last bits of outputs may.
BLOCK, BLOCK_OF_LARGE, LARGE = 64, 16, 96

Progress = Callable[[int, int | None], None]


def audit(
    model: Callable[[Tensor], Any],
    images: Tensor | Iterable[Tensor],
    labels: Int[Tensor, " image"] | None = None,
    *,
    protocols: Sequence[str | Protocol] | None = None,
    max_shift: int | None = None,
    size: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] = 0.0,
    mean: Sequence[float] | None = None,
    output: str | int | None = None,
    embedding: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress = lambda *_: None,
) -> Audit:
    """Measure how stable a model is under shifts, by several protocols in one pass.

    The different views that all protocols need are run once. Memory grows with the images only by a few numbers for each.

    Args:
        model: any callable from images [image, channel, height, width] in [0, 1] to classes [image, class] before the softmax, to
            embeddings, or to segmentation maps [image, class, height, width]; also a mapping or a tuple of these.
        images: a tensor, or an iterable of batches, held one block at a time.
        labels: of all images, in order.
        protocols: names of :data:`shiftscope.audits.protocols.PUBLISHED` or protocols; by default what suits the output.
        max_shift: the largest shift of all protocols, pixels, instead of each one's own.
        size: (height, width) of the model's input where images are larger: crops are taken from the rest. By default all of it.
        fill: the canvas's colour, one value or one a channel.
        mean: the mean colour, for the protocols that fill with it.
        output: name or place of the output meant, where there are several.
        embedding: outputs are not classes; only cosines are measured.
        seed: of the draws.
        batch_size: images a forward pass.
        device: where to compute; the model's own by default.
        progress: told how many images are done, of how many (None where unknown).

    Raises:
        InputError: no image, integer images or values that are not finite; a model that fails on them or returns what cannot be
            measured, NaN among it; labels that do not fit; an unknown protocol, or one that cannot be measured here.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> found = audit(model.eval(), torch.rand(20, 1, 16, 16), protocols=["mouton2020", "chaman2021-circular"])
    >>> [(row.protocol, row.measure) for row in found.rows]
    [('mouton2020', 'mcs'), ('mouton2020', 'top1_change'), ('chaman2021-circular', 'all_agree')]
    >>> found.cost.forward == found.cost.distinct < found.cost.asked
    True
    """
    if isinstance(images, Tensor) and labels is not None and len(labels) != len(images):
        raise InputError(f"`labels` must hold one label an image, got {len(labels)} for {len(images)} images.")
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    session = Session.begun(
        model,
        first[:1],
        labelled=labels is not None,
        protocols=protocols,
        max_shift=max_shift,
        size=size,
        fill=fill,
        mean=mean,
        output=output,
        embedding=embedding,
        seed=seed,
        batch_size=batch_size,
        device=device,
    )
    total = len(images) if isinstance(images, Tensor) else None if labels is None else len(labels)
    return session.result(folded(_parts(session, chain([first], batches), labels, total, progress)))


def block_size(size: Sequence[int]) -> int:
    """How many images of (height, width) are measured together."""
    return BLOCK if max(size) <= LARGE else BLOCK_OF_LARGE


@dataclass(frozen=True)
class Session:
    """An audit under way: it measures blocks of images, in any order, and puts their results together.

    Attributes:
        measurer: measures a block.
        scene: what surrounds the images.
        kind: of the outputs.
        classes: values of an output.
        shape: (channels, height, width) of the images, margin included.
        notes: for the reader.
    """

    measurer: Measurer
    scene: Scene
    kind: str
    classes: int
    shape: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def begun(
        cls,
        model: Callable[[Tensor], Any],
        example: Tensor,
        *,
        labelled: bool,
        protocols: Sequence[str | Protocol] | None = None,
        max_shift: int | None = None,
        size: int | tuple[int, int] | None = None,
        fill: float | Sequence[float] = 0.0,
        mean: Sequence[float] | None = None,
        output: str | int | None = None,
        embedding: bool = False,
        classes: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Session:
        """A session for images like this one, as :func:`audit` describes.

        Args:
            model: as there.
            example: one image, which is run once to see what the model returns.
            labelled: whether images come with labels.
            protocols: as there, like all that follows.
            max_shift: as there.
            size: as there.
            fill: as there.
            mean: as there.
            output: as there.
            embedding: as there.
            classes: how many classes the labels know; they are left out, said in a note, where the model has another number.
            seed: as there.
            batch_size: as there.
            device: as there.

        Raises:
            InputError: as there.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"`batch_size` must be 1 or more images, got {batch_size}.")
        _check(example, tuple(example.shape[1:]))
        scene = _scene(example, size, fill, mean)
        asked = Asked(model, output=output, device=torch.device(device) if device is not None else device_of(model))
        notes = []
        with asked.counting(), evaluating(model), torch.inference_mode():
            answer = asked(scene.centre(example))
        kind = "maps" if answer.ndim == 4 else "vectors" if embedding else "classes"
        if labelled and (kind != "classes" or (classes is not None and answer.shape[1] != classes)):
            other = "the model returns no classes" if kind != "classes" else f"the model has {answer.shape[1]} classes"
            notes.append(f"Labels are left out: {other}{f', the data {classes}' if classes and kind == 'classes' else ''}.")
            labelled = False
        chosen = _chosen(protocols, kind, scene, max_shift, seed)
        measurer = Measurer(asked, chosen, scene, kind=kind, labelled=labelled, batch_size=batch_size)
        if any(each.border == "crop" and scene.border(each) == "zero" for each in chosen):
            notes.append("Images have no margin around the model's input, so crops are cut from the canvas's colour.")
        if any(each.border == "mean" and scene.mean is None for each in chosen):
            notes.append("The mean colour is not known; the canvas's colour takes its place.")
        if kind == "vectors":
            notes.append("Outputs are embeddings: only cosines are measured, nothing that needs a top class.")
        return cls(measurer, scene, kind, answer.shape[1], tuple(example.shape[1:]), tuple(notes))

    def part(self, images: Tensor, labels: Tensor | None, *, numbers: Tensor) -> Part:
        """What a block of images gave; see :meth:`Measurer.part`.

        Raises:
            InputError: images of another form than the first ones, or labels that are not classes of the model.
        """
        _check(images, self.shape)
        if self.measurer.labelled and labels is not None and (labels.min() < 0 or labels.max() >= self.classes):
            raise InputError(
                f"`labels` must be 0 to {self.classes - 1}, the model's classes, got {int(labels.min())} to {int(labels.max())}."
            )
        return self.measurer.part(images, labels, numbers=numbers)

    def result(self, whole: Part, *, provenance: dict[str, str] | None = None) -> Audit:
        """The audit, from all portions."""
        protocols = self.measurer.protocols
        borders = {each.name: self.scene.border(each) for each in protocols}
        return assembled(whole, protocols, kind=self.kind, borders=borders, notes=self.notes, provenance=provenance)


def _parts(
    session: Session, batches: Iterable[Tensor], labels: Tensor | None, total: int | None, progress: Progress
) -> Iterator[Part]:
    first = 0
    for block in _blocks(batches, block_size(session.scene.size), session.shape):
        stop = first + len(block)
        if labels is not None and stop > len(labels):
            raise InputError(f"`labels` must hold one label an image, got {len(labels)} for {stop} images or more.")
        yield session.part(block, None if labels is None else labels[first:stop].cpu(), numbers=torch.arange(first, stop))
        first = stop
        progress(first, total)
    if labels is not None and first != len(labels):
        raise InputError(f"`labels` must hold one label an image, got {len(labels)} for {first} images.")


def _blocks(batches: Iterable[Tensor], size: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """The images in blocks of one size, however they came, so that they decide nothing."""
    kept: list[Tensor] = []
    for batch in batches:
        _check(batch, shape)
        while len(batch):
            missing = size - sum(map(len, kept))
            kept.append(batch[:missing])
            batch = batch[missing:]
            if sum(map(len, kept)) == size:
                yield torch.cat(kept) if len(kept) > 1 else kept[0]
                kept = []
    if kept:
        yield torch.cat(kept)


def _chosen(
    protocols: Sequence[str | Protocol] | None, kind: str, scene: Scene, max_shift: int | None, seed: int
) -> tuple[Protocol, ...]:
    """The protocols asked for, each once."""
    size, margin = min(scene.size), min(scene.margin)
    asked: Sequence[str | Protocol] = DEFAULTS[kind] if protocols is None else protocols
    if protocols is None and size <= SMALL and kind != "maps":
        asked = (*asked, *MAPPED)
    if len(asked) == 0 or isinstance(asked, str):
        raise InputError(f"`protocols` must be a list of one or more, got {asked!r}.")
    found: dict[str, Protocol] = {}
    for each in asked:
        for protocol in (
            (each,)
            if isinstance(each, Protocol)
            else find_protocols(each, max_shift=max_shift, size=size, margin=margin, seed=seed)
        ):
            if found.setdefault(protocol.name, protocol) != protocol:
                raise InputError(f"`protocols` holds two different {protocol.name}. Give one of them another name.")
    return tuple(found.values())


def _scene(
    example: Tensor, size: int | tuple[int, int] | None, fill: float | Sequence[float], mean: Sequence[float] | None
) -> Scene:
    channels, *whole = example.shape[1:]
    wanted = (size, size) if isinstance(size, int) else tuple(whole) if size is None else size
    if any(part < 1 or part > there for part, there in zip(wanted, whole, strict=True)):
        raise InputError(f"the model wants images of {wanted[0]}x{wanted[1]}, the data has {whole[0]}x{whole[1]}.")
    margin = tuple((there - part) // 2 for part, there in zip(wanted, whole, strict=True))
    colours = [(fill,) * channels if isinstance(fill, int | float) else tuple(map(float, fill))]
    colours.append(colours[0] if mean is None else tuple(map(float, mean)))
    for name, colour in zip(("fill", "mean"), colours, strict=True):
        if len(colour) != channels:
            raise InputError(f"`{name}` must be one value for each of {channels} channels, got {len(colour)}.")
    return Scene((wanted[0], wanted[1]), (margin[0], margin[1]), colours[0], None if mean is None else colours[1])


def _check(images: Tensor, shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(f"`images` must be [image, channel, height, width], all of one size, got shape {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point in [0, 1], got {images.dtype}. Divide by 255 first.")
    bad = int((~images.flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        raise InputError(f"`images` must be finite, got NaN or infinity in {bad} of {len(images)}.")
