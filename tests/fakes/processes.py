"""A function or a command in two processes that train together, as `torchrun` starts them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 120.0
COUNT = 2
KILLED = -signal.SIGKILL

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "macl.cli",
        "macl.stages.pretrain",
        "macl.stages.finetune",
        "macl.stages.selftrain",
        "macl.methods.macl",
    ]
)


def _run(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(COUNT),
        "LOCAL_WORLD_SIZE": str(COUNT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)


def run_in_two(function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `function` in two processes of one run; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _processes.Process(target=_run, args=(rank, port, function, arguments))
        for rank in range(COUNT)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def command(
    words: Sequence[Sequence[str]], stderr: Path, second_killed_after: int | None = None
) -> None:
    """Call `macl` with each process's own words; its stderr goes to `stderr/<rank>.txt`.

    The second process kills itself when the state of step `second_killed_after` is saved.
    """
    rank = int(os.environ["RANK"])
    with (stderr / f"{rank}.txt").open("w", encoding="utf-8") as sys.stderr:
        from macl.cli import main
        from macl.engine import trainer

        save = trainer._TrainingState.save

        def save_or_be_killed(state: Any, path: Path) -> None:
            save(state, path)
            if rank == 1 and state.step == second_killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer._TrainingState.save = save_or_be_killed
        sys.argv = ["macl", *words[rank]]
        main()
