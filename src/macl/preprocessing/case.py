"""Prepare one case: read, check, orient, resample, write, and mark it as finished for a resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import ValidationError

import macl
from macl.config.settings import PrepareSettings, Settings
from macl.data.arrays import SUFFIX
from macl.data.store import CASES, write_array
from macl.data.store_index import ArrayKind, StoredArray, StoredCase
from macl.io.geometry import Volume
from macl.io.source import Case
from macl.io.volume import read_scan
from macl.preprocessing.findings import TOO_LARGE
from macl.preprocessing.labels import as_classes, label_on_grid, mask_note, require_declared
from macl.preprocessing.normalisation import StoredScan, as_stored, content_of, measure
from macl.preprocessing.orientation import orient
from macl.preprocessing.planned import planned_image, planned_label
from macl.preprocessing.resampling import OnStoreGrid, label_to_store_grid, to_store_grid
from macl.utils.errors import RefusedCaseError
from macl.utils.files import ASIDE, write_text

MARKERS = ".preparing"
"""Folder of an unfinished store: a file per finished case, and the lock of the run."""

LOCK = ".lock"


@dataclass(frozen=True)
class CaseJob:
    """What a worker needs to prepare one case.

    Attributes:
        case: names and files.
        channels: expected number of channels.
        labels: value in the label → label 0…K of the store; empty: nothing is labelled.
        settings: resolved: with a normalisation, and a spacing in numbers.
        store: the folder to write to.
    """

    case: Case
    channels: int
    labels: Mapping[int, int]
    settings: PrepareSettings
    store: Path

    @property
    def marker(self) -> Path:
        """The file that marks the case as finished, in an unfinished store."""
        return self.store / MARKERS / f"{self.case.name}.json"

    def fingerprint(self) -> str:
        """A hash of everything that the prepared case depends on."""
        depends_on = [
            files_fingerprint(self.case),
            self.channels,
            sorted(self.labels.items()),
            self.settings.model_dump(),
            macl.__version__,
        ]
        return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


class PreparedCase(Settings):
    """How a case ended, which its marker holds: stored, or refused for a reason."""

    name: str
    fingerprint: str
    stored: StoredCase | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def files_fingerprint(case: Case) -> str:
    """A hash of a case's name and patient, and of its files' names, sizes and times of change."""
    lines = [case.name, case.patient]
    for file in (file for path in case.paths for file in files_of(path)):
        state = file.stat()
        lines.append(f"{file.name} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def finished_earlier(job: CaseJob) -> PreparedCase | None:
    """How the case ended in an interrupted run; None: it did not, or it has changed since."""
    try:
        prepared = PreparedCase.model_validate_json(job.marker.read_bytes())
    except (OSError, ValidationError):
        return None
    arrays = prepared.stored.arrays.values() if prepared.stored else ()
    complete = all((job.store / array.file).is_file() for array in arrays)
    return prepared if complete and prepared.fingerprint == job.fingerprint() else None


def prepare_case(job: CaseJob) -> PreparedCase:
    """Prepare one case and write its marker; refuse it, with the reason, if anything is wrong."""
    name, fingerprint = job.case.name, job.fingerprint()
    try:
        stored, notes = _prepare(job)
        prepared = PreparedCase(name=name, fingerprint=fingerprint, stored=stored, notes=notes)
    except RefusedCaseError as error:
        prepared = PreparedCase(name=name, fingerprint=fingerprint, reason=str(error))
    except MemoryError:
        # Without a marker, so that a resumed run tries again.
        return PreparedCase(name=name, fingerprint=fingerprint, reason=TOO_LARGE)
    write_text(job.marker, prepared.model_dump_json())
    return prepared


def prepare_image(volume: Volume, settings: PrepareSettings) -> tuple[OnStoreGrid, StoredScan]:
    """Bring a scan to the store's grid, then to the store's numbers, for `prepare` and `predict`.

    Raises:
        RefusedCaseError: a spacing is asked for, and the scan's own is unknown; or the values are
            not such as a plan takes.
    """
    if settings.plan:
        return planned_image(volume, settings.plan)
    grid = to_store_grid(volume, settings)
    kind = "zscore" if settings.normalisation == "zscore" else "clip_zscore"
    return grid, as_stored(grid.array, volume.rescale, kind, settings.window)


def _prepare_label(label: np.ndarray, grid: OnStoreGrid, settings: PrepareSettings) -> np.ndarray:
    """(z, y, x) labels 0…K → (Z, Y, X) uint8 on the grid of their scan."""
    if settings.plan:
        return planned_label(label, grid, settings.plan)
    _, slices, rows, columns = grid.array.shape
    return label_to_store_grid(label, grid.orientation, (slices, rows, columns), grid.nearest_axis)


def unreferenced_arrays(store: Path, kept: set[str]) -> list[Path]:
    """Files that `prepare` wrote among the arrays but not in `kept`, such as of a killed run."""
    ours = (f"{ASIDE}*", *(f"*.{kind}{SUFFIX}" for kind in get_args(ArrayKind)))
    files = {file for pattern in ours for file in (store / CASES).glob(pattern) if file.is_file()}
    return [file for file in sorted(files) if f"{CASES}/{file.name}" not in kept]


def _prepare(job: CaseJob) -> tuple[StoredCase, tuple[str, ...]]:
    """The case as written, and assumptions about it."""
    case, settings = job.case, job.settings
    volume = read_scan(case.images, job.channels, case.frame)
    label = _read_label(case, volume, job.labels) if case.label else None
    grid, stored = prepare_image(volume, settings)
    channels, slices, rows, columns = stored.array.shape
    size = (slices, rows, columns)
    arrays: dict[ArrayKind, StoredArray] = {
        "image": write_array(job.store, case.name, "image", stored.array)
    }
    class_voxels = None
    if label is not None:
        orientation = grid.orientation
        prepared = _prepare_label(label, grid, settings)
        arrays["label"] = write_array(job.store, case.name, "label", prepared)
        counts = np.bincount(prepared.ravel(), minlength=len({*job.labels.values()}))
        class_voxels = tuple(counts.tolist())
        if orientation.crop or size != orientation.scanned_size:
            truth = orient(label, orientation).astype(np.uint8)
            arrays["truth"] = write_array(job.store, case.name, "truth", truth)
    notes = (*volume.notes, *mask_note(volume.array))
    if slices == 1:
        notes = (*notes, "a single slice, whose position in the body is unknown")
    measured = measure(stored.array, "zscore") if settings.plan else stored.normalisation
    return StoredCase(
        name=case.name,
        patient=case.patient,
        channels=channels,
        size=size,
        spacing_mm=grid.spacing_mm,
        geometry=volume.geometry,
        orientation=grid.orientation,
        normalisation=stored.normalisation,
        rescale=stored.rescale,
        arrays=arrays,
        content=content_of(stored.array, measured),
        class_voxels=class_voxels,
    ), notes


def _read_label(case: Case, image: Volume, labels: Mapping[int, int]) -> np.ndarray:
    """(z, y, x) labels 0…K."""
    label = label_on_grid(case, image)
    require_declared(np.unique(label).tolist(), labels)
    return as_classes(label, labels)


def files_of(path: Path) -> Iterator[Path]:
    """The file itself, or the files in a folder."""
    if path.is_dir():
        yield from (file for file in sorted(path.iterdir()) if file.is_file())
    elif path.is_file():
        yield path
