"""What a person sees while a command works: a live line on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.status import Status
from rich.table import Table as RichTable
from rich.text import Text

from shiftscope.runtime.progress import Event, JobEvent, Report, Stage
from shiftscope.studies.runner import RunEnded, RunStarted
from shiftscope.tables import Table
from shiftscope.theory import WorkedTable
from shiftscope.training.loop import Epoch, Step

__all__ = ["print_table", "print_worked", "reporting"]

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BEFORE_TIME_LEFT = 1.0
NOT_A_TERMINAL_WIDTH = 240


@contextmanager
def reporting() -> Iterator[Report]:
    """A report for ``run_study``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().tell
        return
    with console.status("starting") as status:
        yield _Live(console, status).tell


def print_table(table: Table) -> None:
    """Title, table and notes on standard output; where the table is wider than the terminal, its rows one below the other."""
    console = Console(width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)
    names, rows = table.headings(), table.texts()
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    console.print(Text(table.title), soft_wrap=True)
    if sum(widths) + 3 * len(widths) + 1 <= console.width:
        shown = RichTable()
        for name in names:
            shown.add_column(Text(name), justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
    else:
        for row in rows:
            lines = [f"  {name:<{max(map(len, names))}}  {cell}" for name, cell in zip(names, row, strict=True) if cell]
            console.print(Text("\n" + "\n".join(lines)), soft_wrap=True)
        console.print()
    for note in table.notes:
        console.print(Text(note), soft_wrap=True)


def print_worked(table: WorkedTable) -> None:
    """One worked example on standard output: its setting, rows, and what they show."""
    console = Console(width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)
    shown = RichTable()
    for column in table.columns:
        shown.add_column(Text(column), justify="left" if column == "output" else "right")
    for row in table.rows:
        shown.add_row(*(" ".join(map(str, cell)) if isinstance(cell, list) else f"{cell:g}" for cell in row.values()))
    console.print(Text(f"{table.name}: {table.setting}"), soft_wrap=True)
    console.print(shown)
    console.print(Text(table.shows + "\n"), soft_wrap=True)


class _Words:
    """Events in words. It remembers the run and the last epoch, because a step alone does not say them."""

    def __init__(self) -> None:
        self.run = ""
        self.expected: float | None = None
        self.last: Epoch | None = None
        self.began = monotonic()
        self.loading = ("", 0.0, 0)  # what is being done, since when, and how much was done then
        self.before = 0  # runs that were found finished

    def of(self, event: Event) -> str:
        match event:
            case Stage(sentence, done, of):
                return f"{sentence}{f': {done:,}' if done else ''}{f' of {of:,}' if of else ''}{self._loading(event)}"
            case RunStarted(number, of, label, epochs):
                self.run, self.expected, self.last = f"run {number}/{of}  {label}", epochs, None
                return self.run
            case RunEnded(record, found):
                self.before += found
                mcs = f"  MCS {record.results['mcs']}" if "mcs" in record.results else ""
                return f"{self.run}  {'found finished' if found else record.training.sentence}{mcs}"
            case Epoch():
                self.last = event
                return f"{self.run}  {self._epoch(event)}"
            case Step():
                return f"{self.run}  {self._step(event)}"
            case JobEvent():
                return self._told(event)
        return str(event)

    def _loading(self, loading: Stage) -> str:
        """Time left, as long as what is done of the same took, once that is known."""
        if self.loading[0] != loading.sentence or loading.done <= self.loading[2]:
            self.loading = (loading.sentence, monotonic(), loading.done)
            return ""
        _, began, before = self.loading
        if not loading.of or loading.done >= loading.of or monotonic() - began < SECONDS_BEFORE_TIME_LEFT:
            return ""
        return f"  about {_duration((monotonic() - began) / (loading.done - before) * (loading.of - loading.done))} left"

    def _told(self, told: JobEvent) -> str:
        """One of several runs at once; what is left follows from what finished runs took."""
        self.run, self.expected, self.last = told.label, None, None
        text = self.of(told.event)
        if told.done > self.before and (monotonic() - self.began) > 0:
            left = (monotonic() - self.began) / (told.done - self.before) * (told.of - told.done)
            text += f"  (all: about {_duration(left)} left)" if told.done < told.of else ""
        return f"{told.done}/{told.of} done  {text}"

    def _epoch(self, epoch: Epoch) -> str:
        train = epoch.running_accuracy if epoch.train_accuracy is None else epoch.train_accuracy
        return (
            f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  train {train:.2%}  validation {epoch.validation_accuracy:.2%}  "
            f"{epoch.images_per_second:,.0f} images/s"
        )

    def _step(self, step: Step) -> str:
        before = f"  train {self.last.running_accuracy:.2%}  validation {self.last.validation_accuracy:.2%}" if self.last else ""
        return (
            f"epoch {step.epoch}  {step.done / step.of:.0%}  loss {step.loss:.4f}{before}  "
            f"{step.images_per_second:,.0f} images/s  {self._left(step)}"
        )

    def _left(self, step: Step) -> str:
        """Time left of the run: as long as earlier runs took if there were any, else at most the epochs allowed."""
        known = self.expected is not None and self.expected >= step.epoch
        epochs = (self.expected or 0) if known else step.max_epochs
        seconds = ((epochs - step.epoch) * step.of + step.of - step.done) / step.images_per_second
        return f"{'about' if known else 'at most'} {_duration(seconds)} left"


class _Live(_Words):
    """One line that changes; what ends stays above it."""

    def __init__(self, console: Console, status: Status) -> None:
        super().__init__()
        self.console, self.status = console, status

    def tell(self, event: Event) -> None:
        line = Text(self.of(event))
        if _is_end(event):
            self.console.print(line)
        else:
            self.status.update(line)


class _Lines(_Words):
    """A plain line for what begins or ends, and for the rest one every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0.0

    def tell(self, event: Event) -> None:
        line = self.of(event)
        now = monotonic()
        if _is_end(event) or now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            print(line, file=sys.stderr, flush=True)


def _is_end(event: Event) -> bool:
    return isinstance(event.event if isinstance(event, JobEvent) else event, RunEnded)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
