"""Weights, states and logs that have changed since they were written are noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fakes import killing
from fakes.command import macl
from fakes.training_commands import training_words, write_stores
from macl.records.runs import read_record, write_record
from macl.utils import checkpoint
from macl.utils.files import sha256

SETTINGS = (
    "training.size=32",
    "training.batch_size=4",
    "backbone_settings.width=8",
    "training.epochs=2",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=2",
)
STAGES = {
    "pretrain": (*SETTINGS, "method_settings.decoder_blocks=1"),
    "finetune": (*SETTINGS, "mirror_averaging=false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its split, and a finished run of each stage."""
    folder = write_stores(tmp_path_factory.mktemp("runs"), test="2", validation="1", budget="3")
    for stage in STAGES:
        answer = macl(*words_of(folder, stage, folder / stage))
        assert answer.code == 0, answer.err
    return folder


def words_of(folder: Path, stage: str, out: Path) -> list[str]:
    return training_words(folder, stage, 2, out, STAGES[stage], budget="3")


def change_one_value(file: Path) -> None:
    """Change a weight, and keep all that is said about the weights."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file, metadata)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    file.write_bytes(data)


def put_nan(file: Path) -> None:
    """Weights that a training has really ended with, so that every checksum fits."""
    saved = checkpoint.read(file)
    tensors = dict(saved.tensors)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    checkpoint.write(file, tensors, saved.about)
    record = read_record(file.parent)
    write_record(file.parent, record.model_copy(update={"weights_sha256": sha256(file)}))


def swap(file: Path) -> None:
    """Whole weights, but of another training."""
    saved = checkpoint.read(file)
    checkpoint.write(file, {name: t.clone() * 1 for name, t in saved.tensors.items()}, {"dims": 2})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "value": (change_one_value, "has changed since it was written"),
    "bit": (flip_a_bit, "has changed since it was written"),
    "other weights": (swap, "is not the file that this run has written"),
    "NaN": (put_nan, "hold NaN or infinity"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_weights_that_have_changed_are_not_used(name: str, folder: Path, tmp_path: Path) -> None:
    change, words = DAMAGE[name]
    for stage in STAGES:
        shutil.copytree(folder / stage, tmp_path / stage)
        change(tmp_path / stage / "weights.safetensors")
        checked = macl("check", tmp_path / stage)
        assert checked.code == 1
        assert words in checked.err
    predicted = macl("predict", tmp_path / "finetune", folder / "2d.store", "--out", tmp_path / "p")
    assert predicted.code == 1
    assert words in predicted.err
    assert not list(tmp_path.glob("p/*.nii.gz"))
    words_of_finetune = [
        *words_of(folder, "finetune", tmp_path / "f"), "--init", tmp_path / "pretrain"
    ]  # fmt: skip
    started = macl(*words_of_finetune)
    assert started.code == 1
    assert words in started.err
    assert not (tmp_path / "f").exists()


@pytest.fixture
def unfinished(folder: Path, tmp_path: Path) -> Path:
    """A run that was killed after its first checkpoint."""
    run = tmp_path / "unfinished"
    killing.run(
        words_of(folder, "pretrain", run),
        tmp_path / "stderr.txt",
        lambda: (run / "state.safetensors").is_file(),
    )
    assert not read_record(run).finished
    return run


def test_a_foreign_or_changed_state_is_a_sentence(folder: Path, unfinished: Path) -> None:
    state = unfinished / "state.safetensors"
    good = checkpoint.read(state)
    foreign: dict[str, tuple[dict[str, torch.Tensor], dict]] = {
        "other tensors": ({"weight": torch.zeros(3)}, {}),
        "no tensors": ({}, {"step": 3}),
        "less": (dict(list(good.tensors.items())[:-3]), {**good.about, "run": "x"}),
    }
    for tensors, about in foreign.values():
        checkpoint.write(state, tensors, about)
        answer = macl("pretrain", "--out", unfinished, "--resume", "--device", "cpu")
        assert answer.code == 1
        assert f"{state} is the state of another run" in answer.err
        assert "Traceback" not in answer.err
    checkpoint.write(state, good.tensors, good.about)
    flip_a_bit(state)
    for answer in (
        macl("pretrain", "--out", unfinished, "--resume", "--device", "cpu"),
        macl("check", unfinished),
    ):
        assert answer.code == 1
        assert "state.safetensors has changed since it was written" in answer.err
    state.unlink()
    assert macl("pretrain", "--out", unfinished, "--resume", "--device", "cpu").code == 0
    ours, theirs = (
        (run / "weights.safetensors").read_bytes() for run in (unfinished, folder / "pretrain")
    )
    assert ours == theirs


def test_a_broken_line_of_the_log_stops_nothing(folder: Path, unfinished: Path) -> None:
    for run in (unfinished, folder / "finetune"):
        log = run / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        lines[1:1] = [b'{"step": \xff\x00\n', b"[1]\n", b'{"step": "2"}\n']
        log.write_bytes(b"".join(lines))
    said = "log.jsonl: 3 lines are broken and left out."
    inspected = macl("inspect", folder / "finetune")
    assert (inspected.code, said in inspected.err) == (0, True), inspected.err
    checked = macl("check", folder / "finetune")
    assert (checked.code, said in checked.err) == (1, True)
    reported = macl("report", folder / "finetune", "--out", folder / "page.html")
    assert (reported.code, said in reported.err) == (0, True), reported.err
    resumed = macl("pretrain", "--out", unfinished, "--resume", "--device", "cpu")
    assert (resumed.code, said in resumed.err) == (0, True), resumed.err
    steps = [json.loads(line)["step"] for line in (unfinished / "log.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))


def test_what_a_killed_report_left_is_removed(folder: Path) -> None:
    left = folder / ".writing-999999999-left.html"
    others = folder / ".writing-999999999-other.html"
    for path in (left, others):
        path.write_text("half")
    assert macl("report", folder / "pretrain", "--out", folder / "left.html").code == 0
    assert (left.exists(), others.exists()) == (False, True)
