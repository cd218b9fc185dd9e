"""Messages: to stderr by themselves, and wherever a program's own handlers send them."""

from __future__ import annotations

import logging

import pytest

from macl.utils.progress import be_quiet, say, warn


@pytest.fixture
def logger():
    """The logger of macl, as it was afterwards."""
    found = logging.getLogger("macl")
    handlers, level = found.handlers[:], found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


def test_messages_are_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("100 % of 3")
    warn("Warning: \x1b[31mred")
    assert capsys.readouterr() == ("", "100 % of 3\nWarning: \\x1b[31mred\n")


def test_a_program_may_send_them_elsewhere(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.levelname, record.getMessage()))
    logger.handlers[:] = [handler]
    say("Wrote it.")
    be_quiet(True)
    say("Not this.")
    warn("But this.")
    assert seen == [("INFO", "Wrote it."), ("WARNING", "But this.")]
    assert capsys.readouterr().err == ""
