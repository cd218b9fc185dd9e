"""Training killed ten times, once while it saves its state, ends bit for bit the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fakes import killing
from fakes.training_commands import training_words, write_stores

STEPS = 45
OFTEN = ("training.checkpoint_every_steps=3", "training.log_every_steps=1")
PRETRAINING = (*OFTEN, "training.epochs=5", "method_settings.decoder_blocks=1")
FINETUNING = (*OFTEN, "training.epochs=15", "training.ema_decay=0.9", "mirror_averaging=false")
SELFTRAINING = (*OFTEN, "training.epochs=15", "ramp=0.5", "mirror_averaging=false")
SLICES = ("training.size=32", "training.batch_size=4", "backbone_settings.width=8")
VOLUMES = (
    "dims=3",
    "backbone_settings.width=4",
    "training.size=[8,16,16]",
    "training.batch_size=2",
)
SETTINGS = {
    ("pretrain", 2): (*SLICES, *PRETRAINING),
    ("finetune", 2): (*SLICES, *FINETUNING),
    ("pretrain", 3): (*VOLUMES, "patients_per_position=2", *PRETRAINING),
    ("finetune", 3): (*VOLUMES, *FINETUNING),
    ("selftrain", 2): (*SLICES, *SELFTRAINING),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores whose label budget fine-tunes on two people."""
    return write_stores(tmp_path_factory.mktemp("killed"), test="2", validation="1", budget="3")


def command(folder: Path, stage: str, dims: int, out: Path) -> list[str]:
    words = training_words(folder, stage, dims, out, SETTINGS[stage, dims], budget="3")
    return [*words, "--resume"]


def logged(run: Path) -> list[dict[str, float]]:
    """The complete lines of a log, without the throughput."""
    if not (run / "log.jsonl").is_file():
        return []
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    values = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {name: value for name, value in line.items() if name != "patches_per_second"}
        for line in values
    ]


def last_step(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def kill_ten_times(words: Sequence[str], run: Path, stderr: Path) -> list[int]:
    """Kill a run ten times, once while it writes its state; the last logged step at each kill."""
    killed_at: list[int] = []

    def kill(when: Callable[[], bool]) -> None:
        assert killing.run(words, stderr, when) == killing.KILLED, stderr.read_text()
        killed_at.append(last_step(run))

    def asides() -> list[Path]:
        return list(run.glob(".writing-*-state.safetensors"))

    def writes_its_state() -> bool:
        return bool(asides()) and last_step(run) >= 3

    kill(lambda: (run / "run.json").is_file())
    for step in (1, 4, 5):
        kill(lambda step=step: last_step(run) >= step)
    while True:
        kill(writes_its_state)
        if asides():
            break
        assert last_step(run) < STEPS - 15, "no kill came in the middle of a write"
    while len(killed_at) < 10:
        step = last_step(run) + 1 + len(killed_at) % 3
        kill(lambda step=step: last_step(run) >= step)
    return killed_at


@pytest.mark.parametrize(("stage", "dims"), SETTINGS)
def test_killed_and_resumed_is_bit_for_bit_the_same(folder: Path, stage: str, dims: int) -> None:
    name = f"{stage}-{dims}d"
    whole, killed, stderr = folder / f"{name}-whole", folder / name, folder / f"{name}.txt"
    assert killing.run(command(folder, stage, dims, whole), stderr) == 0, stderr.read_text()
    words = command(folder, stage, dims, killed)
    killed_at = kill_ten_times(words, killed, stderr)
    assert len(killed_at) >= 10
    assert sum(0 < step < STEPS for step in killed_at) >= 5, killed_at
    assert killing.run(words, stderr) == 0, stderr.read_text()

    assert [line["step"] for line in logged(killed)] == list(range(1, STEPS + 1))
    assert logged(killed) == logged(whole)
    runs = (killed, whole)
    weights = [(run / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    files = [sorted(item.name for item in run.iterdir()) for run in runs]
    assert files[0] == files[1]
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    for record in records:
        assert record.pop("seconds") > 0
        assert Path(record.pop("folder")) in runs
    assert records[0] == records[1]
    assert records[0]["finished"]
