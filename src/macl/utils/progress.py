"""Messages to the user, and progress of long work: a bar on a terminal, lines in a pipe.

Messages go through the standard logger "macl", which prints them to stderr. A program that wants
them elsewhere replaces its handlers.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as _TimeRemainingColumn
from rich.text import Text

from macl.utils.ranks import this_rank
from macl.utils.text import format_duration, printable, without_control

SECONDS_BETWEEN_LINES = 10.0


class _Stderr(logging.Handler):
    """Prints messages as they are to what is stderr at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(without_control(self.format(record)), file=sys.stderr, flush=True)


LOGGER = logging.getLogger("macl")
LOGGER.addHandler(_Stderr())
LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False


def be_quiet(quiet: bool) -> None:
    """Whether to leave out progress and messages in this process, but not warnings."""
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)


@contextmanager
def quietly() -> Iterator[None]:
    """Inside the block, be quiet."""
    before = LOGGER.level
    be_quiet(True)
    try:
        yield
    finally:
        LOGGER.setLevel(before)


def say(message: str) -> None:
    """Print one line to stderr, from rank 0 alone; stdout is for results."""
    if this_rank().is_zero:
        LOGGER.info(message)


def warn(message: str) -> None:
    """Print one line to stderr as `say` does, also where only warnings are asked for."""
    if this_rank().is_zero:
        LOGGER.warning(message)


class Advance(Protocol):
    """Report `steps` more as done, with a short note such as the current loss."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` steps, `done` of which an earlier run has taken."""
    on_terminal = sys.stderr.isatty() and this_rank().is_zero
    show = _bar if on_terminal and LOGGER.isEnabledFor(logging.INFO) else _lines
    with show(title, total, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        _RateColumn(), _TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.advance(task, steps)
            if note:
                bar.update(task, note=printable(note))

        yield advance


@contextmanager
def _lines(title: str, total: int, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    first = done

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = (done - first) / max(now - start, 1e-9)
        left = f"{format_duration((total - done) / rate)} left" if rate else "time left unknown"
        say(f"{title}: {done}/{total}, {rate:.1f}/s, {left}{'  ' + note if note else ''}")

    yield advance
