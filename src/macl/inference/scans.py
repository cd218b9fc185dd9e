"""The scans that segmenters are to segment, found under paths and read when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from macl.config import PrepareSettings
from macl.data.store import INDEX, Normalisation, Orientation, Store
from macl.io.geometry import Geometry
from macl.io.source import Case
from macl.io.time_series import moments_of
from macl.io.volume import is_one_scan, read_header, read_scan, suffix_of
from macl.preprocessing.normalisation import as_stored
from macl.preprocessing.resampling import to_store_grid
from macl.preprocessing.source import lone_case, recognise, survey
from macl.readers._reader import Reader
from macl.records.runs import RECORD, RunRecord
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.progress import say

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")
SERIES_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ReadyScan:
    """A scan as the segmenter takes it: slices (C, Z, Y, X), and everything needed to come back."""

    slices: np.ndarray
    orientation: Orientation
    normalisation: Normalisation
    geometry: Geometry
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """A scan to segment, not read yet.

    Attributes:
        name: of the case and its mask.
        suffix: of the mask's file.
        geometry: reads the grid alone.
        moments: read the scan, or every moment of a time series.
    """

    name: str
    suffix: str
    geometry: Callable[[], Geometry]
    moments: tuple[Callable[[], ReadyScan], ...]


def read_ahead(scans: Iterable[Scan]) -> Iterator[tuple[Scan, Future[list[ReadyScan]]]]:
    """Every scan with its moments, which are read while the scan before is segmented."""

    def read(scan: Scan) -> list[ReadyScan]:
        return [moment() for moment in scan.moments]

    with ThreadPoolExecutor(1) as reader:
        pairs = ((scan, reader.submit(read, scan)) for scan in scans)
        before = next(pairs, None)
        while before:
            following = next(pairs, None)
            yield before
            before = following


def find_scans(
    paths: Sequence[Path],
    records: Sequence[RunRecord],
    cases: Literal["test", "all"],
    readers: Sequence[Reader],
    frames: bool = False,
) -> tuple[list[Scan], dict[str, str]]:
    """The scans under `paths`, and those that a folder's layout itself rules out, with the reason.

    Args:
        paths: scans, folders of scans, or stores.
        records: of the runs that are to segment them.
        cases: of a store, the runs' test cases or all.
        readers: the layouts to recognise folders by.
        frames: the fourth axis of a file is time.

    Raises:
        MaclError: a path is missing or holds no scan, two scans share a name, or a store does not fit the runs.
    """
    scans: list[Scan] = []
    refused: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise MaclError(f"{path} does not exist: check the path.")
        if (path / RECORD).is_file():
            raise MaclError(f"{path} is a run: name runs first, then scans.")
        if (path / INDEX).is_file():
            scans += _of_store(Store.open(path), records, cases)
        elif path.is_file() or is_one_scan(path):
            case = lone_case(path)
            scans.append(_of_files(case.name, _moments(case, frames), records[0]))
        else:
            looked = survey(path, recognise(path, readers).read(path), frames=frames)
            for note in looked.source.notes:
                say(f"{path}: {note}")
            alone = {case.name: (case,) for case in looked.source.cases if case.frame is None}
            scans += [
                _of_files(name, moments, records[0]) for name, moments in sorted({**alone, **looked.series}.items())
            ]
            refused |= looked.source.refused
    if not scans and not refused:
        raise MaclError(f"There are no scans in {', '.join(map(str, paths))}: name other folders or files.")
    seen: set[str] = set()
    for scan in scans:
        if scan.name in seen:
            raise MaclError(f"Two scans are called {scan.name!r}: segment them into different folders.")
        seen.add(scan.name)
    return scans, refused


def _moments(case: Case, frames: bool) -> tuple[Case, ...]:
    """A case's moments, or itself where it has none, or cannot be read: then reading it tells why."""
    try:
        return (moments_of(case) if frames else ()) or (case,)
    except RefusedCaseError:
        return (case,)


def _of_files(name: str, cases: Sequence[Case], record: RunRecord) -> Scan:
    kind = record.prepared.normalisation or "clip_zscore"

    def read(case: Case) -> ReadyScan:
        volume = read_scan(case.images, len(record.channels), case.frame)
        prepared = to_store_grid(volume, record.prepared)
        stored = as_stored(prepared.array, volume.rescale, kind, record.prepared.window)
        return ReadyScan(stored.array, prepared.orientation, stored.normalisation, volume.geometry, volume.notes)

    first = cases[0].images[0]
    suffix = suffix_of(first) if isinstance(first, Path) and first.is_file() else None
    suffix = ".png" if suffix in (".jpg", ".jpeg") else suffix
    writable = WRITTEN_SUFFIXES if len(cases) == 1 else SERIES_SUFFIXES
    written = suffix if suffix and suffix in writable else ".nii.gz"
    return Scan(name, written, lambda: read_header(first).geometry, tuple(partial(read, case) for case in cases))


def _of_store(store: Store, records: Sequence[RunRecord], cases: Literal["test", "all"]) -> list[Scan]:
    index, record = store.index, records[0]
    here = {"channels": len(index.channels), **grid_settings(index.prepared)}
    there = {"channels": len(record.channels), **grid_settings(record.prepared)}
    if differing := [f"{name} {here[name]}, not {there[name]}" for name in here if here[name] != there[name]]:
        raise MaclError(
            f"The store {store.path} was prepared otherwise than the run's ({'; '.join(differing)}): prepare it with "
            "the same settings, or name the scans themselves."
        )
    chosen = list(store.cases)
    if cases == "test":
        chosen = sorted(set.intersection(*(set(record.test_cases) for record in records)))
        if not chosen:
            raise MaclError(f"The runs have no test cases in common: add --cases all to segment all of {store.path}.")
        if not store.cases.keys() & chosen:
            raise MaclError(f"None of the runs' test cases is in {store.path}: add --cases all to segment all of it.")
    trained = {name for record in records for name in record.cases}
    if own := sorted(trained & set(chosen)):
        say(f"{len(own)} of the cases of {store.path} were trained on: their masks say little ({listed(own)}).")
    return [_of_case(store, name) for name in chosen]


def _of_case(store: Store, name: str) -> Scan:
    case = store.case(name)

    def read() -> ReadyScan:
        return ReadyScan(store.read(name), case.orientation, case.normalisation, case.geometry)

    return Scan(name, ".nii.gz", lambda: case.geometry, (read,))


def grid_settings(prepared: PrepareSettings) -> dict[str, object]:
    """The settings that slices of one segmenter must share."""
    return prepared.model_dump(exclude={"keep_identity", "frames"})
