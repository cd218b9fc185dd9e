"""Store → split file: who trains, validates and tests, person by person."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from macl.data.splits import ResolvedSplit, Rule, Split, group_of, listed, read_split, resolve, write_split
from macl.data.store import Store
from macl.errors import MaclError
from macl.progress import say


def split(
    store: Path,
    out: Path,
    *,
    test: str = "20%",
    validation: str = "0",
    budgets: str = "10%,25%",
    group: str = "patient",
    seed: int = 0,
) -> Split:
    """Choose test, validation and training people of a store, and write the split file `out` (.json).

    Only people with labels are chosen. `test` is a number, or a percentage of all of them; `validation` and `budgets`
    are numbers, or percentages of those outside the test. Budgets are nested; validation people count towards each.

    Raises:
        MaclError: the store has too few labelled people, an amount makes no sense, or `out` holds something else.
    """
    rule = _rule(group)
    if out.suffix != ".json":
        raise MaclError(f"--out {out} should be a file that ends in .json.")
    opened = Store.open(store)
    people = sorted({group_of(case.patient, rule) for case in opened.index.cases if case.labelled})
    chosen = choose(people, test=test, validation=validation, budgets=budgets, seed=seed)
    drawn = Split(
        name=out.stem,
        source=f"macl split --test {test} --validation {validation} --budgets {budgets} --group {group} --seed {seed}",
        seed=seed,
        group=rule,
        test=chosen.pop("test"),
        validation=chosen.pop("validation"),
        budgets=chosen,
    )
    if out.exists() and read_split(out) != drawn:
        raise MaclError(f"--out {out} already holds another split: choose another file, or remove it first.")
    write_split(out, drawn)
    say(render(resolve(drawn, opened), opened))
    say(f"Wrote {out}.")
    return drawn


def choose(
    people: Iterable[str], *, test: str, validation: str = "0", budgets: str, seed: int
) -> dict[str, tuple[str, ...]]:
    """Draw "test", "validation" and every budget by its name from labelled people.

    People are put in the order of a hash of their name and the seed, so the choice is the same on every machine.

    Raises:
        MaclError: an amount cannot be read, or there are too few people.
    """
    order = sorted(people, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
    tests = amount(test, len(order), "--test")
    if not 0 < tests < len(order):
        raise MaclError(f"--test {test} takes {tests} of {len(order)} labelled people: leave some on both sides.")
    rest = order[tests:]
    validations = amount(validation, len(rest), "--validation")
    chosen = {"test": tuple(sorted(order[:tests])), "validation": tuple(sorted(rest[:validations]))}
    counts = {name: amount(name, len(rest), "--budgets") for name in re.split(r"\s*,\s*", budgets.strip())}
    for name, count in sorted(counts.items(), key=lambda budget: budget[1]):
        if count > len(rest):
            raise MaclError(
                f"The budget {name} needs {count} people, but {len(rest)} with labels are outside the test."
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


def _rule(group: str) -> Rule:
    for rule in get_args(Rule):
        if group == rule:
            return rule
    raise MaclError(f"--group {group!r} is unknown; known: {listed(get_args(Rule))}.")
