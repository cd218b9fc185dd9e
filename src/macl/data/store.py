"""The store: prepared scans on disk, with an index that says what each case is.

`store.json` is the index. `cases/<name>.image.b2nd` holds an image (C, Z, Y, X) in the scan's own
integers, `cases/<name>.label.b2nd` its label (Z, Y, X) as uint8. Where a scan was resampled,
`cases/<name>.truth.b2nd` keeps the label at the scan's own resolution, so that evaluation happens
there.

A chunk is 16 slices and a block, the least that is decompressed, 128 rows of one slice. Measured
on ACDC, Hippocampus, a 4-channel and a synthetic 512 × 512 × 200 volume: as large as one chunk per
slice (±0.3 %), written faster, and a slice is read as fast (0.3–0.8 ms); a 64³ patch of the large
volume takes 9 ms, against 10–26 ms with one chunk per slice.
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

from macl.config import PrepareSettings, Settings, validate
from macl.io.geometry import Geometry
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, inside, read_json, write_text

FORMAT = "macl-store"
VERSION = 2
INDEX = "store.json"
CASES = "cases"

ArrayKind = Literal["image", "label", "truth"]
Window = tuple[slice | None, slice | None, slice | None]
"""A part of a volume along Z, Y and X, in steps of 1; None: all of that axis."""

SLICES_PER_CHUNK = 16
ROWS_PER_BLOCK = 128
READING_THREADS = 8
"""Threads that read arrays at the same time."""


class Orientation(Settings):
    """How a scan's array was transposed and flipped to the store's axes, and the way back.

    The scan's array (z, y, x) is transposed by `permutation`, then flipped along `flipped`. This
    gives the store's (Z, Y, X) axes: slices of `plane`, in left-posterior-superior order. Axial
    slices run from inferior to superior, their rows from anterior to posterior, and their columns
    from right to left. Resampling follows.
    """

    plane: Literal["axial", "coronal", "sagittal"]
    permutation: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    scanned_size: tuple[int, int, int] = Field(
        description="(Z, Y, X) voxels along the store's axes, before resampling"
    )


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
    """A store opened for reading: the index in memory, voxels read on demand."""

    def __init__(self, path: Path, index: StoreIndex) -> None:
        self.path = path
        self.index = index

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store in a folder.

        Raises:
            MaclError: there is no store there, or it was written by another version.
        """
        if not (path / INDEX).is_file():
            what = "is not a store" if path.exists() else "does not exist"
            raise MaclError(
                f"{path} {what}: name a folder that `macl prepare` has finished (it holds {INDEX})."
            )
        try:
            with _collector_paused():
                return cls(path, StoreIndex.model_validate_json((path / INDEX).read_bytes()))
        except (OSError, ValidationError):
            return cls(path, _read_index(path))

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
            MaclError: the case has no such array, or its file is missing, broken, or not what the
                index says.
        """
        import blosc2

        stored = self.case(case)
        if kind not in stored.arrays:
            raise MaclError(f"The case {case!r} in {self.path} has no {kind}.")
        entry = stored.arrays[kind]
        path = inside(self.path, entry.file)
        parts = tuple(slice(None) if part is None else part for part in window or (None,) * 3)
        try:
            array: Any = blosc2.open(str(path), mode="r")
            if tuple(array.shape) != entry.shape or str(array.dtype) != entry.dtype:
                raise ValueError(
                    f"holds {array.shape} {array.dtype}, not {entry.shape} {entry.dtype}"
                )
            return np.asarray(array[(..., *parts)])
        except (OSError, RuntimeError, ValueError) as error:
            raise MaclError(
                f"{path} of the case {case!r} cannot be read ({error}): prepare the store again."
            ) from None


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


def write_array(store: Path, name: str, kind: ArrayKind, array: np.ndarray) -> StoredArray:
    """Write one array of a case atomically; the same array always gives the same file.

    Args:
        store: the store's folder.
        name: the case's name, a safe file name.
        kind: what the array is.
        array: (C, Z, Y, X) image, or (Z, Y, X) label or truth.
    """
    import blosc2

    relative = f"{CASES}/{name}.{kind}.b2nd"
    array = np.ascontiguousarray(array)
    *lead, slices, rows, columns = array.shape
    values: Any = array
    with atomic_path(store / relative) as aside:
        blosc2.asarray(
            values,
            urlpath=str(aside),
            mode="w",
            contiguous=True,
            chunks=(*lead, min(SLICES_PER_CHUNK, slices), rows, columns),
            blocks=(*(1 for _ in lead), 1, min(ROWS_PER_BLOCK, rows), columns),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1},
        )
    digest = hashlib.sha256(array.data).hexdigest()
    return StoredArray(file=relative, shape=array.shape, dtype=str(array.dtype), sha256=digest)


def write_index(store: Path, index: StoreIndex) -> None:
    """Write `store.json` atomically: from now on the folder is a store."""
    write_text(store / INDEX, index.model_dump_json(indent=1) + "\n")
