"""Dice over the number of labelled people, where runs differ in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from macl.pages.benchmark_figures import Line, LinePoint, curves_figure
from macl.pages.comparison import DIFFERENCES, ComparisonRow, told_apart


def label_efficiency(rows: Sequence[ComparisonRow]) -> str | None:
    """One line for every start, recipe and network on one test, as SVG; a point is the mean over
    its runs with as many labelled people. None unless a line has several points."""
    lines: dict[tuple[object, ...], list[ComparisonRow]] = defaultdict(list)
    for row in rows:
        if row.mean_dice.mean is not None:
            like = row.conditions
            test = (like.store_checksum, like.convention, like.test_cases)
            network = (row.run.dims, row.run.network)
            lines[(row.run.start, like.kind, like.recipe, *network, *test)].append(row)
    points = [_points(group) for group in lines.values()]
    if not any(len(own) > 1 for own in points):
        return None
    first = [group[0] for group in lines.values()]
    names = told_apart([_name(row) for row in first], [row.run for row in first], *DIFFERENCES)
    return curves_figure("Dice over the labelled people", [*map(Line, names, points)])


def _points(rows: Sequence[ComparisonRow]) -> tuple[LinePoint, ...]:
    dice: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        people = round(fmean(len(run.record.people) for run in row.runs))
        dice[people].append(100 * (row.mean_dice.mean or 0.0))
    return tuple(LinePoint(people, fmean(dice[people]), None) for people in sorted(dice))


def _name(row: ComparisonRow) -> str:
    record = row.run.record
    return f"from {row.run.start}" + (", self-trained" if record.kind == "selftrain" else "")
