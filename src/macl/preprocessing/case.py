"""One case: read, checked, sliced, written into the store, and marked as finished so that a later run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

import macl
from macl.config import PrepareSettings, Settings
from macl.data.store import CASES, ArrayKind, StoredArray, StoredCase, write_array
from macl.io.source import Case, files_of, scans_of
from macl.io.volume import Volume, read_scan
from macl.preprocessing.labels import as_classes, label_on_grid, require_declared
from macl.preprocessing.normalisation import as_stored, content_of
from macl.preprocessing.resampling import label_to_slices, to_slices
from macl.utils.errors import RefusedCaseError
from macl.utils.files import write_text

MARKERS = ".preparing"
"""Folder in an unfinished store: one file per finished case, and the lock of the run that is at it."""

LOCK = ".lock"


@dataclass(frozen=True)
class Task:
    """What a worker needs to prepare one case.

    Attributes:
        case: names and files.
        channels: how many there must be.
        values: the label's own value → the store's label 0…K; empty where nothing is labelled.
        settings: resolved, so that normalisation is told.
        store: the folder to write to.
    """

    case: Case
    channels: int
    values: Mapping[int, int]
    settings: PrepareSettings
    store: Path


class Outcome(Settings):
    """How a case ended: stored, or refused for a reason. This is what a marker holds."""

    name: str
    fingerprint: str
    stored: StoredCase | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def files_fingerprint(case: Case) -> str:
    """Of a case's files: names, sizes and times of change."""
    lines = [case.name, case.patient]
    for path in (path for scan in scans_of(case) for path in files_of(scan)):
        for file in _parts(path):
            state = file.stat()
            lines.append(f"{file.name} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint(task: Task) -> str:
    """Of everything a prepared case depends on."""
    parts = [
        files_fingerprint(task.case),
        task.channels,
        sorted(task.values.items()),
        task.settings.model_dump(),
        macl.__version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def earlier_outcome(task: Task) -> Outcome | None:
    """How the case ended in an earlier, interrupted run; None where it did not, or anything has changed since."""
    try:
        outcome = Outcome.model_validate_json(_marker(task).read_bytes())
    except (OSError, ValidationError):
        return None
    arrays = outcome.stored.arrays.values() if outcome.stored else ()
    there = all((task.store / array.file).is_file() for array in arrays)
    return outcome if there and outcome.fingerprint == fingerprint(task) else None


def prepare_case(task: Task) -> Outcome:
    """Prepare one case and write its marker; whatever is wrong with the case becomes the outcome's reason."""
    name, mark = task.case.name, fingerprint(task)
    try:
        stored, notes = _prepare(task)
        outcome = Outcome(name=name, fingerprint=mark, stored=stored, notes=notes)
    except RefusedCaseError as error:
        outcome = Outcome(name=name, fingerprint=mark, reason=str(error))
    except MemoryError:
        return Outcome(name=name, fingerprint=mark, reason="it does not fit into memory: try --workers 1")
    write_text(_marker(task), outcome.model_dump_json())
    return outcome


def _prepare(task: Task) -> tuple[StoredCase, tuple[str, ...]]:
    case, settings = task.case, task.settings
    volume = read_scan(case.images, task.channels, case.frame)
    label = _read_label(case, volume, task.values) if case.label else None
    slices = to_slices(volume, settings)
    kind: Literal["clip_zscore", "zscore"] = settings.normalisation or "clip_zscore"
    stored = as_stored(slices.array, volume.rescale, kind, settings.window)
    count, channels, rows, columns = stored.array.shape
    arrays: dict[ArrayKind, StoredArray] = {"image": write_array(task.store, case.name, "image", np.moveaxis(stored.array, 1, 0))}
    voxels = None
    if label is not None:
        small = label_to_slices(label, slices.orientation, (rows, columns))
        arrays["label"] = write_array(task.store, case.name, "label", small)
        voxels = tuple(int(n) for n in np.bincount(small.ravel(), minlength=len({*task.values.values()})))
        if (rows, columns) != slices.orientation.scanned_size[1:]:
            truth = label_to_slices(label, slices.orientation, slices.orientation.scanned_size[1:])
            arrays["truth"] = write_array(task.store, case.name, "truth", truth)
    notes = volume.notes
    if count == 1:
        notes = (*notes, "a single slice: its position in the volume tells nothing")
    return StoredCase(
        name=case.name,
        patient=case.patient,
        channels=channels,
        size=(count, rows, columns),
        spacing_mm=slices.spacing_mm,
        geometry=volume.geometry,
        orientation=slices.orientation,
        normalisation=stored.normalisation,
        rescale=stored.rescale,
        arrays=arrays,
        content=content_of(stored.array, stored.normalisation),
        class_voxels=voxels,
    ), notes


def _read_label(case: Case, image: Volume, values: Mapping[int, int]) -> np.ndarray:
    """(z, y, x) labels 0…K."""
    label = label_on_grid(case, image)
    require_declared(np.unique(label).tolist(), values)
    return as_classes(label, values)


def _marker(task: Task) -> Path:
    return task.store / MARKERS / f"{task.case.name}.json"


def _parts(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in sorted(path.iterdir()) if file.is_file())
    elif path.is_file():
        yield path


def leftovers(store: Path, kept: set[str]) -> list[Path]:
    """Files in the store's folder of arrays that are not in `kept`, such as those of a killed run."""
    return [path for path in sorted((store / CASES).glob("*")) if f"{CASES}/{path.name}" not in kept]
