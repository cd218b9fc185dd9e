"""Freed memory stays with the process, so that the next step need not ask the system for it."""

from __future__ import annotations

import resource
import sys

import numpy as np
import pytest

from macl.utils.allocator import keep_freed_memory

PAGES, PAGE_BYTES = 24_000, 4096


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing changes")
def test_memory_that_was_used_once_is_not_asked_for_again() -> None:
    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(PAGES * PAGE_BYTES, dtype=np.uint8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1.5 * PAGES


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no library is opened"))
    keep_freed_memory()
