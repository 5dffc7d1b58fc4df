"""Interleaved timing: alternatives take turns round by round, so that a machine that slows down slows all of them."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import torch

__all__ = ["interleaved", "processor_seconds", "ratios", "seconds"]


def seconds(run: Callable[[], object]) -> Callable[[], float]:
    """Return a function that runs ``run`` and returns the seconds it took."""

    def timed() -> float:
        started = perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return perf_counter() - started

    return timed


def processor_seconds(run: Callable[[], object]) -> Callable[[], float]:
    """Return a function that measures a call's CPU time over all threads, which other work on the machine hardly changes."""

    def timed() -> float:
        started = process_time()
        run()
        return process_time() - started

    return timed


def interleaved(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each alternative once a round, in an order that rotates from round to round; a first round is not counted."""
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            measured = runs[name]()
            if number:
                found[name].append(measured)
    return found


def ratios(found: list[float], base: list[float]) -> tuple[float, str]:
    """Return the median of found / base of the same round, and its range as text."""
    each = [one / other for one, other in zip(found, base, strict=True)]
    return median(each), f"[{min(each):.3g}, {max(each):.3g}]"
