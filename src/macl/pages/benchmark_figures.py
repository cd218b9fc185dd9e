"""A benchmark's figures as SVG: Dice over labelled people or method by method, and mean ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macl.pages.charts import Tick, ticks

WIDTH = 640.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 470.0, 44.0, 330.0
LABEL_HEIGHT = 15.0
POINT_SHIFT, MOST_SHIFTED = 4.0, 30.0
"""Points of different lines at the same labels stand side by side, hiding no interval."""
COLOURS = 8
"""Classes of the template: the colours of Okabe and Ito, then the same ones dashed."""
RANK_WIDTH, RANK_LEFT, RANK_RIGHT, RANK_AXIS = 700.0, 215.0, 485.0, 84.0
MEAN_LEFT, MEAN_RIGHT, MEAN_ROW = 240.0, 600.0, 22.0


@dataclass(frozen=True)
class LinePoint:
    """One value over the number of labelled people, with the ends of its interval."""

    labelled_people: int
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Line:
    """A method's values, with few labels first."""

    name: str
    points: tuple[LinePoint, ...]


@dataclass(frozen=True)
class _DrawnLine:
    name: str
    path: str
    points: tuple[tuple[float, float, tuple[float, float] | None, str], ...]
    colour: int
    dashed: bool
    label_at: float


@dataclass(frozen=True)
class _RankedMethod:
    """A method below the axis of ranks: its name on one side, a line up to its rank."""

    name: str
    at: float
    y: float
    side: str
    rank: float


def curves_figure(title: str, lines: Sequence[Line]) -> str:
    """Dice in per cent over the number of labelled people, one line a method, as SVG.

    Colours suit the colour-blind, and light and dark pages.
    """
    points = [point for line in lines for point in line.points]
    people = sorted({point.labelled_people for point in points})
    low, high = _limits(points)
    first, last = math.log2(people[0]), math.log2(people[-1])

    def x_of(number: int) -> float:
        if first == last:
            return (LEFT + RIGHT) / 2
        return LEFT + 24 + (math.log2(number) - first) / (last - first) * (RIGHT - LEFT - 48)

    def y_of(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    heights = _apart([y_of(line.points[-1].value) for line in lines], LABEL_HEIGHT)
    drawn = []
    for number, (line, label_at) in enumerate(zip(lines, heights, strict=True)):
        shift = min(POINT_SHIFT, MOST_SHIFTED / len(lines)) * (number - (len(lines) - 1) / 2)
        places = tuple(
            (
                x_of(point.labelled_people) + shift,
                y_of(point.value),
                (y_of(point.interval[0]), y_of(point.interval[1])) if point.interval else None,
                _described(line.name, point),
            )
            for point in line.points
        )
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
        drawn.append(
            _DrawnLine(
                line.name, path, places, number % COLOURS, number // COLOURS % 2 == 1, label_at
            )
        )
    return _render(
        "curves.svg.j2",
        title=title,
        width=WIDTH,
        height=max(BOTTOM + 48, max(heights) + 16),
        left=LEFT, right=RIGHT, bottom=BOTTOM,
        lines=drawn,
        x_ticks=[Tick(x_of(number), str(number)) for number in people],
        y_ticks=[Tick(y_of(number), label) for number, label in ticks(low, high, 6)],
    )  # fmt: skip


def means_figure(title: str, lines: Sequence[Line]) -> str:
    """Dice in per cent at one number of labelled people, one row a method, as SVG."""
    points = [line.points[0] for line in lines]
    low, high = _limits(points)

    def x_of(value: float) -> float:
        return MEAN_LEFT + (value - low) / (high - low) * (MEAN_RIGHT - MEAN_LEFT)

    rows = [
        (
            line.name,
            TOP + MEAN_ROW * index,
            x_of(point.value),
            (x_of(point.interval[0]), x_of(point.interval[1])) if point.interval else None,
            _described(line.name, point),
        )
        for index, (line, point) in enumerate(zip(lines, points, strict=True))
    ]
    bottom = TOP + MEAN_ROW * (len(lines) - 0.4)
    return _render(
        "means.svg.j2",
        title=title,
        width=WIDTH,
        height=bottom + 44,
        left=MEAN_LEFT, right=MEAN_RIGHT, top=TOP - 14, bottom=bottom,
        rows=rows,
        ticks=[Tick(x_of(number), label) for number, label in ticks(low, high, 6)],
    )  # fmt: skip


def ranks_figure(title: str, ranks: Mapping[str, float], critical_difference: float) -> str:
    """Methods on an axis of mean ranks (1 is best), as SVG.

    A bar joins methods whose ranks lie less than the critical difference apart (Demšar 2006).
    """
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    last = max(2, len(ordered))

    def x_of(rank: float) -> float:
        return RANK_LEFT + (rank - 1) / (last - 1) * (RANK_RIGHT - RANK_LEFT)

    joined = cliques([rank for _, rank in ordered], critical_difference)
    below = RANK_AXIS + 14 + 9 * len(joined)
    half = (len(ordered) + 1) // 2
    methods = []
    for index, (name, rank) in enumerate(ordered):
        side = "left" if index < half else "right"
        row = index if index < half else len(ordered) - 1 - index
        methods.append(_RankedMethod(name, x_of(rank), below + 14 + 20 * row, side, rank))
    return _render(
        "ranks.svg.j2",
        title=title,
        width=RANK_WIDTH,
        height=below + 24 + 20 * (half - 1),
        left=RANK_LEFT, right=RANK_RIGHT, axis=RANK_AXIS,
        ticks=[Tick(x_of(rank), str(rank)) for rank in range(1, last + 1)],
        critical=(critical_difference, RANK_LEFT + x_of(1 + critical_difference) - x_of(1)),
        bars=[
            (x_of(low) - 5, x_of(high) + 5, RANK_AXIS + 10 + 9 * index)
            for index, (low, high) in enumerate(joined)
        ],
        methods=methods,
    )  # fmt: skip


def cliques(ranks: Sequence[float], critical_difference: float) -> list[tuple[float, float]]:
    """The largest groups of ordered ranks that are not told apart, as first and last rank."""
    found: list[tuple[float, float]] = []
    for index, low in enumerate(ranks):
        high = max(rank for rank in ranks[index:] if rank - low < critical_difference)
        if high > low and (not found or high > found[-1][1]):
            found.append((low, high))
    return found


def _limits(points: Sequence[LinePoint]) -> tuple[float, float]:
    """Of an axis that holds all values and intervals, with a margin."""
    ends = [end for point in points for end in (point.value, *(point.interval or ()))]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _described(name: str, point: LinePoint) -> str:
    text = f"{name}, {point.labelled_people} labelled: {point.value:.1f} %"
    if point.interval is None:
        return text
    return f"{text} ({point.interval[0]:.1f} to {point.interval[1]:.1f})"


def _apart(heights: Sequence[float], distance: float) -> list[float]:
    """Heights moved down, as little as needed for labels to stand `distance` apart."""
    moved = [*heights]
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    lowest = -math.inf
    for index in order:
        lowest = moved[index] = max(heights[index], lowest + distance)
    return moved


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("macl", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values) + "\n"
