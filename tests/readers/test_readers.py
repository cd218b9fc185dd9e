"""Every layout is recognised by its signs, read in full, and nothing in it is ignored silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fakes import acdc, bids, brats2018, chd, dicom, msd, nnunet
from fakes.scans import anatomy, write_itk, write_nifti
from macl.io.source import Source
from macl.plugins import names, reader, readers
from macl.preprocessing.source import recognise, scan_source
from macl.readers._reader import Reader
from macl.utils.errors import MaclError

WRITERS: dict[str, Callable[[Path], Path]] = {
    "acdc": acdc.write,
    "msd": msd.write,
    "nnunet_raw": nnunet.write,
}


def read(folder: Path) -> Source:
    return recognise(folder, readers()).read(folder)


def describe(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    entries = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in (entries | changes).items() if value is not None})
    )


def paths(source: Source) -> set[Path]:
    return {path for case in source.cases for path in case.paths}


@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_is_recognised_by_its_signs(tmp_path: Path, name: str) -> None:
    folder = WRITERS[name](tmp_path / "data")
    assert read(folder).reader == name
    assert reader("folder").evidence(folder) is not None
    others = set(names("readers")) - {name, "folder"}
    assert all(reader(other).evidence(folder) is None for other in others)
    assert all(reader(known).evidence(tmp_path / "missing") is None for known in names("readers"))


def test_equal_signs_are_no_guess(tmp_path: Path) -> None:
    class Twin(Reader):
        name = "twin"

        def evidence(self, source: Path) -> tuple[int, str]:
            return 80, "the same folders"

        def read(self, source: Path) -> Source:
            raise AssertionError

    folder = acdc.write(tmp_path / "data")
    with pytest.raises(
        MaclError,
        match=r"acdc \(patient001/patient001_frame01.nii.gz, as ACDC names its scans\) and "
        r"twin \(the same folders\)",
    ):
        recognise(folder, [reader("acdc"), Twin()])


# ---------------------------------------------------------------- nnunet_raw


def test_nnunet_names_all_it_holds(tmp_path: Path) -> None:
    folder = nnunet.write(tmp_path / "Dataset001_Toy", cases=3, test=2)
    source = read(folder)
    assert [case.name for case in source.cases] == [f"toy_{n:03d}" for n in range(5)]
    assert [case.label is not None for case in source.cases] == [True] * 3 + [False] * 2
    assert source.classes == {0: "background", 1: "ring", 2: "disc"}
    assert (source.modality, source.channels) == ("CT", ("CT",))
    assert all(case.patient == case.name for case in source.cases)
    assert paths(source) == set(folder.rglob("*.nii.gz"))
    assert any("names no patients" in note for note in source.notes)


def test_nnunet_channels_are_in_order_and_complete(tmp_path: Path) -> None:
    folder = nnunet.write(tmp_path / "d", channels=("T1", "FLAIR"))
    (folder / "imagesTr/toy_001_0000.nii.gz").unlink()
    source = read(folder)
    assert source.channels == ("T1", "FLAIR")
    assert source.modality == "MR"
    assert [path.name for path in source.cases[0].images] == [
        "toy_000_0000.nii.gz",
        "toy_000_0001.nii.gz",
    ]
    assert "channels 0001 where dataset.json declares 0000, 0001" in source.refused["toy_001"]


def test_nnunet_reports_what_does_not_fit(tmp_path: Path) -> None:
    folder = nnunet.write(tmp_path / "d")
    (folder / "imagesTr/toy_000_0000.nii.gz").rename(folder / "imagesTr/stray.nii.gz")
    (folder / "labelsTr/toy_001.nii.gz").unlink()
    source = read(folder)
    assert "1 scans of imagesTr have no label in labelsTr." in source.notes
    assert "label without an image" in source.refused["toy_000"]
    assert source.refused["stray"] == (
        "imagesTr/stray.nii.gz lacks its channel number: rename it to stray_0000.nii.gz"
    )


def test_nnunet_pictures_hold_their_colours_in_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    nnunet.write(folder, cases=0, test=0, channels=("R", "G", "B"), ending=".png")
    image, label = anatomy(0)
    write_itk(
        folder / "imagesTr/a_0000.png", np.repeat(image[0].astype("uint8")[..., None], 3, axis=-1)
    )
    write_itk(folder / "labelsTr/a.png", label[0])
    write_itk(folder / "imagesTr/grey_0000.png", image[0].astype("uint8"))
    scanned = scan_source(folder, read(folder))
    assert (scanned.source.modality, scanned.headers["a"].channels) == ("photograph", 3)
    assert scanned.source.refused.keys() == {"grey"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"regions of several labels \(whole\)"),
        ({"labels": {"background": 0, "ring": 1, "ignore": 2}}, "ignore label"),
        ({"labels": {"ring": 1}}, "0 for the background"),
        ({"labels": {"background": 0, "ring": "one"}}, "not a whole number"),
        ({"labels": None}, "no usable 'labels'"),
        ({"channel_names": {"1": "CT"}}, "does not number its channel_names"),
        ({"dataset": {}}, "lists its files itself"),
    ],
)
def test_nnunet_refuses_what_macl_does_not_support(
    tmp_path: Path, changes: dict, words: str
) -> None:
    folder = nnunet.write(tmp_path / "d")
    describe(folder, **changes)
    with pytest.raises(MaclError, match=words):
        reader("nnunet_raw").read(folder)


# ---------------------------------------------------------------- msd


def test_msd_reads_pairs_and_test_scans(tmp_path: Path) -> None:
    folder = msd.write(tmp_path / "Task00_Toy", cases=3, test=2)
    source = read(folder)
    assert [case.name for case in source.cases] == [f"toy_{n:03d}" for n in range(1, 6)]
    assert [case.label is not None for case in source.cases] == [True] * 3 + [False] * 2
    assert source.classes == {0: "background", 1: "Ring", 2: "Disc"}
    assert (source.modality, source.channels, source.normalisation) == (
        "MR",
        ("MRI",),
        "clip_zscore",
    )
    assert {path.resolve() for path in paths(source)} == {
        path.resolve() for path in folder.rglob("toy_*.nii.gz")
    }
    assert len(source.notes) == 1


def test_msd_reports_missing_unlisted_and_outlying_files(tmp_path: Path) -> None:
    folder = msd.write(tmp_path / "d")
    (folder / "imagesTr/toy_001.nii.gz").rename(folder / "imagesTr/toy_001_0000.nii.gz")
    described = json.loads((folder / "dataset.json").read_text())
    write_nifti(tmp_path / "outside.nii.gz", anatomy(0)[0])
    describe(folder, test=[*described["test"], "../outside.nii.gz"])
    source = read(folder)
    assert "older layout" in source.refused["toy_001"]
    assert "outside the data set's folder" in source.refused["outside"]
    assert any("toy_001_0000.nii.gz" in note for note in source.notes)
    assert [case.name for case in source.cases] == ["toy_002", "toy_003", "toy_004", "toy_005"]


def test_msd_files_listed_twice_are_refused(tmp_path: Path) -> None:
    folder = msd.write(tmp_path / "d")
    described = json.loads((folder / "dataset.json").read_text())
    describe(folder, training=[*described["training"], described["training"][0]])
    assert "share this name" in read(folder).refused["toy_003"]


# ---------------------------------------------------------------- acdc


def test_acdc_groups_frames_by_patient(tmp_path: Path) -> None:
    source = read(acdc.write(tmp_path / "d", patients=2))
    assert [(case.name, case.patient) for case in source.cases] == [
        ("patient001_frame01", "patient001"),
        ("patient001_frame12", "patient001"),
        ("patient002_frame01", "patient002"),
        ("patient002_frame12", "patient002"),
    ]
    assert all(case.label for case in source.cases)
    assert source.normalisation == "zscore"
    assert source.classes == {0: "background", 1: "RV", 2: "MYO", 3: "LV"}
    assert [(case.name, case.images[0].name) for case in source.series] == [
        ("patient001", "patient001_4d.nii.gz"),
        ("patient002", "patient002_4d.nii.gz"),
    ]
    assert source.notes == ()


def test_acdc_is_recognised_in_its_parts_and_reports_what_does_not_fit(tmp_path: Path) -> None:
    acdc.write(tmp_path / "d" / "training", patients=2)
    (tmp_path / "d/training/patient001/patient001_frame01.nii.gz").unlink()
    (tmp_path / "d/training/patient002/notes.txt").write_text("late enhancement")
    source = read(tmp_path / "d")
    assert source.reader == "acdc"
    assert "label without an image" in source.refused["patient001_frame01"]
    assert any("notes.txt" in note for note in source.notes)


# ---------------------------------------------------------------- layouts by file names


def test_what_a_scan_lacks_or_has_twice_is_named(tmp_path: Path) -> None:
    brats2018.write(tmp_path)
    high, low = (tmp_path / "MICCAI_BraTS_2018_Data_Training" / grade for grade in ("HGG", "LGG"))
    for channel in ("t1ce", "t2"):
        (high / f"Brats18_2013_2_1/Brats18_2013_2_1_{channel}.nii.gz").unlink()
    doubled = low / "Brats18_TCIA09_141_1/Brats18_TCIA09_141_1_flair.nii.gz"
    write_nifti(doubled.with_suffix(""), anatomy(0)[0])
    source = read(tmp_path)
    assert source.refused == {
        "Brats18_2013_2_1": "it has no t1ce, t2 scan",
        "Brats18_TCIA09_141_1": "2 scans share this name (Brats18_TCIA09_141_1_flair.nii, "
        "Brats18_TCIA09_141_1_flair.nii.gz): rename or remove all but one",
    }
    assert [case.name for case in source.cases] == ["Brats18_CBICA_AAB_1"]
    assert source.notes == ()


def test_labels_alone_and_strays_are_reported_and_hidden_files_are_not(tmp_path: Path) -> None:
    chd.write(tmp_path)
    (tmp_path / "ct_1001_image.nii.gz").unlink()
    (tmp_path / "copy").mkdir()
    write_nifti(tmp_path / "copy/ct_1003_label.nii.gz", anatomy(0)[1])
    (tmp_path / "._ct_1009_image.nii.gz").write_bytes(b"Mac OS X")
    source = read(tmp_path)
    assert source.refused == {
        "ct_1001": "a label without an image: ct_1001_label.nii.gz",
        "ct_1003": "2 labels fit it (ct_1003_label.nii.gz, ct_1003_label.nii.gz): rename or remove "
        "all but one",
    }
    assert [case.name for case in source.cases] == ["ct_1178"]
    assert source.notes[1:] == (
        "Ignored (neither scans nor labels of this layout): imageCHD_dataset_info.xlsx.",
    )  # fmt: skip


def test_a_part_that_is_not_there_is_an_error_that_names_one_that_is(tmp_path: Path) -> None:
    bids.write(tmp_path)
    with pytest.raises(MaclError, match="no FLAIR scans here: use --reader bids:T1w"):
        reader("bids:FLAIR").read(tmp_path)


# ---------------------------------------------------------------- folder


@pytest.mark.parametrize(
    ("image", "label", "name"),
    [
        ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "a"),
        ("images/a.nii.gz", "labels/a.nii.gz", "a"),
        ("Train/Images/p/a.nii.gz", "Train/Labels/p/a.nii.gz", "Train_p_a"),
        ("images/a.nii.gz", "masks/a_mask.nrrd", "a"),
        ("a.nii.gz", "labels/a.nii.gz", "a"),
        ("a.nii.gz", "a_gt.nii.gz", "a"),
        ("a.mha", "a-seg.nii.gz", "a"),
        ("p/a_image.nii.gz", "p/a_label.nii.gz", "p_a"),
        ("p/image.nii.gz", "p/label.nii.gz", "p"),
        ("p q/a b.nii.gz", "p q/a b_seg.nii.gz", "p_q_a_b"),
    ],
)
def test_labels_are_matched_by_name(tmp_path: Path, image: str, label: str, name: str) -> None:
    scan, mask = anatomy(0)
    for file, array in ((image, scan), (label, mask)):
        (write_nifti if file.endswith("gz") else write_itk)(tmp_path / file, array)
    source = read(tmp_path)
    assert [(case.name, case.images, case.label) for case in source.cases] == [
        (name, (tmp_path / image,), tmp_path / label)
    ]
    assert not source.refused


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (write_nifti if ".nii" in name else write_itk)(folder / name, anatomy(0)[0])
    return folder


def test_patients_are_the_folders_that_tell_cases_apart(tmp_path: Path) -> None:
    source = read(
        put(tmp_path, "train/p1/a.nii", "train/p1/b.nii", "test/p2/s/a.nii", "test/p3/a.nii")
    )
    assert {case.name: case.patient for case in source.cases} == {
        "train_p1_a": "p1",
        "train_p1_b": "p1",
        "test_p2_s_a": "p2",
        "test_p3_a": "p3",
    }
    assert "Assuming that the 3 folders that hold scans are the patients." in source.notes


def test_without_folders_every_case_is_a_patient_and_a_note_says_so(tmp_path: Path) -> None:
    source = read(put(tmp_path, "a.nii", "b.nii"))
    assert [case.patient for case in source.cases] == ["a", "b"]
    assert any("every case counts as a patient" in note for note in source.notes)


def test_a_described_data_set_deeper_down_is_pointed_to(tmp_path: Path) -> None:
    msd.write(tmp_path / "Task04_Toy")
    with pytest.raises(MaclError, match="is not a data set but the folder above, with Task04_Toy"):
        read(tmp_path)


def test_duplicate_names_are_refused_and_the_rest_kept(tmp_path: Path) -> None:
    source = read(
        put(tmp_path, "a.nii.gz", "a.nrrd", "B.nii", "sub/b.nii", "b_.nii", "c d.nii", "c_d.nii")
    )
    assert (
        source.refused["a"]
        == "2 scans share this name (a.nii.gz, a.nrrd): rename or remove all but one"
    )
    assert "2 scans share this name" in source.refused["c_d"]
    assert [case.name for case in source.cases] == ["B", "b_", "sub_b"]
    assert "2 scans share this name" in read(put(tmp_path / "case", "a.nii", "A.nii")).refused["A"]


def test_nothing_is_dropped_silently(tmp_path: Path) -> None:
    put(tmp_path, "a.nii", "b_seg.nii", "c.nii", "c_seg.nii", "c_gt.nii", "d.mhd")
    for name in ("README.txt", "table.csv", ".DS_Store", "._a.nii"):
        (tmp_path / name).write_text("x")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent, target_is_directory=True)
    source = read(tmp_path)
    assert [case.name for case in source.cases] == ["a", "d"]
    assert "label without an image" in source.refused["b"]
    assert "2 labels fit it" in source.refused["c"]
    notes = " ".join(source.notes)
    for words in ("README.txt", "table.csv", "2 hidden files", "elsewhere"):
        assert words in notes
    assert "d.zraw" not in notes
    assert "d.raw" not in notes


def test_the_same_name_in_training_and_test_folders_is_told_apart(tmp_path: Path) -> None:
    source = read(
        put(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "imagesTs/a.nii", "imagesTs/b.nii")
    )
    assert {case.name: case.label is not None for case in source.cases} == {
        "tr_a": True,
        "ts_a": False,
        "b": False,
    }


def test_a_dicom_folder_is_one_scan(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "p1" / "t1")
    dicom.write_series(tmp_path / "p2" / "t1", seed=1)
    put(tmp_path, "p2/t1/label.nii")
    for file in (tmp_path / "p1/t1").iterdir():
        file.rename(file.with_suffix(""))
    source = read(tmp_path)
    assert [(case.name, case.patient, case.images[0]) for case in source.cases] == [
        ("p1_t1", "p1", tmp_path / "p1/t1"),
        ("p2_t1", "p2", tmp_path / "p2/t1"),
    ]
    assert source.cases[1].label == tmp_path / "p2/t1/label.nii"


def test_a_folder_without_scans_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MaclError, match="holds no scans in a known layout"):
        read(tmp_path)
    with pytest.raises(MaclError, match="holds no scans that macl can read"):
        reader("folder").read(tmp_path)


@pytest.mark.parametrize(
    "label", ["sub1_followup_seg.nii", "sub1_2_seg.nii", "sub1_seg_2.nii", "sub1_seg_followup.nii"]
)
def test_a_label_of_another_scan_is_never_taken(tmp_path: Path, label: str) -> None:
    source = read(put(tmp_path, "sub1.nii", label))
    assert source.cases[0].label is None
    assert all("label without an image" in reason for reason in source.refused.values())
    assert source.refused


@pytest.mark.parametrize("folders", [("T1", "T2"), ("baseline", "follow-up"), ("2019", "2020")])
def test_folders_of_visits_and_modalities_are_not_people(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    names = (f"{folder}/sub{number}.nii" for folder in folders for number in (1, 2))
    source = read(put(tmp_path, *names))
    assert [case.patient for case in source.cases] == ["sub1", "sub2"] * 2
    assert any("2 names are the patients" in note for note in source.notes)


def test_folders_that_may_not_be_people_are_said(tmp_path: Path) -> None:
    source = read(put(tmp_path, "red/a.nii", "red/b.nii", "blue/c.nii", "blue/d.nii"))
    assert any("--patients" in note for note in source.notes)


def test_numbered_scans_in_folders_of_people_are_of_these_people(tmp_path: Path) -> None:
    names = (f"{person}/scan{number}.nii" for person in ("anna", "bert") for number in (1, 2))
    source = read(put(tmp_path, *names))
    assert [case.patient for case in source.cases] == ["anna", "anna", "bert", "bert"]
