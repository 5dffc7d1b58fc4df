"""The periods of an audit's sensitivity maps, in a sentence: what repeats every 8 pixels comes from a stride of 8."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from shiftscope.measures import MEASURES
from shiftscope.surveys import Survey
from shiftscope.tasks.period import Period, find_period

__all__ = ["period_sentences", "periods"]


def periods(survey: Survey, *, without: Collection[str] = ()) -> dict[str, Period]:
    """Return the period of each measure's map over a grid of shifts, by measure.

    Args:
        survey: with the maps.
        without: measures to leave out.
    """
    shifts = survey.shifts.numpy()
    maps = {measure: values for measure, values in survey.maps.items() if measure not in without}
    return {measure: find_period(values.double().numpy(), shifts) for measure, values in maps.items()}


def period_sentences(surveys: Mapping[str, Survey], *, without: Collection[str] = ()) -> Iterator[str]:
    """Yield a sentence for each period that maps of a task show, with its measures, the clearest first.

    Args:
        surveys: by the name of their grid.
        without: measures to leave out.
    """
    for survey in surveys.values():
        found: dict[int, list[tuple[float, str, Period]]] = {}
        for measure, period in periods(survey, without=without).items():
            if period.pixels is not None:
                found.setdefault(period.pixels, []).append((period.power[period.pixels], measure, period))
        for pixels, each in sorted(found.items()):
            parts = [f"{_label(measure)} {power:.0%}" for power, measure, _ in sorted(each, reverse=True)]
            _, lead, period = max(each)
            yield (
                f"The effect of a shift repeats every {pixels} pixels, as after a stride of {pixels} (share of the variation: "
                f"{', '.join(parts)}). {_label(lead).capitalize()}: {period.lattice:.3g} at shifts by multiples of {pixels}, "
                f"{period.off_lattice:.3g} at others."
            )


def _label(measure: str) -> str:
    return MEASURES[measure].label
