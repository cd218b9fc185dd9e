"""The watch over a pre-training run that may stand where all features are equal."""

from __future__ import annotations

import pytest

from fakes.networks import method
from macl.tasks.pretraining import CollapseWatch


def watch(steps: int, capsys: pytest.CaptureFixture[str], values: dict[int, float]) -> str:
    """What is said where loss_global is logged with these values, by step, in a run of MACL with 16
    slices a batch."""
    look = CollapseWatch(method("macl", {}, width=2), 16, steps)
    for step, value in values.items():
        look(step, {"loss": 9.0, "loss_global": value, "feature_spread": 0.02})
    return capsys.readouterr().err


def test_it_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = watch(500, capsys, {120: 4.90, 140: 4.90, 500: 4.90})
    assert said.count("\n") == 1
    assert "Warning: at step 120 loss_global is 4.900, near 4.906" in said
    assert "feature spread 0.020" in said


def test_the_beginning_of_a_run_is_not_watched(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(500, capsys, {20: 4.90, 99: 4.90}) == ""
    assert watch(5000, capsys, {120: 4.90, 480: 4.90}) == ""
    assert "at step 520" in watch(5000, capsys, {520: 4.90})


def test_a_run_that_learns_is_left_in_peace(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(500, capsys, {120: 4.6, 500: 2.0}) == ""
