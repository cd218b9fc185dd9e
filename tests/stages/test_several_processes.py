"""Stages in several processes write what one process writes, and one that fails ends all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fakes.command import macl
from fakes.loading import make_loader
from fakes.processes import COUNT, KILLED, command, run_in_two
from fakes.training_commands import training_words, write_stores
from macl.data.patch_cache import PatchCache
from macl.data.store import Store
from macl.engine import trainer
from macl.utils import checkpoint

SAVED_AT = 4
SMALL = (
    f"training.checkpoint_every_steps={SAVED_AT}", "training.log_every_steps=3",
    "training.learning_rate=0.01", "backbone_settings.width=4",
)  # fmt: skip
SLICES = ("training.size=32", "training.batch_size=4")
VOLUMES = ("dims=3", "training.size=[8,16,16]")
PRETRAINING = "method_settings.decoder_blocks=1"
# Adam turns gradients that are 0 but for rounding, as before a norm, into whole steps.
FINETUNING = (
    "training.epochs=3", "training.optimiser=sgd", "training.ema_decay=0.9",
    "mirror_averaging=false",
)  # fmt: skip
SELFTRAINING = (
    "training.epochs=3", "training.optimiser=sgd", "ramp=0.0", "mirror_averaging=false",
    "cutmix=1.0",
)  # fmt: skip
OWN = {
    ("pretrain", 2): (*SLICES, "training.epochs=1", PRETRAINING),
    ("finetune", 2): (*SLICES, *FINETUNING),
    ("pretrain", 3): (
        *VOLUMES,
        "training.batch_size=4",
        "training.epochs=2",
        PRETRAINING,
        "training.learning_rate=0.003",
    ),
    ("finetune", 3): (*VOLUMES, "training.batch_size=2", *FINETUNING),
    ("selftrain", 2): (*SLICES, *SELFTRAINING),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores whose label budget trains on two people and validates on three; one is left."""
    return write_stores(
        tmp_path_factory.mktemp("several"), test="1", validation="3", budget="5", patients=7
    )


def words(folder: Path, stage: str, dims: int, out: str, *more: str) -> list[str]:
    settings = (*SMALL, *OWN[stage, dims])
    return [*training_words(folder, stage, dims, folder / out, settings, budget="5"), *more]


@pytest.fixture(scope="module", params=OWN, ids=lambda stage: f"{stage[0]}-{stage[1]}d")
def stage(request: pytest.FixtureRequest) -> tuple[str, int]:
    """A stage and its dimensions."""
    return request.param


@pytest.fixture(scope="module")
def alone(folder: Path, stage: tuple[str, int]) -> Path:
    """The run of one process."""
    out = f"{stage[0]}-{stage[1]}d-alone"
    assert macl(*words(folder, *stage, out)).code == 0
    return folder / out


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "patches_per_second"}
        for line in lines
    ]


def assert_alike(run: Path, other: Path) -> None:
    """Two runs have the same files, log and weights, but for rounding."""
    assert sorted(item.name for item in run.iterdir()) == sorted(
        item.name for item in other.iterdir()
    )
    assert len(read_log(run)) == len(read_log(other))
    for line, expected in zip(read_log(run), read_log(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-3)
    weights, expected = (
        checkpoint.read(path / "weights.safetensors").tensors for path in (run, other)
    )
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=3e-4)


def run_macl(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("stage", [("pretrain", 2)], indirect=True, scope="module")
def test_torchrun_writes_the_run_of_one_process(
    folder: Path, alone: Path, stage: tuple[str, int]
) -> None:
    count = ("--nproc-per-node", str(COUNT))
    torchrun = ("torch.distributed.run", "--standalone", *count, "-m", "macl")
    done = run_macl(*torchrun, *words(folder, *stage, "shared"))
    assert done.returncode == 0, done.stderr
    assert_alike(folder / "shared", alone)
    assert done.stderr.count("steps on 2 × cpu") == 1, "one process speaks for both"
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert all("all features" in line and "equal" in line for line in warnings)


def test_devices_of_this_machine(folder: Path) -> None:
    """As with torchrun; a mistake is one sentence and leaves no folder."""
    uneven = words(folder, "finetune", 2, "uneven", "--devices", "2")
    done = run_macl("macl", *uneven, "--set", "training.batch_size=7")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert done.stderr.count("macl: ") == 1
    assert said.startswith("macl: 2 processes cannot share a batch of 7 patches evenly: ")
    assert said.endswith("add --set training.batch_size=6.")
    assert not (folder / "uneven").exists()


def in_two(
    words: list[list[str]], said: Path, second_killed_after: int | None = None
) -> list[int | None]:
    return run_in_two(command, words, said, second_killed_after)


def test_killed_in_two_processes_and_resumed_in_one(
    folder: Path, alone: Path, stage: tuple[str, int], tmp_path: Path
) -> None:
    out = f"{stage[0]}-{stage[1]}d-killed"
    codes = in_two([words(folder, *stage, out)] * COUNT, tmp_path, second_killed_after=SAVED_AT)
    assert codes == [1, KILLED]
    last = (tmp_path / "0.txt").read_text().splitlines()[-1]
    assert last.startswith("macl: Another process of this run stopped too early")
    assert (folder / out / "state.safetensors").is_file()
    assert macl(*words(folder, *stage, out, "--resume")).code == 0
    assert_alike(folder / out, alone)


def test_killed_in_one_process_and_resumed_in_two(
    folder: Path,
    alone: Path,
    stage: tuple[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopped(BaseException):
        pass

    save, out = trainer._TrainingState.save, f"{stage[0]}-{stage[1]}d-stopped"

    def save_and_stop(state: trainer._TrainingState, path: Path) -> None:
        save(state, path)
        raise Stopped

    monkeypatch.setattr(trainer._TrainingState, "save", save_and_stop)
    with pytest.raises(Stopped):
        macl(*words(folder, *stage, out))
    assert len(read_log(folder / out)) == SAVED_AT
    assert in_two([words(folder, *stage, out, "--resume")] * COUNT, tmp_path) == [0] * COUNT
    assert_alike(folder / out, alone)


def test_a_signal_to_the_launcher_saves_the_state_of_all(folder: Path, tmp_path: Path) -> None:
    out, said = folder / "terminated", tmp_path / "said.txt"
    own = words(folder, "finetune", 2, out.name, "--devices", "2", "--set", "training.epochs=5000")
    with said.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "macl", *own], stderr=stderr)
        until = time.monotonic() + 120
        while not (out / "log.jsonl").is_file() or not read_log(out):
            assert time.monotonic() < until, said.read_text()
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, said.read_text()
    continued = f"macl: terminated. To continue: macl finetune --out {out} --devices 2 --resume"
    assert said.read_text().count("macl: terminated") == said.read_text().count(continued) == 1
    assert "death signal" not in said.read_text()
    steps = len(read_log(out))
    assert f"The state after step {steps} of" in said.read_text()
    assert checkpoint.read(out / "state.safetensors").about["step"] == steps
    assert macl("check", out).code == 0


def test_one_that_fails_speaks_and_ends_for_both(folder: Path, tmp_path: Path) -> None:
    """The second sees no store, while the first waits for it."""
    own = words(folder, "pretrain", 2, "no-store")
    assert in_two([own, [own[0], str(folder / "nowhere.store"), *own[2:]]], tmp_path) == [1, 1]
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(COUNT))
    assert "macl:" not in first
    assert "Traceback" not in first + second
    assert second.startswith("macl: ")
    assert "nowhere.store" in second


@pytest.mark.parametrize(("gather", "contrasted"), [(True, 6), (False, 2)])
def test_the_shares_of_a_batch_make_it_up(folder: Path, gather: bool, contrasted: int) -> None:
    cache = PatchCache(
        Store.open(folder / "2d.store"), ["patient001", "patient002"], True, torch.device("cpu")
    )
    whole = next(make_loader(cache, 6, (32, 32), seed=1).between(0, 1))
    for rank in range(3):
        batches = make_loader(
            cache, 6, (32, 32), seed=1, rank=rank, world_size=3, gather_negatives=gather
        )
        share = next(batches.between(0, 1))
        assert batches.contrasted == contrasted
        assert share.gather_negatives == gather
        for ours, everyone in ((share.images, whole.images), (share.labels, whole.labels)):
            assert ours is not None
            assert everyone is not None
            assert torch.equal(ours, everyone[rank::3])
        assert torch.equal(share.rng.uniform("view"), whole.rng.uniform("view")[rank::3])


def test_other_commands_refuse_several_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os._exit", sys.exit)
    answer = macl("inspect", folder / "2d.store")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("macl: macl inspect runs in one process")
