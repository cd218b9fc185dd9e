"""Mistakes a user can mend: the command line prints them as one sentence and exits 1."""

from __future__ import annotations

from collections.abc import Iterable


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
