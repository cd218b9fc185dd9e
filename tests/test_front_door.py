"""`import macl`: quick, complete, and the same functions as the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import macl

FUNCTIONS = [name for name in macl.__all__ if name != "MaclError"]


def test_importing_is_quick_and_loads_nothing() -> None:
    script = (
        "import sys, time, json\nbefore = {*sys.modules}\nstart = time.process_time()\n"
        "import macl\nseconds = time.process_time() - start\n"
        "print(json.dumps([sorted({*sys.modules} - before), seconds]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    names, seconds = json.loads(done.stdout)
    assert [name for name in names if name.startswith("macl")] == ["macl"]
    assert "numpy" not in names
    assert seconds < 0.1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_there_and_stays_one(name: str) -> None:
    """Also once the modules behind it are imported, none of which may bear its name."""
    assert callable(getattr(macl, name))
    assert getattr(macl, name).__name__ == name
    folder = Path(macl.__file__).parent
    assert not (folder / name).exists()
    assert not (folder / f"{name}.py").exists()
    assert name in dir(macl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        macl.segment  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_types_are_published() -> None:
    assert (Path(macl.__file__).parent / "py.typed").is_file()
