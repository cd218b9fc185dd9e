"""DICOM series: sorted, checked, and read with their rescaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import RLELossless

from fakes.dicom import BIRTH_DATE, NAME, PATIENT_ID, write_series
from fakes.scans import truncate
from macl.io import dicom
from macl.io.deidentification import contains_identifier
from macl.io.volume import read_scan
from macl.utils.errors import RefusedCaseError


def test_slices_are_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "s", RescaleSlope="2", RescaleIntercept="-1000")
    volume = read_scan((tmp_path / "s",))
    np.testing.assert_array_equal(volume.array[0], pixels.astype(int) * 2 - 1000)
    assert volume.array.dtype.kind == "i"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    other = reader.Execute()
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(other))
    assert volume.geometry.spacing == pytest.approx(other.GetSpacing())
    assert volume.geometry.origin == pytest.approx(other.GetOrigin())
    assert volume.geometry.direction == pytest.approx(other.GetDirection())


def test_a_slope_of_its_own_in_every_slice_is_applied(tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "s")
    for file in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.RescaleSlope, dataset.RescaleIntercept = (
            str(0.5 + dataset.ImagePositionPatient[2]),
            "0",
        )
        dataset.save_as(file)
    slopes = 0.5 + 10.0 + 4.0 * np.arange(5)
    np.testing.assert_allclose(
        read_scan((tmp_path / "s",)).array[0], pixels * slopes[:, None, None]
    )


def test_compressed_pixels_are_read(tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "s")
    for file in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    np.testing.assert_array_equal(read_scan((tmp_path / "s",)).array[0], pixels)
    truncate(next((tmp_path / "s").iterdir()), 0.9)
    with pytest.raises(RefusedCaseError):
        read_scan((tmp_path / "s",))


def other_series(folder: Path) -> None:
    write_series(folder / "more", seed=1)
    next((folder / "more").iterdir()).rename(folder / "other.dcm")


def other_tag(tag: str, value: object):
    def change(folder: Path) -> None:
        file = sorted(folder.iterdir())[2]
        dataset = pydicom.dcmread(file)
        setattr(dataset, tag, value)
        dataset.save_as(file)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_series, "2 DICOM series"),
        (other_tag("Rows", 11), "different sizes"),
        (other_tag("PixelSpacing", [0.7, 0.6]), "different spacings"),
        (other_tag("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), "different directions"),
        (other_tag("NumberOfFrames", 2), "several frames"),
        (other_tag("ImagePositionPatient", None), "give no slice positions"),
        (other_tag("PixelData", b"\0" * 100), "truncated: 100 of 384 bytes"),
        (lambda folder: truncate(next(folder.iterdir()), 0.8), "truncated"),
        (lambda folder: (folder / "IM9999.dcm").write_text("not a slice"), "is not DICOM"),
    ],
)
def test_a_broken_series_is_refused(tmp_path: Path, change, reason: str) -> None:
    write_series(tmp_path / "s")
    change(tmp_path / "s")
    with pytest.raises(RefusedCaseError, match=reason):
        read_scan((tmp_path / "s",))


def test_missing_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", missing=[2])
    with pytest.raises(
        RefusedCaseError, match="missing or uneven: their distances range from 4 to 8 mm"
    ):
        read_scan((tmp_path / "s",))


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", tilt_mm=0.7)
    with pytest.raises(RefusedCaseError, match="tilted"):
        read_scan((tmp_path / "s",))


def test_several_images_at_one_position_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", ImagePositionPatient=[0, 0, 0])
    with pytest.raises(RefusedCaseError, match="5 of its images share positions"):
        read_scan((tmp_path / "s",))


def test_headers_tell_what_would_identify_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    who = dicom.read_identity(tmp_path / "s")
    assert who.patient_id == PATIENT_ID
    for text in (
        NAME,
        "ALONSO_2020",
        "scan-quixote",
        BIRTH_DATE,
        "1947-12-09",
        "09.12.1947",
        "x471209y",
    ):
        assert contains_identifier(text, who.identifiers), text
    for text in ("series_004", "scan 1947", "brain"):
        assert not contains_identifier(text, who.identifiers), text


def test_names_are_found_whatever_accents_and_short_ones_as_words() -> None:
    assert contains_identifier("muller_01", ["Müller"])
    assert contains_identifier("bo_liver", ["Bo"])
    assert not contains_identifier("bones", ["Bo"])
