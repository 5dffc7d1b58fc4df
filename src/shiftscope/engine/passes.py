"""Report how far a measurement is, by the images that go through the model."""

from __future__ import annotations

from time import monotonic

from shiftscope.runtime.progress import Report, Stage

__all__ = ["Pace"]

#: Time between two reports.
SECONDS_BETWEEN_REPORTS = 0.5


class Pace:
    """Report as many images as done as the share of their views that went through the model, twice a second.

    Args:
        report: called with a stage.
        sentence: of the stage.
        views: of all images together; fewer may go through the model, as the dense method runs many at once.
        done: number of images before and after these.
        total: number of all images; 0 where it is unknown.
    """

    def __init__(self, report: Report, sentence: str, *, views: int, done: tuple[int, int], total: int) -> None:
        self.report, self.sentence, self.views, self.done, self.total = report, sentence, max(1, views), done, total
        self._seen, self._last = 0, monotonic()

    def add(self, views: int) -> None:
        """Count views that go through the model."""
        self._seen += views
        now = monotonic()
        if now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            start, stop = self.done
            so_far = min(start + (stop - start) * self._seen // self.views, stop - 1)
            self.report(Stage(self.sentence, so_far, self.total))

    def end(self) -> None:
        """Report all of these images as done."""
        self.report(Stage(self.sentence, self.done[1], self.total))
