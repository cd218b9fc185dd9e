"""Scanning a source folder before its scans are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fakes import dicom
from fakes.scans import anatomy, write_nifti
from macl.io.deidentification import Pseudonyms
from macl.plugins import reader
from macl.preprocessing.source import SourceScan, lone_case, scan_source


def scanned(folder: Path, keep_identity: bool = False) -> SourceScan:
    return scan_source(folder, reader("folder").read(folder), keep_identity)


@pytest.mark.parametrize("outside", ["image", "label", "slice"])
def test_what_leads_out_of_the_source_is_refused(tmp_path: Path, outside: str) -> None:
    data = tmp_path / "data"
    write_nifti(data / "a.nii.gz", anatomy(0)[0])
    write_nifti(tmp_path / "secret.nii.gz", anatomy(1)[0])
    if outside == "image":
        (data / "b.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    elif outside == "label":
        write_nifti(data / "b.nii.gz", anatomy(0)[0])
        (data / "b_seg.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    else:
        dicom.write_series(tmp_path / "elsewhere")
        dicom.write_series(data / "b")
        (data / "b/IM0000.dcm").unlink()
        (data / "b/IM0000.dcm").symlink_to(tmp_path / "elsewhere/IM0000.dcm")
    source = scanned(data).source
    assert [case.name for case in source.cases] == ["a"]
    assert "leads out of the source's folder" in source.refused["b"]


def test_a_link_within_the_source_is_followed(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data/pool/a.nii.gz", anatomy(0)[0])
    (tmp_path / "data/b.nii.gz").symlink_to(tmp_path / "data/pool/a.nii.gz")
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    assert [case.name for case in scanned(tmp_path / "alias").source.cases] == ["b", "pool_a"]


def test_headers_fill_in_what_the_layout_does_not_declare(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "p1/t1")
    dicom.write_series(tmp_path / "p2/t1", seed=1, PatientID="another")
    scan = scanned(tmp_path)
    assert (scan.source.modality, scan.source.channels) == ("MR", ("image",))
    assert scan.headers["p1_t1"].geometry.size == (16, 12, 5)
    patients = {case.patient for case in scan.source.cases}
    assert len(patients) == 2
    assert all(re.fullmatch(r"patient-[0-9a-f]{12}", patient) for patient in patients)


def test_a_person_keeps_one_pseudonym_across_folders(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "p1/t1")
    dicom.write_series(tmp_path / "p2/t1", seed=1)
    assert len({case.patient for case in scanned(tmp_path).source.cases}) == 1


def test_a_lone_scan_has_a_name_that_identifies_nobody(tmp_path: Path) -> None:
    write_nifti(tmp_path / "brain scan.nii.gz", anatomy(0)[0])
    assert lone_case(tmp_path / "brain scan.nii.gz").name == "brain_scan"
    for name in ("t1", "Quixote 1947"):
        dicom.write_series(tmp_path / name)
    assert lone_case(tmp_path / "t1").name == "t1"
    pseudonyms = Pseudonyms()
    hidden = lone_case(tmp_path / "Quixote 1947", pseudonyms).name
    assert re.fullmatch(r"case-[0-9a-f]{12}", hidden)
    assert lone_case(tmp_path / "Quixote 1947", pseudonyms).name == hidden
    assert lone_case(tmp_path / "Quixote 1947", Pseudonyms()).name != hidden


def test_a_folder_named_by_the_patients_id_is_hidden_unless_ids_are_kept(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / f"scans {dicom.PATIENT_ID}/t1")
    assert scanned(tmp_path).source.cases[0].name.startswith("case-")
    kept = scanned(tmp_path, keep_identity=True).source.cases[0]
    assert (kept.name, kept.patient) == ("scans_MRN-4711-22_t1", dicom.PATIENT_ID)
