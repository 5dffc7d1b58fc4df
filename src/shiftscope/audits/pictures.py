"""Show the images that change most: each before and after the shift that changes it most, with both answers.

They are computed once an audit is complete, and written as ``pictures.json`` beside it, so that its page can be made again where
neither the model nor the images are.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, TypeAdapter
from torch import Tensor
from torch.nn import functional

from shiftscope.audits.model import CountedModel
from shiftscope.audits.parts import Changed
from shiftscope.audits.protocols import Border
from shiftscope.audits.subject import Subject
from shiftscope.audits.views import framing_of
from shiftscope.engine.checks import evaluating
from shiftscope.runtime.files import write_text, writing
from shiftscope.runtime.inputs import read_bytes
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.settings import Spec
from shiftscope.tasks import Task, View

__all__ = ["PICTURES", "Answer", "Picture", "pictures_of", "read_pictures", "write_pictures"]

#: The file's name in an audit's folder.
PICTURES = "pictures.json"
#: Borders under which pictures are drawn; others as zero.
SHOWN: tuple[Border, ...] = ("zero", "mean", "circular", "crop")
#: Height and width of a picture, at most, pixels.
SIDE = 160
#: Up to this size a picture is a PNG, which is exact; above it a JPEG, which is small.
SMALL = 64
#: A picture's data URL: nothing but a PNG or a JPEG.
DataUrl = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*$", max_length=200_000)]
Text = Annotated[str, Field(max_length=500)]


class Answer(Spec):
    """A model's answer to one view of an image.

    Attributes:
        picture: the view as a data URL.
        name: the top class, or a task's answer in words; None if there is none.
        probability: of that class.
        drawn: a task's answer drawn over the unshifted image, moved back; None if it cannot be drawn.
    """

    picture: DataUrl
    drawn: DataUrl | None = None
    name: Text | None = None
    probability: Annotated[float, Field(ge=0, le=1)] | None = None


class Picture(Spec):
    """An image before and after a shift.

    Attributes:
        file: the image's name.
        label: the name of its class; None without labels that fit the model.
        down: the shift, pixels.
        right: the shift, pixels.
        border: what fills the border.
        similarity: of the outputs before and after; or a task's leading measure.
        measure: the name of that measure; empty for a similarity.
        before: the unshifted image and the model's answer.
        after: the shifted image and the model's answer.
    """

    file: Text
    label: Text | None
    down: float
    right: float
    border: Annotated[str, Field(max_length=20)]
    similarity: float
    measure: Annotated[str, Field(max_length=100)] = ""
    before: Answer
    after: Answer

    @property
    def changes(self) -> bool:
        """Whether the answer changes."""
        return self.before.name != self.after.name


READ = TypeAdapter(list[Picture])


def pictures_of(
    subject: Subject, changed: tuple[Changed, ...], report: Report = silent, *, task: Task | None = None
) -> list[Picture]:
    """Return pictures of the images that change most, those whose answer changes first.

    Args:
        subject: the model and the images of the audit.
        changed: an audit's images that change most.
        report: called with each progress event.
        task: that reads the outputs; None for classes, embeddings and maps.

    Raises:
        InputError: the model fails on a view.
    """
    shown = _Shown(subject, task)
    found = []
    for done, each in enumerate(changed):
        report(Stage("drawing the images that change most", done, len(changed)))
        found += list(shown.picture(each))
    return sorted(found, key=lambda each: not each.changes)


def write_pictures(folder: Path, pictures: list[Picture]) -> None:
    """Write pictures into an audit's folder.

    Raises:
        InputError: the folder cannot be written.
    """
    with writing(folder / PICTURES, "Choose another folder with --out."):
        write_text(folder / PICTURES, json.dumps([each.model_dump(mode="json") for each in pictures], indent=1) + "\n")


def read_pictures(folder: Path) -> list[Picture]:
    """Return the pictures in an audit's folder; none if it holds no file of them that can be read."""
    try:
        return READ.validate_json(read_bytes(folder / PICTURES))
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class _Shown:
    """The views of a subject's images, and what its model answers."""

    subject: Subject
    task: Task | None

    def picture(self, changed: Changed) -> Iterator[Picture]:
        """Yield the picture of an image; nothing if its file cannot be read any more."""
        subject = self.subject
        block = subject.images.read(changed.image, changed.image + 1)
        if not len(block.images):
            return
        framing = framing_of(block.images, subject.images.size, subject.images.fill, subject.images.mean)
        border: Border = next((each for each in SHOWN if each == changed.border), "zero")
        shift = torch.tensor([changed.shift], dtype=torch.float64)
        views = torch.cat([framing.centre(block.images), framing.view(block.images, shift, border)])
        answers = [Answer(picture=data_url(view)) for view in views]
        label = None
        if changed.before is not None:
            likely = self._probabilities(views)
            fits = likely.shape[1] == subject.images.classes
            answers = [self._answer(each.picture, row, named=fits) for each, row in zip(answers, likely, strict=True)]
            label = self._name(int(block.labels[0])) if fits and block.labels is not None else None
        if self.task is not None:
            answers = self._of_task(self.task, views, answers, View(changed.shift, framing.size, border == "circular"))
        before, after = answers
        yield Picture(
            file=subject.images.name(changed.image)[:500],
            label=label,
            down=changed.shift[0],
            right=changed.shift[1],
            border=changed.border,
            similarity=changed.similarity,
            measure=changed.measure,
            before=before,
            after=after,
        )

    def _of_task(self, task: Task, views: Tensor, answers: list[Answer], view: View) -> list[Answer]:
        """Return the answers of a task to both views, in words, and drawn over the unshifted image."""
        subject = self.subject
        model = CountedModel(subject.loaded.model, output=subject.output, device=torch.device(subject.spec.device))
        with evaluating(subject.loaded.model), torch.no_grad():
            found = model.read(views, task, view.size)
        canvas = views[0, :3].expand(3, -1, -1)
        view = replace(view, references=found[:1])
        drawn = [task.draw(canvas, each, step) for each, step in zip(found, (replace(view, shift=(0, 0)), view), strict=True)]
        return [
            each.model_copy(update={"name": task.text(answer)[:500] or None, "drawn": None if over is None else data_url(over)})
            for each, answer, over in zip(answers, found, drawn, strict=True)
        ]

    def _probabilities(self, views: Float[Tensor, "view channel height width"]) -> Float[Tensor, "view class"]:
        subject = self.subject
        model = CountedModel(subject.loaded.model, output=subject.output, device=torch.device(subject.spec.device))
        with evaluating(subject.loaded.model), torch.no_grad():
            return model(views).softmax(dim=1)

    def _answer(self, picture: str, likely: Float[Tensor, " class"], *, named: bool) -> Answer:
        top = int(likely.argmax())
        name = self._name(top) if named else f"class {top}"
        return Answer(picture=picture, name=name, probability=min(1.0, float(likely[top])))

    def _name(self, label: int) -> str:
        names = self.subject.class_names
        return str(names[label])[:500] if label < len(names) else f"class {label}"


def data_url(image: Float[Tensor, "channel height width"]) -> str:
    """Return an image in [0, 1] as a data URL, scaled down if it is large."""
    import PIL.Image

    side = max(image.shape[1:])
    if side > SIDE:
        size = tuple(max(1, round(part * SIDE / side)) for part in image.shape[1:])
        image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    pixels: UInt8[Tensor, "height width channel"] = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    opened = PIL.Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels[:, :, :3].contiguous().numpy())
    kind = "png" if max(image.shape[1:]) <= SMALL else "jpeg"
    target = BytesIO()
    opened.save(target, format=kind.upper(), **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{b64encode(target.getvalue()).decode()}"
