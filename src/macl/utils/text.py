"""Quantities as text, for messages, records and pages."""

from __future__ import annotations

from collections.abc import Sequence


def format_duration(seconds: float) -> str:
    """A length of time in words: "27 h 47 min", "12 min", "1 min 40 s", "40 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def format_size(sides: Sequence[int]) -> str:
    """Sides of an image or a patch: "64 × 64"."""
    return " × ".join(map(str, sides))
