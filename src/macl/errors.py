"""Mistakes a user can mend: the command line prints them as one sentence and exits 1."""

from __future__ import annotations


class MaclError(Exception):
    """What is wrong, where, and what to do next, in one sentence for the user."""


class RefusedCaseError(MaclError):
    """One case cannot be kept; the others go on. The message is the reason, without the case's name."""
