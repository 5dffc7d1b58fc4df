"""How much the way of drawing shifts matters: similarity beside the printed numbers, without measuring anything again.

`python benchmarks/drawing.py` reads the mean cosine similarity of trained networks at each of the 289 shifts of up to 8 pixels
from `results/`, weights them by how often each way of drawing gives that shift, and prints the distance to the source's numbers.
The source says that images are shifted at random by up to 8 pixels; whether 8 itself is drawn, and as often as the others, it
does not say.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.studies.folder import read_folder

RESULTS = Path(__file__).parent.parent / "results"
STUDIES = ("mnist", "cifar10", "cifar10-valid")
REACH = 8
STEPS = torch.arange(-REACH, REACH + 1)
#: Way of drawing a shift along one axis -> how often it gives each of -8 to 8, relative to the others.
WAYS: dict[str, Float[Tensor, " step"]] = {
    "whole numbers from -8 to 8": torch.ones(len(STEPS)),
    "whole numbers from -8 to 7": (STEPS < REACH).float(),
    "from -8.0 to 8.0, rounded": torch.where(STEPS.abs() == REACH, 0.5, 1.0),
    "whole numbers from -7 to 7": (STEPS.abs() < REACH).float(),
}


def read(study: str) -> dict[str, tuple[Float[Tensor, " shift"], float]]:
    """Return each cell's mean similarity at every shift, over its networks, and the printed number.

    Args:
        study: name of its folder. Cells without networks or printed number are left out.
    """
    results, found = read_folder(RESULTS / study), {}
    for cell in results.cells:
        printed = results.study.source_numbers(cell.settings).get("mcs")
        if printed is not None and cell.finished:
            name = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in cell.settings.items())
            found[name] = torch.stack([run.maps["mcs"].flatten().double() for run in cell.finished]).mean(0), printed
    return found


def differences(cells: dict[str, tuple[Float[Tensor, " shift"], float]], along: Float[Tensor, " step"]) -> Float[Tensor, " cell"]:
    """Return each cell's weighted similarity less the printed number.

    Args:
        cells: of a study.
        along: weight of each shift along one axis.
    """
    weights = torch.outer(along, along).flatten().double()
    return torch.stack([(maps * weights).sum() / weights.sum() - printed for maps, printed in cells.values()])


def main() -> None:
    """Print the distance of each study for each way, and of MNIST each difference."""
    studies = {study: read(study) for study in STUDIES}
    print("Root mean square distance to the printed similarities (mean difference)\n")
    print(f"{'shifts drawn as':28}" + "".join(f"{study:>20}" for study in STUDIES))
    for way, along in WAYS.items():
        found = [differences(cells, along) for cells in studies.values()]
        row = [f"{each.square().mean().sqrt():.3f} ({each.mean():+.3f})" for each in found]
        print(f"{way:28}" + "".join(f"{each:>20}" for each in row))
    print(f"\n{'MNIST, ours less printed':28}" + "".join(f"{cell:>20}" for cell in studies["mnist"]))
    for way, along in WAYS.items():
        print(f"{way:28}" + "".join(f"{value:+20.3f}" for value in differences(studies["mnist"], along).tolist()))
    print("\nCells: " + ", ".join(f"{study} {len(cells)}" for study, cells in studies.items()))


if __name__ == "__main__":
    main()
