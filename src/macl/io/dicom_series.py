"""A tree of DICOM files sorted into series, by what their headers say."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from macl.io import dicom
from macl.io.source import Scan, Stack
from macl.utils.files import files_below

DEEPEST = 12
"""How many folders below the one that a user names series are looked for."""


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        folder: the folder that holds its files, or the deepest one above them.
        number: SeriesNumber, or "" where the header names none.
        alone: whether no other series lies in that folder.
        scan: its files; the folder itself where that holds nothing else of DICOM.
    """

    folder: Path
    number: str
    alone: bool
    scan: Scan


def holds_dicom(source: Path) -> bool:
    """Whether there is a DICOM file below `source`."""
    return any(dicom.belongs(path) for path in files_below(source, DEEPEST))


def dicom_files(source: Path) -> tuple[list[Path], list[Path]]:
    """Files below `source` that are DICOM by name or contents, and the other ones."""
    files = files_below(source, DEEPEST)
    told = [dicom.belongs(path) for path in files]
    found = [path for path, is_dicom in zip(files, told, strict=True) if is_dicom]
    return found, [path for path, is_dicom in zip(files, told, strict=True) if not is_dicom]


def sort_into_series(files: list[Path]) -> tuple[list[Series], list[Path]]:
    """The series that files belong to by their SeriesInstanceUID, and the files that hold no image (reports, contours).

    A file whose header cannot be read belongs to the only series of its folder, or else makes a series of its folder,
    so that reading it tells what is broken.
    """
    by_uid: dict[str, list[Path]] = {}
    numbers: dict[str, str] = {}
    broken: list[Path] = []
    without_image: list[Path] = []
    for file in files:
        told = _told(file)
        if told is None:
            broken.append(file)
        elif not told[0]:
            without_image.append(file)
        else:
            _, uid, number = told
            by_uid.setdefault(uid, []).append(file)
            numbers.setdefault(uid, number)
    for file in broken:
        beside = [uid for uid, members in by_uid.items() if any(one.parent == file.parent for one in members)]
        by_uid.setdefault(beside[0] if len(beside) == 1 else f"broken in {file.parent}", []).append(file)
    folders = {uid: _above(members) for uid, members in by_uid.items()}
    series: list[Series] = []
    for uid, members in by_uid.items():
        folder = folders[uid]
        alone = list(folders.values()).count(folder) == 1
        whole = alone and sorted(members) == dicom.members(folder)
        series.append(Series(folder, numbers.get(uid, ""), alone, folder if whole else Stack(tuple(sorted(members)))))
    return series, without_image


def _told(file: Path) -> tuple[bool, str, str] | None:
    """Whether a file holds an image, its SeriesInstanceUID and its SeriesNumber; None: its header cannot be read."""
    import pydicom

    tags = ["SeriesInstanceUID", "SeriesNumber", "Rows", "SOPClassUID"]
    try:
        with warnings.catch_warnings(action="ignore"):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            number = "" if header.get("SeriesNumber") is None else str(header.SeriesNumber)
            return header.get("Rows") is not None, str(header.get("SeriesInstanceUID", "")), number
    except Exception:  # pydicom raises whatever a damaged header leads it to
        return None


def _above(files: list[Path]) -> Path:
    folders = {file.parent for file in files}
    first = min(folders)
    return next(above for above in (first, *first.parents) if all(one.is_relative_to(above) for one in folders))
