"""What a command measures: a model, the images to measure it on, and one line that says what both are.

Every command on models opens both here, so that they are prepared in the same way and described by the same line.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from shiftscope.audits.model import OneOutput
from shiftscope.datasets.class_names import misplaced, numbered
from shiftscope.datasets.images import Block, ImageBlocks, from_photos, left_out, open_images
from shiftscope.datasets.photos import Photos
from shiftscope.datasets.preprocessing import UNKNOWN, Preprocessing
from shiftscope.datasets.sources import is_folder
from shiftscope.engine.answers import LOOKED_AT, image_warnings
from shiftscope.engine.checks import evaluating
from shiftscope.engine.framing import frame
from shiftscope.errors import InputError
from shiftscope.models import LoadedModel, ModelSpec, absolute_reference, load_model
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.settings import Spec, Text
from shiftscope.runtime.sizes import SizeSetting, one_or_both, size_words

__all__ = ["DESCRIBED", "Subject", "SubjectSpec", "absolute_paths", "describe", "load_images", "open_subject"]

#: The facts of every subject that :func:`describe` names.
DESCRIBED = frozenset(
    {
        "model",
        "weights",
        "input",
        "normalisation",
        "preprocessing from",
        "preparation",
        "data",
        "place",
        "precision",
    }
)


class SubjectSpec(Spec):
    """Which model, and which images to measure it on.

    Attributes:
        model: a reference as :func:`shiftscope.models.load_model` takes it.
        title: what to call the model; by default as it is referred to.
        weights: file of weights for a model that code makes.
        size: of the model's input, one length for both sides or (height, width), pixels; None for the model's own.
        mean: mean per channel to subtract from images; None for the model's own.
        std: standard deviation per channel to divide by; None for the model's own.
        output: name or position of one of several outputs.
        embedding: whether outputs are not classes.
        data: name of a data set, or an image folder; None for data that suit the model.
        data_dir: local folder that holds the data set.
        images: number of images.
        max_shift: the largest shift, pixels; None for the default.
        seed: of the random shifts.
        device: where to compute.
        trust: whether to run code that the model's file names or holds.
    """

    model: Text
    title: Text | None = None
    weights: Text | None = None
    size: SizeSetting | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: Text | None = None
    embedding: bool = False
    data: Text | None = None
    data_dir: Text | None = None
    images: int = Field(256, le=10**9)
    max_shift: int | None = Field(None, le=2**14)
    seed: int = Field(0, gt=-(2**63), lt=2**63)
    device: Text = "cpu"
    trust: bool = False


@dataclass(frozen=True)
class Subject:
    """A model on its device, and the images to measure it on.

    Attributes:
        spec: which model and images.
        loaded: the model.
        images: opened for it.
    """

    spec: SubjectSpec
    loaded: LoadedModel
    images: ImageBlocks

    @property
    def name(self) -> str:
        """What the model is called; of a fixed copy also what it was made from, and how."""
        made = self.loaded.spec
        if not made.fixes:
            return self.spec.title or self.spec.model
        origin = made.factory or "a study's network"
        return f"{self.spec.model} ({origin} with {' + '.join(each.kind for each in made.fixes)})"

    @property
    def fixable(self) -> ModelSpec:
        """How to build the model again, for the file of a fixed copy."""
        made, found = self.loaded.spec, self.loaded.preprocessing
        size = one_or_both(self.images.size) if made.factory and found.size is None else made.size
        return made.model_copy(
            update={
                "size": size,
                "weights": self.loaded.weights,
                "source": found.source,
                "output": self.output,
                "embedding": self.embedding or None,
            }
        )

    @property
    def facts(self) -> dict[str, str]:
        """What is measured, name -> value: for the first line of a command and for every file that it writes."""
        return {
            "model": self.name,
            **({"code": self.loaded.code} if self.loaded.code else {}),
            "weights": self.loaded.weights,
            **({"trained on": _tuned(self.loaded.spec)} if self.loaded.spec.tuned else {}),
            "input": f"{self.images.shape[0]}x{size_words(self.images.size)}",
            **({"output": self.output} if self.output else {}),
            "normalisation": _normalisation(self.loaded.preprocessing),
            "preprocessing from": self.loaded.preprocessing.source,
            "preparation": self.images.preparation,
            "data": self.images.choice,
            "data_sha256": self.images.checksum,
            "place": self.spec.device,
            "precision": _precision(self.loaded.model, self.spec.device),
        }

    @property
    def line(self) -> str:
        """What is measured, in one line."""
        return describe(self.facts)

    @property
    def model(self) -> nn.Module:
        """The model; of one with several outputs, with the one that is measured."""
        return self.measured(self.loaded.model)

    def measured(self, model: nn.Module) -> nn.Module:
        """Return a changed copy of the model with the output that is measured."""
        return model if self.output is None else OneOutput(model, self.output)

    @property
    def output(self) -> str | None:
        """The one of several outputs that is measured: as the user says, else as the model's file does."""
        return self.loaded.spec.output if self.spec.output is None else self.spec.output

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes, or of the images', by label; empty where neither has any."""
        return self.loaded.classes or self.images.class_names

    def outputs(self, example: Tensor) -> int | None:
        """Return how many values the model returns for an image; None if it returns a map, or fails.

        Args:
            example: images, margin included.
        """
        framed = self.framed(example)
        try:
            with evaluating(self.loaded.model), torch.no_grad():
                found = self.model(framed)
        except Exception:  # whatever the model raises; measuring reports it
            return None
        return found.shape[1] if isinstance(found, Tensor) and found.ndim == 2 else None

    def label_mismatch(self, example: Tensor) -> str:
        """Return why labels do not fit the model; empty if they do.

        Args:
            example: images, margin included.
        """
        outputs = self.outputs(example)
        if self.embedding or outputs is None:
            return "Labels are ignored: the model returns no classes."
        if self.images.classes != outputs:
            return f"Labels are ignored: the model has {outputs} classes, the data {self.images.classes}."
        return ""

    @property
    def embedding(self) -> bool:
        """Whether outputs are not class scores."""
        return self.spec.embedding or self.loaded.embedding

    @property
    def fill(self) -> Tensor:
        """The canvas's colour, one value in [0, 1] per channel."""
        return torch.tensor(self.images.fill)

    def warnings(self) -> tuple[str, ...]:
        """Return reasons why numbers may say little about the model, which show on its first images."""
        if self.loaded.preprocessing.mean is not None:
            return ()
        images = self.images.read(0, min(LOOKED_AT, self.images.count)).images
        return image_warnings(self.loaded.model, self.framed(images)) if len(images) > 1 else ()

    def framed(self, images: Tensor) -> Tensor:
        """Return the model's unshifted input for images with their margin, on its device."""
        return frame(images, self.images.size, "zero", None).images.to(self.spec.device)

    def notes(self, block: Block, ignored: str) -> tuple[str, ...]:
        """Return what a reader needs to know about the images.

        Args:
            block: all images.
            ignored: why their labels are left out; empty if they are not.
        """
        return tuple(filter(None, (*self.images.all_notes, ignored, left_out(block.damaged))))

    def read(self) -> tuple[Block, str]:
        """Read all images.

        Returns:
            the images, without labels that do not fit the model's classes; and why these are left out, empty if they are not.
        """
        block = self.images.read_all()
        why = "" if block.labels is None else self.label_mismatch(block.images[:1])
        return Block(block.images, None if why else block.labels, block.numbers, block.damaged), why


def describe(facts: Mapping[str, str]) -> str:
    """Return what is measured in one line, the same for every command and file.

    Args:
        facts: of :attr:`Subject.facts`, which the provenance of every file holds; at least :data:`DESCRIBED`.
    """
    said = facts["preprocessing from"]
    output = f", output {facts['output']}" if facts.get("output") else ""
    code = f" ({facts['code']} ran)" if facts.get("code") else ""
    trained = f", trained on {facts['trained on']}" if facts.get("trained on") else ""
    word = "preprocessing" if said.startswith(UNKNOWN) else "from"
    return (
        f"{facts['model']}{code}, weights {facts['weights']}{trained}; "
        f"input {facts['input']}{output}, {facts['normalisation']} ({word} {said}); "
        f"{facts['preparation']}; {facts['data']}; {facts['place']}, {facts['precision']}."
    )


def open_subject(
    spec: SubjectSpec, report: Report = silent, *, photos: Photos | None = None, classes: Sequence[str] = ()
) -> Subject:
    """Load a model and open the images to measure it on.

    Args:
        spec: which model and images.
        report: called with progress events.
        photos: to take instead of the specified images, without room for shifts.
        classes: names by which to number the images' classes if the model has none.

    Raises:
        InputError: there is no such model or no such images, or they do not fit.
    """
    loaded = load_model(
        spec.model,
        weights=None if spec.weights is None else Path(spec.weights),
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        trust=spec.trust,
    )
    channels = loaded.known_channels
    if photos is not None:
        images = from_photos(photos, None, loaded.preprocessing, channels, 0)
    else:
        images = open_images(
            spec.data,
            count=spec.images,
            preprocessing=loaded.preprocessing,
            channels=channels,
            trained_on=loaded.spec.data,
            max_shift=spec.max_shift,
            data_dir=None if spec.data_dir is None else Path(spec.data_dir),
            report=report,
        )
    loaded.model.to(spec.device)
    return Subject(spec, loaded, _numbered_as_the_model(images, loaded.classes or classes))


def load_images(
    data: str | Path,
    model: LoadedModel | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    classes: Sequence[str] = (),
    count: int | None = 256,
    max_shift: int | None = None,
    data_dir: Path | str | None = None,
    report: Report = silent,
) -> ImageBlocks:
    """Open images as the commands prepare them: scaled and cropped for a model, with a margin to shift in, in [0, 1].

    ``audit``, ``certify``, ``explain`` and ``fix`` take them as they take a DataLoader, and know from them how large the model's
    input is. Printed, they say what was prepared and how.

    Args:
        data: a folder of images (with a subfolder per class) or of parquet files, a Hugging Face id, ``digits``, ``mnist`` or
            ``cifar10``.
        model: of :func:`shiftscope.models.load_model`, whose preprocessing and class names apply.
        size: of another model's input, pixels: one length for both sides, or (height, width); by default that of the images.
        classes: names of another model's classes, by output; by default classes are numbered by sorted name.
        count: number of images, picked with a fixed seed; None for all.
        max_shift: the largest shift to leave room for, pixels; None for the default.
        data_dir: a local folder that holds the data set.
        report: called with progress events.

    Raises:
        InputError: there are no such images; the model does not take them; or both a loaded model and its size are given.

    >>> digits = load_images("digits", size=32, count=20)
    >>> digits
    <20 of 1,797 images of scikit-learn load_digits; images of 16x16 on a canvas of 32x32>
    >>> images, labels = next(iter(digits))
    >>> images.shape, labels.shape
    (torch.Size([16, 1, 32, 32]), torch.Size([16]))
    """
    if not isinstance(data, str | Path):
        raise InputError(f"`data` must be the name of a data set or a folder, got {type(data).__name__}.", "Give one of them.")
    if model is not None and size is not None:
        raise InputError("`size` is for models that `load_model` did not load.", "Give it to `load_model` instead.")
    images = open_images(
        str(data),
        count=count,
        preprocessing=Preprocessing(size=size) if model is None else model.preprocessing,
        channels=None if model is None else model.known_channels,
        trained_on=None if model is None else model.spec.data,
        max_shift=max_shift,
        data_dir=None if data_dir is None else Path(data_dir),
        report=report,
    )
    images = _numbered_as_the_model(images, classes or (model.classes if model else ()))
    if model is None or images.classes is None:
        return images
    parameter = next(model.model.parameters(), None)
    spec = SubjectSpec(model="MODEL", device="cpu" if parameter is None else str(parameter.device))
    subject, example = Subject(spec, model, images), images.example()
    if subject.embedding or subject.outputs(example) in (None, images.classes):  # retrieval and tasks may take labels, too
        return images
    warnings.warn(subject.label_mismatch(example), stacklevel=2)
    return replace(images, classes=None)


def _numbered_as_the_model(images: ImageBlocks, names: Sequence[str]) -> ImageBlocks:
    """Return images with their classes numbered as the model names them; with a note as they are where names differ.

    Where some of the names are the model's, at other numbers, the labels of all images are unknown and left out.
    """
    if not names or not images.class_names:
        return images
    found = images.numbered_as(names)
    if found is not None:
        return found
    unknown = misplaced(images.class_names, names)
    note = f"The model names its classes otherwise: {numbered(names)}."
    if unknown and isinstance(images.source, Photos):
        note = f"Labels are ignored: the model's classes are {numbered(names)}, without {', '.join(unknown)}."
        images = replace(images, source=replace(images.source, labels=None), classes=None)
    return replace(images, notes_on_labels=(*images.notes_on_labels, note))


def absolute_paths(spec: SubjectSpec) -> dict[str, str]:
    """Return the settings that are paths, for a process in another working directory."""
    found = {"model": absolute_reference(spec.model)}
    for name in ("weights", "data_dir"):
        value = getattr(spec, name)
        if value and Path(value).exists():
            found[name] = str(Path(value).resolve())
    if spec.data is not None and is_folder(spec.data):
        found["data"] = str(Path(spec.data).resolve())
    return found


def _tuned(spec: ModelSpec) -> str:
    """Return the images that a fixed model was trained on, in words."""
    return "; ".join(f"{each.images:,} images of {each.data} (sha256 {each.data_sha256[:12]})" for each in spec.tuned)


def _normalisation(found: Preprocessing) -> str:
    if found.mean is None or found.std is None:
        return "not normalised"
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (found.mean, found.std))
    return f"normalised by mean {mean} and std {std}"


def _precision(model: nn.Module, device: str) -> str:
    """Return the type of a model's numbers, and whether a GPU rounds them further."""
    parameter = next((each for each in model.parameters() if each.is_floating_point()), None)
    name = "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")
    coarse = torch.device(device).type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return f"{name} (TF32)" if coarse and name == "float32" else name
