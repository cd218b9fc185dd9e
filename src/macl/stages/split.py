"""Store → split file: who trains, validates and tests, by person."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from macl.data.people import suspicion
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import Rule, Split, group_of, in_drawn_order, read_split, write_split
from macl.data.store import Store
from macl.utils.errors import MaclError, listed
from macl.utils.files import AnyPath
from macl.utils.progress import say, warn

Amounts = str | int | Sequence[str | int]
"""Numbers of people, such as 8, "10%", "8,25%" or [8, "25%"]."""


class SplitKeywords(TypedDict, total=False):
    """The fields of `SplitOptions`, as keyword arguments."""

    validation: Amounts
    budgets: Amounts
    group: str
    seed: int
    stratify: bool
    reserve: AnyPath | None


@dataclass(frozen=True)
class SplitOptions:
    """How people are chosen, besides the test.

    Attributes:
        validation: people whose labels choose the best weights: a number, or a percentage of those
            outside the test.
        budgets: nested label budgets, separated by commas, in the same way. Validation people
            count towards each.
        group: who counts as one person, "patient" or "consecutive-pair".
        seed: of the choice.
        stratify: spread people whose labels show the same structures evenly over all parts.
        reserve: a split whose test people are left out of everything, so that this split can help
            to choose settings which that one then tests.
    """

    validation: str = "0"
    budgets: str = "10%,25%"
    group: str = "patient"
    seed: int = 0
    stratify: bool = False
    reserve: Path | None = None

    @property
    def rule(self) -> Rule:
        """The group as a rule; MaclError for an unknown one."""
        for rule in get_args(Rule):
            if self.group == rule:
                return rule
        raise MaclError(f"--group {self.group!r} is unknown; known: {listed(get_args(Rule))}.")

    @classmethod
    def of(cls, given: SplitKeywords) -> SplitOptions:
        """The options with amounts as texts, as the command line takes them."""
        values: dict[str, Any] = {**given}
        for name in values.keys() & {"validation", "budgets"}:
            values[name] = _as_text(values[name])
        if values.get("reserve"):
            values["reserve"] = Path(values["reserve"])
        return cls(**values)

    def command(self, option: str) -> str:
        """The command that makes the split, for its file."""
        return (
            f"macl split {option} --validation {self.validation} --budgets {self.budgets} "
            f"--group {self.group} --seed {self.seed}"
            + (" --stratify" if self.stratify else "")
            + (f" --reserve {self.reserve.name}" if self.reserve else "")
        )

    def reserved(self, store: Store) -> tuple[str, ...]:
        """The test people of the split to reserve, as the group rule names them."""
        if self.reserve is None:
            return ()
        final = read_split(self.reserve)
        if final.group != self.rule:
            raise MaclError(
                f"--reserve {self.reserve} groups scans by {final.group}: add --group "
                f"{final.group}."
            )
        return resolve_split(final, store).test


def split(
    store: AnyPath, out: AnyPath, *, test: str | int = "20%", **options: Unpack[SplitKeywords]
) -> Split:
    """Choose test, validation and training people of a store, and write the split file.

    Only people with labels are chosen.

    Args:
        store: folder made by `prepare`.
        out: split file to write (.json).
        test: people to test: a number, or a percentage of all labelled people; "0" for a final
            model, which nobody tests.
        options: see `SplitOptions`.

    Raises:
        MaclError: the store has too few labelled people, an amount makes no sense, or `out` holds
            something else.
    """
    store, out, test = Path(store), Path(out), str(test)
    chosen = SplitOptions.of(options)
    opened, shown = _open(store, out, chosen)
    people = choose(
        shown, test=test, validation=chosen.validation, budgets=chosen.budgets, seed=chosen.seed,
        strata=shown if chosen.stratify else None,
    )  # fmt: skip
    people["reserved"] = chosen.reserved(opened)
    drawn = _split(out.stem, chosen.command(f"--test {test}"), chosen, people)
    _write({out: drawn}, opened)
    return drawn


def folds(
    store: AnyPath, out: AnyPath, *, count: int, **options: Unpack[SplitKeywords]
) -> list[Split]:
    """Write splits `<out>-fold1.json` …, of which each labelled person is tested in exactly one.

    Args:
        store: folder made by `prepare`.
        out: gives the names of the files (.json).
        count: number of splits.
        options: see `SplitOptions`.

    Raises:
        MaclError: as for `split`, or there are fewer labelled people than folds.
    """
    store, out = Path(store), Path(out)
    chosen = SplitOptions.of(options)
    opened, shown = _open(store, out, chosen)
    order = in_order(shown, chosen.seed, shown if chosen.stratify else None)
    if not 2 <= count <= len(order):
        raise MaclError(
            f"--folds {count} does not fit {len(order)} labelled people: choose 2 to {len(order)}."
        )
    drawn: dict[Path, Split] = {}
    for fold in range(count):
        tests = order[fold::count]
        rest = [person for person in order if person not in tests]
        people = {"test": tuple(sorted(tests))}
        people |= _divide(rest, chosen.validation, chosen.budgets)
        people["reserved"] = chosen.reserved(opened)
        path = out.with_name(f"{out.stem}-fold{fold + 1}.json")
        source = f"{chosen.command(f'--folds {count}')}, fold {fold + 1}"
        drawn[path] = _split(path.stem, source, chosen, people)
    _write(drawn, opened)
    return list(drawn.values())


def _open(store: Path, out: Path, options: SplitOptions) -> tuple[Store, dict[str, frozenset[int]]]:
    """The store, and its labelled people with the classes that they show."""
    rule = options.rule
    if out.suffix != ".json":
        raise MaclError(f"--out {out} should be a file that ends in .json.")
    opened = Store.open(store)
    if rule == "patient":
        people = suspicion({case.name: case.patient for case in opened.index.cases})
        if people:
            warn(f"Warning: {people}")
    shown, reserved = structures(opened, rule), options.reserved(opened)
    return opened, {person: classes for person, classes in shown.items() if person not in reserved}


def structures(store: Store, rule: Rule) -> dict[str, frozenset[int]]:
    """Every labelled person, sorted, and the classes that their labels show."""
    shown: dict[str, set[int]] = {}
    for case in store.index.cases:
        if case.labelled:
            classes = {label for label, count in enumerate(case.class_voxels or ()) if count}
            shown.setdefault(group_of(case.patient, rule), set()).update(classes - {0})
    return {person: frozenset(shown[person]) for person in sorted(shown)}


def in_order(
    people: Iterable[str], seed: int, strata: Mapping[str, frozenset[int]] | None = None
) -> list[str]:
    """Order people as `in_drawn_order` does.

    With `strata`, each stratum is spread evenly over the order, so that every part of it holds its
    share of each.
    """
    order = in_drawn_order(people, seed)
    if strata is None:
        return order
    members: dict[frozenset[int], list[str]] = {}
    for person in order:
        members.setdefault(strata[person], []).append(person)
    positions = {
        person: (index + 0.5) / len(group)
        for group in members.values()
        for index, person in enumerate(group)
    }
    return sorted(order, key=positions.__getitem__)


def choose(
    people: Iterable[str],
    *,
    test: str,
    validation: str = "0",
    budgets: str,
    seed: int,
    strata: Mapping[str, frozenset[int]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Choose "test", "validation" and every budget, by its name, from labelled people.

    Raises:
        MaclError: an amount cannot be read, or there are too few people.
    """
    order = in_order(people, seed, strata)
    tests = amount(test, len(order), "--test")
    if tests >= len(order):
        raise MaclError(
            f"--test {test} takes {tests} of {len(order)} labelled people: leave some to train on."
        )
    return {"test": tuple(sorted(order[:tests]))} | _divide(order[tests:], validation, budgets)


def _divide(rest: Sequence[str], validation: str, budgets: str) -> dict[str, tuple[str, ...]]:
    """ "validation" and every budget, from the people outside the test."""
    validations = amount(validation, len(rest), "--validation")
    chosen = {"validation": tuple(sorted(rest[:validations]))}
    names = re.split(r"\s*,\s*", budgets.strip())
    counts = {name: amount(name, len(rest), "--budgets") for name in names}
    for name, count in sorted(counts.items(), key=lambda budget: budget[1]):
        if count > len(rest):
            raise MaclError(
                f"The budget {name} needs {count} people, but {len(rest)} with labels are outside "
                f"the test: choose smaller ones, such as --budgets {max(1, len(rest) // 2)}, or "
                "--labels all later, which trains on all of them."
            )
        if count <= validations:
            raise MaclError(
                f"The budget {name} is {count} people, of whom --validation {validation} takes "
                f"{validations}: leave someone to train on."
            )
        chosen[name] = tuple(rest[validations:count])
    return chosen


def _as_text(amounts: Amounts) -> str:
    return str(amounts) if isinstance(amounts, str | int | float) else ",".join(map(str, amounts))


def amount(text: str, total: int, option: str) -> int:
    """The number of people that "8" or "10%" of `total` is; a percentage above 0 is at least one.

    Raises:
        MaclError: it is neither a whole number nor a percentage up to 100 %; `option` is where the
            user gave it.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match and (percent := float(match[1])) <= 100:
        return max(int(total * percent / 100 + 0.5), 1 if percent > 0 else 0)
    if not text.strip().isdecimal():
        raise MaclError(
            f"{option} takes numbers of people, such as 8, or percentages, such as 10%, not "
            f"{text!r}."
        )
    return int(text)


def render(resolved: ResolvedSplit, store: Store) -> str:
    """The split as a table: people, cases and labelled cases of every part."""
    labelled = {case.name for case in store.index.cases if case.labelled}
    parts: list[tuple[str, Sequence[str]]] = [
        ("test", resolved.test_cases),
        ("validation", resolved.validation_cases),
        *((f"budget {name}", cases) for name, cases in resolved.budget_cases.items()),
        ("pre-training", resolved.pretraining_cases),
        ("all", list(resolved.groups)),
    ]
    lines = [f"{'part':<16}{'people':>8}{'cases':>8}{'labelled':>10}"]
    for part, cases in parts:
        counts = len(resolved.people(cases)), len(cases), len(labelled.intersection(cases))
        lines.append(f"{part:<16}{counts[0]:>8}{counts[1]:>8}{counts[2]:>10}")
    if resolved.validation:
        lines.append(
            "Validation people count towards every budget; the table shows those trained on."
        )
    return "\n".join(lines)


def _split(
    name: str, source: str, options: SplitOptions, people: Mapping[str, tuple[str, ...]]
) -> Split:
    return Split(
        name=name,
        source=source,
        seed=options.seed,
        group=options.rule,
        test=people["test"],
        validation=people["validation"],
        reserved=people["reserved"],
        budgets={
            name: chosen
            for name, chosen in people.items()
            if name not in ("test", "validation", "reserved")
        },
    )


def _write(drawn: Mapping[Path, Split], store: Store) -> None:
    """Write split files, unless one of them would replace another split."""
    for out, split in drawn.items():
        there = read_split(out) if out.exists() else split
        if there != split:
            raise MaclError(
                f"--out {out} already holds another split ({there.source}): choose another file, "
                "or remove it first."
            )
    for out, split in drawn.items():
        write_split(out, split)
        say(render(resolve_split(split, store), store))
        if not split.test:
            say("Nobody tests: a model trained on this split cannot be scored on this store.")
        say(f"Wrote {out}.")
