"""Which process of a run this is, as `torchrun` or SLURM's `srun` says in the environment.

It needs no PyTorch, so that a message costs nothing but its printing.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from macl.utils.errors import MaclError


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together.

    Attributes:
        index: its number, from 0.
        world_size: number of processes, on all machines.
        local_world_size: number of processes on this machine.
    """

    index: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_zero(self) -> bool:
        """Whether this is the process that writes files and prints for all."""
        return self.index == 0


def this_rank() -> Rank:
    """The rank of this process; the only one unless a launcher has started several."""
    environment = os.environ
    if launched_by_torchrun():
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return Rank(*(int(environment[name]) for name in names))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return Rank()
    machines = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    return Rank(int(environment["SLURM_PROCID"]), tasks, tasks // machines)


def launched_by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def exit_rank(code: int) -> NoReturn:
    """Exit; with several processes at once, since PyTorch's clean-up would wait for the others."""
    if this_rank().world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def require_single_process(command: str) -> None:
    """Refuse to run a command in several processes that would overwrite each other's work.

    Raises:
        MaclError: in rank 0; the other ranks exit silently.
    """
    rank = this_rank()
    if rank.world_size == 1:
        return
    if not rank.is_zero:
        exit_rank(1)
    raise MaclError(f"{command} runs in one process: start it without torchrun or srun.")
