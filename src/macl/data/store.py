"""The store: prepared scans on disk, with an index that says what each case is.

`store.json` is the index. `cases/<name>.image.b2nd` holds an image (C, Z, Y, X) in the scan's own
integers, `cases/<name>.label.b2nd` its label (Z, Y, X) as uint8. Where a scan was resampled or
cropped, `cases/<name>.truth.b2nd` keeps the whole label at the scan's own resolution, so that
evaluation happens there.

A store prepared by a plan of nnU-Net's holds float32 that is normalised already: there,
normalisation precedes resampling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from macl.data import arrays
from macl.data.consistency import contradiction
from macl.data.store_index import INDEX, ArrayKind, StoredArray, StoredCase, StoreIndex, read_index
from macl.utils.errors import MaclError
from macl.utils.files import inside, sha256

CASES = "cases"

Window = tuple[slice | None, slice | None, slice | None]
"""A part of a volume along Z, Y and X, in steps of 1; None: all of that axis."""

READING_THREADS = 8
"""Threads that read arrays at the same time."""


class Store:
    """A store opened for reading: the index in memory, voxels read on demand.

    Every array is compared with its checksum before it is first read.

    Args:
        path: its folder.
        index: what it holds.
        verify: False: trust the files.
    """

    def __init__(self, path: Path, index: StoreIndex, verify: bool = True) -> None:
        self.path = path
        self.index = index
        self.verify = verify
        self._verified: set[str] = set()

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> Store:
        """Open the store in a folder; see `Store`.

        Raises:
            MaclError: there is no store there, it was written by another version, or its index
                contradicts itself.
        """
        if not (path / INDEX).is_file():
            what = "is not a store" if path.exists() else "does not exist"
            raise MaclError(
                f"{path} {what}: name a folder that `macl prepare` has finished (it holds {INDEX})."
            )
        index = read_index(path)
        if problem := contradiction(index):
            raise MaclError(
                f"{path / INDEX} cannot be right: {problem}. Restore the file, or prepare the "
                "scans again."
            )
        return cls(path, index, verify)

    @cached_property
    def cases(self) -> Mapping[str, StoredCase]:
        """The cases by name."""
        return {case.name: case for case in self.index.cases}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over all cases' contents and normalisation; independent of the store's path."""
        digest = hashlib.sha256()
        for case in self.index.cases:
            lines = [case.name, case.patient, case.normalisation.model_dump_json()]
            lines += [f"{kind}:{array.sha256}" for kind, array in sorted(case.arrays.items())]
            digest.update("\n".join(lines).encode() + b"\0")
        return digest.hexdigest()

    def case(self, name: str) -> StoredCase:
        """The case of that name; MaclError if there is none."""
        try:
            return self.cases[name]
        except KeyError:
            raise MaclError(f"The store {self.path} has no case called {name!r}.") from None

    def slices_with_content(self, case: str, minimum: float) -> np.ndarray:
        """Numbers (n,) of a case's slices of which at least this share is not air; all for 0.

        Raises:
            MaclError: there is no such case, or the store does not know its slices' content.
        """
        stored = self.case(case)
        if minimum == 0:
            return np.arange(stored.slices)
        if len(stored.content) != stored.slices:
            raise MaclError(
                f"{self.path} does not know how much of its slices is air: prepare the scans again."
            )
        return np.flatnonzero(np.asarray(stored.content) >= minimum)

    def read(
        self, case: str, kind: ArrayKind = "image", window: Window | None = None
    ) -> np.ndarray:
        """Read an array of a case, or a window of it.

        Args:
            case: its name.
            kind: which of its arrays.
            window: the part to read; None: all of it.

        Returns:
            (C, z, y, x) as stored for the image, (z, y, x) for a label or truth.

        Raises:
            MaclError: the case has no such array, or its file is missing, broken, changed, or not
                what the index says.
        """
        stored = self.case(case)
        if kind not in stored.arrays:
            raise MaclError(f"The case {case!r} in {self.path} has no {kind}.")
        entry = stored.arrays[kind]
        path = inside(self.path, entry.file)
        lead = (None,) * (len(entry.shape) - 3)
        parts = (*lead, *(window or (None,) * 3))
        chosen = tuple(slice(None) if part is None else part for part in parts)
        try:
            if self.verify and entry.file not in self._verified:
                _verify(path, entry)
                self._verified.add(entry.file)
            return np.asarray(_open(path, entry)[chosen])
        except (OSError, RuntimeError, ValueError) as error:
            raise MaclError(
                f"{path} of the case {case!r} cannot be read ({error}): prepare the store again."
            ) from None


def _open(path: Path, entry: StoredArray) -> Any:
    """The array of an entry; ValueError if the file holds another."""
    array = arrays.open_plain(path)
    if tuple(array.shape) != entry.shape or str(array.dtype) != entry.dtype:
        raise ValueError(f"holds {array.shape} {array.dtype}, not {entry.shape} {entry.dtype}")
    return array


def _verify(path: Path, entry: StoredArray) -> None:
    """ValueError unless an array's file is as it was written."""
    if entry.file_sha256:
        right = sha256(path) == entry.file_sha256
    else:
        right = content_sha256(np.asarray(_open(path, entry)[:])) == entry.sha256
    if not right:
        raise ValueError("it has changed since it was written")


def content_sha256(array: np.ndarray) -> str:
    """SHA-256 of a contiguous array's own bytes, in C order."""
    return hashlib.sha256(array.data).hexdigest()


# ---------------------------------------------------------------- writing


def write_array(store: Path, name: str, kind: ArrayKind, array: np.ndarray) -> StoredArray:
    """Write one array of a case atomically; the same array always gives the same file.

    Args:
        store: the store's folder.
        name: the case's name, a safe file name.
        kind: what the array is.
        array: (C, Z, Y, X) image, or (Z, Y, X) label or truth.
    """
    relative = f"{CASES}/{name}.{kind}.b2nd"
    array = np.ascontiguousarray(array)
    file_sha256 = arrays.write(store / relative, array)
    return StoredArray(
        file=relative,
        shape=array.shape,
        dtype=str(array.dtype),
        sha256=content_sha256(array),
        file_sha256=file_sha256,
    )
