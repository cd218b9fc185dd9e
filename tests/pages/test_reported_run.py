"""What a report takes from a run's folder."""

from __future__ import annotations

import math

from fakes.finished_benchmark import _row
from macl.pages.reported_run import RunScores


def test_the_cases_with_the_lowest_dice_are_listed_in_the_tables_order() -> None:
    dice = {"a": 0.9, "b": 0.2, "c": 0.5, "d": math.nan, "e": 0.7}
    rows = tuple(
        _row(case, name, value) for case, value in dice.items() for name in ("left", "right")
    )
    scores = RunScores(rows, {})
    assert [row.case for row in scores.of_lowest(2)] == ["b", "b", "c", "c"]
    assert scores.of_lowest(5) == rows
