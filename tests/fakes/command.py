"""Calls of the command line in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from macl.cli import main


class Answer(NamedTuple):
    """Exit code and streams of one call."""

    code: int
    out: str
    err: str


def macl(*words: object) -> Answer:
    """Call `macl` with `words`."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["macl", *map(str, words)]
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", argv):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())
