"""Running out of memory: recognised whoever says it, and halved until the work fits."""

from __future__ import annotations

import pytest
import torch

from macl.utils.memory import free_host_bytes, is_out_of_memory, largest_that_fits


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_who_says_that_memory_ran_out(error: RuntimeError, expected: bool) -> None:
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
