from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.index import hearts, stored_case, write
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.stages.split import amount, choose, folds, in_order, split
from macl.utils.errors import MaclError

PEOPLE = [f"patient{number:03d}" for number in range(1, 101)]


def test_the_parts_are_disjoint_and_budgets_nested() -> None:
    chosen = choose(PEOPLE, test="20%", validation="3", budgets="8,20,25%", seed=1)
    assert [len(people) for people in chosen.values()] == [20, 3, 5, 17, 17], (
        "validation people are in the budget"
    )
    assert list(chosen) == ["test", "validation", "8", "20", "25%"]
    assert set(chosen["8"]) < set(chosen["20"]) == set(chosen["25%"])
    assert not {*chosen["test"]} & {*chosen["validation"], *chosen["20"]}
    assert not {*chosen["validation"]} & {*chosen["20"]}


def test_the_seed_alone_decides() -> None:
    first = choose(PEOPLE, test="20", budgets="8", seed=0)
    assert choose(reversed(PEOPLE), test="20", budgets="8", seed=0) == first
    assert choose(PEOPLE, test="20", budgets="8", seed=1) != first


def test_a_larger_budget_leaves_the_others_as_they_were() -> None:
    assert (
        choose(PEOPLE, test="20", budgets="8,40", seed=0)["8"]
        == choose(PEOPLE, test="20", budgets="8", seed=0)["8"]
    )


@pytest.mark.parametrize(
    ("text", "whole", "count"),
    [
        ("8", 80, 8),
        ("10%", 80, 8),
        ("10%", 144, 14),
        ("25 %", 10, 3),
        ("0.1%", 80, 1),
        ("0%", 80, 0),
        ("100%", 7, 7),
    ],
)
def test_amounts(text: str, whole: int, count: int) -> None:
    assert amount(text, whole, "--test") == count


@pytest.mark.parametrize("text", ["", "-1", "101%", "a few", "1.5", "%"])
def test_amounts_that_make_no_sense(text: str) -> None:
    with pytest.raises(MaclError, match="--test takes numbers of people"):
        amount(text, 80, "--test")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"test": "100"}, "takes 100 of 100 labelled people"),
        ({"budgets": "81"}, "budget 81 needs 81 people, but 80 with labels are outside the test"),
        ({"budgets": "0,8"}, "budget 0 is 0 people"),
        ({"budgets": "8", "validation": "8"}, "leave someone to train on"),
        ({"group": "family"}, "known: patient, consecutive-pair"),
        ({"out": "mine.txt"}, r"ends in \.json"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    out = tmp_path / options.pop("out", "mine.json")
    with pytest.raises(MaclError, match=sentence):
        split(hearts(tmp_path / "acdc.store"), out, **options)
    assert not out.exists()


def test_a_final_model_tests_nobody_and_takes_all_labels(tmp_path: Path) -> None:
    cases = [stored_case(f"c{number}", f"p{number}", labelled=number < 12) for number in range(20)]
    store = write(tmp_path / "a.store", cases)
    drawn = split(store, tmp_path / "final.json", test="0", validation="2", budgets="4")
    resolved = resolve_split(drawn, Store.open(store))
    assert resolved.test_cases == ()
    assert len(resolved.labelled_cases("4")) == 2
    everybody = {f"c{number}" for number in range(12)}
    assert {*resolved.labelled_cases("all"), *resolved.validation_cases} == everybody
    assert len(resolved.labelled_cases("all")) == 10
    tested = split(store, tmp_path / "tested.json", test="3", budgets="4")
    resolved = resolve_split(tested, Store.open(store))
    assert len(resolved.labelled_cases("all")) == 9
    assert {*resolved.labelled_cases("all")}.isdisjoint(resolved.test_cases)
    with pytest.raises(MaclError, match="it has 4, all"):
        resolved.labelled_cases("5")


def test_people_without_labels_are_not_chosen(tmp_path: Path) -> None:
    cases = [
        stored_case(f"c{number}", f"p{number}", labelled=number % 5 == 0) for number in range(50)
    ]
    drawn = split(write(tmp_path / "a.store", cases), tmp_path / "mine.json", test="2", budgets="4")
    chosen = {*drawn.test, *drawn.budgets["4"]}
    assert len(chosen) == 6
    assert chosen <= {f"p{number}" for number in range(0, 50, 5)}
    with pytest.raises(MaclError, match="8 with labels"):
        split(tmp_path / "a.store", tmp_path / "other.json", test="2", budgets="9")


def test_two_sides_of_a_person_stay_together(tmp_path: Path) -> None:
    store = write(
        tmp_path / "a.store",
        [stored_case(f"brain_{n:03d}", f"brain_{n:03d}") for n in range(1, 41)],
    )
    drawn = split(store, tmp_path / "mine.json", test="5", budgets="3", group="consecutive-pair")
    resolved = resolve_split(drawn, Store.open(store))
    assert (
        len(resolved.test_cases),
        len(resolved.labelled_cases("3")),
        len(resolved.pretraining_cases),
    ) == (10, 6, 30)


def test_an_existing_file_is_not_overwritten_by_another_split(tmp_path: Path) -> None:
    store, out = hearts(tmp_path / "acdc.store"), tmp_path / "mine.json"
    drawn = split(store, out)
    assert split(store, out) == drawn, "the same split again is no mistake"
    with pytest.raises(MaclError, match="already holds another split"):
        split(store, out, seed=1)
    assert read_split(out) == drawn
    out.write_text("my notes")
    with pytest.raises(MaclError, match="should be a split file"):
        split(store, out)
    assert out.read_text() == "my notes"


def test_as_a_user_calls_it(tmp_path: Path) -> None:
    store, out = hearts(tmp_path / "acdc.store"), tmp_path / "mine.json"
    command = [
        sys.executable,
        "-m",
        "macl",
        "split",
        str(store),
        "--out",
        str(out),
        "--budgets",
        "8,25%",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert ["budget", "25%", "20", "40", "40"] in [
        line.split() for line in done.stderr.splitlines()
    ]
    assert len(read_split(out).test) == 20


# ---------------------------------------------------------------- folds and strata


def test_folds_test_everybody_once(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [stored_case(f"{name}_ed", name) for name in PEOPLE[:23]])
    drawn = folds(store, tmp_path / "five.json", count=5, validation="2", budgets="4,50%", seed=3)
    tested = [person for split in drawn for person in split.test]
    assert sorted(tested) == PEOPLE[:23]
    assert {len(split.test) for split in drawn} == {4, 5}
    for number, split_ in enumerate(drawn, start=1):
        assert read_split(tmp_path / f"five-fold{number}.json") == split_
        assert not {*split_.test} & {*split_.validation, *split_.budgets["50%"]}
        assert {*split_.budgets["4"]} < {*split_.budgets["50%"]}
    with pytest.raises(MaclError, match="--folds 24 does not fit 23 labelled people"):
        folds(store, tmp_path / "many.json", count=24)


def test_every_part_of_a_stratified_order_holds_its_share_of_each_structure() -> None:
    strata = {
        person: frozenset({1, 2} if number % 5 else {1}) for number, person in enumerate(PEOPLE)
    }
    order = in_order(PEOPLE, 0, strata)
    for start in range(0, 100, 10):
        assert sum(2 in strata[person] for person in order[start : start + 10]) in (7, 8, 9)
    assert sorted(order) == PEOPLE
    assert order != in_order(PEOPLE, 1, strata)
    chosen = choose(PEOPLE, test="20", budgets="10", seed=0, strata=strata)
    assert sum(2 in strata[person] for person in chosen["test"]) == 16
    assert sum(2 in strata[person] for person in chosen["10"]) == 8
