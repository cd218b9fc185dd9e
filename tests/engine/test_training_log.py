"""What a run writes while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fakes.command import macl
from fakes.training_commands import training_words, write_stores
from macl.engine import training_log
from macl.engine.training_log import TimeEstimate

SMALL = ("training.size=16", "training.batch_size=2", "backbone_settings.width=4")


def clock(monkeypatch, times) -> None:
    moments = iter(times)
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: next(moments))


def test_the_estimate_leaves_out_the_first_step_and_is_printed_once(monkeypatch, capsys) -> None:
    clock(monkeypatch, [100.0, 138.0])
    estimate = TimeEstimate(1000, torch.device("cpu"))
    for step in range(1, 41):
        estimate.after_step(step)
        if step % 20 == 0:
            estimate.after_log(step)
    (line,) = capsys.readouterr().err.splitlines()
    assert "remaining 980 steps take about 33 min" in line  # 38 s for 19 steps


def test_short_runs_are_not_announced(monkeypatch, capsys) -> None:
    clock(monkeypatch, [0.0, 1.0])
    estimate = TimeEstimate(40, torch.device("cpu"))
    estimate.after_step(1)
    estimate.after_log(20)
    assert capsys.readouterr().err == ""


def test_a_log_at_the_first_step_prints_no_estimate(monkeypatch, capsys) -> None:
    clock(monkeypatch, [0.0, 100.0])
    estimate = TimeEstimate(1000, torch.device("cpu"))
    estimate.after_step(7)
    estimate.after_log(7)
    assert not estimate.printed
    estimate.after_log(8)
    assert "remaining 992 steps take" in capsys.readouterr().err


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    write_stores(tmp_path, test="2", validation="1", budget="3")
    settings = (*SMALL, "training.steps=3")
    run = tmp_path / "run"
    return [*training_words(tmp_path, "finetune", 2, run, settings, budget="3"), "--tensorboard"]


def test_tensorboard_gets_what_the_log_says(words: list[str], tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs pip install 'macl[tensorboard]'",
    )
    answer = macl(*words)
    assert answer.code == 0, answer.err
    shown = event_accumulator.EventAccumulator(str(tmp_path / "run"))
    shown.Reload()
    logged = [*training_log.read_log(tmp_path / "run")]
    assert {*shown.Tags()["scalars"]} == {name for line in logged for name in line} - {"step"}
    for name in ("loss", "learning_rate"):
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert events == [(line["step"], pytest.approx(line[name])) for line in logged]


def test_without_tensorboard_nothing_is_begun(
    words: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    answer = macl(*words)
    assert answer.code == 1
    assert "pip install 'macl[tensorboard]'" in answer.err
    assert not (tmp_path / "run").exists()
