"""Quantities as text."""

from __future__ import annotations

import pytest

from macl.utils.text import format_duration, format_size


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (29.4, "29 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (599, "9 min 59 s"),
        (600, "10 min"),
        (3599, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (100_000, "27 h 47 min"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_sizes() -> None:
    assert format_size((64, 128, 128)) == "64 × 128 × 128"
