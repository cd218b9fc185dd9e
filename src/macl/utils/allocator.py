"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_ALLOCATION_KEPT_BYTES = 2**30
_LARGEST_IN_OLD_LIBRARIES_BYTES = 2**25
_MOST_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, up to 2 GiB, for what it allocates next.

    Otherwise the maps of every step are handed back to the system and asked for again, page by
    page. Only glibc can be told so; elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    if not library.mallopt(_MMAP_THRESHOLD, _LARGEST_ALLOCATION_KEPT_BYTES):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_OLD_LIBRARIES_BYTES)
    library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT_BYTES)
