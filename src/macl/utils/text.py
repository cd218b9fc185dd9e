"""Quantities as text, for messages, records and pages."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that steer a terminal, break a line, or turn the direction of writing."""

_PLAIN = {
    "±": "+-", "×": "x", "–": "-", "−": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "µ": "u",
}  # fmt: skip
"""How to write some characters where a terminal has ASCII alone."""

_LONGEST_SHOWN = 80


def format_duration(seconds: float) -> str:
    """A length of time in words: "27 h 47 min", "12 min", "1 min 40 s", "40 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: "1 case", "2 cases"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def format_size(sides: Sequence[int]) -> str:
    """Sides of an image or a patch: "64 × 64"."""
    return " × ".join(map(str, sides))


def printable(text: str) -> str:
    """`text` without anything that steers a terminal, on one line, and in valid characters.

    What is replaced stays recognisable: an escape character becomes `\\x1b`, a byte that is not
    UTF-8 `\\udcf6`.
    """
    plain = _CONTROL.sub(lambda found: _escaped(found[0]), text)
    return plain.encode("utf-8", "backslashreplace").decode()


def without_control(message: str) -> str:
    """A message of one or more lines without anything else that steers a terminal."""
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in "\n\t" else _escaped(found[0]), message
    )


def shown(value: object) -> str:
    """A value from a user's file for a message: cut if it is long."""
    try:
        text = printable(value if isinstance(value, str) else repr(value))
    except (ValueError, RecursionError):
        return f"a huge {type(value).__name__}"
    text = repr(text) if isinstance(value, str) else text
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def write_plain_where_needed() -> None:
    """Let the streams of this process write plain characters, or "?", for those they cannot."""
    codecs.register_error("macl.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="macl.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
