"""Which commit of its source macl runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import macl


def commit_of_macl() -> str:
    """The commit of macl's source, with "-dirty" where it was edited; empty outside of git."""
    here = Path(macl.__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, encoding="utf-8"
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # An installed macl may lie in a folder of another project.
        tracked = git("ls-files", here.name)
        return git("describe", "--always", "--dirty", "--exclude", "*") if tracked else ""
    except OSError:
        return ""
