"""Compute what a study's networks predict at every shift of a few test images, for readers to drag.

Networks whose weights or images are not there are left out, each with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from shiftscope.datasets.dataset import Dataset, DataSpec, load
from shiftscope.engine.outputs import shift_outputs
from shiftscope.errors import InputError
from shiftscope.models import LoadedModel, load_model
from shiftscope.report import Drag, Network
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import grid
from shiftscope.studies import records
from shiftscope.studies.folder import CellRuns, StudyFolder
from shiftscope.studies.sections import VARIANT

__all__ = ["MAX_IMAGES", "balanced", "drag_sections"]

#: Test images of a section, at most.
MAX_IMAGES = 48
#: Size of all outputs and images of a page, at most, bytes before base64.
MAX_BYTES = 1_500_000
#: Networks are left out if fewer images than this would fit otherwise.
MIN_IMAGES = 4
#: An output takes a byte for each probability and these for its cosine and its top class.
COSINE_AND_TOP_BYTES = 4


@dataclass(frozen=True)
class _Group:
    """Networks that were trained on the same images.

    Attributes:
        data: specification of the images.
        reach: the largest shift of a drag, pixels.
        checksum: of the images.
        networks: name -> cell and network.
    """

    data: DataSpec
    reach: int
    checksum: str
    networks: dict[str, tuple[CellRuns, LoadedModel]]


def drag_sections(
    results: StudyFolder, *, data_dir: Path | None = None, device: torch.device | str = "cpu", report: Report = silent
) -> tuple[list[Drag], list[str]]:
    """Return a section for each data set of a study.

    Args:
        results: the study and its records.
        data_dir: local folder with the data set; nothing is downloaded.
        device: where to compute the outputs.
        report: called with each progress event.

    Returns:
        the sections; and a sentence for each network and data set that is left out.
    """
    groups, missing = _groups(results)
    sections = []
    for group in groups:
        try:
            sections.append(_section(group, len(groups), data_dir, device, report))
        except InputError as error:
            missing.append(f"The images of {group.data.name} cannot be shown: {error}")
    return sections, missing


def balanced(labels: Int[Tensor, " image"], count: int) -> Int[Tensor, " picked"]:
    """Return the indices of ``count`` images, the first of every class, then the second, and so on.

    >>> balanced(torch.tensor([0, 0, 0, 1, 2, 1]), 4).tolist()
    [0, 3, 4, 1]
    """
    seen: dict[int, int] = {}
    keys = []
    for index, label in enumerate(labels.tolist()):
        turn = seen[label] = seen.get(label, -1) + 1
        keys.append((turn, label, index))
    return torch.tensor([index for _, _, index in sorted(keys)[:count]], dtype=torch.long)


def _groups(results: StudyFolder) -> tuple[list[_Group], list[str]]:
    """Return the first network of each cell that has its weights, grouped by images, and what is missing of other cells."""
    groups: dict[tuple[DataSpec, int, str], _Group] = {}
    missing = []
    for cell in results.cells:
        folder = next((folder for folder in cell.folders if (folder / records.MODEL).exists()), None)
        if folder is None:
            if cell.folders:
                missing.append(f"{cell.name}: its folder holds no weights, so its predictions cannot be computed.")
            continue
        try:
            network = load_model(str(folder))
        except InputError as error:
            missing.append(f"{cell.name}: {error}")
            continue
        run = cell.planned[0]
        checksum = cell.records[cell.folders.index(folder)].provenance.get("data_sha256", "")
        key = (run.data, run.measure.max_shift, checksum)
        groups.setdefault(key, _Group(*key, {})).networks[cell.name] = (cell, network)
    return list(groups.values()), missing


def _section(group: _Group, groups: int, data_dir: Path | None, device: torch.device | str, report: Report) -> Drag:
    data = _images(group, data_dir, report)
    room, count = _room(group, groups, data)
    picked = balanced(data.test.labels, count)
    images, shifts = data.canvas.place(data.test.images[picked]), grid(group.reach)
    networks = []
    for done, (name, (cell, loaded)) in enumerate(list(group.networks.items())[:room]):
        report(Stage("computing predictions at every shift", done, room))
        outputs = shift_outputs(loaded.model.to(device), images, shifts, fill=data.canvas.colour, device=device)
        networks.append(Network(name, cell.factor, outputs))
    report(Stage("computing predictions at every shift", room, room))
    caption = (
        "Move it with the mouse, a finger or the arrow keys, and see what two networks predict. The networks computed these "
        f"predictions beforehand, at all {len(shifts):,} shifts of {len(picked)} test images."
    )
    if room < len(group.networks):
        caption += f" The page has room for {room} of {len(group.networks)} networks."
    return Drag(
        title=f"Drag the image: {_title(group)}" if groups > 1 else "Drag the image",
        caption=caption,
        images=data.test.images[picked],
        labels=data.test.labels[picked],
        classes=data.classes,
        canvas=(data.canvas.size, data.canvas.size),
        colour=tuple(int(part) for part in data.canvas.colour.mul(255).round()),
        reach=group.reach,
        networks=tuple(networks),
    )


def _images(group: _Group, data_dir: Path | None, report: Report) -> Dataset:
    """Load the images that a group's networks were trained on."""
    data = load(group.data, data_dir=data_dir, online=False, report=report)
    if data.checksum != group.checksum:
        raise InputError(
            f"the networks were trained on other images (sha256 {group.checksum[:12]}, here {data.checksum[:12]}).",
            "Give the folder with their images as --data-dir.",
        )
    return data


def _title(group: _Group) -> str:
    """Return the variant that the networks share, or their data set."""
    variants = {str(cell.settings.get(VARIANT, "")) for cell, _ in group.networks.values()}
    return variants.pop() if len(variants) == 1 and "" not in variants else group.data.name


def _room(group: _Group, groups: int, data: Dataset) -> tuple[int, int]:
    """Return how many networks and how many images fit on a page with so many groups."""
    image = data.test.images[0].numel()
    outputs = (2 * group.reach + 1) ** 2 * (len(data.classes) + COSINE_AND_TOP_BYTES)
    budget = MAX_BYTES // groups
    networks = min(len(group.networks), max(1, (budget // MIN_IMAGES - image) // outputs))
    return networks, max(1, min(MAX_IMAGES, budget // (networks * outputs + image)))
