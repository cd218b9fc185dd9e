"""How the command begins and ends."""

from __future__ import annotations

import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path

from macl.cli.app import app
from macl.utils.failures import describe
from macl.utils.interruption import end_on_sigterm, exit_code
from macl.utils.progress import warn
from macl.utils.ranks import exit_rank, this_rank
from macl.utils.text import without_control, write_plain_where_needed


def _how_to_continue(words: list[str]) -> str:
    """What to call after an interruption."""
    words = [part for word in words for part in _parts(word)]
    given = dict(pairwise(words))
    is_training = words[:1] in (["pretrain"], ["finetune"], ["selftrain"])
    if not is_training or not (Path(given.get("--out", "")) / "run.json").is_file():
        return "Run the same command again to continue."
    kept = [
        word for name in ("--out", "--devices") if name in given for word in (name, given[name])
    ]
    return f"To continue: macl {shlex.join([words[0], *kept, '--resume'])}"


def _parts(word: str) -> list[str]:
    """ "--out=run" as "--out" and "run"; any other word as it is."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name.startswith("--") else [word]


def main() -> None:
    """Entry point: what a user can mend is one sentence, with exit code 1; a bug a traceback."""
    # Otherwise PyTorch's idle threads spin: beside another busy program a step takes ten times as
    # long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    write_plain_where_needed()
    end_on_sigterm()
    # Wherever it stands, --quiet is an option of macl, not of the command.
    words = [word for word in sys.argv[1:] if word != "--quiet"]
    quiet = ["--quiet"] if len(words) < len(sys.argv) - 1 else []
    try:
        app([*quiet, *words], prog_name="macl")
    except Exception as error:
        # Not `say`, which is silent in all processes but the first: any of them may have failed.
        print(without_control(f"macl: {describe(error)}"), file=sys.stderr, flush=True)
        exit_rank(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns Ctrl-C into 130 without a message; a launcher of processes ends with either.
        code = end.code if isinstance(end, SystemExit) else 130
        if code not in (130, 143):
            raise
        code = 143 if code == 143 else exit_code()
        how = "terminated" if code == 143 else "interrupted"
        # The processes of one training leave this to what started them.
        if this_rank().world_size == 1:
            warn(f"macl: {how}. {_how_to_continue(words)}")
        exit_rank(code)
