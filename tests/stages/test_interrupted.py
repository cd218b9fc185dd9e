"""Training that is interrupted or started twice: its state is saved, and it has one owner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes import killing
from fakes.command import Answer, macl
from fakes.scans import anatomy, write_nifti
from fakes.training_commands import training_words, write_stores

SETTINGS = (
    "training.size=32",
    "training.batch_size=4",
    "backbone_settings.width=8",
    "training.epochs=3",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=1000",
)
STAGES = {
    "pretrain": (*SETTINGS, "method_settings.decoder_blocks=1"),
    "finetune": (*SETTINGS, "training.epochs=6", "mirror_averaging=false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stores(
        tmp_path_factory.mktemp("interrupted"), test="2", validation="1", budget="3"
    )


def words_of(folder: Path, stage: str, out: Path) -> list[str]:
    return training_words(folder, stage, 2, out, STAGES[stage], budget="3")


def last_step(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def weights(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("number", "code", "how"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_an_interrupted_run_saves_its_state_and_needs_no_arguments_to_go_on(
    stage: str, number: int, code: int, how: str, folder: Path
) -> None:
    whole, run = folder / f"{stage}-whole", folder / f"{stage}-{how}"
    stderr = folder / f"{stage}-{how}.txt"
    if not whole.exists():
        assert macl(*words_of(folder, stage, whole)).code == 0
    ended = killing.run(words_of(folder, stage, run), stderr, lambda: last_step(run) >= 3, number)
    said = stderr.read_text()
    assert ended == code, said
    assert "Traceback" not in said
    steps = last_step(run)
    assert f"The state after step {steps} of" in said
    assert f"macl: {how}. To continue: macl {stage} --out {run} --resume" in said
    assert (run / "state.safetensors").is_file()
    assert macl("check", run).code == 0

    other = ("--set", "training.learning_rate=7", "--resume", "--out", run)
    refused = macl(stage, *other)
    assert refused.code == 1
    assert "other settings (settings.training.learning_rate)" in refused.err
    refused = macl(stage, "--out", run, "--resume", "--seed", "5", "--device", "cpu")
    assert (refused.code, "other settings (seed)" in refused.err) == (1, True)

    answer = macl(stage, "--out", run, "--resume", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert f"Resuming after step {steps}." in answer.err
    assert weights(run) == weights(whole)
    assert sorted(item.name for item in run.iterdir()) == sorted(
        item.name for item in whole.iterdir()
    )
    assert "is finished already" in macl(stage, "--out", run, "--resume").err
    assert macl("check", run).out == f"{run} is as it was written: its weights, record and log.\n"


def test_two_commands_do_not_train_one_run(folder: Path) -> None:
    run, stderr = folder / "twice", folder / "twice.txt"
    words = words_of(folder, "pretrain", run)
    answers: list[Answer] = []

    def second_has_tried() -> bool:
        if last_step(run) < 2:
            return False
        answers.append(macl(*words, "--resume"))
        return True

    killing.run(words, stderr, second_has_tried)
    (second,) = answers
    assert second.code == 1
    assert f"Another command is training the run in {run}: wait until it ends." in second.err
    assert macl(*words, "--resume").code == 0, "the lock of a killed process is free"
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_nothing_to_resume_is_named(folder: Path) -> None:
    for stage in STAGES:
        answer = macl(stage, "--out", folder / "nowhere", "--resume")
        assert answer.code == 1
        assert f"There is no {stage} run in {folder / 'nowhere'} to resume" in answer.err
        assert macl(stage, "--out", folder / "nowhere").code == 2
    assert not (folder / "nowhere").exists()


def test_links_in_a_run_are_refused(folder: Path, tmp_path: Path) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine.txt"
    mine.write_text("mine")
    run.mkdir()
    (run / ".lock").symlink_to(mine)
    answer = macl(*words_of(folder, "pretrain", run))
    assert (answer.code, ".lock is a link" in answer.err) == (1, True)
    assert mine.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_prepare_ends_with_its_workers(tmp_path: Path) -> None:
    for number in range(60):
        write_nifti(tmp_path / "scans" / f"p{number}.nii.gz", anatomy(number, (24, 96, 96))[0])
    words = ("-m", "macl", "prepare", str(tmp_path / "scans"), str(tmp_path / "store"))
    process = subprocess.Popen(
        [sys.executable, *words, "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not list((tmp_path / "store" / "cases").glob("*.b2nd")) and time.monotonic() < until:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "macl: terminated. Run the same command again" in said
    assert "Traceback" not in said
    until = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(process.pid) == []


def processes_of(session: int) -> list[str]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == session and state != "Z":
            found.append((entry / "cmdline").read_text())
    return found
