"""Split files, which name the people who train, validate and test, and those in the package."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from macl.config.mistakes import validate
from macl.config.settings import Settings
from macl.utils.errors import MaclError, listed
from macl.utils.files import read_json, write_text

Rule = Literal["patient", "consecutive-pair"]

ALL = "all"
"""The label budget that every split has: all labelled people outside test and validation."""


class Split(Settings):
    """The contents of a split file.

    The people of a budget train, those of `validation` choose the best weights, and the labels of
    both count towards the budget. Without validation people the last weights are kept. Test people
    choose nothing.
    """

    format: Literal["macl-split"] = "macl-split"
    version: Literal[1] = 1
    name: str
    source: str = Field(default="", description="where the choice comes from")
    seed: int | None = Field(
        default=None, description="seed of the choice; none: not drawn by macl"
    )
    group: Rule = Field(
        default="patient",
        description="who is one person: a patient of the store, or two patients with the numbers "
        "2k−1 and 2k",
    )
    identify_by: Literal["person", "number", "index"] = Field(
        default="person",
        description="how people are named below: as the group rule names them, by the last number "
        "in a patient's name, or by a patient's index, from 0, among the labelled patients sorted "
        "by name",
    )
    labelled_patients: int | None = Field(
        default=None,
        description="number of labelled patients in the data set, without which an index means "
        "nothing",
    )
    test: tuple[str, ...] = Field(description="empty: nobody tests, for a final model")
    validation: tuple[str, ...] = ()
    reserved: tuple[str, ...] = Field(
        default=(),
        description="people of whom nothing is used, not even unlabelled: those who test the "
        "settings that this split helps to choose",
    )
    budgets: dict[str, tuple[str, ...]] = Field(
        description="name → people to train on, smallest first; each should hold the one before; "
        "none: a split for pre-training alone",
    )

    @model_validator(mode="after")
    def _people_are_counted_once(self) -> Split:
        if not self.test and not self.budgets:
            raise ValueError("a split needs test people or a budget")
        lists = {
            "test": self.test, "validation": self.validation, "reserved": self.reserved,
            **self.budgets,
        }  # fmt: skip
        for name, people in lists.items():
            repeated = [person for person, times in Counter(people).items() if times > 1]
            if repeated:
                raise ValueError(f"{name} names {listed(repeated)} twice")
            used = set(self.reserved).intersection(people)
            if name != "reserved" and used:
                raise ValueError(f"{name} names {listed(sorted(used))}, who are reserved")
        for budget, people in self.budgets.items():
            if not people:
                raise ValueError(f"the budget {budget!r} names nobody to train on")
            if budget.isdecimal() and int(budget) != len(people) + len(self.validation):
                raise ValueError(
                    f"the budget {budget!r} should count {budget} people, but {len(people)} train "
                    f"and {len(self.validation)} validate"
                )
        if self.identify_by == "index" and self.labelled_patients is None:
            raise ValueError("labelled_patients is needed where people are named by index")
        return self


def split_names() -> tuple[str, ...]:
    """Names of the splits in the package, sorted."""
    return tuple(sorted(_shipped()))


def read_split(name_or_path: str | Path) -> Split:
    """Read a split by path (any `.json`) or by its name in the package, such as "paper/acdc".

    Raises:
        MaclError: there is no such split (the known ones are named), or the file is not a split.
    """
    name = str(name_or_path)
    if name.endswith(".json"):
        raw = read_json(Path(name), "a split file")
        if raw.get("format") != "macl-split" or raw.get("version") != 1:
            raise MaclError(f"{name} is not a split file of version 1: make one with `macl split`.")
        return validate(Split, raw, where=Path(name).name)
    shipped = _shipped()
    if name not in shipped:
        known = ", ".join(split_names())
        raise MaclError(f"There is no split called {name!r}; known: {known}, or a .json file.")
    return validate(Split, json.loads(shipped[name].read_text(encoding="utf-8")), where=name)


def write_split(path: Path, split: Split) -> None:
    """Write a split file atomically, one line per entry."""
    entries = (
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in split.model_dump().items()
    )
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def group_of(patient: str, rule: Rule) -> str:
    """The person behind a patient of a store.

    Under "patient" that is the patient. Under "consecutive-pair" the patients numbered 2k−1 and 2k
    are one person, named by k: `hippocampus_003` and `hippocampus_004` are both
    `hippocampus_pair002`.

    Raises:
        MaclError: the rule needs a number and the patient's name has none.
    """
    if rule == "patient":
        return patient
    digits = last_number(patient)
    if digits is None:
        raise MaclError(
            f"The patient {patient!r} has no number to pair by: group by patient instead."
        )
    before, number = patient[: digits.start()], int(digits.group())
    return f"{before}pair{(number + 1) // 2:0{len(digits.group())}d}{patient[digits.end() :]}"


def in_drawn_order(people: Iterable[str], seed: int) -> list[str]:
    """Order people by a hash of their name and the seed, the same on every machine."""
    return sorted(people, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())


def last_number(text: str) -> re.Match[str] | None:
    """The last run of digits in a name."""
    return re.search(r"\d+(?=\D*$)", text)


def _shipped() -> dict[str, Traversable]:
    splits: dict[str, Traversable] = {}
    folders = [("", files("macl") / "splits")]
    while folders:
        prefix, folder = folders.pop()
        for item in folder.iterdir():
            if item.is_dir():
                folders.append((f"{prefix}{item.name}/", item))
            elif item.name.endswith(".json"):
                splits[prefix + item.name.removesuffix(".json")] = item
    return splits
