"""CHAOS in miniature: DICOM slices in another order than their names, and label pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from fakes.dicom import dicom_slice
from fakes.scans import write_itk
from fakes.structures import Truth, structures

VALUES = np.array([0, 63, 126, 189, 252], np.uint8)
SHAPE = (6, 20, 24)


def write(folder: Path) -> dict[str, Truth]:
    """Write two labelled MR patients, one labelled CT patient, and an MR test patient.

    The truths are those of T2-SPIR.
    """
    truths: dict[str, Truth] = {}
    for sets, patient in (("Train_Sets", 1), ("Train_Sets", 20), ("Test_Sets", 4)):
        labelled = sets == "Train_Sets"
        patient_folder = folder / sets / "MR" / str(patient)
        image, label = structures(patient, 4, SHAPE)
        # Names fall where positions rise: only headers tell the order of the slices.
        names = [f"IMG-{patient:04d}-{SHAPE[0] - index:05d}" for index in range(SHAPE[0])]
        _series(patient_folder / "T2SPIR/DICOM_anon", image, names, patient)
        for number, phase in enumerate(("OutPhase", "InPhase")):
            halves = [
                f"IMG-{patient:04d}-{2 * index + number + 1:05d}" for index in range(SHAPE[0])
            ]
            _series(
                patient_folder / "T1DUAL/DICOM_anon" / phase, image + 9 * number, halves, patient
            )
            if labelled and phase == "InPhase":
                _pictures(patient_folder / "T1DUAL/Ground", VALUES[label], halves)
        if labelled:
            values = VALUES[label]
            values[2][values[2] == 63] = 60  # the organisers name ranges
            _pictures(patient_folder / "T2SPIR/Ground", values, names)
        truths[f"MR_{patient}_T2SPIR"] = Truth(
            f"MR_{patient}", image[None], label if labelled else None
        )
    image, label = structures(2, 1, SHAPE)
    _series(
        folder / "Train_Sets/CT/2/DICOM_anon",
        image,
        [f"i{index:04d},0000b" for index in range(SHAPE[0])],
        2,
        "CT",
    )
    _pictures(
        folder / "Train_Sets/CT/2/Ground",
        label * 255,
        [f"liver_GT_{index:03d}" for index in range(SHAPE[0])],
    )
    return truths


def _series(
    folder: Path, image: np.ndarray, names: list[str], patient: int, modality: str = "MR"
) -> None:
    """Write slices from the feet up; each names a series of its own, as anonymised files do."""
    folder.mkdir(parents=True)
    for index, (pixels, name) in enumerate(zip(image, names, strict=True)):
        dataset: Dataset = dicom_slice(pixels, patient, index)
        dataset.ImagePositionPatient = [-8.0, -6.0, 10.0 + 5.5 * index]
        dataset.SeriesInstanceUID = f"1.2.3.{patient}.{index + 1}"
        dataset.Modality = modality
        dataset.PatientName = dataset.PatientBirthDate = ""
        dataset.PatientID = str(patient)
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def _pictures(folder: Path, label: np.ndarray, names: list[str]) -> None:
    for picture, name in zip(label, names, strict=True):
        write_itk(folder / f"{name}.png", picture)
