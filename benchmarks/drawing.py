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
EVENLY = "whole numbers from -8 to 8"
STEPS = torch.arange(-REACH, REACH + 1)
#: Way of drawing a shift along one axis -> how often it gives each of -8 to 8, relative to the others.
WAYS: dict[str, Float[Tensor, " step"]] = {
    EVENLY: torch.ones(len(STEPS)),
    "whole numbers from -8 to 7": (STEPS < REACH).float(),
    "from -8.0 to 8.0, rounded": torch.where(STEPS.abs() == REACH, 0.5, 1.0),
    "whole numbers from -7 to 7": (STEPS.abs() < REACH).float(),
}


def differences(study: str, along: Float[Tensor, " step"]) -> dict[str, float]:
    """Return the weighted similarity of each cell with printed number and networks, less that number.

    Args:
        study: name of its folder.
        along: weight of each shift along one axis.
    """
    results = read_folder(RESULTS / study)
    weights = torch.outer(along, along).flatten()
    found = {}
    for cell in results.cells:
        printed = results.study.source_numbers(cell.settings).get("mcs")
        if printed is not None and cell.finished:
            maps = torch.stack([run.maps["mcs"].flatten() for run in cell.finished]).double()
            ours = float((maps * weights).sum(1).div(weights.sum()).mean())
            found[", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in cell.settings.items())] = ours - printed
    return found


def main() -> None:
    """Print the distance of each study for each way, and of MNIST each difference."""
    print("Root mean square distance to the printed similarities (mean difference)\n")
    print(f"{'shifts drawn as':28}" + "".join(f"{study:>20}" for study in STUDIES))
    for way, along in WAYS.items():
        row = ""
        for study in STUDIES:
            values = torch.tensor(list(differences(study, along).values()))
            row += f"{f'{values.square().mean().sqrt():.3f} ({values.mean():+.3f})':>20}"
        print(f"{way:28}{row}")
    cells = list(differences("mnist", WAYS[EVENLY]))
    print(f"\n{'MNIST, ours less printed':28}" + "".join(f"{cell:>20}" for cell in cells))
    for way, along in WAYS.items():
        print(f"{way:28}" + "".join(f"{value:+20.3f}" for value in differences("mnist", along).values()))
    print("\nCells: " + ", ".join(f"{study} {len(differences(study, WAYS[EVENLY]))}" for study in STUDIES))


if __name__ == "__main__":
    main()
