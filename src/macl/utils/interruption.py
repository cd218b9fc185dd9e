"""Ctrl-C and SIGTERM, which end a command alike, and how training finishes its step before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from macl.utils.progress import say
from macl.utils.ranks import this_rank

_received: list[int] = []


def exit_code() -> int:
    """The exit code of an interrupted command: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def end_on_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt in this process, as Ctrl-C does.

    Not where several processes train together: they cannot end one by one.
    """
    _received.clear()
    if _is_main_thread() and this_rank().world_size == 1:
        signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C or SIGTERM instead of ending; the second ends the block at once.

    Where several processes train together, the second is ignored: their launcher sends it after the
    terminal has, and kills those that do not end.

    Yields:
        Whether one has come.
    """
    if not _is_main_thread():
        yield lambda: False
        return
    noted, alone = False, this_rank().world_size == 1
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted and alone:
            _interrupt(number, frame)
        if noted:
            return
        noted = True
        _received.append(number)
        with suppress(RuntimeError):  # the signal came while something else was printed
            say(
                "Finishing this step and saving the state; Ctrl-C again ends at once."
                if alone
                else "Saving the state when all processes write their log next."
            )

    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt
