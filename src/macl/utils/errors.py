"""Mistakes that a user can correct: the command line prints one sentence and exits with 1."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class MaclError(Exception):
    """What is wrong, where, and what to do next, as one sentence for the user."""


class RefusedCaseError(MaclError):
    """One case is left out, the others are kept; the message is the reason, without its name."""


NAMES_LISTED = 6


def listed(names: Iterable[str]) -> str:
    """Names for a sentence; of many, the first few and how many more."""
    names = list(names)
    more = len(names) - NAMES_LISTED
    return ", ".join(names[:NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The hint for an unknown name: the nearest known name, if one is near, and all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return f"{hint}: {', '.join(known)}"
