"""Store → split file: who trains, validates and tests, person by person."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import Rule, Split, group_of, read_split, write_split
from macl.data.store import Store
from macl.utils.errors import MaclError, listed
from macl.utils.progress import say


def split(
    store: Path,
    out: Path,
    *,
    test: str = "20%",
    validation: str = "0",
    budgets: str = "10%,25%",
    group: str = "patient",
    seed: int = 0,
    stratify: bool = False,
) -> Split:
    """Choose test, validation and training people of a store, and write the split file `out` (.json).

    Only people with labels are chosen. `test` is a number, or a percentage of all of them; `validation` and `budgets`
    are numbers, or percentages of those outside the test. Budgets are nested; validation people count towards each.
    With `stratify`, people who show the same structures are spread evenly over all parts.

    Raises:
        MaclError: the store has too few labelled people, an amount makes no sense, or `out` holds something else.
    """
    rule = _rule(group)
    if out.suffix != ".json":
        raise MaclError(f"--out {out} should be a file that ends in .json.")
    opened = Store.open(store)
    shown = structures(opened, rule)
    chosen = choose(
        shown, test=test, validation=validation, budgets=budgets, seed=seed, strata=shown if stratify else None
    )
    source = f"macl split --test {test} --validation {validation} --budgets {budgets} --group {group} --seed {seed}"
    drawn = _split(out, source + (" --stratify" if stratify else ""), rule, seed, chosen)
    _write({out: drawn}, opened)
    return drawn


def folds(
    store: Path,
    out: Path,
    *,
    count: int,
    validation: str = "0",
    budgets: str = "10%,25%",
    group: str = "patient",
    seed: int = 0,
    stratify: bool = False,
) -> list[Split]:
    """Write `count` splits `<out>-fold1.json` …; every labelled person is in the test of exactly one of them.

    Raises:
        MaclError: as for `split`, or there are fewer labelled people than folds.
    """
    rule = _rule(group)
    if out.suffix != ".json":
        raise MaclError(f"--out {out} should be a file that ends in .json.")
    opened = Store.open(store)
    shown = structures(opened, rule)
    if not 2 <= count <= len(shown):
        raise MaclError(f"--folds {count} does not fit {len(shown)} labelled people: choose 2 to {len(shown)}.")
    order = in_order(shown, seed, shown if stratify else None)
    source = f"macl split --folds {count} --validation {validation} --budgets {budgets} --group {group} --seed {seed}"
    drawn: dict[Path, Split] = {}
    for fold in range(count):
        tests = order[fold::count]
        rest = [person for person in order if person not in tests]
        chosen = {"test": tuple(sorted(tests))} | _divide(rest, validation, budgets)
        path = out.with_name(f"{out.stem}-fold{fold + 1}.json")
        words = f"{source}{' --stratify' if stratify else ''}, fold {fold + 1}"
        drawn[path] = _split(path, words, rule, seed, chosen)
    _write(drawn, opened)
    return list(drawn.values())


def structures(store: Store, rule: Rule) -> dict[str, frozenset[int]]:
    """Every labelled person, sorted, and which classes their labels show."""
    shown: dict[str, set[int]] = {}
    for case in store.index.cases:
        if case.labelled:
            voxels = case.class_voxels or ()
            shown.setdefault(group_of(case.patient, rule), set()).update(k for k, n in enumerate(voxels) if k and n)
    return {person: frozenset(shown[person]) for person in sorted(shown)}


def in_order(people: Iterable[str], seed: int, strata: Mapping[str, frozenset[int]] | None = None) -> list[str]:
    """People in the order of a hash of their name and the seed, so that a choice is the same on every machine.

    With `strata`, each stratum is spread evenly over the order, so that every run of it holds its share of each.
    """
    order = sorted(people, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
    if strata is None:
        return order
    members: dict[frozenset[int], list[str]] = {}
    for person in order:
        members.setdefault(strata[person], []).append(person)
    places = {person: (i + 0.5) / len(group) for group in members.values() for i, person in enumerate(group)}
    return sorted(order, key=places.__getitem__)


def choose(
    people: Iterable[str],
    *,
    test: str,
    validation: str = "0",
    budgets: str,
    seed: int,
    strata: Mapping[str, frozenset[int]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Draw "test", "validation" and every budget by its name from labelled people, in the order of `in_order`.

    Raises:
        MaclError: an amount cannot be read, or there are too few people.
    """
    order = in_order(people, seed, strata)
    tests = amount(test, len(order), "--test")
    if not 0 < tests < len(order):
        raise MaclError(f"--test {test} takes {tests} of {len(order)} labelled people: leave some on both sides.")
    return {"test": tuple(sorted(order[:tests]))} | _divide(order[tests:], validation, budgets)


def _divide(rest: Sequence[str], validation: str, budgets: str) -> dict[str, tuple[str, ...]]:
    """ "validation" and every budget, of the people outside the test."""
    validations = amount(validation, len(rest), "--validation")
    chosen = {"validation": tuple(sorted(rest[:validations]))}
    counts = {name: amount(name, len(rest), "--budgets") for name in re.split(r"\s*,\s*", budgets.strip())}
    for name, count in sorted(counts.items(), key=lambda budget: budget[1]):
        if count > len(rest):
            raise MaclError(
                f"The budget {name} needs {count} people, but {len(rest)} with labels are outside the test: "
                "choose a smaller one."
            )
        if count <= validations:
            raise MaclError(
                f"The budget {name} is {count} people, of whom --validation {validation} takes {validations}: "
                "leave someone to train on."
            )
        chosen[name] = tuple(rest[validations:count])
    return chosen


def amount(text: str, whole: int, option: str) -> int:
    """The number of people that "8" or "10%" of `whole` is; of a percentage above 0 at least one.

    Raises:
        MaclError: it is neither a whole number nor a percentage up to 100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match and (percent := float(match[1])) <= 100:
        return max(int(whole * percent / 100 + 0.5), 1 if percent > 0 else 0)
    if not text.strip().isdecimal():
        raise MaclError(f"{option} takes numbers of people, such as 8, or percentages, such as 10%, not {text!r}.")
    return int(text)


def render(resolved: ResolvedSplit, store: Store) -> str:
    """The split as a table: people, and their labelled cases, of every part."""
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
        lines.append(
            f"{part:<16}{len(resolved.people(cases)):>8}{len(cases):>8}{len(labelled.intersection(cases)):>10}"
        )
    if resolved.validation:
        lines.append("Validation people count towards every budget; the rows above show who is trained on besides.")
    return "\n".join(lines)


def _split(out: Path, source: str, rule: Rule, seed: int, chosen: dict[str, tuple[str, ...]]) -> Split:
    budgets = {name: people for name, people in chosen.items() if name not in ("test", "validation")}
    return Split(
        name=out.stem,
        source=source,
        seed=seed,
        group=rule,
        test=chosen["test"],
        validation=chosen["validation"],
        budgets=budgets,
    )


def _write(drawn: Mapping[Path, Split], store: Store) -> None:
    """Write split files, unless one of them would take the place of another split."""
    for out, split in drawn.items():
        if out.exists() and read_split(out) != split:
            raise MaclError(f"--out {out} already holds another split: choose another file, or remove it first.")
    for out, split in drawn.items():
        write_split(out, split)
        say(render(resolve_split(split, store), store))
        say(f"Wrote {out}.")


def _rule(group: str) -> Rule:
    for rule in get_args(Rule):
        if group == rule:
            return rule
    raise MaclError(f"--group {group!r} is unknown; known: {listed(get_args(Rule))}.")
