"""Training killed ten times over, inside a checkpoint's write too, ends as if it had never been: bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fakes import killing
from fakes.toy_store import write_toy_store
from macl.stages.split import split

STEPS = 45
SMALL = (
    "training.size=32", "training.batch_size=4", "training.checkpoint_every_steps=3", "training.log_every_steps=1",
    "backbone_settings.width=8",
)  # fmt: skip
SETTINGS = {
    "pretrain": (*SMALL, "training.epochs=5", "method_settings.decoder_blocks=1"),
    "finetune": (*SMALL, "training.epochs=15", "training.ema_decay=0.9", "mirror_averaging=false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_toy_store(folder / "toy.store", patients=6, slices=6, side=32)
    split(folder / "toy.store", folder / "split.json", test="2", validation="1", budgets="3")
    return folder


def command(folder: Path, stage: str, out: Path) -> list[str]:
    words = [stage, str(folder / "toy.store"), "--out", str(out), "--device", "cpu", "--resume"]
    if stage == "finetune":
        words += ["--init", "scratch", "--split", str(folder / "split.json"), "--labels", "3"]
    for setting in SETTINGS[stage]:
        words += ["--set", setting]
    return words


def logged(run: Path) -> list[dict[str, float]]:
    """The complete lines of a log, without the one number that is about time."""
    if not (run / "log.jsonl").is_file():
        return []
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    values = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "patches_per_second"} for line in values]


def last_step(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def kill_ten_times(words: Sequence[str], run: Path, stderr: Path) -> list[int]:
    """Kill the run ten times, once in the middle of writing its state; the steps its log had come to each time."""
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


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_and_resumed_is_bit_for_bit_the_same(folder: Path, stage: str) -> None:
    whole, killed, stderr = folder / f"{stage}-whole", folder / f"{stage}-killed", folder / f"{stage}.txt"
    assert killing.run(command(folder, stage, whole), stderr) == 0, stderr.read_text()
    words = command(folder, stage, killed)
    killed_at = kill_ten_times(words, killed, stderr)
    assert len(killed_at) >= 10
    assert sum(0 < step < STEPS for step in killed_at) >= 5, killed_at
    assert killing.run(words, stderr) == 0, stderr.read_text()

    assert [line["step"] for line in logged(killed)] == list(range(1, STEPS + 1))
    assert logged(killed) == logged(whole)
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert sorted(item.name for item in killed.iterdir()) == sorted(item.name for item in whole.iterdir())
    records = [json.loads((run / "run.json").read_text()) for run in (killed, whole)]
    for record in records:
        assert record.pop("seconds") > 0
    assert records[0] == records[1]
    assert records[0]["finished"]
