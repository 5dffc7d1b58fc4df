"""What a study's kept networks answer when an image is dragged: every shift of a few test images, by the engine.

Whatever is not there (weights, images, the same images) is said in a sentence, and the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable
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
from shiftscope.runtime.progress import Event, Stage
from shiftscope.shifts import grid
from shiftscope.studies import records
from shiftscope.studies.folder import CellRuns, StudyFolder
from shiftscope.studies.spec import VARIANT

__all__ = ["IMAGES", "Progress", "Scene", "galleries", "spread_over_classes"]

#: Test images of a gallery, at most.
IMAGES = 48
#: What the answers of a page may take, bytes before base64.
BUDGET = 1_500_000
#: So many images have a place; where they would not fit, networks are left out.
FEWEST = 4
#: Beside its probabilities an answer holds a cosine and a top class, 16 bits each.
BYTES_BESIDE = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scene:
    """The kept networks that share their images.

    Attributes:
        data: the images.
        reach: the largest shift of a drag, pixels.
        models: name -> cell and network.
        checksum: of the data they were trained on.
    """

    data: DataSpec
    reach: int
    models: dict[str, tuple[CellRuns, LoadedModel]]
    checksum: str


def galleries(
    held: StudyFolder, *, data_dir: Path | None = None, device: torch.device | str = "cpu", progress: Progress = lambda *_: None
) -> tuple[list[Drag], list[str]]:
    """A gallery for each data set of a study whose networks and images are there, and what is missing of others.

    Args:
        held: the study.
        data_dir: a local folder that holds the data set; nothing is fetched from the network.
        device: where to compute.
        progress: told how it goes.
    """
    scenes, missing = _scenes(held)
    found = []
    for place, scene in enumerate(scenes):
        try:
            found.append(_gallery(scene, len(scenes), data_dir, device, lambda *at: progress(*at)))
        except InputError as error:
            missing.append(f"The images of {scene.data.name} cannot be shown: {error}")
        progress("computing what networks answer to a drag", place + 1, len(scenes))
    return found, missing


def spread_over_classes(labels: Int[Tensor, " image"], count: int) -> Int[Tensor, " picked"]:
    """The first images such that every class has as many as any other, where there are so many; class by class in turn.

    >>> spread_over_classes(torch.tensor([0, 0, 0, 1, 2, 1]), 4).tolist()
    [0, 3, 4, 1]
    """
    turns: dict[int, int] = {}
    keys = []
    for place, label in enumerate(labels.tolist()):
        turn = turns[label] = turns.get(label, -1) + 1
        keys.append((turn, label, place))
    return torch.tensor([place for _, _, place in sorted(keys)[:count]], dtype=torch.long)


def _scenes(held: StudyFolder) -> tuple[list[Scene], list[str]]:
    """The kept networks by their images: the first of each cell that has its weights."""
    scenes: dict[tuple[DataSpec, int, str], Scene] = {}
    missing = []
    for cell in held.cells:
        kept = next((folder for folder in cell.folders if (folder / records.MODEL).exists()), None)
        if kept is None:
            if cell.folders:
                missing.append(f"{cell.name}: no weights are kept beside its records, so it cannot answer a drag.")
            continue
        try:
            loaded = load_model(str(kept))
        except InputError as error:
            missing.append(f"{cell.name}: {error}")
            continue
        run = cell.planned[0]
        checksum = cell.records[cell.folders.index(kept)].provenance.get("data_sha256", "")
        scene = scenes.setdefault(
            (run.data, run.measure.max_shift, checksum), Scene(run.data, run.measure.max_shift, {}, checksum)
        )
        scene.models[cell.name] = (cell, loaded)
    return list(scenes.values()), missing


def _gallery(scene: Scene, scenes: int, data_dir: Path | None, device: torch.device | str, progress: Progress) -> Drag:
    def report(event: Event) -> None:
        if isinstance(event, Stage):
            progress(event.sentence, event.done, event.of)

    data = load(scene.data, data_dir=data_dir, online=False, report=report)
    if data.checksum != scene.checksum:
        raise InputError(
            f"the networks were trained on other images (sha256 {scene.checksum[:12]}, here {data.checksum[:12]}). Give the "
            "folder that holds theirs with --data-dir."
        )
    room, count = _room(scene, scenes, data)
    picked = spread_over_classes(data.test.labels, count)
    images = data.canvas.place(data.test.images[picked])
    networks = []
    for done, (name, (cell, loaded)) in enumerate(list(scene.models.items())[:room]):
        progress("computing what networks answer to a drag", done, room)
        outputs = shift_outputs(loaded.model.to(device), images, grid(scene.reach), fill=data.canvas.colour, device=device)
        networks.append(Network(name, cell.factor, outputs))
    return Drag(
        title=f"Drag the image: {_title(scene)}" if scenes > 1 else "Drag the image",
        caption="Move it with the mouse, a finger or the arrow keys and watch two networks answer. Every answer was computed "
        f"before by the networks themselves, at all {len(grid(scene.reach)):,} shifts of {len(picked)} test images."
        + (f" The page has room for {room} of {len(scene.models)} networks." if room < len(scene.models) else ""),
        images=data.test.images[picked],
        labels=data.test.labels[picked],
        classes=data.classes,
        canvas=data.canvas.size,
        colour=tuple(int(part) for part in data.canvas.colour.mul(255).round()),
        reach=scene.reach,
        networks=tuple(networks),
    )


def _title(scene: Scene) -> str:
    """The variant that the networks share, or their data set."""
    variants = {str(cell.settings.get(VARIANT, "")) for cell, _ in scene.models.values()}
    return variants.pop() if len(variants) == 1 and "" not in variants else scene.data.name


def _room(scene: Scene, scenes: int, data: Dataset) -> tuple[int, int]:
    """How many networks and how many images the page has room for."""
    pixels = data.test.images[0].numel()
    answers = (2 * scene.reach + 1) ** 2 * (len(data.classes) + BYTES_BESIDE)
    networks = min(len(scene.models), max(1, (BUDGET // scenes // FEWEST - pixels) // answers))
    return networks, max(1, min(IMAGES, BUDGET // scenes // (networks * answers + pixels)))
