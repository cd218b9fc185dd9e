"""Labels and patients as the user states them belong to one case each, or to none."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.scans import anatomy, write_nifti
from macl.io.source import Source
from macl.plugins import reader
from macl.preprocessing.statements import with_statements
from macl.utils.errors import MaclError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        write_nifti(folder / f"{name}.nii.gz", anatomy(0)[0])
    return folder


def labelled(scans: Path, labels: Path) -> Source:
    return with_statements(reader("folder").read(scans), None, labels)


def paths(source: Source, masks: Path) -> dict[str, str]:
    """Case → its label, by the path below the folder of labels."""
    return {
        case.name: case.label.relative_to(masks).as_posix()
        for case in source.cases
        if isinstance(case.label, Path)
    }


def test_a_label_belongs_to_the_scan_in_a_folder_like_its_own(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "p1/scan", "p2/scan", "p3/scan")
    masks = put(tmp_path / "masks", "p1/scan", "p9/scan")
    source = labelled(scans, masks)
    assert paths(source, masks) == {"p1_scan": "p1/scan.nii.gz"}
    assert "3 scans have its name" in source.refused["p9/scan.nii.gz"]


def test_a_label_that_fits_several_scans_is_refused(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "p1/scan", "p2/scan")
    with pytest.raises(MaclError, match="named like one scan alone"):
        labelled(scans, put(tmp_path / "masks", "scan"))


def test_a_label_in_another_persons_folder_belongs_to_no_scan(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "p1/scan", "p2/other")
    masks = put(tmp_path / "masks", "p9/scan", "p2/expert/other")
    source = labelled(scans, masks)
    assert paths(source, masks) == {"p2_other": "p2/expert/other.nii.gz"}
    assert "p1_scan has its name, but does not seem to be of p9" in source.refused["p9/scan.nii.gz"]


def test_folders_of_labels_need_not_be_those_of_scans(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "sub-01", "sub-10", "batch/a")
    masks = put(tmp_path / "masks", "sub-01/sub-01_seg", "reader1/sub-10", "2019/a")
    assert paths(labelled(scans, masks), masks) == {
        "sub-01": "sub-01/sub-01_seg.nii.gz",
        "sub-10": "reader1/sub-10.nii.gz",
        "batch_a": "2019/a.nii.gz",
    }


def test_a_number_of_four_digits_may_be_the_cases(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "case_0001", "case_0002")
    masks = put(tmp_path / "masks", "case_0001_seg", "case_0002_seg")
    assert paths(labelled(scans, masks), masks) == {
        "case_0001": "case_0001_seg.nii.gz",
        "case_0002": "case_0002_seg.nii.gz",
    }


def test_a_name_of_several_cases_in_a_table_is_an_error(tmp_path: Path) -> None:
    scans = put(tmp_path / "scans", "p1/scan", "p2/scan")
    put(tmp_path, "mask")
    table = tmp_path / "table.csv"
    table.write_text("image,label\nscan.nii.gz,mask.nii.gz\n")
    with pytest.raises(MaclError, match="which may be 2 cases"):
        labelled(scans, table)
    table.write_text("case,patient\nscan,a\n")
    with pytest.raises(MaclError, match="which may be 2 cases"):
        with_statements(reader("folder").read(scans), str(table), None)
