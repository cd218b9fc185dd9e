"""What the numbers of a report allow to be said, in a sentence at its head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from macl.pages.comparison import ComparisonRow, Conditions
from macl.utils.text import counted

SHOWN = 3
"""How many groups of like runs are named."""


@dataclass(frozen=True)
class LikeRuns:
    """Runs that differ in their start alone, over the seeds that all starts have.

    Attributes:
        dice: start → mean Dice in per cent.
        cases: tested.
        seeds: shared.
    """

    labels: str
    dice: dict[str, float]
    cases: int
    seeds: int

    def __str__(self) -> str:
        means = ", ".join(f"{start} {dice:.1f}" for start, dice in self.dice.items())
        tested, repeated = counted(self.cases, "test case"), counted(self.seeds, "seed")
        return f"With {self.labels} labelled: {means} (Dice in %, {tested}, {repeated})"


def verdict(rows: Sequence[ComparisonRow]) -> str:
    """Mean Dice of runs that differ in their start alone, and what follows.

    A page of single runs proves nothing about methods, and says so. "" where nothing is scored.
    """
    scored = [row for row in rows if row.mean_dice.mean is not None]
    groups: dict[Conditions, list[ComparisonRow]] = defaultdict(list)
    for row in scored:
        groups[row.conditions].append(row)
    compared = [like for group in groups.values() if (like := _compared(group))]
    if not compared:
        return _alone(scored)
    more = f"; and {len(compared) - SHOWN} more comparisons" if len(compared) > SHOWN else ""
    why = (
        "another seed may reverse it"
        if min(like.seeds for like in compared) == 1
        else "a page of runs tests nothing"
    )
    said = "; ".join(map(str, compared[:SHOWN]))
    return f"{said}{more}. No conclusion: {why} (macl benchmark compares in pairs)."


def _compared(group: Iterable[ComparisonRow]) -> LikeRuns | None:
    """Runs under one set of conditions; None where no seed has two starts."""
    dice: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in group:
        dice[row.run.start][row.run.record.seed].append(100 * (row.mean_dice.mean or 0.0))
    seeds = set.intersection(*({*own} for own in dice.values()))
    if len(dice) < 2 or not seeds:
        return None
    means = {start: fmean(fmean(own[seed]) for seed in seeds) for start, own in dice.items()}
    first = next(iter(group))
    return LikeRuns(first.conditions.labels, means, first.scores.cases, len(seeds))


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
