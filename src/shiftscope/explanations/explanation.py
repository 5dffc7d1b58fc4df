"""The whole explanation of a model: what its graph promises, where similarity goes, by which cause, and which fix to try."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.engine.checks import check_images, check_labels, evaluating
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.causes import Causes, causes_of
from shiftscope.explanations.fixes import Remedies, remedies_of
from shiftscope.explanations.guarantee import Guarantee, described, guarantee_of
from shiftscope.explanations.layers import BATCH, Layers, layer_responses
from shiftscope.explanations.trial import Progress, Trial, drawn
from shiftscope.shifts import Mode
from shiftscope.tables import Table

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Where a model's invariance is lost, and why.

    Attributes:
        name: of the model.
        similarity: mean cosine of the outputs of unshifted and shifted images.
        guarantee: what the graph promises.
        causes: of what is lost.
        layers: every layer's response.
        remedies: fixes, ranked.
        settings: how it was measured, name to value.
    """

    name: str
    similarity: Estimate
    guarantee: Guarantee
    causes: Causes
    layers: Layers
    remedies: Remedies
    settings: dict[str, str]

    @property
    def verdict(self) -> str:
        """The main cause, the layer where similarity falls most, and what to try first."""
        return " ".join(text for text in (self.causes.verdict, self._where(), self._what_to_do()) if text)

    def table(self) -> Table:
        """What is lost by cause, with the verdict and the graph's promise in the notes."""
        table = self.causes.table()
        graph = described(self.guarantee.geometry) if self.guarantee.geometry is not None else ""
        notes = (self.verdict, graph, self.guarantee.sentence, self.guarantee.exact_at, *table.notes[1:])
        title = f"{self.name}: mean cosine {self.similarity}; what is lost, by cause"
        return Table(title, table.columns, table.rows, tuple(filter(None, notes)), self.settings)

    def tables(self) -> tuple[Table, ...]:
        """By cause, by layer, and fixes."""
        return self.table(), self.layers.table(), self.remedies.table()

    def to_json(self) -> dict[str, Any]:
        """Verdict, promise and tables as plain data."""
        geometry = self.guarantee.geometry
        graph: dict[str, Any] = {
            "status": self.guarantee.status,
            "sentence": self.guarantee.sentence,
            "exact_at": self.guarantee.exact_at,
        }
        if geometry is not None:
            graph |= {
                "factor": list(geometry.factor),
                "receptive_field": list(geometry.last.receptive_field),
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
            "settings": self.settings,
        }

    def _where(self) -> str:
        """The layer at which the similarity of maps falls most from the layer before."""
        maps = [layer for layer in self.layers.layers if layer.factor is not None]
        means = [float(layer.similarity.mean()) for layer in maps]
        falls = [before - after for before, after in pairwise(means)]
        if not self.causes.main or not falls or max(falls) < 0.005:
            return ""
        place = falls.index(max(falls)) + 1
        return (
            f"Of the maps' similarity most is lost at `{maps[place].name}` ({maps[place].kind}): "
            f"{means[place - 1]:.3f} before, {means[place]:.3f} after."
        )

    def _what_to_do(self) -> str:
        first = next(iter(self.remedies.remedies), None)
        if not self.causes.main or first is None or not first.works or first.share is None:
            return ""
        return (
            f"To try first: {' + '.join(first.kinds)}, which takes {first.share.value:.0%} of the loss away before any training, "
            f"at {first.ratio:.2f} times the multiply-adds{self._until_trained(first.accuracy)}."
        )

    def _until_trained(self, accuracy: Estimate | None) -> str:
        before = self.remedies.accuracy
        if accuracy is None or before is None or accuracy.value >= before.value:
            return ""
        return f"; train it again, for until then {accuracy.value:.0%} of the images are right instead of {before.value:.0%}"


def explain(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int[Tensor, " image"] | None = None,
    *,
    max_shift: int | None = None,
    shifts: int = 4,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
    seed: int = 0,
    batch_size: int = BATCH,
    device: torch.device | str | None = None,
    name: str = "MODEL",
    progress: Progress = lambda *_: None,
) -> Explanation:
    """Where a model's invariance to shifts is lost, by layer and by cause, and which fix to try first.

    Every number is a mean over images with a 95 % interval; each image has shifts of its own, and every counterfactual and every
    fix is measured under the same ones. Nothing is trained, and the model is left as it was.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: unshifted, canvas included; at least 2.
        labels: of the images, for the accuracies beside the fixes.
        max_shift: the largest shift along an axis, pixels; by default 8, or an eighth of the image where that is less.
        shifts: of each image, drawn uniformly, the zero shift left out.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one a channel.
        seed: of the shifts.
        batch_size: images a pass.
        device: where to compute; the model's own by default.
        name: of the model, for titles and commands.
        progress: told what is going on, how many images are done, and of how many.

    Returns:
        the explanation. For a model whose graph cannot be traced it has the measured part only, and says so.

    Raises:
        InputError: fewer than 2 images, labels of another number, a shift beyond the image, and what
            :func:`shiftscope.explanations.layers.layer_responses` says.

    >>> around = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    >>> model = nn.Sequential(around, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)).eval()
    >>> explain(model, torch.rand(8, 1, 10, 10), mode="circular", max_shift=2).causes.main
    'head'
    """
    reach = _checked(model, images, labels, (mode, shifts, max_shift))
    steps = drawn(len(images), shifts, reach, torch.Generator().manual_seed(seed))
    trial = Trial(images, steps, mode, fill, labels, batch_size, device, progress)
    if model.training:
        warnings.warn("the model was in training mode; it is evaluated, and handed back as it was.", stacklevel=2)
    settings = {
        "images": str(len(images)),
        "shifts of each image": str(shifts),
        "largest shift": f"{reach} pixels",
        "border": mode,
        "seed": str(seed),
    }
    with evaluating(model):
        lost, reference = trial.lost(model, "the model as it is")
        layers = layer_responses(
            model,
            images,
            steps,
            mode=mode,
            fill=fill,
            batch_size=max(2, batch_size),
            device=device,
            progress=lambda done, of: progress("every layer", done, of or done),
        )
        guarantee = guarantee_of(model)
        return Explanation(
            name=name,
            similarity=mean(1 - lost, bounds=(-1.0, 1.0)),
            guarantee=guarantee,
            causes=causes_of(model, trial, guarantee.geometry, lost, reference, seed=seed),
            layers=layers,
            remedies=remedies_of(model, trial, guarantee.geometry, lost, reference, name=name),
            settings=settings,
        )


def _checked(model: object, images: Tensor, labels: Tensor | None, options: tuple[str, int, int | None]) -> int:
    """The largest shift, of what can be explained."""
    mode, shifts, max_shift = options
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module to be looked into, got {type(model).__name__}. Wrap it in one.")
    if len(images) < 2:
        raise InputError(f"`images` must hold at least two images, of which intervals can be made, got {len(images) or 'none'}.")
    check_images(images)
    check_labels(labels)
    if labels is not None and len(labels) != len(images):
        raise InputError(f"`labels` must hold one label an image, got {len(labels)} for {len(images)} images.")
    if mode not in get_args(Mode):
        raise InputError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    if shifts < 1:
        raise InputError(f"`shifts` must be 1 or more an image, got {shifts}.")
    smallest = min(images.shape[2:])
    reach = min(8, max(1, smallest // 8)) if max_shift is None else max_shift
    if not 1 <= reach < smallest:
        raise InputError(f"`max_shift` must be 1 to {smallest - 1} pixels on images of {smallest}, got {reach}.")
    return reach
