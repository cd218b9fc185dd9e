"""The paper's splits name the people of its data sets as the readers do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.index import stored_case, write
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store

CHAOS = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)

PEOPLE = {
    "acdc": ([f"patient{number:03d}" for number in range(1, 101)], []),
    "mmwhs": (
        [f"ct_train_{n}" for n in range(1001, 1021)],
        [f"ct_test_{n}" for n in range(2001, 2041)],
    ),
    "hvsmr": (
        [f"pat{number}" for number in range(10)],
        [f"pat{number}" for number in range(10, 20)],
    ),
    "chaos": ([f"MR_{number}" for number in CHAOS], [f"MR_{number}" for number in (4, 6, 7, 9)]),
    "isic2018": ([f"ISIC_{number:07d}" for number in range(16073)], []),
    "msd_heart": ([f"la_{number:03d}" for number in range(3, 23)], ["la_001", "la_002"]),
    "msd_spleen": ([f"spleen_{number}" for number in range(2, 43)], ["spleen_1"]),
}
"""All labelled and unlabelled patients, named as the readers name them; of ISIC, every number."""


@pytest.mark.parametrize("name", PEOPLE)
def test_a_papers_split_finds_its_people(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled, unlabelled = PEOPLE[name]
    people = {**dict.fromkeys(labelled, True), **dict.fromkeys(unlabelled, False)}
    split = read_split(f"paper/{name}")
    store = Store.open(
        write(
            tmp_path / "store",
            [stored_case(person, person, has_label) for person, has_label in people.items()],
        )
    )
    resolved = resolve_split(split, store)
    assert len(resolved.test_cases) == len(split.test)
    assert {budget: len(cases) for budget, cases in resolved.budget_cases.items()} == {
        budget: int(budget) for budget in split.budgets
    }
    assert not {*resolved.test_cases} & {*resolved.pretraining_cases}
    assert {*unlabelled} <= {*resolved.pretraining_cases}
