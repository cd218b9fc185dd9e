"""The first hour on a GPU: figures are taken once, in order, within their time, and reported."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ABOUT = {"device": "cpu", "torch": "2"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_figures", BENCHMARKS / "gpu_figures.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def figure(script: ModuleType, name: str, code: str, minutes: float = 0.0) -> Any:
    return script.Figure(
        name, f"How fast is {name}?", (sys.executable, "-c", code, "{json}"), minutes
    )


COUNT = (
    "import json, pathlib, sys; file = pathlib.Path(sys.argv[1]); "
    "file.write_text(json.dumps({'calls': {'so_far': 1}, 'again': file.exists()}))"
)


def test_a_figure_is_taken_once_and_a_failed_one_again(script: ModuleType, tmp_path: Path) -> None:
    figures = [figure(script, "good", COUNT), figure(script, "bad", "raise SystemExit('no card')")]
    for _ in range(2):
        good, bad = script.run_within(figures, tmp_path, 1.0, ABOUT)
    assert (good.exit_code, good.figures) == (0, {"calls": {"so_far": 1}, "again": False})
    assert (bad.exit_code, bad.output.strip()) == (1, "no card")
    (page,) = tmp_path.glob("gpu_figures_*.md")
    text = page.read_text(encoding="utf-8")
    assert "| calls.so_far | 1 |" in text
    assert "| How fast is bad? |  | failed (exit code 1) |" in text
    assert "no card" in text


def test_what_takes_too_long_is_ended_and_what_would_is_not_begun(
    script: ModuleType, tmp_path: Path
) -> None:
    slow = figure(script, "slow", "import time; print('begun', flush=True); time.sleep(60)")
    figures = [slow, figure(script, "long", COUNT, minutes=0.03)]
    (answer,) = script.run_within(figures, tmp_path, 2.0 / 60, ABOUT)
    assert answer.exit_code is None
    assert answer.output.strip() in ("begun", "")  # a busy machine may not have begun
    assert answer.minutes < 0.5
    text = next(tmp_path.glob("*.md")).read_text(encoding="utf-8")
    assert "out of time, continues in another call" in text
    assert "| How fast is long? |  | open |" in text
    assert json.loads((tmp_path / "slow.answer.json").read_text())["exit_code"] is None


@pytest.mark.parametrize("tiny", [True, False])
def test_every_figure_names_a_script_or_command_that_exists(script: ModuleType, tiny: bool) -> None:
    arguments = argparse.Namespace(device="cpu", tiny=tiny, acdc=Path("a"), hippocampus=Path("h"))
    figures = script.open_figures(arguments)
    names = [each.name for each in figures]
    assert len({*names}) == len(names) > 10
    for each in figures:
        files = [Path(word) for word in each.command if word.startswith(str(BENCHMARKS))]
        assert all(file.is_file() for file in files if file.suffix in (".py", ".toml"))
        assert each.command[0] == sys.executable
