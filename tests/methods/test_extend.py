"""The example of docs/extend.md, executed as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import macl.methods
from fakes.toy_store import write_toy_store
from macl.plugins import find, names
from macl.stages.pretrain import pretrain

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def block(language: str) -> str:
    found = re.search(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


@pytest.fixture
def example(tmp_path, monkeypatch) -> Path:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "rotation.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "rotation.toml").write_text(block("toml"), encoding="utf-8")
    monkeypatch.setattr(
        macl.methods, "__path__", [*macl.methods.__path__, str(tmp_path / "methods")]
    )
    return tmp_path


def test_the_example_is_found_by_its_file_name(example):
    assert "rotation" in names("methods")
    assert find("methods", "rotation").name == "rotation"


def test_the_example_trains(example):
    write_toy_store(example / "toy.store", patients=6, slices=6, side=32)
    small = [
        "training.epochs=12",
        "training.batch_size=12",
        "training.size=32",
        "backbone_settings.width=8",
    ]
    recipe = str(example / "rotation.toml")
    record = pretrain(
        example / "toy.store", example / "run", recipe=recipe, overrides=small, device="cpu"
    )
    assert record.finished
    losses = [
        json.loads(line)["loss_turns"]
        for line in (example / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert sum(losses[-9:]) < sum(losses[:9])
