"""Which process this is, as launchers say."""

from __future__ import annotations

import pytest

from macl.utils.errors import MaclError
from macl.utils.ranks import Rank, require_single_process, this_rank


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun and srun say. A batch script, which srun has not started, is one process."""
    assert this_rank() == Rank()
    for name, value in {"NTASKS": 8, "PROCID": 0, "JOB_ID": 7}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert this_rank() == Rank()
    for name, value in {"STEP_NUM_TASKS": 8, "STEP_NUM_NODES": 2, "PROCID": 5}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert this_rank() == Rank(index=5, world_size=8, local_world_size=4)
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank(index=3, world_size=6, local_world_size=2)


def test_a_command_for_one_process_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    require_single_process("macl report")
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os._exit", exit)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(MaclError, match="macl report runs in one process"):
        require_single_process("macl report")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        require_single_process("macl report")
