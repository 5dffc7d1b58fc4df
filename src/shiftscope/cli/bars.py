"""Draw progress on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from shiftscope.runtime.progress import Event, JobEvent, Report, Stage, duration
from shiftscope.runtime.text import printable

if TYPE_CHECKING:
    from shiftscope.audits.results import Audit
    from shiftscope.studies.runner import RunEnded
    from shiftscope.training.loop import Epoch, Step

__all__ = ["drawing"]

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BEFORE_FIRST_LINE = 2.0
SECONDS_BEFORE_ESTIMATE = 1.0
#: Shorter times left are not printed.
SECONDS_BEFORE_FORECAST = 5.0
#: A table in place is redrawn after so many seconds, and after so many times the time that it took to compute.
SECONDS_BETWEEN_TABLES, SHARE_OF_TABLES = 1.0, 20.0
#: The task that counts a study's runs.
ALL = "all"


@contextmanager
def drawing(stage: str) -> Iterator[Report]:
    """Show progress until the block ends.

    Args:
        stage: what is going on until the first event, "loading the model".
    """
    console = Console(stderr=True)
    narrow = Column(no_wrap=True, overflow="ellipsis")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=narrow),
        BarColumn(bar_width=10),
        Counted(Column(no_wrap=True)),
        TimeLeft(Column(no_wrap=True)),
        TextColumn("{task.fields[details]}", markup=False, table_column=narrow.copy()),
    )
    with BarsBelowTable(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield ProgressDisplay(bars, stage).report


class BarsBelowTable(Progress):
    """Bars, and above them a table that changes in place.

    Attributes:
        table: what stands above the bars.
    """

    table: Text | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the table, if there is one, and the bars."""
        if self.table is not None:
            yield self.table
        yield self.make_tasks_table(self.tasks)


class Counted(ProgressColumn):
    """Items done, and their total if it is known."""

    def render(self, task: Task) -> Text:
        """Return the count; empty if nothing is counted."""
        return Text(_counted(task))


def _counted(task: Task) -> str:
    of = f"/{task.total:,.0f}" if task.total else ""
    return f"{task.completed:,.0f}{of}" if task.completed or of else ""


class TimeLeft(ProgressColumn):
    """Time left of a task, by its mean speed so far.

    rich's own column extrapolates from the latest steps, which misleads when two long runs end within a second.
    """

    def render(self, task: Task) -> Text:
        """Return the time in words, or nothing while it is unknown."""
        return Text(time_left(task))


def time_left(task: Task) -> str:
    """Return "about 3 minutes left", or "at most" where work may end early; an empty text while nothing can be said."""
    done = task.completed - task.fields["skipped"]
    if done <= 0 or task.elapsed is None or task.elapsed < SECONDS_BEFORE_ESTIMATE or not task.remaining:
        return ""
    how = "at most" if task.fields.get("may_end_early") else "about"
    return f"{how} {duration(task.elapsed / done * task.remaining)} left"


@dataclass
class _Run:
    """A run in training: epochs that earlier runs needed on average, and its last epoch; None while unknown."""

    epochs: float | None = None
    last: Epoch | None = None


class ProgressDisplay:
    """Turn events into rich's tasks: one for all runs of a study, and one for every job at work.

    Args:
        bars: rich's display; disabled without a terminal, which then gets a plain line now and then.
        stage: what is going on until the first event.
    """

    def __init__(self, bars: Progress, stage: str) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.runs: dict[str, _Run] = {}
        self.job = ""
        self.done: int | None = None
        self.next_table = 0.0
        self.last_line = monotonic() - SECONDS_BETWEEN_LINES + SECONDS_BEFORE_FIRST_LINE
        self._show("", stage)

    def report(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, JobEvent):
            self.job, self.done = event.label, None  # what is done comes with every event
            self._show_all(event.done, event.of)
            event = event.event
        self._update(event)

    def _update(self, event: Event) -> None:
        from shiftscope.audits.staging import FirstAnswer, Forecast, SoFar
        from shiftscope.studies.runner import RunEnded, RunStarted
        from shiftscope.training.loop import Epoch, Step

        match event:
            case FirstAnswer(audit):
                self._say(f"First answer, from {audit.cost.images:,} images: {audit.words()}")
            case Forecast(seconds, views, images) if seconds >= SECONDS_BEFORE_FORECAST:
                self._say(f"About {duration(seconds)} for {views:,} views of {images:,} images.")
            case SoFar(audit_so_far):
                self._show_table(audit_so_far)
            case Stage(sentence, done, of):
                self._show(self.job, f"{self.job}: {sentence}" if self.job else sentence, done, of)
            case RunStarted(done, of, label, epochs):
                self.job, self.done, self.runs[label] = label, done, _Run(epochs)
                self._show_all(done, of)
            case Epoch():
                self.runs.setdefault(self.job, _Run()).last = event
            case Step():
                self._show_step(event, self.runs.setdefault(self.job, _Run()))
            case RunEnded():
                self._end(event)

    def _say(self, sentence: str) -> None:
        """Leave a sentence above the bars."""
        self.bars.console.print(Text("\n".join(wrap(printable(sentence), self.bars.console.width))), soft_wrap=True)

    def _show_table(self, audit: Callable[[], Audit]) -> None:
        """Show an audit's results so far, on a terminal, seldom enough not to slow the measuring down."""
        now = monotonic()
        if self.bars.disable or now < self.next_table or not isinstance(self.bars, BarsBelowTable):
            return
        from shiftscope.cli.printing import rendered

        found = audit().summary()
        width = self.bars.console.width
        verdict = Text("\n".join(wrap(f"So far: {found.verdict}", width)) + "\n\n")
        self.bars.table = verdict + rendered(found.tables[0], width) + Text("\n")
        self.bars.refresh()
        self.next_table = monotonic() + max(SECONDS_BETWEEN_TABLES, SHARE_OF_TABLES * (monotonic() - now))

    def _show_step(self, step: Step, run: _Run) -> None:
        """Show how far a training is, of the epochs that earlier runs needed or, at first, of those it may take."""
        unknown = run.epochs is None or run.epochs < step.epoch
        epochs = step.max_epochs if run.epochs is None or unknown else run.epochs
        validation = f"  validation {run.last.validation_accuracy:.2%}" if run.last else ""
        details = f"epoch {step.epoch}  loss {step.loss:.4f}{validation}  {step.images_per_second:,.0f} images/s"
        done, of = (step.epoch - 1) * step.of + step.done, round(epochs * step.of)
        self._show(self.job, f"{self.job}: training", done, of, details, may_end_early=unknown)

    def _show_all(self, done: int, of: int) -> None:
        self._remove("")
        self._show(ALL, "all runs", done, of)

    def _show(self, job: str, what: str, done: int = 0, of: int = 0, details: str = "", *, may_end_early: bool = False) -> None:
        """Show a job's stage; a new stage starts its clock again."""
        what, details = printable(what), printable(details)
        task = self._task(job)
        if task is None or task.description != what or task.completed > done:
            self._remove(job)
            self.tasks[job] = self.bars.add_task(
                what, total=of or None, completed=done, skipped=done, details=details, may_end_early=may_end_early
            )
        else:
            self.bars.update(task.id, total=of or None, completed=done, details=details, may_end_early=may_end_early)
        now = monotonic()
        if job != ALL and self.bars.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(self._before() + self._line(job), file=sys.stderr, flush=True)

    def _end(self, event: RunEnded) -> None:
        """Count a finished run, and leave a line about it."""
        self._remove(self.job)
        self.runs.pop(self.job, None)
        everything = self._task(ALL)
        if everything is not None and everything.total and self.done is not None:
            if event.found:
                self._remove(ALL)  # a run found finished tells nothing about the duration of the others
            self._show_all(self.done + 1, int(everything.total))
        from shiftscope.tables import heading

        mcs = f"  {heading('mcs')} {event.record.results['mcs']}" if "mcs" in event.record.results else ""
        outcome = "found finished" if event.found else event.record.training.sentence
        self.bars.console.print(Text(printable(f"{self._before()}{self.job}  {outcome}{mcs}")), soft_wrap=True)

    def _before(self) -> str:
        everything = self._task(ALL)
        return f"{everything.completed:.0f}/{everything.total:.0f} done  " if everything else ""

    def _line(self, job: str) -> str:
        """Return a job's stage as a plain line."""
        task = self.bars.tasks[self.bars.task_ids.index(self.tasks[job])]
        parts = (task.description, _counted(task), task.fields["details"], time_left(task))
        return "  ".join(part for part in parts if part)

    def _task(self, job: str) -> Task | None:
        return next((task for task in self.bars.tasks if task.id == self.tasks.get(job)), None)

    def _remove(self, job: str) -> None:
        if job in self.tasks:
            self.bars.remove_task(self.tasks.pop(job))
