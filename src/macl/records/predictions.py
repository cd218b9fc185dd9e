"""A folder of predicted masks and its record, `predictions.json`.

A mask is called `<case>.nii.gz`, or has the suffix of the scan's own format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from macl.config.mistakes import validate
from macl.config.settings import Settings
from macl.io.volume import stem_of, suffix_of
from macl.utils.errors import MaclError
from macl.utils.files import (
    ASIDE,
    clear_unfinished,
    file_lock,
    read_json,
    refuse_links,
    write_text,
)

PREDICTIONS_RECORD = "predictions.json"
PROBABILITIES = ".probabilities.nii.gz"
LOCK = ".lock"


class PredictionsRecord(Settings):
    """What `predictions.json` holds."""

    format: Literal["macl-predictions"] = "macl-predictions"
    version: Literal[1] = 1
    weights: tuple[str, ...] = Field(
        description="SHA-256 of the weights of every run of the ensemble, sorted"
    )
    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    cases: tuple[str, ...] = Field(
        description="every requested case, sorted, with or without a mask"
    )
    scans: dict[str, str] = Field(
        default={}, description="case → SHA-256 of the scan that its mask is of"
    )


def list_masks(folder: Path) -> dict[str, Path]:
    """The masks of a folder by case name, without hidden files, probabilities and other files.

    Raises:
        MaclError: there is no such folder, or a case has two masks.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise MaclError(f"{folder} {what}: name a folder of masks called <case>.nii.gz.")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (
            not path.is_file()
            or suffix_of(path) is None
            or path.name.startswith(".")
            or path.name.endswith(PROBABILITIES)
        ):
            continue
        name = stem_of(path)
        if name in masks:
            raise MaclError(
                f"{folder} holds two masks of the case {name!r}, {masks[name].name} and "
                f"{path.name}: remove one of them."
            )
        masks[name] = path
    return masks


def read_predictions(folder: Path) -> PredictionsRecord | None:
    """Read the record of a folder of masks; None where there is none, as from another tool.

    Raises:
        MaclError: the record is broken, or another version wrote it.
    """
    if not (folder / PREDICTIONS_RECORD).is_file():
        return None
    raw = read_json(folder / PREDICTIONS_RECORD, "a record of predictions")
    if raw.get("format") != "macl-predictions" or raw.get("version") != 1:
        raise MaclError(
            f"{folder / PREDICTIONS_RECORD} is not a record of this version of macl: predict again."
        )
    return validate(PredictionsRecord, raw, where=PREDICTIONS_RECORD)


@contextmanager
def lock_predictions(folder: Path) -> Iterator[None]:
    """Keep other commands from writing masks into a folder.

    Raises:
        MaclError: another command is writing there, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise MaclError(f"--out {folder} is a file: choose a folder.")
    busy = (
        f"Another `macl predict` is writing {folder}: wait until it ends, or choose another folder."
    )
    existed = folder.exists()
    try:
        with file_lock(folder / LOCK, busy):
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    finally:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def open_predictions(folder: Path, record: PredictionsRecord) -> PredictionsRecord:
    """Start a folder of masks, or continue one that the same weights wrote.

    Returns:
        The record with what the folder holds already.

    Raises:
        MaclError: the folder holds something else.
    """
    earlier = read_predictions(folder)
    if earlier is not None:
        if earlier.model_copy(update={"cases": record.cases, "scans": record.scans}) != record:
            raise MaclError(
                f"--out {folder} already holds predictions of other runs: choose another folder."
            )
        cases = tuple(sorted({*earlier.cases, *record.cases}))
        record = record.model_copy(update={"cases": cases, "scans": earlier.scans})
    elif folder.exists() and any(
        path.name != LOCK and not path.name.startswith(ASIDE) for path in folder.iterdir()
    ):
        raise MaclError(
            f"--out {folder} already holds something that is not predictions: choose another "
            "folder."
        )
    refuse_links(folder)
    clear_unfinished(folder)
    write_predictions(folder, record)
    return record


def write_predictions(folder: Path, record: PredictionsRecord) -> None:
    """Write the record of a folder of masks."""
    write_text(folder / PREDICTIONS_RECORD, record.model_dump_json(indent=1) + "\n")
