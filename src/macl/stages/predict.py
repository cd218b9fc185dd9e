"""Segmenters + scans → masks in each scan's own geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from macl.config import FinetuneSettings, validate
from macl.engine.trainer import make_fabric
from macl.inference.scans import ReadyScan, Scan, find_scans, grid_settings, read_ahead
from macl.inference.sliding_window import Member, predict_case
from macl.io.volume import grid_difference, read_header, write_volume
from macl.plugins import find, readers
from macl.preprocessing.orientation import to_scan
from macl.records.predictions import PROBABILITIES, PredictionsRecord, open_predictions
from macl.records.runs import RECORD, WEIGHTS, RunRecord, read_record
from macl.tasks.segmentation import load_segmenter, require_segmenter
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.files import inside, require_disk_space, sha256
from macl.utils.progress import progress, say


def predict(
    paths: Sequence[Path],
    out: Path,
    *,
    cases: Literal["test", "all"] = "test",
    probabilities: bool = False,
    batch_size: int = 16,
    frames: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Write a mask `<case>.nii.gz` (or in the scan's own format) for every scan; masks that are there are kept.

    Args:
        paths: fine-tuned runs, whose probabilities are averaged, then scans, folders of scans, or stores.
        out: folder of masks; refused if it holds anything but masks of the same runs.
        cases: of a store, the runs' test cases or all.
        probabilities: also write `<case>.probabilities.nii.gz`, (C, z, y, x) float32.
        batch_size: windows at a time.
        frames: the fourth axis of a file is time: every moment is segmented, and the mask is 4D too; so it is without
            being asked for where the runs were trained on frames.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        The masks, those of earlier calls among them.

    Raises:
        MaclError: runs that do not belong together, nothing to segment, or, after all others, scans that failed.
    """
    runs = list(takewhile(lambda path: (path / RECORD).is_file(), paths))
    records = read_runs(runs, paths)
    frames = frames or any(record.prepared.frames for record in records)
    scans, failed = find_scans(paths[len(runs) :], records, cases, readers(), frames)
    if probabilities and any(len(scan.moments) > 1 for scan in scans):
        raise MaclError(
            "--probabilities are written for scans, not for time series: leave it out, or split the series."
        )
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
        for scan, reading in read_ahead(waiting):
            try:
                moments = reading.result()
            except MaclError as error:
                failed[scan.name] = str(error)
                say(f"{scan.name}: not segmented, {error}")
            else:
                for note in moments[0].notes:
                    notes.setdefault(note, []).append(scan.name)
                masks = [_segment(ensemble, scan, ready, record, out, probabilities, batch_size) for ready in moments]
                mask = masks[0] if len(masks) == 1 else np.stack(masks)
                write_volume(_mask_path(scan, out), mask, moments[0].geometry)
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
            ("prepared slices", grid_settings(record.prepared), grid_settings(records[0].prepared)),
        ):
            if ours != theirs:
                raise MaclError(
                    f"{run} and {runs[0]} differ in their {what}, so they cannot be averaged: {ours}, {theirs}."
                )
    return records


def _load(run: Path, record: RunRecord, device: str) -> Member:
    settings = validate(FinetuneSettings, record.settings)
    network = load_segmenter(run, find("models", settings.backbone), make_fabric(device, "fp32").device)
    return Member(network, settings.patch[0], record.mirror_axes if settings.mirror_averaging else ())


# ---------------------------------------------------------------- the masks


def _mask_path(scan: Scan, out: Path) -> Path:
    return inside(out, f"{scan.name}{scan.suffix}")


def _is_done(scan: Scan, out: Path, probabilities: bool) -> bool:
    if probabilities and not inside(out, f"{scan.name}{PROBABILITIES}").is_file():
        return False
    try:
        mask = read_header(_mask_path(scan, out))
        return mask.moments == len(scan.moments) and grid_difference(mask.geometry, scan.geometry()) is None
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
) -> np.ndarray:
    """The mask (z, y, x) of a scan or moment; its probabilities are written, if asked for."""
    if probabilities:
        voxels = len(ready.slices) * np.prod(ready.orientation.scanned_size[1:])
        require_disk_space(out, int(4 * len(record.classes) * voxels), f"The probabilities of {scan.name}")
    labels: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    for piece in predict_case(ensemble, ready.slices, ready.normalisation, ready.orientation, batch_size=batch_size):
        labels.append(piece.argmax(axis=1))
        if probabilities:
            kept.append(piece)
    if probabilities:
        of_classes = np.moveaxis(np.concatenate(kept), 1, 0)
        volume = np.stack([to_scan(one, ready.orientation) for one in of_classes])
        write_volume(inside(out, f"{scan.name}{PROBABILITIES}"), volume, ready.geometry)
    return _label_values(record.label_values)[to_scan(np.concatenate(labels), ready.orientation)]


def _label_values(values: Sequence[int]) -> np.ndarray:
    """(K,) in the smallest type that holds them all."""
    return np.asarray(values, dtype=np.result_type(*(np.min_scalar_type(value) for value in values)))


def _report(notes: Mapping[str, Sequence[str]], failed: Mapping[str, str], asked: int) -> None:
    for note, cases in notes.items():
        say(f"Assumed for {listed(cases)}: {note}.")
    if failed:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in list(failed.items())[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise MaclError(
            f"{len(failed)} of {asked} scans could not be segmented ({reasons}{more}): mend them and run this again."
        )
