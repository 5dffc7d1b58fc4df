"""Compute what an audited model answers at every shift of a few images, for readers to drag.

Done once an audit is complete and written as ``drag.safetensors`` beside it, so that its page can be made again where neither the
model nor the images are. A model that is too slow for a few images in a part of the audit's own time has no such file.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.audits import Audit
from shiftscope.audits.model import CountedModel
from shiftscope.audits.subject import Subject
from shiftscope.audits.views import Framing
from shiftscope.engine.checks import evaluating
from shiftscope.engine.outputs import Outputs, shift_outputs
from shiftscope.report.content import Drag, Network
from shiftscope.report.packing import drag_data
from shiftscope.runtime.files import write_tensors, writing
from shiftscope.runtime.inputs import read_tensors
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.seeds import evenly_spread
from shiftscope.shifts import grid
from shiftscope.surveys import per_shift_cosines

__all__ = ["DRAG", "drag_of", "read_drag", "write_drag"]

#: The file's name in an audit's folder.
DRAG = "drag.safetensors"
#: Largest shifts to choose from, pixels: the largest one at which the model answers a few images within its time.
REACHES = (8, 4, 2)
#: Images that are worth a section, and at most.
FEW, MANY = 4, 24
#: Time for it: this part of what the audit took, and at least so many seconds.
PART, SECONDS = 0.1, 10.0
#: Size of all images, at most, bytes before base64.
MAX_BYTES = 900_000
#: Size of all outputs, at most, bytes before base64; and bytes of a shift beside its probabilities.
MAX_OUTPUT_BYTES, COSINE_AND_TOP_BYTES = 700_000, 4
#: A larger file is not read.
MAX_FILE_BYTES = 64 << 20


def drag_of(subject: Subject, audit: Audit, report: Report = silent) -> Drag | None:
    """Return images to drag and what the audited model answers at every shift; None if it has no classes or is too slow.

    Args:
        subject: the model and the images of the audit.
        audit: the audit; its images that change most come first.
        report: called with each progress event.

    Raises:
        InputError: the model fails on a view.
    """
    if not any(each.before is not None for each in audit.changed):
        return None
    images = subject.images
    framing = Framing(images.size, (0, 0), images.fill, images.mean)
    first = framing.centre(images.read(audit.changed[0].image, audit.changed[0].image + 1).images)
    fits = MAX_BYTES // max(first.numel(), 1)
    reach, count = _affordable(subject, first, max(SECONDS, PART * audit.cost.seconds), min(min(images.size) // 4, REACHES[0]))
    count = min(count, fits, images.count, MANY)
    if count < min(FEW, images.count):
        return None
    views, labels, parts = list[Tensor](), list[int](), list[Outputs]()
    for number in _chosen(audit, images.count)[:count]:
        report(Stage("computing answers at every shift", len(views), count))
        block = images.read(number, number + 1)
        if len(block.images):
            views.append(framing.centre(block.images))
            labels.append(-1 if block.labels is None else int(block.labels[0]))
            parts.append(_outputs(subject, views[-1], reach))
    report(Stage("computing answers at every shift", count, count))
    return _drag(subject, audit, torch.cat(views), labels, parts, reach)


def _chosen(audit: Audit, count: int) -> list[int]:
    """Return the images that change most, and then others evenly spread."""
    return list(dict.fromkeys([*(each.image for each in audit.changed), *evenly_spread(count, MANY)]))


def _affordable(subject: Subject, image: Tensor, seconds: float, largest: int) -> tuple[int, int]:
    """Return the largest shift, and for how many images there is time: at least a few of them, or at the smallest shift."""
    _outputs(subject, image, 1)
    started = perf_counter()
    _outputs(subject, image, REACHES[-1])
    per_shift = (perf_counter() - started) / len(grid(REACHES[-1]))
    for reach in REACHES:
        count = int(seconds / (per_shift * len(grid(reach))))
        if reach <= max(largest, 1) and count >= FEW:
            break
    return reach, count


def _outputs(subject: Subject, image: Float[Tensor, "1 channel height width"], reach: int) -> Outputs:
    device = torch.device(subject.spec.device)
    counted = CountedModel(subject.loaded.model, output=subject.output, device=device)
    with evaluating(subject.loaded.model), torch.no_grad():
        counted(image)  # to see what it returns
        return shift_outputs(counted.for_engine(), image, grid(reach), fill=subject.fill, device=device)


def _drag(subject: Subject, audit: Audit, images: Tensor, labels: list[int], parts: list[Outputs], reach: int) -> Drag:
    """Return a section with the classes that are an image's most probable one at some shift, or its label."""
    values, reference = (torch.cat([getattr(part, name) for part in parts]).float().cpu() for name in ("values", "reference"))
    outputs = Outputs(values, reference, grid(reach), parts[0].method, parts[0].reason)
    fits = values.shape[2] == subject.images.classes
    shown = (
        torch.cat([values.argmax(-1).unique(), torch.tensor([label for label in labels if fits and label >= 0])]).unique().long()
    )
    room = MAX_OUTPUT_BYTES // (len(values) * values.shape[1]) - COSINE_AND_TOP_BYTES
    if len(shown) < min(room, values.shape[2]):  # further classes, by their largest probability
        others = values.softmax(-1).amax(dim=(0, 1)).argsort(descending=True, stable=True)
        shown = torch.cat([shown, others[~torch.isin(others, shown)]])[: max(len(shown), min(room, 20))].sort().values
    names = subject.class_names if fits else ()
    classes = tuple(names[label] if label < len(names) else f"class {label}" for label in shown.tolist())
    places = {label: place for place, label in enumerate(shown.tolist())}
    known = [places.get(label, -1) if fits else -1 for label in labels]
    likely, unshifted = (each.log_softmax(-1)[..., shown] for each in (values, reference))
    network = Network(
        Path(subject.name).name,
        None,
        Outputs(likely, unshifted, outputs.shifts, outputs.method, outputs.reason),
        cosines=per_shift_cosines(outputs),
    )
    colour = tuple(round(255 * part) for part in subject.images.fill)
    pixels = images.mul(255).round().clamp(0, 255).byte()
    return _section(pixels, torch.tensor(known), classes, colour, network, f"{audit.cost.images:,}")


def _section(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], colour: tuple[int, ...], network: Network, audited: str
) -> Drag:
    shifts = network.outputs.shifts
    caption = (
        "Move it with the mouse, a finger or the arrow keys, and see what the model answers. It computed these answers "
        f"beforehand, at all {len(shifts):,} shifts of {len(images)} of the {audited} images; the canvas's colour fills what a "
        "shift uncovers."
    )
    reach, canvas = int(shifts.abs().max()), (images.shape[2], images.shape[3])
    return Drag("Drag the image", caption, images, labels, classes, canvas, colour, reach, (network,))


def write_drag(folder: Path, drag: Drag | None, audited: int) -> None:
    """Write a section into an audit's folder, or remove an older one if there is none.

    Args:
        folder: the audit's.
        drag: the section of :func:`drag_of`.
        audited: number of images of the audit.

    Raises:
        InputError: the folder cannot be written.
    """
    with writing(folder / DRAG, "Choose another folder with --out."):
        if drag is None:
            (folder / DRAG).unlink(missing_ok=True)
            return
        network = drag.networks[0]
        assert network.cosines is not None  # drag_of gives them
        tensors = {"images": drag.images, "labels": drag.labels, "values": network.outputs.values}
        tensors |= {"reference": network.outputs.reference, "cosines": network.cosines, "colour": torch.tensor(drag.colour)}
        header = {"classes": json.dumps(drag.classes), "name": network.name, "audited": f"{audited:,}"}
        write_tensors(folder / DRAG, tensors, metadata=header)


def read_drag(folder: Path) -> Drag | None:
    """Return the section in an audit's folder; None if it holds none that can be read."""
    try:
        if (folder / DRAG).stat().st_size > MAX_FILE_BYTES:
            return None
        found, header = read_tensors(folder / DRAG)
        if any(tensor.is_complex() for tensor in found.values()):
            return None
        classes = tuple(str(name) for name in json.loads(header["classes"]))
        values, side = found["values"], round(found["values"].shape[1] ** 0.5)
        shifts = grid((side - 1) // 2)
        outputs = Outputs(values, found["reference"], shifts, "direct", "read from a file")
        network = Network(header["name"], None, outputs, cosines=found["cosines"])
        drag = _section(
            found["images"], found["labels"], classes, tuple(found["colour"].tolist()), network, header.get("audited", "")
        )
        drag_data(drag)  # raises where shapes do not fit
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError):
        return None
    return drag
