"""Segmenters + scans → masks in each scan's own geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from macl.inference.masks import segment
from macl.inference.members import load_member, read_members
from macl.inference.scans import (
    PreparedScan,
    ScanToSegment,
    find_scans,
    read_ahead,
)
from macl.inference.sliding_window import SegmenterMember
from macl.io.deidentification import Pseudonyms
from macl.io.geometry import grid_difference
from macl.io.volume import read_header, write_volume
from macl.plugins import find, readers
from macl.preprocessing.findings import TOO_LARGE
from macl.records.predictions import (
    PROBABILITIES,
    PredictionsRecord,
    lock_predictions,
    open_predictions,
    read_predictions,
    write_predictions,
)
from macl.records.runs import WEIGHTS, RunRecord, runs_at
from macl.utils.allocator import keep_freed_memory
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.files import AnyPath, inside, paths_of, require_disk_space, sha256
from macl.utils.progress import progress, say, warn
from macl.utils.text import counted

Cases = Literal["test", "all"]
"""Which cases of a store are segmented."""


def predict(
    paths: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    cases: Cases = "test",
    probabilities: bool = False,
    batch_size: int | None = None,
    frames: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Segment scans and write a mask for each: `<case>.nii.gz`, or in the scan's own format.

    Keeps masks that an earlier call has written.

    Args:
        paths: fine-tuned runs, for slices, volumes or both, whose probabilities are averaged; then
            scans, folders of scans, or stores.
        out: folder of masks; refused if it holds anything but masks of the same runs.
        cases: which cases of a store: the runs' test cases, or all.
        probabilities: also write `<case>.probabilities.nii.gz`, (C, z, y, x) float32.
        batch_size: windows at a time; None: 16 slices, or 3D windows of as many voxels as 16 slices
            of 256 × 256 have.
        frames: the fourth axis of a file is time: segment every time point into a 4D mask. Runs
            that were trained on frames do so in any case.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        The masks, earlier ones included.

    Raises:
        MaclError: the runs do not fit each other, there is nothing to segment, or, once all others
            are done, some scans could not be segmented.
    """
    keep_freed_memory()
    if cases not in get_args(Cases):
        raise MaclError(f"cases={cases!r} is unknown: name one of {listed(get_args(Cases))}.")
    named, out = paths_of(paths), Path(out)
    of_paths = [*takewhile(bool, map(runs_at, named))]
    runs, others = [*chain.from_iterable(of_paths)], named[len(of_paths) :]
    _require_outside(out, others)
    records = read_runs(runs, [*runs, *others])
    frames = frames or any(record.prepared.frames for record in records)
    pseudonyms = Pseudonyms(out)
    scans, refused = find_scans(others, records, cases, readers(), frames, pseudonyms)
    if probabilities and any(len(scan.time_points) > 1 for scan in scans):
        raise MaclError(
            "--probabilities are written for scans, not for time series: leave it out, or split "
            "the series."
        )
    ensemble = [
        load_member(run, record, find("models", record.settings["backbone"]), device)
        for run, record in zip(runs, records, strict=True)
    ]
    if any(member.bf16 for member in ensemble):
        say("Predicting in bf16; runs with training.precision=fp32 predict in fp32.")
    record = PredictionsRecord(
        weights=tuple(sorted(sha256(run / WEIGHTS) for run in runs)),
        classes=records[0].classes,
        label_values=records[0].label_values,
        cases=tuple(sorted([*(scan.name for scan in scans), *refused])),
    )
    with lock_predictions(out):
        _require_same_scans(scans, out)
        writer = _MaskWriter(
            ensemble, open_predictions(out, record), out, probabilities, batch_size
        )
        pseudonyms.save()
        failures = _segment_all(scans, writer, _Failures(refused))
    failures.raise_if_any(len(record.cases))
    return [_mask_path(scan, out) for scan in scans]


def _segment_all(
    scans: Sequence[ScanToSegment], writer: _MaskWriter, failures: _Failures
) -> _Failures:
    """Segment the scans that have no mask yet, and say what was noticed; the failures, all told."""
    out, record = writer.out, writer.record
    waiting = [scan for scan in scans if not _is_done(scan, out, writer.probabilities)]
    if len(waiting) < len(scans):
        say(f"{len(scans) - len(waiting)} of {len(scans)} scans already have their mask in {out}.")
    notes: dict[str, list[str]] = {}
    unlike: dict[str, list[str]] = {}
    with progress("Predicting", len(scans), done=len(scans) - len(waiting)) as advance:
        for scan, reading in read_ahead(waiting):
            try:
                time_points, checksum = reading.result(), scan.checksum()
            except MaclError as error:
                failures.add(scan.name, str(error))
            except MemoryError:
                failures.add(scan.name, TOO_LARGE)
            else:
                failures.print_pending()
                for note in time_points[0].notes:
                    notes.setdefault(note, []).append(scan.name)
                for trained_on, own in time_points[0].differences:
                    unlike.setdefault(trained_on, []).append(f"{scan.name} ({own})")
                record.scans[scan.name] = checksum
                write_predictions(out, record)
                writer.write(scan, time_points)
            advance(note=scan.name)
    written = sum(scan.name not in failures.reasons for scan in waiting)
    say(f"Wrote {counted(written, 'mask')} to {out}.")
    for note, names in notes.items():
        warn(f"Note on {listed(names)}: {note}.")
    for trained_on, scans_unlike in unlike.items():
        warn(
            f"Warning: the model was {trained_on}, but these scans are unlike that: "
            f"{listed(scans_unlike)}. Check their masks."
        )
    return failures


# ---------------------------------------------------------------- the runs


def read_runs(runs: Sequence[Path], paths: Sequence[Path]) -> list[RunRecord]:
    """Read the records of an ensemble's runs.

    Raises:
        MaclError: there is no run, one is not a finished fine-tuning run, or they do not fit each
            other.
    """
    if not runs:
        first = paths[0] if paths else "the first path"
        raise MaclError(
            f"{first} is not a run: name a folder that `macl finetune` has written, then scans."
        )
    if len(runs) == len(paths):
        raise MaclError(
            "There is nothing to segment: name scans, a folder of scans or a store after the run."
        )
    return read_members(runs)


def _require_outside(out: Path, paths: Iterable[Path]) -> None:
    """MaclError if masks would be written among the scans, and be segmented the next time."""
    for path in paths:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise MaclError(
                f"--out {out} lies within the scans {path}: choose a folder outside, so that masks "
                "are never taken for scans."
            )


# ---------------------------------------------------------------- the masks


def _mask_path(scan: ScanToSegment, out: Path) -> Path:
    return inside(out, f"{scan.name}{scan.suffix}")


def _probabilities_path(scan: ScanToSegment, out: Path) -> Path:
    return inside(out, f"{scan.name}{PROBABILITIES}")


def _require_same_scans(scans: Iterable[ScanToSegment], out: Path) -> None:
    """MaclError where a mask in `out` is of another scan than the one of its name now."""
    others = []
    earlier = read_predictions(out)
    for scan in scans:
        known = earlier and earlier.scans.get(scan.name)
        with suppress(RefusedCaseError):  # reading it later says why
            if known and _mask_path(scan, out).is_file() and scan.checksum() != known:
                others.append(scan.name)
    if others:
        raise MaclError(
            f"--out {out} holds the masks of other scans of these names, or the scans have changed "
            f"since ({listed(others)}): choose another folder, or remove these masks."
        )


def _is_done(scan: ScanToSegment, out: Path, probabilities: bool) -> bool:
    if probabilities and not _probabilities_path(scan, out).is_file():
        return False
    try:
        mask = read_header(_mask_path(scan, out))
        same_grid = grid_difference(mask.geometry, scan.geometry()) is None
        return same_grid and mask.time_points == len(scan.time_points)
    except RefusedCaseError:
        return False


@dataclass(frozen=True)
class _MaskWriter:
    """Segments scans and writes what was asked for."""

    ensemble: Sequence[SegmenterMember]
    record: PredictionsRecord
    out: Path
    probabilities: bool
    batch_size: int | None

    def write(self, scan: ScanToSegment, time_points: Sequence[PreparedScan]) -> None:
        """Write the mask, of all time points if there are several, and the probabilities."""
        masks = [self._mask(scan, time_point) for time_point in time_points]
        mask = masks[0] if len(masks) == 1 else np.stack(masks)
        write_volume(_mask_path(scan, self.out), mask, time_points[0].geometry)

    def _mask(self, scan: ScanToSegment, prepared: PreparedScan) -> np.ndarray:
        if self.probabilities:
            needed = 4 * len(self.record.classes) * math.prod(prepared.geometry.size)
            require_disk_space(self.out, needed, f"The probabilities of {scan.name}")
        segmentation = segment(
            self.ensemble,
            prepared,
            self.record.label_values,
            with_probabilities=self.probabilities,
            batch_size=self.batch_size,
        )
        if segmentation.probabilities is not None:
            path = _probabilities_path(scan, self.out)
            write_volume(path, segmentation.probabilities, prepared.geometry)
        return segmentation.mask


class _Failures:
    """Scans that could not be segmented; each reason is printed once.

    A reason is held back until another scan succeeds or fails for another reason: where all fail
    for the same one, the error at the end says it all.
    """

    def __init__(self, refused: Mapping[str, str]) -> None:
        self.reasons = dict(refused)
        self._pending: dict[str, list[str]] = {}
        self._printed: set[str] = set()

    def add(self, name: str, reason: str) -> None:
        """Note that a scan failed."""
        self.reasons[name] = reason
        if reason not in self._pending:
            self.print_pending()
        self._pending.setdefault(reason, []).append(name)

    def print_pending(self) -> None:
        """Print the reasons that have been held back, unless they were printed before."""
        for reason, names in self._pending.items():
            if reason not in self._printed:
                warn(f"Not segmented: {listed(names)} ({reason.rstrip('.')}).")
        self._printed |= {*self._pending}
        self._pending.clear()

    def raise_if_any(self, asked: int) -> None:
        """Raise a MaclError that gives every reason once, if any of the `asked` scans failed."""
        if not self.reasons:
            return
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            by_reason.setdefault(reason.rstrip("."), []).append(name)
        sentences = [f"{listed(names)}: {reason}" for reason, names in by_reason.items()]
        more = f"; and {len(sentences) - 5} more reasons" if len(sentences) > 5 else ""
        raise MaclError(
            f"{len(self.reasons)} of {asked} scans could not be segmented "
            f"({'; '.join(sentences[:5])}{more}): correct them and run this again."
        )
