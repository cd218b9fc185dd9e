"""Running out of memory: how to recognise it, and how much would fit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

from macl.utils.ranks import this_rank

_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory ran out; not every library has a type for it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _SIGNS)


def free_host_bytes() -> int:
    """Free memory of the machine per process, as Linux reports it; half of all memory elsewhere."""
    processes = this_rank().local_world_size
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if available := re.search(r"MemAvailable:\s*(\d+) kB", text):
            return int(available[1]) * 1024 // processes
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def largest_that_fits(
    attempt: Callable[[int], object], too_many: int, at_least: int = 1
) -> int | None:
    """Halve `too_many` until `attempt(count)` no longer runs out of memory.

    Args:
        attempt: does the work for so many items at a time.
        too_many: a count that did not fit.
        at_least: the smallest count worth trying.

    Returns:
        The count that fits; None if not even `at_least` does.
    """
    count = too_many // 2
    while count >= at_least:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(count)
            return count
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        count //= 2
    return None
