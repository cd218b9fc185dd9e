"""The examples of docs/extend.md, executed as they stand there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fakes.scans import anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.models.network import total_stride
from macl.plugins import find, names, reader, readers
from macl.preprocessing.source import recognise
from macl.stages.pretrain import pretrain

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
FILES = {"methods": "rotation.py", "models": "strided.py", "readers": "knees.py"}
"""Folder → the file that its example would be."""


def blocks(language: str) -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, which are found as if they lay in macl."""
    for (kind, file), text in zip(FILES.items(), blocks("python"), strict=True):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).write_text(text, encoding="utf-8")
        package = importlib.import_module(f"macl.{kind}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
        monkeypatch.delitem(sys.modules, f"macl.{kind}.{file.removesuffix('.py')}", raising=False)
    (recipe,) = blocks("toml")
    (tmp_path / "rotation.toml").write_text(recipe, encoding="utf-8")
    return tmp_path


def test_examples_are_found_by_their_file_names(examples: Path) -> None:
    for kind, file in FILES.items():
        name = file.removesuffix(".py")
        assert name in names(kind)
        assert find(kind, name).__module__ == f"macl.{kind}.{name}"


@pytest.mark.parametrize(("dims", "size"), [(2, "32"), (3, "[8,32,32]")], ids=["slices", "volumes"])
def test_the_method_trains_on_the_network(examples: Path, dims: int, size: str) -> None:
    write_toy_store(examples / "toy.store", patients=6, slices=8, side=32)
    overrides = [
        f"dims={dims}",
        f"training.size={size}",
        f"training.epochs={12 if dims == 2 else 48}",
        "training.batch_size=12",
        "backbone=strided",
        "backbone_settings.width=8",
    ]
    recipe = str(examples / "rotation.toml")
    record = pretrain(
        examples / "toy.store", examples / "run", recipe=recipe, overrides=overrides, device="cpu"
    )
    assert record.finished
    log = (examples / "run" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_turns"] for line in log]
    assert sum(losses[-9:]) < sum(losses[:9])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("decoder_blocks", [0, 1, None])
def test_the_network_keeps_the_contract(
    examples: Path, dims: int, decoder_blocks: int | None
) -> None:
    plugin = find("models", "strided")
    assert dims in plugin.supported_dims
    network = plugin(plugin.Settings(width=2), 1, dims=dims, decoder_blocks=decoder_blocks)
    side = max(total_stride(network.strides))
    features = network.encode(torch.zeros(2, 1, *(side,) * dims))
    assert tuple(maps.shape[1] for maps in features) == network.channels
    assert features[-1].shape[2:] == (1,) * dims
    maps = network.decode(features)
    count = len(network.strides) if decoder_blocks is None else decoder_blocks + 1
    assert tuple(one.shape[1] for one in maps) == network.decoder_channels[:count]


def test_the_reader_lists_cases(examples: Path, tmp_path: Path) -> None:
    image, label = anatomy(0)
    for name, array in (("001/scan", image), ("001/cartilage", label), ("002/scan", image)):
        write_nifti(tmp_path / f"data/knee_{name}.nii.gz", array)
    assert recognise(tmp_path / "data", readers()).name == "knees"
    source = reader("knees").read(tmp_path / "data")
    assert [(case.name, case.label is not None) for case in source.cases] == [
        ("knee_001", True),
        ("knee_002", False),
    ]
    assert (source.modality, source.channels, source.notes) == ("MR", ("MR",), ())
