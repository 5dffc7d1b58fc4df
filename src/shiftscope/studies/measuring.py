"""Measure a trained network on its test images: its outputs under shifts, curves over the largest shift, and every layer.

All test images are measured, at every shift all or a sample; responses of layers cost far more and use only the first images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shiftscope import surveys
from shiftscope.audits import protocols
from shiftscope.datasets.dataset import Dataset
from shiftscope.engine.outputs import Outputs, Runner, open_runner, shift_outputs, stream_outputs, track
from shiftscope.estimates import bootstrap
from shiftscope.explanations.layers import Layer, layer_responses
from shiftscope.models.family import Network
from shiftscope.radii import ShiftGrid, radii_from
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import grid, translate
from shiftscope.studies.certified import RADIUS
from shiftscope.studies.records import Curve, LayerRecord
from shiftscope.studies.sections import MeasureSpec
from shiftscope.surveys import Survey, survey

__all__ = ["CURVES", "OUTPUT_MEASURES", "RESPONSES", "Measurements", "measure_network"]

#: Images per block that the engine shifts.
BLOCK = 512
#: The first test images, whose maps are compared layer by layer.
LAYER_IMAGES = 200
#: The measures of a network's outputs, by short name, in the order of a table's columns.
OUTPUT_MEASURES = ("test_accuracy", "mcs", "mcs_centred", "mcs_all_shifts", "top1_change", "worst_case")
#: The measures that are followed over the largest shift.
CURVES = ("mcs", "top1_change")
#: The measures of each layer; attributes of :class:`shiftscope.explanations.layers.Layer`.
RESPONSES = ("similarity", "movement", "movement_in_pixels", "in_place", "homogeneity", "homogeneity_pooled")


@dataclass(frozen=True)
class Measurements:
    """What is measured on a network. The defaults are those of a training that diverged.

    Attributes:
        values: by measure, one value per test image; those of layers for the first images only, and those of every shift for
            the images that see every shift.
        maps: by measure, the mean of each shift over these images.
        curves: by measure, how its mean changes with the largest shift.
        cut: share of test images from which the shifts cut content.
        layers: the layers whose responses are kept.
        responses: for each of ``layers``, by response, one value for each of the first images.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    cut: float = 0.0
    layers: tuple[LayerRecord, ...] = ()
    responses: tuple[Mapping[str, Tensor], ...] = ()


def measure_network(
    spec: MeasureSpec, network: Network, data: Dataset, *, device: torch.device | str, report: Report = silent
) -> Measurements:
    """Measure a network on its test images: one random shift per image, every shift, and layer by layer.

    Args:
        spec: the largest shift, in pixels, and the seed of the random shifts.
        network: trained; it is put into evaluation mode.
        data: the data set whose test images are measured.
        device: where to compute.
        report: called with each event.
    """
    # One memory format whether the weights come from training or from disk, so that the last bits agree.
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its types do not
    protocol = protocols.mouton2020(spec.max_shift, seed=spec.seed)
    shifts = protocol.draw(len(data.test))
    images, fill = data.canvas.place(data.test.images), data.canvas.colour
    sample = spec.at_every_shift(len(images))
    shown = images[sample]
    report(Stage("measuring one shift of each image", 0, len(images)))
    outputs = shift_outputs(network, images, shifts, mode=protocol.mode, fill=fill, device=device)
    blocks = stream_outputs(network, shown.split(BLOCK), grid(spec.max_shift), mode=protocol.mode, fill=fill, device=device)
    radii = list[Tensor]()
    blocks = _with_radii(blocks, shown, _by_itself(network, shown, spec.max_shift, fill, device), spec.max_shift, radii)
    counted = track(blocks, lambda done: report(Stage("measuring every shift", done, len(shown))))
    found = survey(counted, labels=data.test.labels[sample])
    layers = layer_responses(
        network,
        images[:LAYER_IMAGES],
        shifts[:LAYER_IMAGES],
        fill=fill,
        device=device,
        report=report,
    ).layers
    values = {
        "test_accuracy": surveys.correct(outputs.reference, data.test.labels),
        "mcs": surveys.cosines(outputs),
        "mcs_centred": surveys.cosines(surveys.centred(outputs)),
        "mcs_softmax": surveys.cosines(surveys.probabilities(outputs)),
        "mcs_all_shifts": found.values["mcs", "all"],
        "top1_change": surveys.top1_changes(outputs),
        "worst_case": found.values["worst_case", "all"] > 0,
        RADIUS: torch.cat(radii),
        **_layer_values(layers),
    }
    return Measurements(
        values=values,
        maps=dict(found.maps),
        curves={name: _curve(found, name, spec.max_shift) for name in CURVES},
        cut=1 - float(_complete(images, fill, shifts[:, 0]).double().mean()),
        layers=tuple(map(_layer_record, layers)),
        responses=tuple(map(_responses, layers)),
    )


def _by_itself(
    network: Network, images: Tensor, max_shift: int, fill: Float[Tensor, " channel"], device: torch.device | str
) -> Runner:
    """Return what runs the network view by view, for answers that are too close to call."""
    return open_runner(network, images[:1], grid(max_shift), fill=fill, device=device, method="direct")


def _with_radii(
    blocks: Iterator[Outputs], images: Tensor, runner: Runner, max_shift: int, radii: list[Tensor]
) -> Iterator[Outputs]:
    """Yield outputs at every shift, and append the radius of each of their images."""
    done = 0
    for block in blocks:
        stop = done + len(block.reference)
        radii.append(radii_from(block, runner, images[done:stop], ShiftGrid(max_shift)).radii.to(torch.int32))
        done = stop
        yield block


def _layer_values(layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Return the layer values that the source's explanation rests on.

    ``homogeneity`` is the mean over subsampling layers, after their pooling windows, or of their input for layers without one.
    ``head_similarity``, ``head_movement`` (pixels) and ``head_in_place`` are those of the last map.
    """
    homogeneity = [layer.homogeneity if layer.homogeneity_pooled is None else layer.homogeneity_pooled for layer in layers]
    subsampled = [values for values in homogeneity if values is not None]
    last = [layer for layer in layers if layer.factor is not None][-1]
    found = {
        "head_similarity": _response(last, "similarity"),
        "head_movement": _response(last, "movement_in_pixels"),
        "head_in_place": _response(last, "in_place"),
        "homogeneity": torch.stack(subsampled).mean(dim=0).float() if subsampled else None,
    }
    return {name: values for name, values in found.items() if values is not None}


def _response(layer: Layer, name: str) -> Float[Tensor, " image"] | None:
    """Return one of a layer's responses, averaged over the shifts of each image; None if the layer has none."""
    values: Tensor | None = getattr(layer, name)
    if values is None:
        return None
    return (values if values.ndim == 1 else values.mean(dim=1)).float()


def _responses(layer: Layer) -> dict[str, Float[Tensor, " image"]]:
    """Return the responses that a layer has, by name."""
    return {name: response for name in RESPONSES if (response := _response(layer, name)) is not None}


def _layer_record(layer: Layer) -> LayerRecord:
    return LayerRecord(
        name=layer.name, kind=layer.kind, size=layer.size, channels=layer.channels, factor=layer.factor, stride=layer.stride
    )


def _curve(found: Survey, measure: str, max_shift: int) -> Curve:
    """Return a measure's mean over all shifts up to each largest one.

    A ring of shifts with the same largest component has 8 r shifts (1 at r = 0), so that means over rings add up to means over
    all shifts, and nothing is evaluated again.
    """
    means, draws, total, shifts = [], [], torch.zeros(()), 0
    for radius in range(max_shift + 1):
        ring = 8 * radius or 1
        total, shifts = total + ring * found.values[measure, f"radius {radius}"].double(), shifts + ring
        means.append((total / shifts).mean())
        draws.append(torch.from_numpy(bootstrap((total / shifts)[None])) - means[-1])
    return Curve.from_draws(measure, torch.stack(means).float(), torch.stack(draws))


def _complete(images: Tensor, colour: Tensor, shifts: Tensor) -> Bool[Tensor, " image"]:
    """Return whether a shift keeps all of an image's content, the pixels that differ from the canvas."""
    content = (images != colour.reshape(-1, 1, 1)).any(dim=1, keepdim=True)
    complete: Tensor = translate(content, shifts).sum(dim=(1, 2, 3)) == content.sum(dim=(1, 2, 3))
    return complete
