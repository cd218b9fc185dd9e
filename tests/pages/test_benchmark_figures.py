from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from macl.pages.benchmark_figures import (
    Line,
    LinePoint,
    cliques,
    curves_figure,
    means_figure,
    ranks_figure,
)


def test_methods_that_are_not_told_apart_are_joined() -> None:
    assert cliques([1.0, 1.5, 2.4, 3.6], 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert cliques([1.0, 1.2, 1.4], 1.0) == [(1.0, 1.4)], "once, not again from each member"
    assert cliques([1.0, 3.0], 1.0) == []


def test_ranks_stand_where_the_axis_says() -> None:
    svg = ranks_figure("Ranks", {"worst": 3.0, "best": 1.0, "middle": 2.0}, 0.5)
    lines = {
        name: float(x) for x, name in re.findall(r'd="M([\d.]+),[^>]*>\s*<text[^>]*>(\w+) \(', svg)
    }
    ticks = [
        float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">\d<', svg)
    ]
    assert [lines[name] for name in ("best", "middle", "worst")] == pytest.approx(ticks)
    assert "critical difference 0.50" in svg


@pytest.mark.parametrize("people", [(1, 2, 8), (4,)])
def test_curves_are_drawn_to_scale(people: tuple[int, ...]) -> None:
    lines = [
        Line(name, tuple(LinePoint(n, base + n, (base, base + 2 * n)) for n in people))
        for name, base in (("a & b", 60.0), ("c", 70.0))
    ]
    root = ElementTree.fromstring(curves_figure("Dice", lines))
    space = "{http://www.w3.org/2000/svg}"
    circles = [*root.iter(f"{space}circle")]
    heights = [float(circle.get("cy", "")) for circle in circles]
    assert len(heights) == 2 * len(people)
    points = heights[0] - heights[len(people)]
    assert points > 0, "more is higher"
    if len(people) > 1:
        assert heights[0] - heights[1] == pytest.approx(points / 10, abs=0.2)
    names = [text.text for text in root.iter(f"{space}text") if text.get("class") == "name"]
    assert names == ["a & b", "c"]


def test_means_are_drawn_to_scale_in_their_order() -> None:
    lines = [
        Line(name, (LinePoint(4, value, (value - 2, value + 2)),))
        for name, value in (("a & b", 60.0), ("c", 70.0), ("d", 65.0))
    ]
    root = ElementTree.fromstring(means_figure("Dice", lines))
    space = "{http://www.w3.org/2000/svg}"
    first, second, third = (
        (float(circle.get("cx", "")), float(circle.get("cy", "")))
        for circle in root.iter(f"{space}circle")
    )
    assert third[0] - first[0] == pytest.approx((second[0] - first[0]) / 2, abs=0.2)
    assert first[0] < second[0], "more is further to the right"
    assert first[1] < second[1] < third[1]
    names = [text.text for text in root.iter(f"{space}text") if text.get("class") == "method"]
    assert names == ["a & b", "c", "d"]


def test_names_do_not_overlap() -> None:
    lines = [Line(str(n), (LinePoint(1, 80.0, None),)) for n in range(5)]
    heights = [
        float(y)
        for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', curves_figure("D", lines))
    ]
    assert all(b - a >= 14.9 for a, b in pairwise(heights))
