"""What the numbers of a report allow to be said, in a sentence at its head."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from macl.pages.comparison import ComparisonRow
from macl.utils.text import counted

SHOWN = 3
"""How many groups of like runs are named."""


def verdict(rows: Sequence[ComparisonRow]) -> str:
    """Mean Dice of runs that differ in their start alone, and what follows.

    A page of single runs proves nothing about methods, and says so. "" where nothing is scored.
    """
    scored = [row for row in rows if row.mean_dice.mean is not None]
    groups: dict[tuple[object, ...], dict[str, dict[int, float]]] = {}
    for row in scored:
        by_name = groups.setdefault(row.conditions, {})
        by_name.setdefault(row.run.start, {})[row.run.record.seed] = 100 * (
            row.mean_dice.mean or 0.0
        )
    compared = {like: names for like, names in groups.items() if len(names) > 1}
    if not compared:
        return _alone(scored)
    cases = {
        like: next(r.scores.cases for r in scored if r.conditions == like) for like in compared
    }
    sentences = [
        f"With {like[0]} labelled: {_means(names)} (Dice in %, "
        f"{counted(cases[like], 'test case')}, {counted(_seeds(names), 'seed')})"
        for like, names in list(compared.items())[:SHOWN]
    ]
    more = f"; and {len(compared) - SHOWN} more comparisons" if len(compared) > SHOWN else ""
    why = (
        "another seed may turn it round"
        if min(map(_seeds, compared.values())) == 1
        else "a page of runs tests nothing"
    )
    return f"{'; '.join(sentences)}{more}. No conclusion: {why} (macl benchmark compares in pairs)."


def _alone(rows: Sequence[ComparisonRow]) -> str:
    if len(rows) != 1:
        return "No two of these runs differ in their start alone: no conclusion." if rows else ""
    (row,) = rows
    dice, deviation = row.mean_dice.mean or 0.0, row.mean_dice.deviation
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    what = "one cross-validation" if len(row.runs) > 1 else "one run"
    return (
        f"Dice {100 * dice:.1f}{spread} % over {counted(row.scores.cases, 'test case')}: {what}, "
        "with nothing beside it to compare."
    )


def _seeds(names: dict[str, dict[int, float]]) -> int:
    """Seeds that all of these have."""
    return len(set.intersection(*({*by_seed} for by_seed in names.values()))) or 1


def _means(names: dict[str, dict[int, float]]) -> str:
    return ", ".join(f"{name} {fmean(by_seed.values()):.1f}" for name, by_seed in names.items())
