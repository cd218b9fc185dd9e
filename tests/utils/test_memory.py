"""Running out of memory: recognised whoever says it, and halved until the work fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from macl.utils import memory
from macl.utils.memory import (
    free_host_bytes,
    is_out_of_memory,
    largest_that_fits,
    within_free_memory,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError("std::bad_alloc"), True),
    ],
)
def test_who_says_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("room", "at_least", "expected", "tried"),
    [
        (5, 1, 4, [8, 4]),
        (1, 1, 1, [8, 4, 2, 1]),
        (1, 2, None, [8, 4, 2]),
        (0, 1, None, [8, 4, 2, 1]),
    ],
)
def test_halving_until_it_fits(
    room: int, at_least: int, expected: int | None, tried: list[int]
) -> None:
    attempts: list[int] = []

    def attempt(count: int) -> None:
        attempts.append(count)
        if count > room:
            raise torch.OutOfMemoryError("out of memory")

    assert largest_that_fits(attempt, 16, at_least) == expected
    assert attempts == tried


def test_other_errors_pass_through() -> None:
    def attempt(count: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 16)


def test_free_memory_is_a_share_of_what_the_machine_has() -> None:
    assert 2**20 < free_host_bytes() < 2**50


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux limits a process's data")
def test_more_than_is_free_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 2**27)
    monkeypatch.setattr(memory, "_free_swap_bytes", lambda: 0)
    with within_free_memory():
        assert torch.ones(2**24, dtype=torch.uint8)[-1] == 1
        with pytest.raises(RuntimeError) as caught:
            torch.ones(2**33, dtype=torch.uint8)  # more than is kept of freed memory
    assert is_out_of_memory(caught.value)
    assert torch.ones(2**29, dtype=torch.uint8)[-1] == 1


@pytest.mark.parametrize("prefix", ["memory.", "memory/memory."])
def test_a_container_leaves_its_limit(prefix: str, tmp_path: Path) -> None:
    assert memory._free_container_bytes(tmp_path) is None
    second = prefix.endswith("/memory.")
    names = ("limit_in_bytes", "usage_in_bytes") if second else ("max", "current")
    (tmp_path / prefix).parent.mkdir(exist_ok=True)
    for name, text in zip(
        (*names, "stat"), ("1000\n", "700\n", "anon 4\ninactive_file 50\nx 1\n"), strict=True
    ):
        (tmp_path / f"{prefix}{name}").write_text(text)
    assert memory._free_container_bytes(tmp_path) == 350
    (tmp_path / f"{prefix}{names[0]}").write_text("max\n")
    assert memory._free_container_bytes(tmp_path) is None
