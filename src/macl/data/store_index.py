"""The index of a store: what every case is, without its voxels."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from macl.config.mistakes import validate
from macl.config.settings import PrepareSettings, Settings
from macl.io.geometry import AnatomicalAxes, Geometry, anatomical_axes
from macl.utils.errors import MaclError
from macl.utils.files import read_json, write_text

FORMAT = "macl-store"
VERSION = 2
INDEX = "store.json"

ArrayKind = Literal["image", "label", "truth"]


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


def read_index(store: Path) -> StoreIndex:
    """Read `store.json`.

    Raises:
        MaclError: it cannot be read, was written by another version, or is no index.
    """
    try:
        with _collector_paused():
            return StoreIndex.model_validate_json((store / INDEX).read_bytes())
    except (OSError, ValidationError):
        return _explain(store)


def _explain(path: Path) -> StoreIndex:
    """The index, read step by step; or a MaclError that says what is wrong with it."""
    raw = read_json(path / INDEX, "a store's index")
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        kind = f"{raw.get('format')!r} version {raw.get('version')!r}"
        raise MaclError(
            f"{path / INDEX} is {kind}, not {FORMAT!r} version {VERSION}: prepare the scans again."
        )
    return validate(StoreIndex, raw, where=INDEX)


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


def write_index(store: Path, index: StoreIndex) -> None:
    """Write `store.json` atomically: from now on the folder is a store."""
    write_text(store / INDEX, index.model_dump_json(indent=1) + "\n")
