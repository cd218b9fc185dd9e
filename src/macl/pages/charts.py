"""Charts as coordinates, which the template draws as SVG lines and as dots on tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 320.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 312.0, 10.0, 142.0
MOST_POINTS = 300
MOST_DOTS = 300
SMOOTHED_FRACTION = 1 / 40
SMOOTHED_FROM = 100
"""Shorter logs are drawn as they are."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """One logged value over the steps, in the coordinates of an SVG of `WIDTH` × `HEIGHT`.

    Attributes:
        raw: every logged value as an SVG path; a long log is binned.
        smooth: their moving average as an SVG path; empty where the log is short.
        end: x, y of the last point of the line.
        window: number of logged values in one point of the moving average.
        first, last: the first and last logged values.
        level: y of a value to compare with; None: there is none.
    """

    raw: str
    smooth: str
    end: tuple[float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    window: int
    first: float
    last: float
    level: float | None = None


@dataclass(frozen=True)
class Dot:
    """One case on a track, in per cent of the track's width."""

    at: float
    case: str
    value: float


@dataclass(frozen=True)
class Track:
    """One run's cases on one line.

    Attributes:
        dots: of the cases, the lowest first; where there are many, of some between the lowest and
            the highest.
        cases: how many there are.
        mean_at: the mean, in per cent of the track's width.
        pretrained: whether the run started from pre-trained weights; drawn in another colour.
    """

    label: str
    dots: tuple[Dot, ...]
    cases: int
    mean_at: float
    mean: float
    pretrained: bool


@dataclass(frozen=True)
class DotChart:
    """One class: a track for every run, all on one axis."""

    title: str
    tracks: tuple[Track, ...]
    ticks: tuple[Tick, ...]


def line_chart(points: Sequence[tuple[int, float]], level: float | None = None) -> LineChart:
    """A chart of (step, value) points, at least one, with a line at `level`."""
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    window = round(len(values) * SMOOTHED_FRACTION) if len(values) >= SMOOTHED_FROM else 1
    smoothed = _moving_average(values, window)
    x_low, x_high = float(steps[0]), float(max(steps[-1], steps[0] + 1))
    shown = values if level is None else np.append(values, level)
    y_low, y_high = _padded(float(shown.min()), float(shown.max()))

    def x_of(step: Any) -> Any:
        return LEFT + (step - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def y_of(value: Any) -> Any:
        return BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    raw, smooth = (_binned(x_of(steps), y_of(heights)) for heights in (values, smoothed))
    return LineChart(
        raw=_path(raw),
        smooth=_path(smooth) if window > 1 else "",
        end=(float(smooth[-1, 0]), float(smooth[-1, 1])),
        x_ticks=tuple(Tick(x_of(number), label) for number, label in ticks(x_low, x_high, 4)),
        y_ticks=tuple(Tick(y_of(number), label) for number, label in ticks(y_low, y_high, 4)),
        window=window,
        first=float(values[0]),
        last=float(values[-1]),
        level=None if level is None else float(y_of(level)),
    )


def dot_charts(
    values: Mapping[str, Sequence[tuple[str, bool, Mapping[str, float]]]],
) -> tuple[DotChart, ...]:
    """Charts on one common axis, from a round number below the lowest value to 100.

    Args:
        values: title of a chart → tracks of (label, pretrained, case → value in per cent). Tracks
            without a case are left out.
    """
    in_all = [
        value for tracks in values.values() for _, _, cases in tracks for value in cases.values()
    ]
    if not in_all:
        return ()
    low = max(0.0, float(_round_numbers(5).tick_values(min(in_all) - 0.5, 100.0)[0]))

    def at(value: float) -> float:
        return 100 * (value - low) / (100 - low)

    axis = tuple(Tick(at(number), label) for number, label in ticks(low, 100.0, 5))

    def track(label: str, pretrained: bool, cases: Mapping[str, float]) -> Track:
        dots = tuple(Dot(at(cases[case]), case, cases[case]) for case in _spread_out(cases))
        mean = sum(cases.values()) / len(cases)
        return Track(label, dots, len(cases), at(mean), mean, pretrained)

    return tuple(
        DotChart(title, tuple(track(*entry) for entry in tracks if entry[2]), axis)
        for title, tracks in values.items()
    )


def _spread_out(cases: Mapping[str, float]) -> list[str]:
    """All cases, or `MOST_DOTS` of them, evenly from the lowest value to the highest."""
    ranked = sorted(cases, key=cases.__getitem__)
    count = min(len(ranked), MOST_DOTS)
    return [ranked[place] for place in np.linspace(0, len(ranked) - 1, count).round().astype(int)]


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most `most` + 1 round numbers from `low` to `high`, with labels of one precision."""
    locator = _round_numbers(most)
    slack = 1e-6 * (high - low)
    numbers = [
        float(number)
        for number in locator.tick_values(low, high)
        if low - slack <= number <= high + slack
    ]
    step = min(np.diff(numbers), default=1.0)
    decimals = next(
        (digits for digits in range(7) if abs(round(step, digits) - step) < 1e-3 * step), None
    )
    return [(number, _tick_label(number, decimals)) for number in numbers]


def _round_numbers(most: int) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def _tick_label(value: float, decimals: int | None) -> str:
    text = f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"
    return text.replace(",", "\N{THIN SPACE}").replace("-", "−")


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, over fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    start, stop = (
        np.maximum(index - window // 2, 0),
        np.minimum(index - window // 2 + window, len(values)),
    )
    return (sums[stop] - sums[start]) / (stop - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    floor = low - margin
    return (0.0 if low >= 0 and floor < 0.25 * high else floor), high + margin


def _binned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(points, 2): neighbouring points averaged, so that at most `MOST_POINTS` are left."""
    bins = min(len(x), MOST_POINTS)
    columns = [[part.mean() for part in np.array_split(column, bins)] for column in (x, y)]
    return np.array(columns).T


def _path(points: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
