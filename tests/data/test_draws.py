from __future__ import annotations

from pathlib import Path

import pytest

from fakes.toy_store import write_toy_store
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import Split
from macl.data.store import Store
from macl.stages.split import split
from macl.utils.errors import MaclError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_toy_store(tmp_path / "toy.store", patients=12, slices=1, unlabelled=2)


@pytest.fixture
def resolved(store: Store, tmp_path: Path) -> ResolvedSplit:
    return resolve_split(
        split(store.path, tmp_path / "toy.json", test="3", validation="1", budgets="2,4", seed=7),
        store,
    )


def test_only_who_is_labelled_is_drawn(store: Store, resolved: ResolvedSplit) -> None:
    drawn = [draw_labelled_people(resolved, store, draw) for draw in range(20)]
    labelled = {case.patient for case in store.index.cases if case.labelled}
    pool = labelled.difference(resolved.test, resolved.validation)
    assert len(pool) == 6
    assert {(each.test, each.validation) for each in drawn} == {
        (resolved.test, resolved.validation)
    }
    assert {person for each in drawn for person in each.budgets["2"]} == pool, "all have a chance"
    assert len({each.budgets["4"] for each in drawn}) > 10
    for each in drawn:
        assert [len(people) for people in each.budgets.values()] == [1, 3]
        assert set(each.budgets["2"]) <= set(each.budgets["4"]) <= pool
        again = resolve_split(each, store)
        assert again.pretraining_cases == resolved.pretraining_cases
    assert draw_labelled_people(resolved, store, 3) == drawn[3], "the same on every machine"


def test_the_draw_with_the_seed_of_the_split_is_the_split(
    store: Store, resolved: ResolvedSplit
) -> None:
    assert draw_labelled_people(resolved, store, 7).budgets == resolved.split.budgets


def test_a_split_without_budgets_is_drawn_without_any(
    store: Store, resolved: ResolvedSplit
) -> None:
    plain = resolve_split(resolved.split.model_copy(update={"budgets": {}}), store)
    assert draw_labelled_people(plain, store, 1).budgets == {}


def test_people_with_a_copy_of_a_test_scan_are_not_drawn(
    store: Store, resolved: ResolvedSplit
) -> None:
    tested, other = resolved.test[0], resolved.split.budgets["2"][0]
    cases = {case.name: case for case in store.index.cases}
    copied = cases[tested].model_copy(update={"name": other, "patient": other})
    index = store.index.model_copy(update={"cases": tuple((cases | {other: copied}).values())})
    (store.path / "store.json").write_text(index.model_dump_json())
    again = Store.open(store.path)
    drawn = draw_labelled_people(resolve_split(resolved.split, again), again, 7)
    assert other not in drawn.budgets["4"]


def test_a_test_on_a_part_of_a_person_is_refused(store: Store) -> None:
    halves = Split(
        name="halves", group="consecutive-pair", identify_by="number", test=("1",),
        budgets={"one": ("3",)},
    )  # fmt: skip
    with pytest.raises(MaclError, match="tests or validates on some scans of a person"):
        draw_labelled_people(resolve_split(halves, store), store, 0)


def test_reserved_people_stay_out_of_every_draw(store: Store, resolved: ResolvedSplit) -> None:
    kept = next(
        person
        for person in sorted(resolved.groups.values())
        if person not in {*resolved.test, *resolved.validation, *resolved.split.budgets["4"]}
    )
    reserving = resolved.split.model_copy(update={"reserved": (kept,)})
    again = resolve_split(reserving, store)
    drawn = [draw_labelled_people(again, store, draw) for draw in range(20)]
    assert {each.reserved for each in drawn} == {(kept,)}
    assert not any(kept in people for each in drawn for people in each.budgets.values())
    applied = resolve_split(drawn[0], store)
    assert kept not in applied.pretraining_cases, "not even without labels"
