"""What a trained network's test images tell: measures of its outputs, curves over the largest shift, and every layer's response.

It knows no file. All images are measured but for the layers' responses, which cost far more an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shiftscope import estimates as measures
from shiftscope import surveys
from shiftscope.audits import protocols
from shiftscope.datasets.dataset import Dataset
from shiftscope.engine.outputs import shift_outputs, stream_outputs, track
from shiftscope.explanations.layers import Layer, layer_responses
from shiftscope.models.family import Network
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.settings import Spec
from shiftscope.shifts import grid, translate
from shiftscope.studies.spec import MeasureSpec
from shiftscope.surveys import Survey, survey

__all__ = ["CURVES", "MEASURES", "RESPONSES", "Curve", "LayerRecord", "Measure", "Measured", "measured"]

#: Images whose canvases are handed to the engine at once.
BLOCK = 512
#: Images whose maps are compared layer by layer, the first of the test set.
LAYER_IMAGES = 200
#: What is followed over the largest shift.
CURVES = {"mcs": (-1.0, 1.0), "top1_change": (0.0, 1.0)}
#: What is kept of every layer, see :class:`shiftscope.explanations.layers.Layer`, with its least and greatest value.
RESPONSES: dict[str, tuple[float, float]] = {
    "similarity": (-1.0, 1.0),
    "movement": (0.0, float("inf")),
    "movement_in_pixels": (0.0, float("inf")),
    "in_place": (-1.0, 1.0),
    "homogeneity": (-1.0, 1.0),
    "homogeneity_pooled": (-1.0, 1.0),
}


class LayerRecord(Spec):
    """A layer whose responses are kept.

    Attributes:
        name: of the layer, ``canvas`` or ``output``.
        kind: what it is.
        size: height and width of its map, positions.
        channels: of its map.
        factor: pixels between neighbouring positions; None where there are no positions.
        stride: of the layer itself.
    """

    name: str
    kind: str
    size: tuple[int, int]
    channels: int
    factor: tuple[int, int] | None
    stride: tuple[int, int]


@dataclass(frozen=True)
class Curve:
    """A measure's mean over all test images and all shifts up to each largest one.

    Attributes:
        means: one for each largest shift from 0 on.
        deviations: of bootstrap draws from that mean, in half precision, which is plenty for an interval.
    """

    means: Float[Tensor, " radius"]
    deviations: Float[Tensor, "radius draw"]


@dataclass(frozen=True)
class Measured:
    """All that is kept.

    Attributes:
        values: by measure, one of each test image; some of the layers' measures of the first images only.
        maps: by measure, the mean of each shift.
        curves: by measure, how its mean grows with the largest shift.
        cut: share of the test images of which the shifts cut content.
        layers: those whose responses are kept.
        responses: for each of ``layers``, by response, one value for each of the first images.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    cut: float = 0.0
    layers: tuple[LayerRecord, ...] = ()
    responses: tuple[Mapping[str, Tensor], ...] = ()


def measured(
    spec: MeasureSpec, network: Network, data: Dataset, *, device: torch.device | str, report: Report = silent
) -> Measured:
    """Measure a network once as the protocol says, each image under its own shift, once under every shift, and layer by layer.

    Args:
        spec: how.
        network: trained; it is put into evaluation mode.
        data: whose test images are taken.
        device: where to compute.
        report: told how it goes.
    """
    # One memory format whether the weights come from training or from disk, so that the last bits agree.
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    protocol = protocols.mouton2020(spec.max_shift, seed=spec.seed)
    shifts = protocol.draw(len(data.test))
    images, fill = data.canvas.place(data.test.images), data.canvas.colour
    report(Stage("measuring one shift of each image", 0, len(images)))
    outputs = shift_outputs(network, images, shifts, mode=protocol.mode, fill=fill, device=device)
    blocks = stream_outputs(network, images.split(BLOCK), grid(spec.max_shift), mode=protocol.mode, fill=fill, device=device)
    counting = track(blocks, lambda done: report(Stage("measuring every shift", done, len(images))))
    found = survey(counting, labels=data.test.labels)
    some = min(LAYER_IMAGES, len(images))
    layers = layer_responses(
        network,
        images[:some],
        shifts[:some],
        fill=fill,
        device=device,
        report=report,
    ).layers
    values = {
        "test_accuracy": surveys.correct(outputs.reference, data.test.labels),
        "mcs": surveys.cosines(outputs),
        "mcs_centred": surveys.cosines(surveys.centred(outputs)),
        "mcs_all_shifts": found.values["mcs", "all"],
        "top1_change": surveys.top1_changes(outputs),
        "worst_case": found.values["worst_case", "all"] > 0,
        **_of_layers(layers),
    }
    return Measured(
        values=values,
        maps=dict(found.maps),
        curves=_curves(found, spec.max_shift),
        cut=1 - float(_kept(images, fill, shifts[:, 0]).double().mean()),
        layers=tuple(map(_record, layers)),
        responses=tuple(map(_responses, layers)),
    )


def _of_layers(layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """What the explanation turns on: how alike neighbours are where subsampling happens, and what reaches the head.

    ``homogeneity``: the mean over subsampling layers, of what their windows make of the map before them (of that map, where they
    are no pools); ``head_similarity``, ``head_movement`` (pixels) and ``head_in_place``: of the last map.
    """
    before = [layer.homogeneity if layer.homogeneity_pooled is None else layer.homogeneity_pooled for layer in layers]
    subsampled = [each for each in before if each is not None]
    last = [layer for layer in layers if layer.factor is not None][-1]
    found = {
        "head_similarity": _response(last, "similarity"),
        "head_movement": _response(last, "movement_in_pixels"),
        "head_in_place": _response(last, "in_place"),
        "homogeneity": torch.stack(subsampled).mean(dim=0).float() if subsampled else None,
    }
    return {name: values for name, values in found.items() if values is not None}


def _response(layer: Layer, name: str) -> Float[Tensor, " image"] | None:
    """One of a layer's responses, its mean over the shifts of each image."""
    values: Tensor | None = getattr(layer, name)
    if values is None:
        return None
    return (values if values.ndim == 1 else values.mean(dim=1)).float()


def _responses(layer: Layer) -> dict[str, Float[Tensor, " image"]]:
    """A layer's responses by name, those that it has."""
    return {name: response for name in RESPONSES if (response := _response(layer, name)) is not None}


def _record(layer: Layer) -> LayerRecord:
    return LayerRecord(
        name=layer.name, kind=layer.kind, size=layer.size, channels=layer.channels, factor=layer.factor, stride=layer.stride
    )


def _curves(found: Survey, max_shift: int) -> dict[str, Curve]:
    """The mean over all shifts up to each largest one, from the rings of every shift: nothing is evaluated anew."""
    curves: dict[str, Curve] = {}
    for name in CURVES:
        means, draws, total, shifts = [], [], torch.zeros(()), 0
        for radius in range(max_shift + 1):
            ring = 8 * radius or 1
            total, shifts = total + ring * found.values[name, f"radius {radius}"].double(), shifts + ring
            means.append((total / shifts).mean())
            draws.append(torch.from_numpy(measures.bootstrap((total / shifts)[None])) - means[-1])
        curves[name] = Curve(torch.stack(means).float(), torch.stack(draws).half())
    return curves


def _kept(images: Tensor, colour: Tensor, shifts: Tensor) -> Bool[Tensor, " image"]:
    """Whether all that is not canvas is still there after its shift."""
    content = (images != colour.reshape(-1, 1, 1)).any(dim=1, keepdim=True)
    kept: Tensor = translate(content, shifts).sum(dim=(1, 2, 3)) == content.sum(dim=(1, 2, 3))
    return kept


@dataclass(frozen=True)
class Measure:
    """How the values of test images become an estimate: from one network, and from several."""

    of_one: Callable[[Tensor], measures.Estimate]
    of_several: Callable[[Tensor], measures.Estimate]


def _mean(low: float, high: float) -> Measure:
    bounds = (low, high)
    return Measure(
        lambda values: measures.mean(values, bounds=bounds), lambda values: measures.mean_over_seeds(values, bounds=bounds)
    )


SHARE = Measure(measures.proportion, measures.proportion_over_seeds)
MEASURES = {
    "test_accuracy": SHARE,
    "mcs": _mean(-1.0, 1.0),
    "mcs_centred": _mean(-1.0, 1.0),
    "mcs_all_shifts": _mean(-1.0, 1.0),
    "top1_change": _mean(0.0, 1.0),
    "worst_case": SHARE,
}
