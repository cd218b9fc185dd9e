"""A store's array files: written the same for the same array, and opened only if they are plain.

A Blosc2 file can also hold an expression or a function that runs when it is opened or read, or a
reference to other files. Its header says so before any of it is read.

A chunk is 16 slices and a block, the least that is decompressed, 128 rows of one slice. Measured
on ACDC, Hippocampus, a 4-channel and a synthetic 512 × 512 × 200 volume: as large as one chunk per
slice (±0.3 %), written faster, and a slice is read as fast (0.3–0.8 ms); a 64³ patch of the large
volume takes 9 ms, against 10–26 ms with one chunk per slice. Zstandard's level 1, in memory, takes
0.29 of the processor time of level 5 straight to the disk on ACDC and 0.44 on Hippocampus, for
files 3.6 and 2.0 % larger.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from macl.utils.files import atomic_path

SUFFIX = ".b2nd"
SLICES_PER_CHUNK = 16
ROWS_PER_BLOCK = 128

NAME = slice(2, 10)
LENGTH = slice(16, 24)
STORAGE, CODEC, MORE_METADATA, CHUNK_CODEC = 26, 27, 68, 77
FILTERS = slice(71, 77)
METADATA, METADATA_SIZE = slice(87, 99), slice(89, 91)
"""Where the header of a Blosc2 frame says what, in bytes from its start."""

ONE_ARRAY = b"\x93\xcd" + b"\xde\x00\x01\xa4b2nd"
"""The metadata's beginning, without its size: one entry, which describes an array."""

CONTIGUOUS = 0
NO_MORE = 0xC2
BUILT_IN_CODECS = 6
BUILT_IN_FILTERS = 5
"""Codecs and filters with lower numbers are part of Blosc2; others can be loaded from elsewhere."""


def write(path: Path, array: np.ndarray) -> str:
    """Write a contiguous array (…, Z, Y, X) atomically; return the SHA-256 of the file."""
    import blosc2

    *lead, slices, rows, columns = array.shape
    values: Any = array
    compressed: Any = blosc2.asarray(
        values,
        contiguous=True,
        chunks=(*lead, min(SLICES_PER_CHUNK, slices), rows, columns),
        blocks=(*(1 for _ in lead), 1, min(ROWS_PER_BLOCK, rows), columns),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
    )
    frame = compressed.to_cframe()
    with atomic_path(path) as aside:
        aside.write_bytes(frame)
    return hashlib.sha256(frame).hexdigest()


def open_plain(path: Path) -> Any:
    """Open an array file for reading.

    Raises:
        ValueError: it is not a file of `write`, is broken, or holds more than an array.
        OSError: it cannot be read.
    """
    import blosc2

    require_plain(path)
    try:
        return blosc2.open(str(path), mode="r")
    except Exception as error:  # of a broken header, Blosc2 makes any kind of error
        raise ValueError(f"its header is broken: {error}") from None


def require_plain(path: Path) -> None:
    """ValueError unless a file holds one array and nothing that could run or lead elsewhere."""
    if path.suffix != SUFFIX:
        raise ValueError(f"its name does not end in {SUFFIX}")
    with path.open("rb") as file:
        start = file.read(METADATA.stop)
        length = file.seek(0, os.SEEK_END)
    if len(start) < METADATA.stop or start[NAME] != b"b2frame\0":
        raise ValueError("it is not a Blosc2 array")
    announced = int.from_bytes(start[LENGTH], "big")
    if announced != length:
        raise ValueError(f"it has {length} bytes instead of {announced}")
    metadata = start[METADATA.start : METADATA_SIZE.start] + start[METADATA_SIZE.stop :]
    if (
        metadata != ONE_ARRAY
        or start[MORE_METADATA] != NO_MORE
        or start[STORAGE] != CONTIGUOUS
        or max(start[CODEC] & 15, start[CHUNK_CODEC]) >= BUILT_IN_CODECS
        or max(start[FILTERS]) >= BUILT_IN_FILTERS
    ):
        raise ValueError("it holds more than a plain array, such as a function that would run")
