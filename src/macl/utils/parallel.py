"""The same function on many items, in worker processes that end with this process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from macl.utils.errors import MaclError
from macl.utils.progress import warn

ParallelMap = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers_for(items: int, workers: int) -> Iterator[ParallelMap]:
    """Yield `run(function, items)`, which yields (index, result) in the order of completion.

    A single worker is this process itself.

    Raises:
        MaclError: a worker was killed.
    """
    if min(items, workers) > 1 and _main_script_has_no_guard():
        warn(
            "Working in one process: to use more, put what the script does under "
            '`if __name__ == "__main__":`.'
        )
        workers = 1
    if min(items, workers) <= 1:
        yield lambda function, things: (
            (index, function(thing)) for index, thing in enumerate(things)
        )
        return
    pool = ProcessPoolExecutor(
        min(items, workers), mp_context=get_context("spawn"), initializer=_start_worker
    )

    def run(function: Callable[[Any], Any], things: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        futures = {pool.submit(function, thing): index for index, thing in enumerate(things)}
        for future in as_completed(futures):
            yield futures[future], future.result()

    try:
        yield run
    except BrokenProcessPool:
        raise MaclError(
            "A worker process was killed, probably because memory ran out: run the command again "
            "with --workers 1."
        ) from None
    except KeyboardInterrupt:
        # A worker that is just starting may miss the end of the pool. Its writes are atomic.
        for worker in active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _main_script_has_no_guard() -> bool:
    """Whether this is a script that each worker would run again from its first line."""
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is None or getattr(main, "__spec__", None) is not None:
        return False
    try:
        return "__name__" not in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}
"""Workers fill the cores already: threads of theirs would only wait for each other."""


def _start_worker() -> None:
    for name, value in SINGLE_THREADED.items():
        os.environ.setdefault(name, value)
    end_with_parent()


def end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and watch for its death: a killed parent stops nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
