"""Mistakes a user can mend: the command line prints them as one sentence and exits 1."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class MaclError(Exception):
    """What is wrong, where, and what to do next, in one sentence for the user."""


class RefusedCaseError(MaclError):
    """One case cannot be kept; the others go on. The message is the reason, without the case's name."""


NAMES_LISTED = 6


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, the first few of many."""
    names = list(names)
    more = len(names) - NAMES_LISTED
    return ", ".join(names[:NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What to say after an unknown name: the nearest of the known ones, if one is near, and all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return f"{hint}: {', '.join(known)}"
