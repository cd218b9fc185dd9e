"""DICOM series in miniature, one slice a file, in a shuffled order of file names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from fakes.scans import anatomy

NAME = "Quixote^Alonso"
BIRTH_DATE = "19471209"
PATIENT_ID = "MRN-4711-22"


def write_series(
    folder: Path,
    seed: int = 0,
    shape: tuple[int, int, int] = (5, 12, 16),
    missing: Collection[int] = (),
    tilt_mm: float = 0.0,
    **tags: Any,
) -> np.ndarray:
    """Write a series; `tags` override any tag.

    Returns:
        (z, y, x) the stored pixels, slices from the feet up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = anatomy(seed, shape)[0]
    for index in set(range(shape[0])) - set(missing):
        dataset = dicom_slice(pixels[index], seed, index)
        dataset.ImagePositionPatient = [-8.0, -6.0 + index * tilt_mm, 10.0 + 4.0 * index]
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        dataset.save_as(
            folder / f"IM{(index * 3 + 1) % shape[0]:04d}.dcm", enforce_file_format=True
        )
    return pixels


def dicom_slice(pixels: np.ndarray, seed: int, index: int) -> Dataset:
    """One slice with everything that a DICOM file needs except its position."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(
        f"1.2.3.{seed + 1}.{index + 1}"
    )
    dataset.SeriesInstanceUID = f"1.2.3.{seed + 1}"
    dataset.Modality = "MR"
    dataset.PatientName = NAME
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.PatientID = PATIENT_ID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [0.7, 0.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset
