"""Dice over the number of labelled people, where runs differ in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from macl.pages.benchmark_figures import Line, LinePoint, curves_figure
from macl.pages.comparison import ComparisonRow


def label_efficiency(rows: Sequence[ComparisonRow]) -> str | None:
    """One line for every start, as SVG; a point is the mean over its runs with as many labelled
    people. None unless a start was trained with several numbers of them."""
    dice: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.mean_dice.mean is not None:
            people = round(fmean(len(run.record.people) for run in row.runs))
            dice[_name(row)][people].append(100 * row.mean_dice.mean)
    if not any(len(by_people) > 1 for by_people in dice.values()):
        return None
    lines = [
        Line(
            name,
            tuple(
                LinePoint(people, fmean(by_people[people]), None) for people in sorted(by_people)
            ),
        )
        for name, by_people in dice.items()
    ]
    return curves_figure("Dice over the labelled people", lines)


def _name(row: ComparisonRow) -> str:
    record = row.run.record
    return f"from {row.run.start}" + (", self-trained" if record.kind == "selftrain" else "")
