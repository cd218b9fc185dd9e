from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macl.pages.charts import (
    BOTTOM,
    LEFT,
    MOST_DOTS,
    MOST_POINTS,
    RIGHT,
    TOP,
    dot_charts,
    line_chart,
    ticks,
)


def points_of(path: str) -> np.ndarray:
    return np.array(
        [[float(number) for number in point.split(",")] for point in path[1:].split("L")]
    )


def test_a_short_log_is_drawn_as_it_is() -> None:
    chart = line_chart([(0, 4.0), (10, 2.0), (20, 0.0)])
    drawn = points_of(chart.raw)
    assert chart.smooth == ""
    assert (chart.first, chart.last) == (4.0, 0.0)
    assert drawn[:, 0] == pytest.approx([LEFT, (LEFT + RIGHT) / 2, RIGHT])
    # Equal steps of the value are equal steps on the page, higher values higher up.
    assert np.diff(drawn[:, 1]) == pytest.approx([drawn[1, 1] - drawn[0, 1]] * 2, abs=0.11)
    assert drawn[0, 1] < drawn[2, 1]
    assert chart.end == pytest.approx(tuple(drawn[-1]), abs=0.05)


def test_a_long_log_is_smoothed_by_a_moving_average() -> None:
    random = np.random.default_rng(0)
    values = random.normal(5, 1, 200)
    chart = line_chart([(step, float(value)) for step, value in enumerate(values, start=1)])
    assert chart.window == 5
    slow = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(200)]
    raw, smooth = points_of(chart.raw), points_of(chart.smooth)
    scale, offset = np.polyfit(values, raw[:, 1], 1)
    assert smooth[:, 1] == pytest.approx(np.polyval([scale, offset], slow), abs=0.1)


def test_a_very_long_log_is_binned() -> None:
    chart = line_chart([(step, 1.0 / step) for step in range(1, 100_001)])
    assert len(points_of(chart.raw)) == MOST_POINTS
    assert len(chart.raw) < 10_000


@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=50),
    st.integers(min_value=1, max_value=1000),
)
def test_nothing_is_drawn_outside_the_axes(values: list[float], stride: int) -> None:
    chart = line_chart([(stride * number, value) for number, value in enumerate(values)])
    drawn = points_of(chart.raw)
    assert (drawn[:, 0] >= LEFT - 0.1).all()
    assert (drawn[:, 0] <= RIGHT + 0.1).all()
    assert (drawn[:, 1] >= TOP - 0.1).all()
    assert (drawn[:, 1] <= BOTTOM + 0.1).all()
    assert all(TOP - 0.1 <= tick.at <= BOTTOM + 0.1 for tick in chart.y_ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (0.0, 4000.0, ["0", "1 000", "2 000", "3 000", "4 000"]),
        (-2.0, 2.0, ["−2", "−1", "0", "1", "2"]),
    ],
)
def test_ticks_are_round_and_of_one_precision(low: float, high: float, labels: list[str]) -> None:
    assert [re.sub(r"\s", " ", label) for _, label in ticks(low, high, 4)] == labels


def test_dots_share_one_axis_and_the_bar_is_their_mean() -> None:
    charts = dot_charts(
        {
            "left": [("scratch", False, {"a": 50.0, "b": 70.0}), ("macl", True, {"a": 80.0})],
            "right": [("scratch", False, {}), ("macl", True, {"a": 90.0})],
        },
    )
    left, right = charts
    assert [track.label for track in left.tracks] == ["scratch", "macl"]
    assert [track.label for track in right.tracks] == ["macl"]
    assert left.ticks == right.ticks
    scratch = left.tracks[0]
    assert scratch.mean == 60.0
    assert scratch.mean_at == pytest.approx((scratch.dots[0].at + scratch.dots[1].at) / 2)
    assert 0 <= scratch.dots[0].at < scratch.dots[1].at < left.tracks[1].dots[0].at < 100


def test_of_many_cases_some_are_dots_from_the_lowest_to_the_highest() -> None:
    cases = {f"case{number}": float(number % 1000) / 10 for number in range(5000)}
    (chart,) = dot_charts({"left": [("scratch", False, cases)]})
    (track,) = chart.tracks
    values = [dot.value for dot in track.dots]
    assert (len(values), track.cases) == (MOST_DOTS, 5000)
    assert (min(values), max(values)) == (0.0, 99.9)
    assert np.median(values) == pytest.approx(np.median([*cases.values()]), abs=0.5)
    assert track.mean == pytest.approx(np.mean([*cases.values()]))


def test_no_case_no_chart() -> None:
    assert dot_charts({"left": [("scratch", False, {})]}) == ()
