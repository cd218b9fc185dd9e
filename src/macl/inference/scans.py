"""The scans to segment: found under the user's paths, and prepared when their turn comes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.data.store_index import INDEX, Normalisation, Orientation
from macl.io.deidentification import Pseudonyms
from macl.io.geometry import Geometry, Volume
from macl.io.source import Case
from macl.io.time_series import frames_of
from macl.io.volume import is_one_scan, read_header, read_scan, stem_of, suffix_of
from macl.preprocessing.case import files_of, prepare_image
from macl.preprocessing.source import UNNAMED_CHANNEL, lone_case, recognise, scan_source
from macl.readers._reader import Reader
from macl.records.runs import RECORD, RunRecord
from macl.records.training_range import Difference, ScanFacts, differences, spanning
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.failures import os_reason
from macl.utils.files import sha256
from macl.utils.progress import warn

MASK_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
TIME_SERIES_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class PreparedScan:
    """A scan as it would stand in a store, and the way back to its own grid.

    Attributes:
        image: (C, Z, Y, X) in the units of `normalisation`.
        orientation: of the scan's own axes.
        normalisation: of the image.
        geometry: the scan's own grid.
        notes: what was assumed about the scan, in phrases without its name.
        differences: in what it is unlike the scans that the model was trained on.
    """

    image: np.ndarray
    orientation: Orientation
    normalisation: Normalisation
    geometry: Geometry
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class ScanToSegment:
    """A scan to segment, not read yet.

    Attributes:
        name: of the case and its mask.
        suffix: of the mask's file.
        geometry: reads the grid without the voxels.
        checksum: of the contents.
        time_points: prepare the scan, or each time point of a time series.
    """

    name: str
    suffix: str
    geometry: Callable[[], Geometry]
    checksum: Callable[[], str]
    time_points: tuple[Callable[[], PreparedScan], ...]


def read_ahead(
    scans: Iterable[ScanToSegment],
) -> Iterator[tuple[ScanToSegment, Future[list[PreparedScan]]]]:
    """Each scan with its prepared time points, read while the caller segments the scan before."""

    def read(scan: ScanToSegment) -> list[PreparedScan]:
        return [prepare() for prepare in scan.time_points]

    with ThreadPoolExecutor(1) as reader:
        pairs = ((scan, reader.submit(read, scan)) for scan in scans)
        current = next(pairs, None)
        while current:
            following = next(pairs, None)
            yield current
            current = following


def find_scans(
    paths: Sequence[Path],
    records: Sequence[RunRecord],
    cases: Literal["test", "all"],
    readers: Sequence[Reader],
    frames: bool = False,
    pseudonyms: Pseudonyms | None = None,
) -> tuple[list[ScanToSegment], dict[str, str]]:
    """Find the scans under `paths`.

    Args:
        paths: scans, folders of scans, or stores.
        records: of the runs that segment them.
        cases: which cases of a store: the runs' test cases, or all.
        readers: the layouts that folders may have.
        frames: the fourth axis of a file is time.
        pseudonyms: of scans whose own names would identify the patient.

    Returns:
        The scans, and the cases that a folder's layout or a file's header rules out: name → reason.

    Raises:
        MaclError: a path is missing or holds no scan, two scans share a name, or a store does not
            fit the runs.
    """
    scans: list[ScanToSegment] = []
    refused: dict[str, str] = {}
    record = of_ensemble(records)
    channels = record.channels
    lone: list[Case] = []
    for path in paths:
        if not path.exists():
            raise MaclError(f"{path} does not exist: check the path.")
        if (path / RECORD).is_file():
            raise MaclError(f"{path} is a run: name runs first, then scans.")
        if (path / INDEX).is_file():
            scans += _from_store(Store.open(path), records, cases)
        elif path.is_file() or is_one_scan(path):
            lone.append(lone_case(path, pseudonyms))
        else:
            layout = recognise(path, readers)
            source = layout.read(path)
            if layout.name == "folder":
                grouped, incomplete = group_channels(source.cases, channels)
                source = replace(source, cases=grouped, refused={**source.refused, **incomplete})
            scanned = scan_source(path, source, frames=frames, pseudonyms=pseudonyms)
            require_same_channels(path, scanned.source.channels, record)
            for note in scanned.source.notes:
                warn(f"{path}: {note}")
            single = [(case.name, (case,)) for case in scanned.source.cases if case.frame is None]
            for name, time_points in sorted(
                [*single, *scanned.series.items()], key=lambda named: named[0]
            ):
                modality = scanned.source.modality
                scans.append(_from_files(name, time_points, record, modality))
            refused |= scanned.source.refused
    grouped, incomplete = group_channels(lone, channels)
    refused |= incomplete
    for case in grouped:
        scans.append(_from_files(case.name, _time_points(case, frames), record))
    if not scans and not refused:
        named = ", ".join(map(str, paths))
        raise MaclError(f"There are no scans in {named}: name other folders or files.")
    seen: set[str] = set()
    for scan in scans:
        if scan.name in seen:
            raise MaclError(
                f"Two scans are called {scan.name!r}: segment them into different folders."
            )
        seen.add(scan.name)
    return scans, refused


def group_channels(
    cases: Sequence[Case], channels: Sequence[str]
) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Take files that are named as nnU-Net names channels (`a_0000`, `a_0001`) as one scan, `a`.

    For runs with one channel, `a_0000` is `a`, unless some files have other numbers: then the
    numbers are the scans' own.

    Args:
        cases: each a file of its own.
        channels: of the runs.

    Returns:
        The cases, and those that lack a channel: name → reason.
    """
    by_scan: dict[tuple[Path, str, str], dict[int, Case]] = {}
    others: list[Case] = []
    for case in cases:
        image = case.images[0]
        match = None
        if isinstance(image, Path) and len(case.images) == 1 and case.label is None:
            match = _CHANNEL.fullmatch(stem_of(image))
        if match is None or not isinstance(image, Path):
            others.append(case)
            continue
        key = image.parent, match["case"], suffix_of(image) or ""
        by_scan.setdefault(key, {})[int(match["channel"])] = case
    expected = set(range(len(channels)))
    found = {number for files in by_scan.values() for number in files}
    if not by_scan or not found <= expected or (len(channels) == 1 and others):
        return tuple(cases), {}
    grouped: list[Case] = []
    incomplete: dict[str, str] = {}
    for files in by_scan.values():
        number, first = min(files.items())
        name = first.name.removesuffix(f"_{number:04d}")
        if missing := sorted(expected - files.keys()):
            numbers = ", ".join(f"{number:04d} ({channels[number]})" for number in missing)
            incomplete[name] = f"its channel {numbers} is missing"
            continue
        images = tuple(files[number].images[0] for number in sorted(files))
        grouped.append(Case(name, images, name))
    return tuple(sorted([*others, *grouped], key=lambda case: case.name)), incomplete


def of_ensemble(records: Sequence[RunRecord]) -> RunRecord:
    """What runs that predict together share, with the range of all that they were trained on."""
    ranges = [record.trained_on for record in records if record.trained_on]
    return records[0].model_copy(update={"trained_on": spanning(ranges)})


def prepared_settings(prepared: PrepareSettings) -> dict[str, object]:
    """The settings of `prepare` that change what a segmenter is shown."""
    settings = prepared.model_dump(exclude={"keep_identity", "frames", "plan"})
    return {**settings, "plan": prepared.plan}


# ---------------------------------------------------------------- files


def _time_points(case: Case, frames: bool) -> tuple[Case, ...]:
    """Each time point of a case, or the case itself if it has none or its header is broken.

    Reading it then reports what is broken.
    """
    try:
        return (frames_of(case) if frames else ()) or (case,)
    except RefusedCaseError:
        return (case,)


def _from_files(
    name: str, time_points: Sequence[Case], record: RunRecord, modality: str = "unknown"
) -> ScanToSegment:
    first = time_points[0].images[0]
    suffix = suffix_of(first) if isinstance(first, Path) and first.is_file() else None
    suffix = ".png" if suffix in (".jpg", ".jpeg") else suffix
    known = MASK_SUFFIXES if len(time_points) == 1 else TIME_SERIES_SUFFIXES
    return ScanToSegment(
        name,
        suffix if suffix and suffix in known else ".nii.gz",
        lambda: read_header(first).geometry,
        lambda: _checksum(time_points[0]),
        tuple(partial(_prepare, case, record, modality) for case in time_points),
    )


def _checksum(case: Case) -> str:
    """SHA-256 over the files of a scan.

    Raises:
        RefusedCaseError: a file cannot be read.
    """
    try:
        digests = [sha256(file) for path in case.paths for file in files_of(path)]
    except OSError as error:
        raise RefusedCaseError(f"it cannot be read ({os_reason(error)})") from None
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _prepare(case: Case, record: RunRecord, modality: str) -> PreparedScan:
    volume = read_scan(case.images, len(record.channels), case.frame)
    if modality == "unknown":
        modality = read_header(case.images[0]).modality
    return prepare_volume(volume, record, modality)


def prepare_volume(volume: Volume, record: RunRecord, modality: str = "unknown") -> PreparedScan:
    """Prepare a scan as the store of a run was prepared.

    Args:
        volume: the scan, with as many channels as the run's.
        record: the run's.
        modality: "MR", "CT", "photograph" or "unknown".

    Raises:
        RefusedCaseError: a spacing is asked for, and the scan's own is unknown.
    """
    grid, stored = prepare_image(volume, record.prepared)
    facts = ScanFacts(modality, grid.spacing_mm, stored.normalisation, stored.rescale)
    return PreparedScan(
        stored.array,
        grid.orientation,
        stored.normalisation,
        volume.geometry,
        volume.notes,
        _differences(record, facts),
    )


def _differences(record: RunRecord, facts: ScanFacts) -> tuple[Difference, ...]:
    return differences(record.trained_on, facts) if record.trained_on else ()


# ---------------------------------------------------------------- stores


def _from_store(
    store: Store, records: Sequence[RunRecord], cases: Literal["test", "all"]
) -> list[ScanToSegment]:
    require_same_preparation(store, records[0])
    chosen = list(store.cases)
    if cases == "test":
        chosen = sorted(set.intersection(*(set(record.test_cases) for record in records)))
        if not chosen:
            raise MaclError(
                "The runs have no test cases in common: add --cases all to segment all of "
                f"{store.path}."
            )
        if not store.cases.keys() & chosen:
            raise MaclError(
                f"None of the runs' test cases is in {store.path}: add --cases all to segment all "
                "of it."
            )
    trained = {name for record in records for name in (*record.cases, *record.unlabelled_cases)}
    if known := sorted(trained & set(chosen)):
        warn(
            f"The runs were trained on {len(known)} of these cases of {store.path}, so scores on "
            f"them would mean little: {listed(known)}."
        )
    record = of_ensemble(records)
    return [_from_stored_case(store, name, record) for name in chosen]


def require_same_preparation(store: Store, record: RunRecord) -> None:
    """MaclError unless a store was prepared as the store of a run was."""
    if differing := differences_of_preparation(store, record):
        raise MaclError(
            f"The settings of the store {store.path} differ from those of the run's store "
            f"({differing}): prepare it with the same settings, or name the scans themselves."
        )
    require_same_channels(store.path, store.index.channels, record)


def differences_of_preparation(store: Store, record: RunRecord) -> str:
    """In what a store was prepared unlike the store of a run, in phrases; empty: in nothing."""
    ours = {"channels": len(store.index.channels), **prepared_settings(store.index.prepared)}
    theirs = {"channels": len(record.channels), **prepared_settings(record.prepared)}
    return "; ".join(
        f"{name} {ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]
    )


def require_same_channels(path: Path, channels: Sequence[str], record: RunRecord) -> None:
    """MaclError where the channels of scans are those of a run in another order; a warning where
    they have other names."""
    ours, theirs = ([name.casefold() for name in names] for names in (channels, record.channels))
    if ours == theirs or len(theirs) == 1 or len(ours) != len(theirs):
        return
    named = f"{', '.join(channels)} in {path}, {', '.join(record.channels)} in the run's training"
    if sorted(ours) == sorted(theirs):
        raise MaclError(
            f"The channels come in another order ({named}), and a segmenter knows them by their "
            "place: bring them into the order of the training first."
        )
    if not any(name.startswith(UNNAMED_CHANNEL) for name in (*ours, *theirs)):
        warn(
            f"Warning: the channels have other names ({named}): check that they show the same, in "
            "the same order."
        )


def _from_stored_case(store: Store, name: str, record: RunRecord) -> ScanToSegment:
    case = store.case(name)
    facts = ScanFacts(store.index.modality, case.spacing_mm, case.normalisation, case.rescale)

    def read() -> PreparedScan:
        return PreparedScan(
            store.read(name),
            case.orientation,
            case.normalisation,
            case.geometry,
            differences=_differences(record, facts),
        )

    checksum = case.arrays["image"].sha256
    return ScanToSegment(name, ".nii.gz", lambda: case.geometry, lambda: checksum, (read,))
