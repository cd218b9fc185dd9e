"""Running out of memory: how to recognise it, and how much would fit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from macl.utils.ranks import this_rank

_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; not every library has a type for it."""
    text = str(error).lower()
    of_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return of_type or any(sign in text for sign in _SIGNS)


def free_host_bytes() -> int:
    """Free memory per process, of the machine or its container; half of all memory if unknown."""
    processes = this_rank().local_world_size
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if available := re.search(r"MemAvailable:\s*(\d+) kB", text):
            free = int(available[1]) * 1024
            return min(free, _free_container_bytes() or free) // processes
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def _free_container_bytes(control: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, with the files that the kernel can drop; None: no limit."""
    names = {"memory.max": "memory.current"}
    names["memory/memory.limit_in_bytes"] = "memory/memory.usage_in_bytes"
    for limit, used in names.items():
        with contextlib.suppress(OSError, ValueError):  # "max" means that there is none
            left = int((control / limit).read_text()) - int((control / used).read_text())
            statistics = (control / limit).with_name("memory.stat").read_text()
            files = re.search(r"^(?:total_)?inactive_file (\d+)", statistics, re.MULTILINE)
            return max(0, left + (int(files[1]) if files else 0))
    return None


@contextlib.contextmanager
def within_free_memory() -> Iterator[None]:
    """Inside the block, more memory than is free now cannot be had: an error says so.

    Otherwise Linux would hand it out and kill the process when it is used. Elsewhere nothing
    happens.
    """
    data = _data_bytes()
    if data is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + free_host_bytes() + _free_swap_bytes()
    for other in (soft, hard):
        limit = limit if other == resource.RLIM_INFINITY else min(limit, other)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """What this process has asked for, as RLIMIT_DATA counts it; None where there is no such."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if data := re.search(r"VmData:\s*(\d+) kB", status):
            return int(data[1]) * 1024
    return None


def _free_swap_bytes() -> int:
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if swap := re.search(r"SwapFree:\s*(\d+) kB", text):
            return int(swap[1]) * 1024
    return 0


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
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        count //= 2
    return None
