"""Which cases the page holds, and in what order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fakes.finished_runs import TEST_CASES, FakeRuns, write_finetuned, write_runs
from macl.data.store import Store
from macl.pages.comparison import Comparison, compare
from macl.pages.reported_run import read_run
from macl.pages.scored_cases import about_volumes, scored_cases


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRuns:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def comparison(fake: FakeRuns) -> Comparison:
    runs = [read_run(fake.scratch), read_run(fake.transferred)]
    return compare(runs)


def test_the_lowest_case_comes_first_with_its_scores_in_every_run(comparison: Comparison) -> None:
    cases = [case.for_page() for case in scored_cases(comparison.rows)]
    assert {case["name"] for case in cases} == set(TEST_CASES)
    means = [sum(score[2] for score in case["scores"]) for case in cases]
    assert means == sorted(means)
    for case in cases:
        assert len(case["scores"]) == 4
        assert case["volume"]["runs"] == tuple(row.title for row in comparison.rows)
        assert [name for name, _ in case["volume"]["classes"]] == ["ring", "disc"]


def test_volumes_stop_where_the_page_is_full(comparison: Comparison) -> None:
    whole = scored_cases(comparison.rows)
    sizes = [len(case.volume.data) for case in whole if case.volume]
    assert "volumes of all test cases" in about_volumes(whole)
    first = scored_cases(comparison.rows, sizes[0])
    assert [case.volume is not None for case in first] == [True, False, False]
    assert "1 of 3 test cases, those with the lowest Dice" in about_volumes(first)
    none = scored_cases(comparison.rows, 0)
    assert not any(case.volume for case in none)
    assert "no volumes" in about_volumes(none)


@pytest.mark.parametrize("contents", [None, b"broken"])
def test_a_run_without_a_mask_is_not_in_the_volume(
    fake: FakeRuns, tmp_path: Path, contents: bytes | None
) -> None:
    shutil.copytree(fake.transferred, tmp_path / "run")
    runs = [read_run(fake.scratch), read_run(tmp_path / "run")]
    mask = runs[1].mask(TEST_CASES[0])
    mask.unlink()
    if contents:
        mask.write_bytes(contents)
    rows = compare(runs).rows
    cases = {case.name: case for case in scored_cases(rows)}
    assert cases[TEST_CASES[0]].predicted == (rows[0].title,)
    assert cases[TEST_CASES[1]].predicted == tuple(row.title for row in rows)


def test_folds_of_a_cross_validation_each_show_whom_they_test(
    fake: FakeRuns, tmp_path: Path
) -> None:
    store = Store.open(fake.store)
    for number, tested in enumerate((TEST_CASES[:1], TEST_CASES[1:])):
        write_finetuned(
            tmp_path / f"fold{number}", store, init="scratch", shift=2, test_cases=tested
        )
    comparison = compare([read_run(tmp_path / f"fold{number}") for number in range(2)])
    (row,) = comparison.rows
    assert {comparison.title_of(run) for run in row.runs} == {row.title}
    cases = scored_cases(comparison.rows)
    assert {case.name for case in cases} == set(TEST_CASES)
    assert all(case.predicted == (row.title,) for case in cases)
