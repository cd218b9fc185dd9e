"""The store: prepared scans on disk, with an index that says what each case is.

`store.json` is the index. `cases/<name>.image.b2nd` holds an image (C, Z, Y, X) in the scan's own
integers, `cases/<name>.label.b2nd` its label (Z, Y, X) as uint8. Where a scan was resampled or
cropped, `cases/<name>.truth.b2nd` keeps the whole label at the scan's own resolution, so that
evaluation happens there.

A store prepared by a plan of nnU-Net's holds float32 that is normalised already: there,
normalisation precedes resampling.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from macl.config.mistakes import validate
from macl.config.settings import PrepareSettings, Settings
from macl.data import arrays
from macl.data.consistency import contradiction
from macl.io.geometry import AnatomicalAxes, Geometry, anatomical_axes
from macl.utils.errors import MaclError
from macl.utils.files import inside, read_json, sha256, write_text

FORMAT = "macl-store"
VERSION = 2
INDEX = "store.json"
CASES = "cases"

ArrayKind = Literal["image", "label", "truth"]
Window = tuple[slice | None, slice | None, slice | None]
"""A part of a volume along Z, Y and X, in steps of 1; None: all of that axis."""

READING_THREADS = 8
"""Threads that read arrays at the same time."""


class Orientation(Settings):
    """How a scan's array was transposed and flipped to the store's axes, and the way back.

    The scan's array (z, y, x) is transposed by `permutation`, then flipped along `flipped`. This
    gives the store's (Z, Y, X) axes: slices of `plane`, in left-posterior-superior order. Axial
    slices run from inferior to superior, their rows from anterior to posterior, and their columns
    from right to left. Cropping and resampling follow. A plan of nnU-Net's has its own order of
    axes.
    """

    plane: Literal["axial", "coronal", "sagittal"]
    permutation: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    scanned_size: tuple[int, int, int] = Field(
        description="(Z, Y, X) voxels along the store's axes, before cropping and resampling"
    )
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = Field(
        default=None,
        description="along Z, Y and X, the first voxel that is kept and the one behind the last; "
        "none: all are kept",
    )

    @property
    def kept_size(self) -> tuple[int, int, int]:
        """(Z, Y, X) voxels after cropping, before resampling."""
        if self.crop is None:
            return self.scanned_size
        z, y, x = (stop - start for start, stop in self.crop)
        return z, y, x


class Normalisation(Settings):
    """Numbers per channel, in stored units.

    Normalised = (clip(stored, low, high) − mean) / deviation.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class StoredArray(Settings):
    """An array file of a case, relative to the store.

    `sha256` is computed over the array's own bytes, in C order.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    file_sha256: str = Field(default="", description="of the compressed file; empty: unknown")


class StoredCase(Settings):
    """One prepared case."""

    name: str
    patient: str
    channels: int = Field(gt=0)
    size: tuple[int, int, int] = Field(description="(Z, Y, X) voxels")
    spacing_mm: tuple[float, float, float] | None = Field(description="(z, y, x); None: unknown")
    geometry: Geometry
    orientation: Orientation
    normalisation: Normalisation
    rescale: tuple[tuple[float, float], ...] = Field(
        default=(),
        description="per channel: the scan's value = stored × first + second; empty: as stored",
    )
    arrays: Mapping[ArrayKind, StoredArray]
    content: tuple[float, ...] = Field(
        default=(),
        description="per slice the share of its voxels that are not air; empty: unknown",
    )
    class_voxels: tuple[int, ...] | None = Field(
        default=None, description="number of voxels per class in the label"
    )

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.size[0]

    @property
    def labelled(self) -> bool:
        """Whether the case has a label."""
        return "label" in self.arrays

    @property
    def anatomical_axes(self) -> AnatomicalAxes:
        """Along which slices, rows and columns are numbered."""
        return anatomical_axes(self.geometry, self.orientation.permutation)


class Refused(Settings):
    """A case that was refused, and why."""

    name: str
    reason: str


class StoreIndex(Settings):
    """The contents of `store.json`."""

    format: Literal["macl-store"] = FORMAT
    version: Literal[2] = VERSION
    reader: str
    modality: str
    channels: tuple[str, ...]
    classes: tuple[str, ...] = Field(
        description="names of labels 0…K; empty where nothing is labelled"
    )
    label_values: tuple[int, ...] = Field(description="the scans' own values of labels 0…K")
    prepared: PrepareSettings = Field(description="resolved: normalisation is never None here")
    cases: tuple[StoredCase, ...]
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    macl_version: str = ""
    fingerprint: str = Field(
        default="", description="of the settings and the source's files; the same: nothing to do"
    )


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
        try:
            with _collector_paused():
                index = StoreIndex.model_validate_json((path / INDEX).read_bytes())
        except (OSError, ValidationError):
            index = _read_index(path)
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


# ---------------------------------------------------------------- the index


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which would walk a large index again and again as it grows."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_index(path: Path) -> StoreIndex:
    """The index; or a MaclError that says what is wrong with it."""
    raw = read_json(path / INDEX, "a store's index")
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        kind = f"{raw.get('format')!r} version {raw.get('version')!r}"
        raise MaclError(
            f"{path / INDEX} is {kind}, not {FORMAT!r} version {VERSION}: prepare the scans again."
        )
    return validate(StoreIndex, raw, where=INDEX)


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


def write_index(store: Path, index: StoreIndex) -> None:
    """Write `store.json` atomically: from now on the folder is a store."""
    write_text(store / INDEX, index.model_dump_json(indent=1) + "\n")
