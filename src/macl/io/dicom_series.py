"""A tree of DICOM files grouped into series, by what their headers say."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from macl.io import dicom
from macl.io.source import ScanPath, SliceFiles
from macl.utils.files import files_below

DEEPEST = 12
"""How many folders below the one that a user names are searched for series."""


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        folder: holds its files, or is the deepest one above them.
        number: SeriesNumber, or "" if the headers give none.
        alone_in_folder: whether no other series lies in that folder.
        scan: its files, or the folder itself if it holds no other DICOM files.
    """

    folder: Path
    number: str
    alone_in_folder: bool
    scan: ScanPath


class _FileHeader(NamedTuple):
    has_image: bool
    series_uid: str
    series_number: str


def contains_dicom(source: Path) -> bool:
    """Whether there is a DICOM file below `source`."""
    return any(dicom.is_dicom_file(path) for path in files_below(source, DEEPEST))


def find_dicom_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files below `source` that are DICOM by name or contents, and the other files."""
    dicom_files: list[Path] = []
    others: list[Path] = []
    for path in files_below(source, DEEPEST):
        (dicom_files if dicom.is_dicom_file(path) else others).append(path)
    return dicom_files, others


def group_into_series(files: Iterable[Path]) -> tuple[list[Series], list[Path]]:
    """The series that files belong to by their SeriesInstanceUID, and the files without an image.

    A file without an image is a report or a contour, say. A file whose header cannot be read joins
    the only series of its folder, or else makes a series of its own, so that reading it reports the
    damage.
    """
    files_by_uid: dict[str, list[Path]] = {}
    numbers: dict[str, str] = {}
    unreadable: list[Path] = []
    without_image: list[Path] = []
    for file in files:
        header = _read_file_header(file)
        if header is None:
            unreadable.append(file)
        elif not header.has_image:
            without_image.append(file)
        else:
            files_by_uid.setdefault(header.series_uid, []).append(file)
            numbers.setdefault(header.series_uid, header.series_number)
    for file in unreadable:
        beside = [
            uid
            for uid, members in files_by_uid.items()
            if any(member.parent == file.parent for member in members)
        ]
        uid = beside[0] if len(beside) == 1 else f"unreadable in {file.parent}"
        files_by_uid.setdefault(uid, []).append(file)
    folders = {uid: _common_folder(members) for uid, members in files_by_uid.items()}
    series_in = Counter(folders.values())
    series: list[Series] = []
    for uid, members in files_by_uid.items():
        folder = folders[uid]
        alone = series_in[folder] == 1
        fills_folder = alone and sorted(members) == dicom.files_in(folder)
        scan = folder if fills_folder else SliceFiles(tuple(sorted(members)))
        series.append(Series(folder, numbers.get(uid, ""), alone, scan))
    return series, without_image


def _read_file_header(file: Path) -> _FileHeader | None:
    """What a file's header says; None: it cannot be read."""
    import pydicom

    tags = ["SeriesInstanceUID", "SeriesNumber", "Rows", "Modality"]
    try:
        with warnings.catch_warnings(action="ignore"):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            number = "" if header.get("SeriesNumber") is None else str(header.SeriesNumber)
            is_scan = str(header.get("Modality", "")) not in dicom.NOT_SCANS
            has_image = header.get("Rows") is not None and is_scan
            return _FileHeader(has_image, str(header.get("SeriesInstanceUID", "")), number)
    except Exception:  # pydicom raises anything when a header is damaged
        return None


def _common_folder(files: Iterable[Path]) -> Path:
    """The deepest folder that holds all of the files, in itself or below."""
    folders = {file.parent for file in files}
    first = min(folders)
    candidates = (first, *first.parents)
    return next(
        above for above in candidates if all(folder.is_relative_to(above) for folder in folders)
    )
