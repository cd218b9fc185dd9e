"""inspect: what a source, a store, a run or a scan holds, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import acdc, dicom, msd
from fakes.command import macl
from fakes.finished_runs import write_finetuned, write_pretrained, write_unscored
from fakes.scans import affine, anatomy, flip_bit, truncate, write_itk, write_nifti
from fakes.toy_store import write_toy_store
from macl.stages.inspect import inspect
from macl.stages.prepare import prepare


def as_json(path: Path) -> dict[str, Any]:
    answer = macl("inspect", path, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_a_source_is_counted(tmp_path: Path) -> None:
    msd.write(tmp_path / "data")
    truncate(tmp_path / "data/imagesTr/toy_001.nii.gz", 0.0)
    described = as_json(tmp_path / "data")
    expected = {"reader": "msd", "cases": 4, "patients": 4, "labelled": 2, "modality": "MR"}
    assert {key: described[key] for key in expected} == expected
    assert described["classes"] == ["background", "Ring", "Disc"]
    labels = [anatomy(seed)[1] for seed in (2, 3)]
    assert described["class_voxels"] == [
        int(sum((label == value).sum() for label in labels)) for value in range(3)
    ]
    assert described["class_cases"] == [2, 2, 2]
    assert described["refused"] == [{"name": "toy_001", "reason": "the file is empty"}]
    assert described["sizes"] == [[6, 20, 24], [6, 20, 24]]
    assert described["spacing_mm"] == [[4.0, 1.5, 1.0], [4.0, 1.5, 1.0]]
    assert described["target_spacing_mm"] == [4.0, 1.5, 1.0]
    (intensities,) = described["intensities"]
    kept = np.stack([anatomy(seed)[0] for seed in (2, 3, 4, 5)])
    assert intensities["channel"] == "MRI"
    assert (intensities["minimum"], intensities["maximum"]) == (kept.min(), kept.max())
    assert intensities["median"] == pytest.approx(np.median(kept), abs=5)


def test_headers_alone_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    msd.write(tmp_path / "data")
    truncate(tmp_path / "data/labelsTr/toy_002.nii.gz")
    answer = macl("inspect", tmp_path / "data", "--quick", "--json")
    described = json.loads(answer.out)
    assert (described["cases"], described["class_voxels"], described["refused"]) == (5, None, [])
    assert (described["class_cases"], described["intensities"]) == (None, None)
    assert "voxels in" not in macl("inspect", tmp_path / "data", "--quick").out


def odd_folder(folder: Path) -> Path:
    """Four sound cases and one for every fault."""
    image, label = anatomy(0)
    for name, seed in (("a", 1), ("b", 2), ("d", 4)):
        write_nifti(folder / f"{name}.nii.gz", anatomy(seed)[0], affine((1.0, 1.0, 4.0)))
        write_nifti(folder / f"{name}_seg.nii.gz", anatomy(seed)[1], affine((1.0, 1.0, 4.0)))
    write_nifti(folder / "twin.nii.gz", anatomy(2)[0], affine((4.0, 1.5, 1.5)))
    write_nifti(folder / "a_seg.nii.gz", np.zeros_like(label), affine((1.0, 1.0, 4.0)))
    faulty = {
        "moved": label[1:],
        "negative": label.astype(np.int16) - 1,
        "many": image - image.min(),
    }
    for name, broken in faulty.items():
        write_nifti(folder / f"{name}.nii.gz", image)
        write_nifti(folder / f"{name}_seg.nii.gz", broken)
    write_nifti(folder / "endless.nii.gz", np.where(image > 60, np.nan, image).astype(np.float32))
    write_nifti(folder / "series.nii.gz", np.stack([image, image + 1]))
    flip_bit(write_nifti(folder / "broken.nii.gz", image))
    write_nifti(folder / "orphan_seg.nii.gz", label)
    return folder


def test_what_is_broken_or_odd_is_listed_with_its_reason(tmp_path: Path) -> None:
    described = as_json(odd_folder(tmp_path / "data"))
    assert (described["cases"], described["labelled"]) == (4, 3)
    reasons = {refused["name"]: refused["reason"] for refused in described["refused"]}
    words = {
        "moved": "6 voxels against",
        "negative": "from -1 to 1",
        "many": "is it an image",
        "endless": "NaN or infinite",
        "series": "4D",
        "broken": "",
        "orphan": "a label without an image",
    }
    assert reasons.keys() == words.keys()
    for name, word in words.items():
        assert word in reasons[name]
    odd = {oddity["what"]: oddity["cases"] for oddity in described["oddities"]}
    expected = {
        "sagittal": ["twin"],
        "differ, from 1 to 1.5 mm": [],
        "same image under several patients": ["b", "twin"],
        "all background": ["a"],
    }
    assert len(odd) == len(expected)
    for words, cases in expected.items():
        assert [odd[what] for what in odd if words in what] == [cases]
    assert described["class_cases"] == [3, 2, 2]
    table = macl("inspect", tmp_path / "data").out
    assert all(name in table for name in reasons)
    assert "the label is all background: 1 case (a)" in table


def test_any_number_of_workers_finds_the_same(tmp_path: Path) -> None:
    odd_folder(tmp_path / "data")
    assert inspect(tmp_path / "data", workers=2) == inspect(tmp_path / "data", workers=1)


def test_a_store_is_counted_and_lists_who_was_refused(tmp_path: Path) -> None:
    acdc.write(tmp_path / "data", patients=2)
    write_nifti(
        tmp_path / "data/patient002/patient002_frame12.nii.gz", np.full((6, 20, 24), 7, np.int16)
    )
    prepare(tmp_path / "data", tmp_path / "store", workers=1)
    described = as_json(tmp_path / "store")
    expected = {
        "reader": "acdc",
        "cases": 3,
        "patients": 2,
        "labelled": 3,
        "modality": "MR",
        "slices": 18,
    }
    assert {key: described[key] for key in expected} == expected
    assert described["classes"] == ["background", "RV", "MYO", "LV"]
    labels = [anatomy(seed)[1] for seed in (101, 112, 201)]
    assert described["class_cases"] == [3, 3, 3, 0]
    assert described["class_voxels"] == [
        int(sum((label == value).sum() for label in labels)) for value in range(4)
    ]
    assert [refused["name"] for refused in described["refused"]] == ["patient002_frame12"]
    assert "constant" in described["refused"][0]["reason"]


def test_a_scan_is_described(tmp_path: Path) -> None:
    image = anatomy(0)[0]
    described = as_json(write_nifti(tmp_path / "a.nii.gz", image, affine((0.5, 0.75, 3.0))))
    assert (
        described["kind"],
        described["format"],
        described["orientation"],
        described["dtype"],
    ) == (
        "scan",
        "NIfTI",
        "LPS",
        "int16",
    )
    assert (described["size"], described["spacing_mm"]) == ([24, 20, 6], [0.5, 0.75, 3.0])
    assert described["range"] == [image.min(), image.max()]
    picture = as_json(write_itk(tmp_path / "a.png", image[0].astype(np.uint8)))
    assert (picture["format"], picture["spacing_mm"]) == ("PNG", None)
    dicom.write_series(tmp_path / "series")
    series = as_json(tmp_path / "series")
    assert (series["format"], series["modality"], series["size"]) == ("DICOM", "MR", [16, 12, 5])
    assert not {"quixote", "alonso", "1947"} & set(
        json.dumps(series).casefold().replace("^", " ").split()
    )


def test_a_run_is_described(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store")
    write_pretrained(tmp_path / "pretrained", store, steps=40)
    described = as_json(tmp_path / "pretrained")
    assert (
        described["kind"],
        described["finished"],
        described["cases"],
        described["patients"],
    ) == (
        "pretrain",
        True,
        3,
        3,
    )
    assert described["settings"]["method"] == "macl"
    assert described["last_log_line"]["step"] == 40
    assert "last log line" in macl("inspect", tmp_path / "pretrained").out
    assert "scores" not in described


def test_a_segmenter_is_described_by_its_scores(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store")
    write_unscored(tmp_path / "unscored", store, init="scratch")
    assert as_json(tmp_path / "unscored")["scores"] is None
    assert "macl evaluate" in macl("inspect", tmp_path / "unscored").out
    write_finetuned(tmp_path / "scored", store, init="scratch", shift=4)
    summary = json.loads((tmp_path / "scored" / "cases.summary.json").read_text())
    scores = as_json(tmp_path / "scored")["scores"]
    dice = summary["mean"]["dice"]["mean"]
    assert (scores["dice"], scores["cases"], scores["unit"]) == (dice, 3, "mm")
    shown = macl("inspect", tmp_path / "scored").out
    assert f"dice {dice:.6g}" in shown
    assert "augmentation" not in shown


@pytest.mark.parametrize("what", ["source", "store", "scan"])
def test_the_table_says_what_the_json_says(tmp_path: Path, what: str) -> None:
    paths = {
        "source": tmp_path / "data",
        "store": tmp_path / "store",
        "scan": tmp_path / "data/imagesTr/toy_001.nii.gz",
    }
    msd.write(tmp_path / "data")
    write_toy_store(tmp_path / "store")
    answer = macl("inspect", paths[what])
    assert answer.code == 0
    for key, value in inspect(paths[what]).items():
        if isinstance(value, str | int) and not isinstance(value, bool):
            line = next(
                line for line in answer.out.splitlines() if line.startswith(key.replace("_", " "))
            )
            assert line.split()[-1] == str(value).split()[-1]


@pytest.mark.parametrize("name", ["nowhere", "notes.txt", "empty", "broken.nii.gz"])
def test_what_is_unknown_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    truncate(write_nifti(tmp_path / "broken.nii.gz", anatomy(0)[0]))
    answer = macl("inspect", tmp_path / name, "--json")
    assert (answer.code, answer.out) == (1, "")
    assert len(answer.err.strip().splitlines()) == 1
    assert str(tmp_path / name) in answer.err
