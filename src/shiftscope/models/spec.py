"""How to build a model, apart from its weights, and a file that holds both."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from torch import nn

from shiftscope.datasets.dataset import DataSpec
from shiftscope.engine.framing import Border
from shiftscope.models.family import NetworkSpec
from shiftscope.runtime.files import write_tensors
from shiftscope.runtime.settings import Spec, Text
from shiftscope.runtime.sizes import SizeSetting
from shiftscope.surgery import FixKind, Surgery, Wrapping, operate
from shiftscope.tasks import find_task

__all__ = ["METADATA_KEY", "Channels", "Fix", "ModelSpec", "Tuned", "save_model"]

#: The key of a safetensors file's metadata that holds the model's specification.
METADATA_KEY = "shiftscope"

#: One value per channel.
Channels = tuple[float, ...]


class Fix(Spec):
    """One operation of :mod:`shiftscope.surgery`.

    Attributes:
        kind: ``blur`` (a low-pass filter before each subsampling), ``aps`` or ``lps`` (adaptive or learned polyphase sampling on
            circular maps), ``gap`` (global average pooling before the head), ``circular`` (circular padding), ``anchor`` (patches
            and windows of a transformer that follow shifts), ``canonical`` (the input chooses its own position) or ``average``
            (the mean over shifts).
        filter_size: of the binomial filter of ``blur``, ``aps`` and ``lps``, in positions; 1 does not filter.
        border: of ``canonical`` and ``average``: ``zero``, unless it is ``circular``, or ``crop`` for ``canonical`` on photos.
        reach: the largest shift of ``average``, pixels, 1 by default; or how far ``canonical``'s crop may lie from the middle.
        fill: the background's colour of ``canonical`` and ``average``, one value per channel; None for black.
        task: of ``canonical`` and ``average``, what the outputs are, as :func:`shiftscope.tasks.find_task` takes it; None for
            classes.
        output: which of several outputs the task reads, by name or position.
    """

    kind: FixKind
    filter_size: int = Field(1, ge=1, le=7)
    border: Border | None = None
    reach: int | None = Field(None, ge=1)
    fill: Channels | None = None
    task: Text | None = None
    output: Text | None = None

    def apply(self, model: nn.Module, *, image: tuple[int, int, int] | None) -> Surgery:
        """Return a changed copy of a model, with an account of what changed.

        Args:
            model: the model, which stays as it is.
            image: (channels, height, width) of its input, to count operations; None does not count.
        """
        return operate(self.kind, model, filter_size=self.filter_size, wrapping=self.wrapping, image=image)

    @property
    def wrapping(self) -> Wrapping:
        """How ``canonical`` and ``average`` move images."""
        task = find_task(self.task) if self.task else None
        return Wrapping(self.border or "zero", self.reach, self.fill or 0.0, task, self.output)


class Tuned(Spec):
    """A training after fixes.

    Attributes:
        data: where its images are from.
        data_sha256: checksum of their pixels and labels.
        images: their number, validation included.
        epochs: number of epochs.
        best_epoch: the one whose weights are kept; 0 for those before it.
        max_shift: of random shifts, pixels.
        consistency: term beside the cross-entropy: ``none``, ``kl`` or ``cosine``.
        every_shift: whether each step took all shifts of its images.
        layer_decay: learning rate of a layer relative to that of the layer after it.
        seed: of validation images, order, shifts and random layers.
    """

    data: Text
    data_sha256: Text
    images: int
    epochs: int
    best_epoch: int
    max_shift: int
    consistency: Text
    every_shift: bool = False
    layer_decay: float = 1.0
    seed: int


class ModelSpec(Spec):
    """How to build a model, except its weights. Model files hold it as JSON, so its field names stay.

    Attributes:
        factory: ``module:function``, ``timm:name`` or another reference to code that makes it; or
        network: a network of :mod:`shiftscope.models.family`.
        classes: length of a library model's output, where it is not the default; 0 for embeddings.
        channels: of a library model's input, where they are not the default.
        size: of its input in pixels, one length for both sides or (height, width), where it is not the default.
        mean: mean per channel of the normalisation in front of the model.
        deviation: standard deviation per channel of that normalisation.
        output: name or position of the output to measure, if there are several.
        embedding: whether outputs were measured as features; None where nobody said so.
        task: what outputs were measured as, where the user chose it.
        fixes: applied in this order.
        tuned: trainings after them, in order.
        data: the data set that a study trained the network on.
        weights: where the weights came from before a fix, in words.
        source: where the preprocessing comes from, in words.
    """

    factory: str | None = None
    network: NetworkSpec | None = None
    classes: int | None = None
    channels: int | None = None
    size: SizeSetting | None = None
    mean: Channels | None = None
    deviation: Channels | None = None
    output: str | None = None
    embedding: bool | None = None
    task: Text | None = None
    fixes: tuple[Fix, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    data: DataSpec | None = None
    weights: str | None = None
    source: str | None = None

    @property
    def is_code(self) -> bool:
        """Whether code makes the model, so that its layers can be changed; a file can only be run."""
        return self.factory is not None or self.network is not None


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's weights as safetensors, with its specification in the metadata.

    Args:
        path: of the file, which is written atomically.
        model: built as ``spec`` says.
        spec: how to build it again.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    write_tensors(path, weights, metadata={METADATA_KEY: spec.model_dump_json(exclude_none=True)})
