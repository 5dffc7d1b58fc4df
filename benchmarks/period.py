"""Count periods that are found in random maps over shifts, which have none.

    python benchmarks/period.py [--count 350]

Maps on grids of up to 16 pixels and paths of up to 48, of Gaussian noise as it is and smoothed over 1, 2 and 4 pixels.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.ndimage import gaussian_filter

from shiftscope.tasks.period import find_period

#: Standard deviation of the smoothing, pixels; 0 for none.
SMOOTH = (0, 1, 2, 4)
GRID, PATH = 16, 48


def found(shifts: np.ndarray, shape: tuple[int, ...], smooth: float, count: int, generator: np.random.Generator) -> int:
    """Return in how many of several random maps a period is found."""
    maps = (gaussian_filter(generator.standard_normal(shape), smooth) for _ in range(count))
    return sum(find_period(values.ravel(), shifts).pixels is not None for values in maps)


def main() -> None:
    """Print a line for each kind of map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=350)
    count = parser.parse_args().count
    generator = np.random.default_rng(0)
    square, line = np.arange(-GRID, GRID + 1), np.arange(-PATH, PATH + 1)
    grids = np.stack(np.meshgrid(square, square, indexing="ij"), axis=-1).reshape(-1, 2)
    paths = np.stack([0 * line, line], axis=1)
    print("smoothed over, pixels  in maps of up to 16 pixels  along paths of up to 48")
    totals = np.zeros(2, dtype=int)
    for smooth in SMOOTH:
        both = [
            found(shifts, shape, smooth, count, generator)
            for shifts, shape in ((grids, (len(square),) * 2), (paths, (len(line),)))
        ]
        totals += both
        print(f"{smooth:21}  {both[0]:12} of {count:<10}  {both[1]:9} of {count}", flush=True)
    every = count * len(SMOOTH)
    print(f"{'all':>21}  {totals[0]:12} of {every:<10}  {totals[1]:9} of {every}")


if __name__ == "__main__":
    main()
