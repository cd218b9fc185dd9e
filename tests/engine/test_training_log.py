"""What a run writes while it trains."""

from __future__ import annotations

import torch

from macl.engine import training_log
from macl.engine.training_log import TimeEstimate


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
