"""Stages in several processes, as a user starts them: what they write is what one process writes, and one fails for all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fakes.command import macl
from fakes.processes import COUNT, KILLED, command, run_in_two
from fakes.toy_store import write_toy_store
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.store import Store
from macl.distributed.collectives import require_even_shards
from macl.engine import trainer as training
from macl.stages.split import split
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.ranks import Rank, this_rank

SAVED_AT = 4
SMALL = (
    "training.size=32", "training.batch_size=4", f"training.checkpoint_every_steps={SAVED_AT}",
    "training.log_every_steps=3", "training.learning_rate=0.01", "backbone_settings.width=4",
)  # fmt: skip
OWN = {
    "pretrain": ("training.epochs=1", "method_settings.decoder_blocks=1"),
    # Adam would blow the rounding of gradients that are 0 but for it, before norms, up to whole steps.
    "finetune": ("training.epochs=3", "training.optimiser=sgd", "training.ema_decay=0.9", "mirror_averaging=false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose label budget trains on two people and is validated on three."""
    folder = tmp_path_factory.mktemp("several")
    write_toy_store(folder / "toy.store", patients=6, slices=6, side=32)
    split(folder / "toy.store", folder / "split.json", test="1", validation="3", budgets="5")
    return folder


def words(folder: Path, stage: str, out: str, *more: str) -> list[str]:
    found = [stage, str(folder / "toy.store"), "--out", str(folder / out), "--device", "cpu", *more]
    if stage == "finetune":
        found += ["--init", "scratch", "--split", str(folder / "split.json"), "--labels", "5"]
    for setting in (*SMALL, *OWN[stage]):
        found += ["--set", setting]
    return found


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(folder: Path, stage: str) -> Path:
    """The run of one process."""
    assert macl(*words(folder, stage, f"{stage}-alone")).code == 0
    return folder / f"{stage}-alone"


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "patches_per_second"} for line in lines]


def assert_alike(run: Path, other: Path) -> None:
    """Two runs have the same files, log and weights, but for rounding."""
    assert sorted(item.name for item in run.iterdir()) == sorted(item.name for item in other.iterdir())
    assert len(read_log(run)) == len(read_log(other))
    for line, expected in zip(read_log(run), read_log(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-3)
    weights, expected = (checkpoint.read(path / "weights.safetensors").tensors for path in (run, other))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def run_macl(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stage", ["pretrain"], indirect=True, scope="module")
def test_torchrun_writes_the_run_of_one_process(folder: Path, alone: Path, stage: str) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(COUNT), "-m", "macl")
    done = run_macl(*torchrun, *words(folder, stage, f"{stage}-shared"))
    assert done.returncode == 0, done.stderr
    assert_alike(folder / f"{stage}-shared", alone)
    assert done.stderr.count("steps on 2 × cpu") == 1, "one process speaks for both"
    assert "Warning" not in done.stderr


def test_devices_of_this_machine(folder: Path) -> None:
    """As with torchrun; a mistake is one sentence and leaves no folder."""
    uneven = [*words(folder, "finetune", "uneven", "--devices", "2"), "--set", "training.batch_size=7"]
    done = run_macl("macl", *uneven)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("macl: 2 processes cannot share a batch of 7 patches evenly: ")
    assert said.endswith("add --set training.batch_size=6.")
    assert not (folder / "uneven").exists()


def in_two(words: list[list[str]], said: Path, second_killed_after: int | None = None) -> list[int | None]:
    return run_in_two(command, words, said, second_killed_after)


def test_killed_in_two_processes_and_resumed_in_one(folder: Path, alone: Path, stage: str, tmp_path: Path) -> None:
    out = f"{stage}-killed"
    codes = in_two([words(folder, stage, out)] * COUNT, tmp_path, second_killed_after=SAVED_AT)
    assert codes == [1, KILLED]
    last = (tmp_path / "0.txt").read_text().splitlines()[-1]
    assert last.startswith("macl: Another process of this run stopped too early")
    assert (folder / out / "state.safetensors").is_file()
    assert macl(*words(folder, stage, out, "--resume")).code == 0
    assert_alike(folder / out, alone)


def test_killed_in_one_process_and_resumed_in_two(
    folder: Path, alone: Path, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    save, out = training._TrainingState.save, f"{stage}-stopped"

    def save_and_stop(state: training._TrainingState, path: Path) -> None:
        save(state, path)
        raise Stopped

    monkeypatch.setattr(training._TrainingState, "save", save_and_stop)
    with pytest.raises(Stopped):
        macl(*words(folder, stage, out))
    assert len(read_log(folder / out)) == SAVED_AT
    assert in_two([words(folder, stage, out, "--resume")] * COUNT, tmp_path) == [0] * COUNT
    assert_alike(folder / out, alone)


def test_one_that_fails_speaks_and_ends_for_both(folder: Path, tmp_path: Path) -> None:
    """The second sees no store, while the first waits for it."""
    own = words(folder, "pretrain", "no-store")
    assert in_two([own, [own[0], str(folder / "nowhere.store"), *own[2:]]], tmp_path) == [1, 1]
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(COUNT))
    assert "macl:" not in first
    assert "Traceback" not in first + second
    assert second.startswith("macl: ")
    assert "nowhere.store" in second


@pytest.mark.parametrize(
    ("size", "slices", "ranks", "better"),
    [(7, 99, 4, 8), (6, 99, 4, 4), (5, 99, 4, 4), (1, 99, 4, 4), (7, 7, 4, 4), (99, 10, 3, 9)],
)
def test_the_nearest_even_batch_is_named(size: int, slices: int, ranks: int, better: int) -> None:
    with pytest.raises(MaclError, match=f"training.batch_size={better}\\."):
        require_even_shards(size, slices, ranks)
    require_even_shards(better, slices, ranks)


def test_a_share_of_one_slice_is_not_contrasted_by_itself() -> None:
    require_even_shards(4, 99, 4)
    require_even_shards(8, 99, 4, gather_negatives=False)
    with pytest.raises(MaclError, match="gather_negatives=true"):
        require_even_shards(4, 99, 4, gather_negatives=False)


def test_too_few_slices_for_the_processes() -> None:
    with pytest.raises(MaclError, match="3 patches, which 4 processes cannot share"):
        require_even_shards(16, 3, 4)


@pytest.mark.parametrize(("gather", "contrasted"), [(True, 6), (False, 2)])
def test_the_shares_of_a_batch_make_it_up(folder: Path, gather: bool, contrasted: int) -> None:
    bank = PatchCache(Store.open(folder / "toy.store"), ["patient001", "patient002"], True, torch.device("cpu"))
    whole = next(Loader(bank, 6, (32, 32), seed=1).between(0, 1))
    for rank in range(3):
        batches = Loader(bank, 6, (32, 32), seed=1, rank=rank, world_size=3, gather_negatives=gather)
        share = next(batches.between(0, 1))
        assert batches.contrasted == contrasted
        assert share.gather_negatives == gather
        for ours, everyone in ((share.images, whole.images), (share.labels, whole.labels)):
            assert ours is not None
            assert everyone is not None
            assert torch.equal(ours, everyone[rank::3])
        assert torch.equal(share.rng.uniform("view"), whole.rng.uniform("view")[rank::3])


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun and srun say; the batch script itself, which srun has not started, is one process."""
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


def test_other_commands_refuse_several_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os._exit", sys.exit)
    answer = macl("inspect", folder / "toy.store")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("macl: macl inspect runs in one process")
