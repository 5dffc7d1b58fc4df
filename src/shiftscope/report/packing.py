"""Pack outputs and images as compact text for a page: 8 bits per probability, 16 bits per cosine, base64.

The error is bounded: at most 1/510 for a probability and 1/65534 for a cosine. The top classes are stored apart, so that rounding
never changes a prediction.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.errors import InputError
from shiftscope.report.colours import SEQUENTIAL, interpolate
from shiftscope.report.content import Drag, Network, ShiftMap
from shiftscope.surveys import per_shift_cosines

__all__ = ["COSINE_STEPS", "PROBABILITY_STEPS", "colour_range", "drag_data", "map_picture"]

PROBABILITY_STEPS, COSINE_STEPS = 255, 32767


def drag_data(drag: Drag) -> dict[str, Any]:
    """Return what the page's script needs to show a drag, as plain data.

    Args:
        drag: the section.

    Raises:
        InputError: a network's outputs belong to other images, shifts or classes.
    """
    count, channels, height, width = drag.images.shape
    return {
        "images": _base64(drag.images.permute(0, 2, 3, 1).contiguous().numpy()),
        "count": count,
        "channels": channels,
        "height": height,
        "width": width,
        "labels": drag.labels.tolist(),
        "classes": list(drag.classes),
        "canvas": list(drag.canvas),
        "colour": list(drag.colour),
        "reach": drag.reach,
        "networks": [_network(drag, network) for network in drag.networks],
    }


def _network(drag: Drag, network: Network) -> Mapping[str, Any]:
    outputs = network.outputs
    expected = (len(drag.images), (2 * drag.reach + 1) ** 2, len(drag.classes))
    if network.cosines is not None and tuple(network.cosines.shape) != expected[:2]:
        raise InputError(f"The cosines of {network.name!r} must have shape {expected[:2]} (images, shifts).")
    if tuple(outputs.values.shape) != expected:
        shape = tuple(outputs.values.shape)
        raise InputError(
            f"The outputs of {network.name!r} must have shape {expected} (images, shifts, classes), got {shape}.",
            "Compute them with `shift_outputs` over `grid(reach)`.",
        )
    return {"name": network.name, "factor": network.factor, **packed(outputs, network.cosines)}


def packed(outputs: Outputs, cosines: Float[Tensor, "image shift"] | None = None) -> dict[str, str]:
    """Return probabilities, cosines and top classes at every shift, [image, shift(, class)], and the unshifted top classes.

    Args:
        outputs: of all classes; with ``cosines``, logarithms of some classes' probabilities.
        cosines: at every shift, where ``outputs`` do not give them.
    """
    probabilities = outputs.values.softmax(-1) if cosines is None else outputs.values.exp().clamp(0, 1)
    probabilities = probabilities.mul(PROBABILITY_STEPS).round().byte()
    cosines = (per_shift_cosines(outputs) if cosines is None else cosines.clamp(-1, 1)).mul(COSINE_STEPS).round().to(torch.int16)
    return {
        "probabilities": _base64(probabilities.numpy()),
        "cosines": _base64(cosines.numpy().astype("<i2")),
        "tops": _base64(outputs.values.argmax(-1).numpy().astype("<u2")),
        "unshifted": _base64(outputs.reference.argmax(-1).numpy().astype("<u2")),
    }


def colour_range(maps: tuple[ShiftMap, ...]) -> tuple[float, float]:
    """Return the least and the greatest value of several maps; if they are equal, a range of width 1 around them."""
    values = torch.cat([each.values for each in maps])
    low, high = float(values.min()), float(values.max())
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def map_picture(values: Float[Tensor, " shift"], low: float, high: float) -> str:
    """Return a map over shifts as the data URL of a PNG with one pixel for each shift."""
    from PIL import Image

    side = round(len(values) ** 0.5)
    colours = [interpolate((value - low) / (high - low), SEQUENTIAL) for value in values.tolist()]
    pixels: UInt8[np.ndarray, "height width 3"] = np.array(colours, dtype=np.uint8).reshape(side, side, 3)
    target = BytesIO()
    Image.fromarray(pixels).save(target, format="PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(target.getvalue()).decode()}"


def _base64(array: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(array).tobytes()).decode()
