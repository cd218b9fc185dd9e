"""The Python functions as people call them: texts as paths, numbers as amounts, one or several."""

from __future__ import annotations

from pathlib import Path

import pytest

import macl
from fakes import nnunet
from fakes.threshold_run import write_threshold_run
from fakes.toy_store import write_toy_store
from macl.config.recipes import resolve
from macl.config.settings import PretrainSettings
from macl.data.splits import read_split


def test_a_split_takes_numbers_and_lists(tmp_path: Path) -> None:
    store = tmp_path / "toy.store"
    write_toy_store(store, patients=6, slices=2, side=32)
    macl.split(str(store), str(tmp_path / "texts.json"), test="2", validation="1", budgets="2,50%")
    macl.split(store, tmp_path / "numbers.json", test=2, validation=1, budgets=[2, "50%"])
    texts, numbers = (read_split(tmp_path / f"{name}.json") for name in ("texts", "numbers"))
    assert numbers.budgets == texts.budgets
    assert (numbers.test, numbers.validation) == (texts.test, texts.validation)
    assert numbers.source == texts.source
    with pytest.raises(macl.MaclError, match=r"--test takes numbers of people.* not '0.2'"):
        macl.split(store, tmp_path / "share.json", test=0.2)  # pyright: ignore[reportArgumentType]


def test_prepare_takes_its_settings_by_name(tmp_path: Path) -> None:
    scans = nnunet.write(tmp_path / "Dataset001_Toy", cases=2)
    index = macl.prepare(str(scans), str(tmp_path / "my.store"), spacing_mm=1.25, workers=1)
    assert index.prepared.spacing_mm == 1.25
    with pytest.raises(macl.MaclError, match="spacing"):
        macl.prepare(scans, tmp_path / "other.store", spacing=1.25)


def test_one_override_needs_no_list() -> None:
    assert resolve(PretrainSettings, {}, "training.steps=3").training.steps == 3


def test_one_path_needs_no_list(tmp_path: Path) -> None:
    with pytest.raises(macl.MaclError, match=r"^nowhere does not exist"):
        macl.report("nowhere", str(tmp_path / "page.html"))
    with pytest.raises(macl.MaclError, match=r"^nowhere "):
        macl.predict("nowhere", str(tmp_path / "masks"))


def test_an_export_takes_texts(tmp_path: Path) -> None:
    run = write_threshold_run(tmp_path / "run")
    written = macl.export(str(run), str(tmp_path / "weights.safetensors"), to="torch")
    assert [path.name for path in written][:2] == [
        "weights.safetensors", "weights.safetensors.card.md",
    ]  # fmt: skip
