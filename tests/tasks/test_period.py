"""A map that repeats has its period named; noise, slopes and smooth maps have none."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.shifts import grid
from shiftscope.tasks.period import find_period

SHIFTS = grid(8).numpy()
LENGTH = np.hypot(*SHIFTS.T)
#: Maps that change with the shift, but do not repeat.
TRENDS = {
    "constant": np.full(len(SHIFTS), 0.4),
    "rounding": 0.4 + 1e-13 * np.random.default_rng(0).standard_normal(len(SHIFTS)),
    "cone": LENGTH,
    "bowl": LENGTH**2,
    "saturates": 1 - np.exp(-LENGTH / 3),
    "sum of axes": np.abs(SHIFTS).sum(axis=1).astype(float),
    "sum that saturates": np.abs(SHIFTS).clip(0, 4).sum(axis=1).astype(float),
    "disc": (LENGTH > 4).astype(float),
    "one side": (SHIFTS[:, 0] - 3).clip(0).astype(float),
    "axes": (SHIFTS == 0).sum(axis=1).astype(float),
    "not a number": np.full(len(SHIFTS), np.nan),
}


def phases(shifts: np.ndarray, period: int) -> np.ndarray:
    """Return the distance of each coordinate from the next multiple of the period."""
    return np.abs((shifts + period // 2) % period - period // 2)


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("shape", ["sum", "max", "prod", "all"])
def test_repeating_map_has_its_period(period: int, shape: str) -> None:
    values = getattr(phases(SHIFTS, period), shape)(axis=1).astype(float)
    found = find_period(values, SHIFTS)
    assert (found.pixels, found.power[period]) == (period, pytest.approx(1))
    assert found.lattice == 0


def test_noise_lowers_power_and_leaves_period() -> None:
    noise = np.random.default_rng(0).standard_normal(len(SHIFTS))
    found = find_period(phases(SHIFTS, 8).sum(axis=1) / 8 + 0.15 * noise, SHIFTS)
    assert found.pixels == 8
    assert found.power[8] < 0.8
    assert found.chance <= 0.01


@pytest.mark.parametrize("name", TRENDS)
def test_map_that_does_not_repeat_has_no_period(name: str) -> None:
    assert find_period(TRENDS[name], SHIFTS).pixels is None


@pytest.mark.parametrize("length", [0.1, 1.0, 2.0, 4.0])
def test_random_maps_rarely_have_a_period(length: float) -> None:
    squares = np.square(SHIFTS[:, None] - SHIFTS[None]).sum(axis=-1)
    root = np.linalg.cholesky(np.exp(-squares / (2 * length**2)) + 1e-8 * np.eye(len(SHIFTS)))
    generator = np.random.default_rng(1)
    found = [find_period(root @ generator.standard_normal(len(SHIFTS)), SHIFTS).pixels for _ in range(12)]
    assert sum(each is not None for each in found) <= 1


@pytest.mark.parametrize("length", [2.0, 6.0])
def test_random_smooth_paths_rarely_have_a_period(length: float) -> None:
    """Few of their values are independent, so that random orders alone name a period for one path in ten."""
    steps = np.arange(-32, 33)
    root = np.linalg.cholesky(np.exp(-np.square(steps[:, None] - steps) / (2 * length**2)) + 1e-6 * np.eye(len(steps)))
    generator = np.random.default_rng(1)
    path = np.stack([0 * steps, steps], axis=1)
    found = [find_period(root @ generator.standard_normal(len(steps)), path).pixels for _ in range(50)]
    assert sum(each is not None for each in found) <= 1


def test_period_longer_than_the_shifts_is_not_named() -> None:
    assert find_period(phases(SHIFTS, 16).sum(axis=1).astype(float), SHIFTS).pixels is None


@pytest.mark.parametrize("period", [8, 16, 32])
def test_path_along_an_axis_shows_long_periods(period: int) -> None:
    steps = np.arange(-40, 41)
    path = np.stack([0 * steps, steps], axis=1)
    found = find_period(phases(steps, period).astype(float), path)
    assert found.pixels == period
    assert found.words().startswith(f"Period {period} pixels: 100% of the variation")


def test_multiple_of_the_period_that_no_shift_reaches_is_not_named() -> None:
    steps = np.arange(-48, 49)
    path = np.stack([0 * steps, steps], axis=1)
    found = find_period(np.minimum(phases(steps, 32), 6).astype(float), path)  # dips at -32 and 32, 64 pixels apart
    assert found.pixels == 32
    assert (found.lattice, found.words().count("nan")) == (0.0, 0)
