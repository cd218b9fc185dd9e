"""Segmenters + scans → masks in each scan's own geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from macl.config import FinetuneSettings, PrepareSettings, validate
from macl.data.intensities import as_stored
from macl.data.predictions import PROBABILITIES, PredictionsRecord, open_predictions
from macl.data.runs import RECORD, WEIGHTS, RunRecord, read_record
from macl.data.slicing import to_scan, to_slices
from macl.data.store import INDEX, Geometry, Normalisation, Slicing, Store
from macl.data.survey import lone_case, recognise, survey
from macl.data.volumes import grid_difference, is_one_scan, read_header, read_scan, suffix_of, write_volume
from macl.errors import MaclError, RefusedCaseError
from macl.files import inside, require_disk_space, sha256
from macl.inference import Member, predict_case
from macl.plugins import Case, Reader, find, names
from macl.progress import progress, say
from macl.segmentation import load_segmenter, require_segmenter
from macl.training import make_fabric

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")


@dataclass(frozen=True)
class ReadyScan:
    """A scan as the segmenter takes it: slices (n, C, rows, columns), and everything needed to come back."""

    slices: np.ndarray
    slicing: Slicing
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
        read: reads the scan.
    """

    name: str
    suffix: str
    geometry: Callable[[], Geometry]
    read: Callable[[], ReadyScan]


def predict(
    paths: Sequence[Path],
    out: Path,
    *,
    cases: Literal["test", "all"] = "test",
    probabilities: bool = False,
    batch_size: int = 16,
    device: str = "auto",
) -> list[Path]:
    """Write a mask `<case>.nii.gz` (or in the scan's own format) for every scan; masks that are there are kept.

    Args:
        paths: fine-tuned runs, whose probabilities are averaged, then scans, folders of scans, or stores.
        out: folder of masks; refused if it holds anything but masks of the same runs.
        cases: of a store, the runs' test cases or all.
        probabilities: also write `<case>.probabilities.nii.gz`, (C, z, y, x) float32.
        batch_size: windows at a time.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        The masks, those of earlier calls among them.

    Raises:
        MaclError: runs that do not belong together, nothing to segment, or, after all others, scans that failed.
    """
    runs = list(takewhile(lambda path: (path / RECORD).is_file(), paths))
    records = read_runs(runs, paths)
    scans, failed = find_scans(paths[len(runs) :], records, cases)
    ensemble = [_load(run, record, device) for run, record in zip(runs, records, strict=True)]
    record = PredictionsRecord(
        weights=tuple(sorted(sha256(run / WEIGHTS) for run in runs)),
        classes=records[0].classes,
        label_values=records[0].label_values,
        cases=tuple(sorted([*(scan.name for scan in scans), *failed])),
    )
    open_predictions(out, record)
    waiting = [scan for scan in scans if not _is_done(scan, out, probabilities)]
    if len(waiting) < len(scans):
        say(f"{len(scans) - len(waiting)} of {len(scans)} scans have their mask in {out} already.")
    notes: dict[str, list[str]] = {}
    with progress("Predicting", len(scans), done=len(scans) - len(waiting)) as advance:
        for scan in waiting:
            try:
                ready = scan.read()
            except MaclError as error:
                failed[scan.name] = str(error)
                say(f"{scan.name}: not segmented, {error}")
            else:
                for note in ready.notes:
                    notes.setdefault(note, []).append(scan.name)
                _segment(ensemble, scan, ready, record, out, probabilities, batch_size)
            advance(note=scan.name)
    say(f"Wrote {sum(scan.name not in failed for scan in waiting)} masks to {out}.")
    _report(notes, failed, len(record.cases))
    return [_mask_path(scan, out) for scan in scans]


# ---------------------------------------------------------------- the runs


def read_runs(runs: Sequence[Path], paths: Sequence[Path]) -> list[RunRecord]:
    """The records of an ensemble's runs.

    Raises:
        MaclError: there is none, one is not a finished fine-tuning run, or they do not belong together.
    """
    if not runs:
        first = paths[0] if paths else "the first path"
        raise MaclError(f"{first} is not a run: name a folder that `macl finetune` has written, then scans.")
    if len(runs) == len(paths):
        raise MaclError("There is nothing to segment: name scans, a folder of scans or a store after the run.")
    records = [read_record(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        require_segmenter(run, record)
        for what, ours, theirs in (
            ("classes", (record.classes, record.label_values), (records[0].classes, records[0].label_values)),
            ("channels", record.channels, records[0].channels),
            ("prepared slices", _grid_settings(record.prepared), _grid_settings(records[0].prepared)),
        ):
            if ours != theirs:
                raise MaclError(
                    f"{run} and {runs[0]} differ in their {what}, so they cannot be averaged: {ours}, {theirs}."
                )
    return records


def _grid_settings(prepared: PrepareSettings) -> dict[str, object]:
    return prepared.model_dump(exclude={"keep_identity"})


def _load(run: Path, record: RunRecord, device: str) -> Member:
    settings = validate(FinetuneSettings, record.settings)
    network = load_segmenter(run, find("backbones", settings.backbone), make_fabric(device, "fp32").device)
    return Member(network, settings.training.size, record.mirror_axes if settings.mirror_averaging else ())


# ---------------------------------------------------------------- the scans


def find_scans(
    paths: Sequence[Path], records: Sequence[RunRecord], cases: Literal["test", "all"]
) -> tuple[list[Scan], dict[str, str]]:
    """The scans under `paths`, and those that a folder's layout itself rules out, with the reason.

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
            scans.append(_of_files(lone_case(path), records[0]))
        else:
            source = survey(path, recognise(path, _readers()).read(path)).source
            for note in source.notes:
                say(f"{path}: {note}")
            scans += [_of_files(case, records[0]) for case in source.cases]
            refused |= source.refused
    if not scans and not refused:
        raise MaclError(f"There are no scans in {', '.join(map(str, paths))}: name other folders or files.")
    seen: set[str] = set()
    for scan in scans:
        if scan.name in seen:
            raise MaclError(f"Two scans are called {scan.name!r}: segment them into different folders.")
        seen.add(scan.name)
    return scans, refused


def _readers() -> list[Reader]:
    return [find("readers", name) for name in names("readers")]


def _of_files(case: Case, record: RunRecord) -> Scan:
    kind = record.prepared.normalisation or "clip_zscore"

    def read() -> ReadyScan:
        volume = read_scan(case.images, len(record.channels))
        slices = to_slices(volume, record.prepared)
        stored = as_stored(slices.array, volume.rescale, kind, record.prepared.window)
        return ReadyScan(stored.array, slices.slicing, stored.normalisation, volume.geometry, volume.notes)

    first = case.images[0]
    suffix = suffix_of(first) if isinstance(first, Path) and first.is_file() else None
    suffix = ".png" if suffix in (".jpg", ".jpeg") else suffix
    written = suffix if suffix in WRITTEN_SUFFIXES else ".nii.gz"
    return Scan(case.name, written, lambda: read_header(first).geometry, read)


def _of_store(store: Store, records: Sequence[RunRecord], cases: Literal["test", "all"]) -> list[Scan]:
    index, record = store.index, records[0]
    if len(index.channels) != len(record.channels) or _grid_settings(index.prepared) != _grid_settings(record.prepared):
        raise MaclError(
            f"The store {store.path} was prepared otherwise than the run's: prepare it with the same settings, "
            "or name the scans themselves."
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
        say(
            f"{len(own)} of the cases of {store.path} were trained on: their masks say little ({', '.join(own[:5])}, …)."
        )
    return [_of_case(store, name) for name in chosen]


def _of_case(store: Store, name: str) -> Scan:
    case = store.case(name)

    def read() -> ReadyScan:
        return ReadyScan(store.read(name), case.slicing, case.normalisation, case.geometry)

    return Scan(name, ".nii.gz", lambda: case.geometry, read)


# ---------------------------------------------------------------- the masks


def _mask_path(scan: Scan, out: Path) -> Path:
    return inside(out, f"{scan.name}{scan.suffix}")


def _is_done(scan: Scan, out: Path, probabilities: bool) -> bool:
    if probabilities and not inside(out, f"{scan.name}{PROBABILITIES}").is_file():
        return False
    try:
        return grid_difference(read_header(_mask_path(scan, out)).geometry, scan.geometry()) is None
    except RefusedCaseError:
        return False


def _segment(
    ensemble: Sequence[Member],
    scan: Scan,
    ready: ReadyScan,
    record: PredictionsRecord,
    out: Path,
    probabilities: bool,
    batch_size: int,
) -> None:
    """Write a scan's probabilities, if asked for, and then its mask, which says that the scan is done."""
    if probabilities:
        voxels = len(ready.slices) * np.prod(ready.slicing.scanned_size)
        require_disk_space(out, int(4 * len(record.classes) * voxels), f"The probabilities of {scan.name}")
    labels: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    for piece in predict_case(ensemble, ready.slices, ready.normalisation, ready.slicing, batch_size=batch_size):
        labels.append(piece.argmax(axis=1))
        if probabilities:
            kept.append(piece)
    if probabilities:
        of_classes = np.moveaxis(np.concatenate(kept), 1, 0)
        volume = np.stack([to_scan(one, ready.slicing) for one in of_classes])
        write_volume(inside(out, f"{scan.name}{PROBABILITIES}"), volume, ready.geometry)
    values = _label_values(record.label_values)
    write_volume(_mask_path(scan, out), values[to_scan(np.concatenate(labels), ready.slicing)], ready.geometry)


def _label_values(values: Sequence[int]) -> np.ndarray:
    """(K,) in the smallest type that holds them all."""
    return np.asarray(values, dtype=np.result_type(*(np.min_scalar_type(value) for value in values)))


def _report(notes: Mapping[str, Sequence[str]], failed: Mapping[str, str], asked: int) -> None:
    for note, cases in notes.items():
        say(f"Assumed for {', '.join(cases[:5])}{f' and {len(cases) - 5} more' if len(cases) > 5 else ''}: {note}.")
    if failed:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in list(failed.items())[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise MaclError(
            f"{len(failed)} of {asked} scans could not be segmented ({reasons}{more}): mend them and run this again."
        )
