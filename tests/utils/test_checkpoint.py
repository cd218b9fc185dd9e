"""Weights on disk: what is written is read, and what is broken is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from macl.utils import checkpoint
from macl.utils.errors import MaclError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    tensors = {
        "a": torch.randn(2, 3, dtype=torch.float64),
        "b": torch.arange(6).reshape(2, 3).T,
        "c": torch.tensor(7),
        "d": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_(),
        "e": torch.zeros(3, dtype=torch.bfloat16),
    }
    about = {"step": 3, "name": "Straße", "list": [1, None, {"x": 0.1}]}
    checkpoint.write(path, tensors, about)
    saved = checkpoint.read(path)
    assert saved.about == about
    assert set(saved.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert saved.tensors[name].dtype == tensor.dtype
        assert torch.equal(saved.tensors[name], tensor)
    assert [item.name for item in path.parent.iterdir()] == ["w.safetensors"]


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    checkpoint.write(tmp_path / "w", {"a": shared, "b": shared, "c": shared[1:]}, {})
    saved = checkpoint.read(tmp_path / "w").tensors
    assert torch.equal(saved["a"], shared)
    assert torch.equal(saved["c"], shared[1:])


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    checkpoint.write(path, {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write(path, {"a": torch.zeros(2)}, {"loss": float("nan")})
    assert checkpoint.read(path).about == {"step": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["w"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MaclError, match="There is no"):
        checkpoint.read(tmp_path / "w")


def test_another_programs_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "w")
    with pytest.raises(MaclError, match="not written by macl"):
        checkpoint.read(tmp_path / "w")


def test_a_file_cut_short_anywhere_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w"
    checkpoint.write(path, {"a": torch.randn(50)}, {"step": 1})
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MaclError, match="cannot be read as weights"):
            checkpoint.read(path)
