"""Which of a run's processes this one is, as `torchrun` or SLURM's `srun` says in the environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from macl.utils.errors import MaclError


@dataclass(frozen=True)
class Place:
    """A process among those of its run.

    Attributes:
        rank: its number, from 0; process 0 alone writes and speaks.
        ranks: how many there are, on all machines.
        ranks_here: how many there are on this machine.
    """

    rank: int = 0
    ranks: int = 1
    local_world_size: int = 1

    @property
    def is_zero(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0


def place() -> Place:
    """This process's place; the only one where nothing has launched several."""
    said = os.environ
    if launched_by_torchrun():
        return Place(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_WORLD_SIZE"]))
    tasks = int(said.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1:
        return Place(int(said["SLURM_PROCID"]), tasks, tasks // int(said.get("SLURM_STEP_NUM_NODES", 1)))
    return Place()


def leave(code: int) -> NoReturn:
    """Exit; one of several processes at once, since PyTorch's tidying up would wait for the others."""
    if place().ranks > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def launched_by_torchrun() -> bool:
    """Whether `torchrun` has launched this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def require_one(what: str) -> None:
    """MaclError, of the first alone, where several processes would do the same work over each other."""
    here = place()
    if here.ranks > 1 and not here.is_zero:
        leave(1)
    if here.ranks > 1:
        raise MaclError(f"{what} runs in one process: start it without torchrun or srun.")


def require_even_shares(batch_size: int, slices: int, ranks: int, gather_negatives: bool = True) -> None:
    """MaclError, saying what would do, unless `ranks` can share batches of so many slices evenly.

    A share that is contrasted by itself must be more than one slice.
    """
    size = min(batch_size, slices)
    if size == ranks > 1 and not gather_negatives:
        raise MaclError(
            f"A batch of {size} slices leaves each of {ranks} processes a single one, and nothing to contrast it with: "
            "raise training.batch_size, start fewer processes, or add --set training.gather_negatives=true."
        )
    if size % ranks == 0:
        return
    if slices < ranks:
        raise MaclError(f"There are {slices} slices, which {ranks} processes cannot share: start fewer processes.")
    below = size // ranks * ranks
    above_is_next = below == 0 or (size - below > ranks / 2 and below + ranks <= slices)
    raise MaclError(
        f"{ranks} processes cannot share a batch of {size} slices evenly: start another number of them, or "
        f"add --set training.batch_size={below + ranks if above_is_next else below}."
    )
