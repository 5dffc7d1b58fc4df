"""What the benchmarks share: several ways in turn, round by round, so that a machine that slows down slows them all."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

__all__ = ["interleaved", "ratios", "seconds"]


def seconds(run: Callable[[], object]) -> Callable[[], float]:
    """How long a call takes."""

    def timed() -> float:
        started = perf_counter()
        run()
        return perf_counter() - started

    return timed


def interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way once a round, in an order that turns from round to round; a first round is not counted."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figure = ways[name]()
            if number:
                found[name].append(figure)
    return found


def ratios(found: list[float], base: list[float]) -> tuple[float, str]:
    """The median of found / base of the same round, and its least and greatest as text."""
    each = [one / other for one, other in zip(found, base, strict=True)]
    return median(each), f"[{min(each):.3g}, {max(each):.3g}]"
