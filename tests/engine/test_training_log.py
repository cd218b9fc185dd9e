"""What a run tells of itself."""

from __future__ import annotations

import pytest
import torch

from macl.engine import training_log as steplog
from macl.engine.training_log import TimeEstimate, in_words


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(29.4, "29 s"), (61, "1 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min"), (100_000, "27 h 47 min")],
)
def test_lengths_of_time_in_words(seconds, expected) -> None:
    assert in_words(seconds) == expected


def clock(monkeypatch, times) -> None:
    moments = iter(times)
    monkeypatch.setattr(steplog.time, "perf_counter", lambda: next(moments))


def test_the_outlook_leaves_out_the_first_step_and_is_told_once(monkeypatch, capsys) -> None:
    clock(monkeypatch, [100.0, 138.0])
    outlook = TimeEstimate(1000, torch.device("cpu"))
    for step in range(1, 41):
        outlook.after_step(step)
        if step % 20 == 0:
            outlook.after_log(step)
    (line,) = capsys.readouterr().err.splitlines()
    assert "980 steps to come take about 33 min" in line  # 38 s for 19 steps


def test_short_runs_are_not_announced(monkeypatch, capsys) -> None:
    clock(monkeypatch, [0.0, 1.0])
    outlook = TimeEstimate(40, torch.device("cpu"))
    outlook.after_step(1)
    outlook.after_log(20)
    assert capsys.readouterr().err == ""


def test_a_log_at_the_first_step_tells_nothing_yet(monkeypatch, capsys) -> None:
    clock(monkeypatch, [0.0, 100.0])
    outlook = TimeEstimate(1000, torch.device("cpu"))
    outlook.after_step(7)
    outlook.after_log(7)
    assert not outlook.told
    outlook.after_log(8)
    assert "992 steps to come" in capsys.readouterr().err
