"""`import macl`: quick, complete, and the same functions as the commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import macl
from fakes.threshold_run import known_case, write_threshold_run
from fakes.toy_store import write_toy_store

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


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but on a store that is there already and with the training cut short."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    image, label = known_case((6, 32, 32))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), "scan.nii.gz")
    write_toy_store(tmp_path / "my.store", patients=12, slices=6, side=32)
    write_threshold_run(tmp_path / "trained")
    calls: list[str] = []

    def train(name: str, store: str, out: str, **options: object) -> None:
        signature(getattr(stages[name], "__wrapped__", stages[name])).bind(store, out, **options)
        calls.append(name)
        if name == "finetune":
            Path(out).parent.mkdir(exist_ok=True)
            Path("trained").rename(out)

    stages = {name: getattr(macl, name) for name in ("prepare", "pretrain", "finetune")}
    for name in stages:
        monkeypatch.setattr(macl, name, partial(train, name))
    exec(compile(lines, "README.md", "exec"), {"__name__": "__main__"})
    assert calls == ["prepare", "pretrain", "finetune"]
    assert Path("my.json").is_file()
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("mask.nii.gz"))
    np.testing.assert_array_equal(mask, label)
