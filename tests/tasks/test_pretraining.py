"""What pre-training refuses before it starts, and its watch for features that are all equal."""

from __future__ import annotations

import pytest

from fakes.networks import method
from macl.config.recipes import resolve
from macl.config.settings import PretrainSettings
from macl.plugins import find
from macl.tasks.pretraining import CollapseWatch, collapse_verdict, resolve_pretraining
from macl.utils.errors import MaclError


def watch(steps: int, capsys: pytest.CaptureFixture[str], values: dict[int, float]) -> str:
    """What is said where loss_global is logged with these values, by step, in a run of MACL with 16
    slices a batch."""
    look = CollapseWatch("macl", method("macl", {}, width=2).uniform_losses(16), steps)
    for step, value in values.items():
        look(step, {"loss": 9.0, "loss_global": value, "feature_spread": 0.02})
    return capsys.readouterr().err


def test_it_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = watch(500, capsys, {120: 4.90, 140: 4.90, 500: 4.90})
    assert said.count("\n") == 1
    assert "Warning: at step 120 loss_global is 4.900, near 4.906" in said
    assert "feature spread 0.020" in said


def test_the_beginning_of_a_run_is_not_watched(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(500, capsys, {20: 4.90, 49: 4.90}) == ""
    assert "at step 10" in watch(96, capsys, {9: 4.0, 10: 4.90})
    assert watch(5000, capsys, {120: 4.90, 480: 4.90}) == ""
    assert "at step 520" in watch(5000, capsys, {520: 4.90})


def test_a_run_that_learns_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(500, capsys, {120: 4.6, 500: 2.0}) == ""


@pytest.mark.parametrize(("ends", "stuck"), [(4.90, ("loss_global",)), (4.2, ())])
def test_the_verdict_looks_at_the_last_tenth(
    capsys: pytest.CaptureFixture[str], ends: float, stuck: tuple[str, ...]
) -> None:
    early = 4.2 if stuck else 4.90
    log = [{"step": step, "loss_global": early if step <= 90 else ends} for step in range(1, 101)]
    assert collapse_verdict("macl", log, {"loss_global": 4.906}, 100) == stuck
    said = capsys.readouterr().err
    assert ("the run ended no better than with all features equal" in said) == bool(stuck)
    assert ("--recipe macl-plus" in said) == bool(stuck)


def test_a_rival_that_collapses_is_not_sent_to_a_recipe_of_macl(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = [{"step": step, "loss_contrast": 3.4} for step in range(1, 11)]
    assert collapse_verdict("simclr", log, {"loss_contrast": 3.43}, 10) == ("loss_contrast",)
    said = capsys.readouterr().err
    assert "Train longer, or change training.learning_rate." in said
    assert "macl" not in said


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gcl", ["training.size=16", "method_settings.decoder_blocks=1"], "maps of 2 × 2 hold no"),
        ("gcl", ["dims=3", "training.size=[4,64,64]", "method_settings.region_side=5"], "hold no"),
        ("masked", ["training.size=32", "method_settings.covered=0.1"], "has 4 blocks of 16"),
        ("masked", ["training.size=16"], "covers none or all"),
    ],
)
def test_patches_that_a_method_cannot_learn_from_are_refused(
    name: str, settings: list[str], said: str
) -> None:
    with pytest.raises(MaclError, match=said):
        resolved(name, settings)


def test_the_smallest_patches_that_a_method_learns_from_are_taken() -> None:
    resolved("gcl", ["training.size=[48,32]", "method_settings.decoder_blocks=1"])
    resolved("masked", ["training.size=32", "method_settings.covered=0.2"])


def resolved(name: str, settings: list[str]) -> PretrainSettings:
    own = resolve(PretrainSettings, {"method": name}, settings)
    return resolve_pretraining(own, find("methods", name), find("models", "unet"))
