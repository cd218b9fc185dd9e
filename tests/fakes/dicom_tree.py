"""DICOM as an archive exports it: two series in one folder, one in two folders, and a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

from fakes.dicom import write_series
from fakes.structures import Truth


def write(folder: Path) -> dict[str, Truth]:
    """Write four series of two patients, under file names in no order."""
    pixels: dict[str, np.ndarray] = {}
    study = folder / "first" / "study"
    for seed, number in ((1, 3), (2, 7)):
        part = folder / f"part{seed}"
        pixels[f"first_study_series{number}"] = write_series(
            part, seed, SeriesNumber=number, PatientID="p-0001"
        )
        for file in part.iterdir():
            study.mkdir(parents=True, exist_ok=True)
            file.rename(study / f"{seed}{file.name}")
        part.rmdir()
    pixels["second_flat"] = write_series(folder / "second/flat", 3, PatientID="p-0002")
    pixels["second_halves"] = write_series(folder / "second/halves/a", 4, PatientID="p-0002")
    for index, file in enumerate(sorted((folder / "second/halves/a").iterdir())):
        if index % 2:
            (folder / "second/halves/b").mkdir(exist_ok=True)
            file.rename(folder / "second/halves/b" / file.name)
    _report(study / "report.dcm")
    (folder / "second/readme.txt").write_text("exported")
    return {name: Truth("", image[None], None) for name, image in pixels.items()}


def _report(path: Path) -> None:
    dataset = pydicom.dcmread(next(path.parent.iterdir()))
    for tag in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        delattr(dataset, tag)
    dataset.Modality = "SR"
    dataset.SeriesInstanceUID = UID("1.2.3.99")
    dataset.save_as(path, enforce_file_format=True)
