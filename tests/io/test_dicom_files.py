"""DICOM as others write it: the files that pydicom ships, and CT series of every kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from fakes.command import macl
from fakes.dicom import write_series
from macl.data.store import Store
from macl.io.volume import read_header, read_scan
from macl.preprocessing.orientation import to_scan
from macl.utils.errors import RefusedCaseError

SHIPPED = sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))

COLOUR_SPACES = ("RGB", "MONOCHROME1", "MONOCHROME2")
"""Of these, pydicom's pixels are what is shown; palettes and YBR it leaves as they are stored."""


def shipped(name: str) -> Path:
    return next(file for file in SHIPPED if file.name == name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_read_as_pydicom_reads_them_or_are_refused(path: Path) -> None:
    try:
        read_header(path)
        volume = read_scan((path,))
    except RefusedCaseError:
        return
    dataset = pydicom.dcmread(path)
    assert volume.array.shape[1:] == (1, dataset.Rows, dataset.Columns)
    try:
        with warnings.catch_warnings(action="ignore"):
            pixels = dataset.pixel_array
    except RuntimeError:  # pydicom has no decoder for it here
        return
    if dataset.PhotometricInterpretation in COLOUR_SPACES:
        expected = pixels * float(dataset.get("RescaleSlope", 1)) + float(
            dataset.get("RescaleIntercept", 0)
        )
        expected = np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected[None]
        np.testing.assert_array_equal(volume.array[:, 0], expected)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEG2000.dcm",
    ],
)
def test_ordinary_scans_are_read_in_every_transfer_syntax(name: str) -> None:
    volume = read_scan((shipped(name),))
    assert len(np.unique(volume.array)) > 50
    if name.startswith("MR_small_"):
        np.testing.assert_array_equal(volume.array, read_scan((shipped("MR_small.dcm"),)).array)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "truncated: 8130 of 8192"),
        ("SC_rgb_rle_16bit.dcm", "more than 8 bits"),
        ("liver_1frame.dcm", "one bit per pixel"),
        ("rtdose.dcm", "several frames"),
        ("test-SR.dcm", "announces no image"),
    ],
)
def test_what_is_no_whole_scan_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(RefusedCaseError, match=reason):
        read_scan((shipped(name),))


# ---------------------------------------------------------------- CT series


def write_ct(folder: Path, seed: int = 0, **tags: Any) -> np.ndarray:
    """Write a CT series as scanners store it, unsigned and shifted by 1024.

    Returns:
        (z, y, x) in Hounsfield units.
    """
    stored = write_series(
        folder,
        seed,
        Modality="CT",
        SOPClassUID=CTImageStorage,
        PatientID=f"ct{seed}",
        RescaleSlope=1,
        RescaleIntercept=-1024,
        PixelRepresentation=0,
        BitsStored=12,
        HighBit=11,
        **tags,
    )
    return stored - 1024


def as_syntax(uid: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        dataset = pydicom.dcmread(file)
        if uid == RLELossless:
            dataset.compress(RLELossless)
        dataset.file_meta.TransferSyntaxUID = UID(uid)
        dataset.save_as(file, implicit_vr=uid == ImplicitVRLittleEndian, enforce_file_format=True)

    return change


@pytest.mark.parametrize(
    "uid",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda uid: uid.name,
)
def test_a_ct_series_is_the_same_in_every_transfer_syntax(tmp_path: Path, uid: str) -> None:
    hounsfield = write_ct(tmp_path / "data/p/ct")
    for file in (tmp_path / "data/p/ct").iterdir():
        as_syntax(uid)(file)
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "store")
    (case,) = store.index.cases
    assert (store.index.reader, store.index.modality) == ("dicom", "CT")
    assert case.spacing_mm == pytest.approx((4.0, 0.7, 0.5))
    np.testing.assert_array_equal(to_scan(store.read(case.name)[0], case.orientation), hounsfield)


def test_good_series_are_kept_and_each_broken_one_is_refused_with_its_reason(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    good = {
        f"a_series{number}": write_ct(data / f"{number}", number, SeriesNumber=number)
        for number in (1, 2)
    }
    for number in (1, 2):
        for file in (data / f"{number}").iterdir():
            (data / "a").mkdir(exist_ok=True)
            file.rename(data / "a" / f"{number}-{file.name}")
        (data / f"{number}").rmdir()
    write_ct(data / "missing", 3, missing=[2])
    write_ct(data / "tilted", 4, tilt_mm=0.7)
    write_ct(data / "doubled", 5, ImagePositionPatient=[0, 0, 0])
    write_ct(data / "cut", 6)
    cut = sorted((data / "cut").iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-80])
    write_ct(data / "garbage", 7)
    sorted((data / "garbage").iterdir())[3].write_bytes(b"garbage" * 50)
    answer = macl("prepare", data, tmp_path / "store", "--workers", 1, "--keep-identity")
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "store")
    for name, hounsfield in good.items():
        np.testing.assert_array_equal(
            to_scan(store.read(name)[0], store.case(name).orientation), hounsfield
        )
    assert {*store.cases} == {*good}
    reasons = {refused.name: refused.reason for refused in store.index.refused}
    words = {
        "missing": "missing",
        "tilted": "tilted",
        "doubled": "share positions",
        "cut": "truncated",
    }
    assert all(word in reasons[name] for name, word in words.items())
    assert any("is not DICOM" in reason for name, reason in reasons.items() if name not in words)
    assert len(reasons) == 5


def test_a_report_beside_a_series_is_ignored_and_named(tmp_path: Path) -> None:
    write_ct(tmp_path / "p/ct")
    (tmp_path / "p/ct/report.dcm").write_bytes(shipped("test-SR.dcm").read_bytes())
    answer = macl("inspect", tmp_path, "--json")
    assert answer.code == 0, answer.err
    assert '"cases": 1' in answer.out
    assert "report.dcm" in answer.out


def test_a_window_is_kept_in_the_store_and_is_for_ct(tmp_path: Path) -> None:
    write_ct(tmp_path / "data/p/ct")
    answer = macl(
        "prepare", tmp_path / "data", tmp_path / "store", "--window", "lung", "--workers", 1
    )
    assert answer.code == 0, answer.err
    index = Store.open(tmp_path / "store").index
    assert index.prepared.window == "lung"
    assert (index.cases[0].normalisation.low, index.cases[0].normalisation.high) == (
        (-1350.0,),
        (150.0,),
    )
    write_series(tmp_path / "mr/p/t1")
    refused = macl(
        "prepare", tmp_path / "mr", tmp_path / "other", "--window", "lung", "--workers", 1
    )
    assert (refused.code, "is for CT" in refused.err) == (1, True)
