"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as _TimeRemainingColumn
from rich.text import Text

from macl.distributed.ranks import place

SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Tell the user one line on stderr; stdout is kept for results. Of several processes the first speaks for all."""
    if place().is_zero:
        print(message, file=sys.stderr, flush=True)


class Advance(Protocol):
    """Report that `steps` more are done, with a short note such as the present loss."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show how far `total` steps of `title` have come, `done` of them in an earlier run."""
    show = _bar if sys.stderr.isatty() and place().is_zero else _lines
    with show(title, total, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        _RateColumn(), _TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.advance(task, steps)
            if note:
                bar.update(task, note=note)

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
        left = f"{(total - done) / rate:.0f} s left" if rate else "time left unknown"
        say(f"{title}: {done}/{total}, {rate:.1f}/s, {left}{'  ' + note if note else ''}")

    yield advance
