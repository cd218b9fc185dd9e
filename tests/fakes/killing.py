"""Commands in processes that can be killed at a chosen time; libraries are loaded once for all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PATIENCE_SECONDS = 240.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "macl.cli",
        "macl.stages.pretrain",
        "macl.stages.finetune",
        "macl.stages.selftrain",
        "macl.methods.macl",
        "macl.workflows.run.command",
    ]
)


def _command(words: Sequence[str], stderr: str) -> None:
    with Path(stderr).open("a", encoding="utf-8") as sys.stderr:
        sys.argv = ["macl", *words]
        from macl.cli import main

        main()


def run(
    words: Sequence[str],
    stderr: Path,
    kill_when: Callable[[], bool] | None = None,
    number: int = signal.SIGKILL,
) -> int:
    """Run `macl` with `words`, sent a signal as soon as `kill_when` holds; its exit code."""
    process = _processes.Process(target=_command, args=(list(words), str(stderr)))
    process.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while process.is_alive() and time.monotonic() < until:
        if kill_when is None:
            process.join(0.05)
        elif kill_when():
            os.kill(process.pid or 0, number)
            break
        else:
            time.sleep(0.0005)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode is not None, "the command hangs"
    return process.exitcode


KILLED = -signal.SIGKILL
