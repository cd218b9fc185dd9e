"""What stands beside what on a report, and what is said of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fakes.finished_runs import FakeRuns, write_finetuned, write_runs
from macl.config.settings import FinetuneSettings
from macl.data.store import Store
from macl.pages.comparison import ComparisonRow, compare
from macl.pages.label_efficiency import label_efficiency
from macl.pages.reported_run import read_run
from macl.pages.verdict import verdict
from macl.stages.report import report

WIDE = FinetuneSettings(backbone_settings={"width": 64})
LONGER = FinetuneSettings().model_copy(
    update={"training": FinetuneSettings().training.model_copy(update={"epochs": 7})}
)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRuns:
    return write_runs(tmp_path_factory.mktemp("runs"))


def rows(*paths: Path) -> dict[str, ComparisonRow]:
    found = compare([read_run(path) for path in paths]).rows
    return {row.run.path.name: row for row in found}


def dice(row: ComparisonRow) -> float:
    assert row.mean_dice.mean is not None
    return row.mean_dice.mean


@pytest.mark.parametrize("settings", [WIDE, LONGER], ids=["network", "training"])
def test_a_run_is_compared_with_scratch_of_the_same_settings(
    fake: FakeRuns, tmp_path: Path, settings: FinetuneSettings
) -> None:
    other = tmp_path / "other"
    write_finetuned(other, Store.open(fake.store), init="scratch", shift=1, settings=settings)
    found = rows(other, fake.scratch, fake.transferred)
    difference = dice(found["transferred"]) - dice(found["scratch"])
    assert found["transferred"].against_scratch == pytest.approx(difference)
    scratch, transferred = (f"{100 * dice(found[name]):.1f}" for name in ("scratch", "transferred"))
    assert f"scratch {scratch}, macl {transferred} (" in verdict([*found.values()])


def test_only_seeds_that_all_starts_have_are_averaged(fake: FakeRuns, tmp_path: Path) -> None:
    second = tmp_path / "second"
    init = f"{fake.pretrained} (0123456789ab)"
    write_finetuned(second, Store.open(fake.store), init=init, shift=1, seed=1)
    found = rows(fake.scratch, fake.transferred, second)
    scratch, transferred = (f"{100 * dice(found[name]):.1f}" for name in ("scratch", "transferred"))
    said = verdict([*found.values()])
    assert f"scratch {scratch}, macl {transferred} (" in said
    assert "1 seed)" in said
    assert verdict([*rows(fake.scratch, second).values()]) == (
        "No two of these runs differ in their start alone: no conclusion."
    )


def test_lines_over_the_labels_are_of_one_network(fake: FakeRuns, tmp_path: Path) -> None:
    store = Store.open(fake.store)
    write_finetuned(tmp_path / "more", store, init="scratch", shift=2, labels="3")
    write_finetuned(tmp_path / "wide", store, init="scratch", shift=1, labels="3", settings=WIDE)
    found = rows(fake.scratch, tmp_path / "more", tmp_path / "wide")
    figure = label_efficiency([*found.values()])
    assert figure
    points = re.findall(r"(\d) labelled: ([\d.]+) %", figure)
    expected = [("2", "scratch"), ("3", "more"), ("3", "wide")]
    assert points == [(labels, f"{100 * dice(found[name]):.1f}") for labels, name in expected]
    assert "from scratch, unet of width 64" in figure


def test_scores_of_other_cases_than_the_test_are_shown(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_finetuned(
        run, Store.open(fake.store), init="scratch", shift=3, also_scored=("patient001",)
    )
    assert "patient001" in report([run, fake.scratch], tmp_path / "report.html").read_text()
