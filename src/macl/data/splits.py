"""Who trains, validates and tests: the split file, and what it means for the cases of a store.

A split names people. All cases of a person (two frames of a heart, two sides of a brain) lie on one side of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from macl.config import Settings, validate
from macl.data.store import Store
from macl.errors import MaclError
from macl.files import read_json, write_text
from macl.progress import say

Rule = Literal["patient", "consecutive-pair"]


class Split(Settings):
    """What a split file holds.

    Whose labels count: the people of a budget train, those of `validation` choose the best weights, and both together
    are the budget. Without validation people the last weights are kept. Test people choose nothing.
    """

    format: Literal["macl-split"] = "macl-split"
    version: Literal[1] = 1
    name: str
    source: str = Field(default="", description="where the choice comes from")
    seed: int | None = Field(default=None, description="seed of the choice; none: not drawn by macl")
    group: Rule = Field(
        default="patient",
        description="who is one person: a patient of the store, or two patients with numbers 2k−1 and 2k",
    )
    identify_by: Literal["person", "number", "index"] = Field(
        default="person",
        description="how people are named below: as the group rule names them, by the last number in a patient's name, "
        "or by a patient's place among the labelled patients in order of name, from 0",
    )
    labelled_patients: int | None = Field(
        default=None, description="labelled patients of the data set; places in its order mean nothing without it"
    )
    test: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] = ()
    budgets: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="name → people to train on, smallest first, each holding the one before"
    )

    @model_validator(mode="after")
    def _counts(self) -> Split:
        for part, people in {"test": self.test, "validation": self.validation, **self.budgets}.items():
            repeated = [person for person, times in Counter(people).items() if times > 1]
            if repeated:
                raise ValueError(f"{part} names {listed(repeated)} twice")
        for budget, people in self.budgets.items():
            if not people:
                raise ValueError(f"the budget {budget!r} names nobody to train on")
            if budget.isdecimal() and int(budget) != len(people) + len(self.validation):
                raise ValueError(
                    f"the budget {budget!r} should count {budget} people, but {len(people)} train and "
                    f"{len(self.validation)} validate"
                )
        if self.identify_by == "index" and self.labelled_patients is None:
            raise ValueError("labelled_patients is needed where people are named by index")
        return self


@dataclass(frozen=True)
class ResolvedSplit:
    """A split, as cases of one store; see `resolve`.

    Attributes:
        split: the split file.
        groups: case → person, for every case of the store.
        test: people of the test; validation likewise.
        test_cases: labelled cases of the test people; validation_cases likewise.
        pretraining_cases: cases, labelled or not, of everyone but the test people.
        budget_cases: budget → labelled cases to train on.
    """

    split: Split
    groups: Mapping[str, str]
    test: tuple[str, ...]
    validation: tuple[str, ...]
    test_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    pretraining_cases: tuple[str, ...]
    budget_cases: Mapping[str, tuple[str, ...]]

    def labelled_cases(self, budget: str) -> tuple[str, ...]:
        """Labelled cases that a budget trains on; MaclError, naming the budgets there are, if it is not one."""
        if budget not in self.budget_cases:
            raise MaclError(
                f"The split {self.split.name!r} has no label budget {budget!r}; it has {listed(self.budget_cases)}: name one."
            )
        return self.budget_cases[budget]

    def people(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Whose cases these are, sorted."""
        return tuple(sorted({self.groups[case] for case in cases}))


def split_names() -> tuple[str, ...]:
    """Splits that travel in the package, sorted."""
    return tuple(sorted(_shipped()))


def read_split(name_or_path: str | Path) -> Split:
    """A split by path (any `.json`) or by the name of one that travels in the package, such as "paper/acdc".

    Raises:
        MaclError: there is no such split (the known ones are named), or the file is not one.
    """
    name = str(name_or_path)
    if name.endswith(".json"):
        raw = read_json(Path(name), "a split file")
        if raw.get("format") != "macl-split" or raw.get("version") != 1:
            raise MaclError(f"{name} is not a split file of version 1: make one with `macl split`.")
        return validate(Split, raw, where=Path(name).name)
    shipped = _shipped()
    if name not in shipped:
        raise MaclError(f"There is no split called {name!r}; known: {', '.join(sorted(shipped))}, or a .json file.")
    return validate(Split, json.loads(shipped[name].read_text(encoding="utf-8")), where=name)


def write_split(path: Path, split: Split) -> None:
    """Write a split file atomically, one line per entry."""
    entries = (
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in split.model_dump().items()
    )
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def group_of(patient: str, rule: Rule) -> str:
    """The person that a patient of a store is.

    "patient": the patient. "consecutive-pair": patients numbered 2k−1 and 2k are one person, named by k, so that
    `hippocampus_003` and `hippocampus_004` are both `hippocampus_pair002`.

    Raises:
        MaclError: the rule needs a number and the patient's name has none.
    """
    if rule == "patient":
        return patient
    digits = _last_number(patient)
    if digits is None:
        raise MaclError(f"The patient {patient!r} has no number to pair by: group by patient instead.")
    before, number = patient[: digits.start()], int(digits.group())
    return f"{before}pair{(number + 1) // 2:0{len(digits.group())}d}{patient[digits.end() :]}"


def resolve(split: Split, store: Store, *, allow_overlap: bool = False) -> ResolvedSplit:
    """What `split` means for the cases of `store`.

    Budgets that do not contain the smaller ones are said. Scans of test people are in no other part; where the split
    names a test person's other scans for training, it is refused, or with `allow_overlap` taken as it stands and said.

    Raises:
        MaclError: the store lacks someone the split names, or their labels, or someone is in two parts.
    """
    groups = {case.name: group_of(case.patient, split.group) for case in store.index.cases}
    test_cases = _labelled_cases(split, store, split.test, "the test")
    validation_cases = _labelled_cases(split, store, split.validation, "validation")
    budget_cases = {
        name: _labelled_cases(split, store, people, f"the budget {name}") for name, people in split.budgets.items()
    }
    test = {groups[case] for case in test_cases}
    resolved = ResolvedSplit(
        split=split,
        groups=groups,
        test=tuple(sorted(test)),
        validation=tuple(sorted({groups[case] for case in validation_cases})),
        test_cases=test_cases,
        validation_cases=validation_cases,
        pretraining_cases=tuple(case for case, group in groups.items() if group not in test),
        budget_cases=budget_cases,
    )
    _check_apart(resolved, allow_overlap)
    _say_where_not_nested(split)
    return resolved


def overlap(patients: Iterable[str], resolved: ResolvedSplit) -> tuple[str, ...]:
    """Test people of a split who are among `patients`, such as those of a pre-training run; sorted."""
    seen = set()
    for patient in patients:
        with suppress(MaclError):  # a patient of another data set, whom this one's rule cannot name
            seen.add(group_of(patient, resolved.split.group))
    return tuple(sorted(seen.intersection(resolved.test)))


def listed(names: Iterable[str], at_most: int = 6) -> str:
    """Names for a sentence, the first few of many."""
    names = list(names)
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def _last_number(text: str) -> re.Match[str] | None:
    return re.search(r"\d+(?=\D*$)", text)


def _shipped() -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    folders = [("", files("macl") / "splits")]
    while folders:
        prefix, folder = folders.pop()
        for item in folder.iterdir():
            if item.is_dir():
                folders.append((f"{prefix}{item.name}/", item))
            elif item.name.endswith(".json"):
                found[prefix + item.name.removesuffix(".json")] = item
    return found


def _patients_by_name(split: Split, store: Store) -> Mapping[str, set[str]]:
    """The names that the split can call people by → the store's patients of that name."""
    patients = sorted({case.patient for case in store.index.cases})
    if split.identify_by == "index":
        labelled = sorted({case.patient for case in store.index.cases if case.labelled})
        if len(labelled) != split.labelled_patients:
            raise MaclError(
                f"The split {split.name!r} counts through {split.labelled_patients} labelled patients, but the store "
                f"{store.path} has {len(labelled)}: prepare the whole data set, so that places mean the same."
            )
        return {str(place): {patient} for place, patient in enumerate(labelled)}
    found: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        if split.identify_by == "person":
            found[group_of(patient, split.group)].add(patient)
        elif number := _last_number(patient):
            found[str(int(number.group()))].add(patient)
    if split.identify_by == "number":
        named = {*split.test, *split.validation, *(person for people in split.budgets.values() for person in people)}
        for person in sorted(named.intersection(found)):
            if len(found[person]) > 1:
                raise MaclError(
                    f"The split {split.name!r} names number {person}, which in {store.path} is "
                    f"{listed(sorted(found[person]))}: prepare one of these data sets alone."
                )
    return dict(found)


def _labelled_cases(split: Split, store: Store, people: Collection[str], part: str) -> tuple[str, ...]:
    """The labelled cases of people as the split names them, in the store's order."""
    known = _patients_by_name(split, store)
    labelled = {case.name: case.patient for case in store.index.cases if case.labelled}
    missing = [person for person in people if person not in known]
    if missing:
        raise MaclError(
            f"The split {split.name!r} names {listed(missing)} for {part}, whom the store {store.path} does not hold "
            f"({listed(known)} are there): use the split of this data set, or see which cases were refused."
        )
    unlabelled = [person for person in people if known[person].isdisjoint(labelled.values())]
    if unlabelled:
        raise MaclError(
            f"The split {split.name!r} needs labels of {listed(unlabelled)} for {part}, but the store {store.path} "
            "has none: prepare these cases with their labels."
        )
    patients = set().union(*(known[person] for person in people))
    return tuple(case for case, patient in labelled.items() if patient in patients)


def _check_apart(resolved: ResolvedSplit, allow_overlap: bool) -> None:
    split = resolved.split
    training = {resolved.groups[case] for cases in resolved.budget_cases.values() for case in cases}
    both = training.intersection(resolved.validation)
    if both:
        raise MaclError(
            f"The split {split.name!r} has {listed(sorted(both))} both in a label budget and in validation: "
            "take them out of one."
        )
    leaked = training.union(resolved.validation).intersection(resolved.test)
    if not leaked:
        return
    finding = (
        f"The split {split.name!r} puts scans of {len(leaked)} test people into training or validation "
        f"({listed(sorted(leaked))})"
    )
    if not allow_overlap:
        raise MaclError(f"{finding}: use a split made by person, or --allow-overlap to go on, which is recorded.")
    say(f"{finding}; going on, since overlap is allowed: the scores will be too good.")


def _say_where_not_nested(split: Split) -> None:
    budgets = sorted(split.budgets.items(), key=lambda budget: len(budget[1]))
    for (smaller, fewer), (larger, more) in pairwise(budgets):
        missing = set(fewer).difference(more)
        if missing:
            say(f"In the split {split.name!r} the budget {larger} lacks {len(missing)} people of the budget {smaller}.")
