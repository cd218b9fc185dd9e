"""Evaluate: truth from a store, a source or a folder; which cases are scored, and the means."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nibabel import nifti1

from fakes import chaos
from fakes.scans import anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.cli import main
from macl.data.store import Store
from macl.io.geometry import Geometry
from macl.io.volume import write_volume
from macl.metrics import Convention
from macl.preprocessing.orientation import choose_orientation, to_scan
from macl.records.predictions import PredictionsRecord, open_predictions
from macl.records.scores import read_rows, render
from macl.stages.evaluate import evaluate, values_of
from macl.stages.prepare import prepare
from macl.utils.errors import MaclError

UNKNOWN = Geometry(
    size=(1, 1, 1),
    spacing=(1, 1, 1),
    origin=(0, 0, 0),
    direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
    spacing_known=False,
)


def write_mask(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), known: bool = True) -> Path:
    size = array.shape[::-1]
    geometry = UNKNOWN.model_copy(update={"size": size, "spacing": spacing, "spacing_known": known})
    write_volume(path, array, geometry)
    return path


def box(shape: tuple[int, int, int], value: int, *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*side) for side in sides)] = value
    return mask


def summary_of(table: Path) -> dict[str, Any]:
    return json.loads(table.with_name(f"{table.stem}.summary.json").read_text())


# ---------------------------------------------------------------- the table by hand


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four cases of 4 × 8 × 10 voxels of 5 × 2 × 1 mm.

    Class 5 is shifted by a column in the first, missed in the second, invented in the third, and
    in neither mask of the fourth.
    """
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    shape, spacing = (4, 8, 10), (1.0, 2.0, 5.0)
    first, second = box(shape, 5, (1, 3), (2, 6), (2, 6)), box(shape, 5, (1, 3), (2, 6), (3, 7))
    nothing = np.zeros(shape, dtype=np.uint8)
    pairs = {
        "a": (first, second),
        "b": (first, nothing),
        "c": (nothing, first),
        "d": (nothing, nothing),
    }
    for case, (true, predicted) in pairs.items():
        always = box(shape, 2, (0, 1), (0, 2), (0, 2))
        write_mask(truth / f"{case}.nii.gz", true + always, spacing)
        write_mask(predictions / f"{case}.nii.gz", predicted + always, spacing)
    return predictions, truth


def test_strict_rows_and_means(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rows = evaluate(*folders, tmp_path / "metrics.csv")
    assert [(row.case, row.class_name) for row in rows] == [
        (case, name) for case in "abcd" for name in "25"
    ]
    found = {row.case: row for row in rows if row.class_name == "5"}
    assert [found[case].outcome for case in "abcd"] == [
        "scored",
        "missed",
        "invented",
        "both_empty",
    ]
    assert (found["a"].dice, found["a"].jaccard, found["a"].hd95) == pytest.approx((0.75, 0.6, 1.0))
    assert (found["a"].truth_voxels, found["a"].predicted_voxels, found["a"].shared_voxels) == (
        32,
        32,
        24,
    )
    diagonal = math.hypot(4 * 5, 8 * 2, 10 * 1)
    assert (found["b"].dice, found["b"].hd95, found["b"].asd) == pytest.approx(
        (0, diagonal, diagonal)
    )
    assert math.isnan(found["d"].dice)
    assert {row.unit for row in rows} == {"mm"}

    summary = summary_of(tmp_path / "metrics.csv")
    assert (summary["convention"], summary["unit"], summary["cases"]) == ("strict", "mm", 4)
    five = next(one for one in summary["classes"] if one["class"] == "5")
    assert five["dice"] == pytest.approx({"mean": 0.25, "sd": np.std([0.75, 0, 0], ddof=1), "n": 3})
    assert five["hd95"]["mean"] == pytest.approx((1 + 2 * diagonal) / 3)
    assert (five["both_empty"], five["missed"], five["invented"]) == (1, 1, 1)
    assert summary["mean"]["dice"]["mean"] == pytest.approx((1 + 0.25) / 2)
    assert summary["mean"]["dice"]["sd"] == pytest.approx(np.std([0.875, 0.5, 0.5, 1.0], ddof=1))
    shown = render(summary)
    assert "25.0 ± 43.3" in shown
    assert "invented" in shown


def test_the_file_says_what_the_rows_say(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rows = evaluate(*folders, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        "case", "class", "dice", "jaccard", "hd95", "asd", "unit", "outcome",
        "truth_voxels", "predicted_voxels", "shared_voxels", "slices",
    ]  # fmt: skip
    assert [line["dice"] for line in lines if line["outcome"] == "both_empty"] == [""]
    again = read_rows(tmp_path / "metrics.csv")
    for one, other in zip(rows, again, strict=True):
        assert (one.case, one.class_name, one.outcome, one.slices) == (
            other.case,
            other.class_name,
            other.outcome,
            4,
        )
        assert one.asd == pytest.approx(other.asd, abs=1e-6, nan_ok=True)


def test_paper_pools_dice_and_forgives_misses(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rows = evaluate(*folders, tmp_path / "metrics.csv", convention="paper")
    assert {row.unit for row in rows} == {"pixel"}
    summary = summary_of(tmp_path / "metrics.csv")
    five = next(one for one in summary["classes"] if one["class"] == "5")
    # Pooled over the four cases: 24 shared of 64 true and 64 predicted voxels.
    assert five["dice"] == {"mean": pytest.approx(2 * 24 / 128), "sd": None, "n": 16}
    assert five["jaccard"]["mean"] == pytest.approx(24 / 104)
    # Two of 16 slices hold both, each 1 pixel off at its worst; the other 14 count 0, those where
    # the class is missed or invented too.
    assert five["hd95"]["mean"] == pytest.approx(2 / 16)
    assert five["missed"] == 1
    assert "centre crop" in summary["definitions"]["surface"]


def test_perfect_masks_score_perfectly_in_both_conventions(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    conventions: tuple[Convention, ...] = ("strict", "paper")
    for convention in conventions:
        evaluate(folders[1], folders[1], tmp_path / "metrics.csv", convention=convention)
        mean = summary_of(tmp_path / "metrics.csv")["mean"]
        assert [mean[key]["mean"] for key in ("dice", "jaccard", "hd95", "asd")] == [
            1.0,
            1.0,
            0.0,
            0.0,
        ]


# ---------------------------------------------------------------- kinds of truth


def test_a_store_gives_its_truth_in_the_scans_own_values_and_orientation(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2, slices=3, side=32)
    store = _turn(store, values=(0, 40, 80))
    predictions = tmp_path / "predictions"
    for name in store.cases:
        # On the scan's grid, written by another library: flipped where the orientation flips.
        label = np.asarray([0, 40, 80], dtype=np.uint8)[store.read(name, "label")][::-1, :, ::-1]
        case = store.case(name)
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(label))
        image.SetSpacing(case.geometry.spacing)
        image.SetDirection(case.geometry.direction)
        predictions.mkdir(exist_ok=True)
        SimpleITK.WriteImage(image, str(predictions / f"{name}.nii.gz"))
    rows = evaluate(predictions, store.path, tmp_path / "metrics.csv")
    assert [row.class_name for row in rows[:2]] == ["ring", "disc"]
    assert all(row.dice == 1.0 and row.hd95 == 0.0 and row.unit == "mm" for row in rows)


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (3, 1, 2)])
def test_a_store_of_resampled_scans_is_scored_on_the_scans_grid(
    factors: tuple[int, int, int], tmp_path: Path
) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=3, side=32)
    truth = store.read("patient001", "label")
    for axis, factor in enumerate(factors):
        truth = np.repeat(truth, factor, axis=axis)
    _add_truth(store, "patient001", truth, factors)
    store = Store.open(store.path)
    geometry = store.case("patient001").geometry
    write_volume(tmp_path / "predictions" / "patient001.nii.gz", truth, geometry)
    rows = evaluate(tmp_path / "predictions", store.path, tmp_path / "metrics.csv")
    assert all(row.dice == 1.0 for row in rows)
    assert rows[0].truth_voxels == np.count_nonzero(truth == 1)


def test_a_source_gives_its_labels_and_class_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "Dataset001_Toy"
    random = np.random.default_rng(0)
    for number in range(3):
        mask = box((4, 10, 12), 2, (1, 3), (2, 8), (number + 1, number + 6))
        write_mask(source / "labelsTr" / f"toy_{number}.nii.gz", mask)
        image = (mask * 50 + random.integers(0, 20, mask.shape)).astype(np.int16)
        write_mask(source / "imagesTr" / f"toy_{number}_0000.nii.gz", image)
        write_mask(tmp_path / "predictions" / f"toy_{number}.nii.gz", mask)
    about = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (source / "dataset.json").write_text(json.dumps(about))
    rows = evaluate(tmp_path / "predictions", source, tmp_path / "metrics.csv")
    assert [(row.class_name, row.outcome) for row in rows[:2]] == [
        ("left", "both_empty"),
        ("right", "scored"),
    ]
    assert "nnunet_raw" in capsys.readouterr().err


def test_a_source_of_label_pictures_scores_like_its_store(tmp_path: Path) -> None:
    """CHAOS: pictures without a spacing label DICOM slices, and several values are one organ."""
    chaos.write(tmp_path / "source")
    prepare(tmp_path / "source", tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    for name, case in store.cases.items():
        if case.labelled:
            label = to_scan(store.read(name, "label"), case.orientation)
            mask = np.roll(np.asarray(store.index.label_values, np.uint8)[label], 2, axis=1)
            write_volume(tmp_path / "masks" / f"{name}.nii.gz", mask, case.geometry)
            mask[mask == 63] = 60  # another value of the liver's
            write_volume(tmp_path / "other" / f"{name}.nii.gz", mask, case.geometry)
    of_store = evaluate(tmp_path / "masks", tmp_path / "store", tmp_path / "a.csv")
    of_source = evaluate(tmp_path / "other", tmp_path / "source", tmp_path / "b.csv")
    assert of_source == of_store
    scored = [row for row in of_source if row.outcome == "scored"]
    assert len(scored) == 8
    assert {row.unit for row in scored} == {"mm"}
    assert all(0 < row.dice < 1 for row in scored)


def test_a_source_is_scored_in_the_plane_of_its_layout(tmp_path: Path) -> None:
    """KiTS: headers say sagittal, and the slices are axial."""
    matrix = np.array([[0, 0, -0.7, 0], [0, -2.0, 0, 0], [-0.5, 0, 0, 0], [0, 0, 0, 1.0]])
    for number in range(2):
        image, label = anatomy(number, (20, 24, 12))
        folder = tmp_path / "source" / f"case_0000{number}"
        write_nifti(folder / "imaging.nii.gz", image, matrix)
        write_nifti(folder / "segmentation.nii.gz", label, matrix)
        mask = np.roll(label, (1, 1, 2), (0, 1, 2))
        write_nifti(tmp_path / "masks" / f"case_0000{number}.nii.gz", mask, matrix)
    prepare(tmp_path / "source", tmp_path / "store", workers=1)
    for truth in ("store", "source"):
        evaluate(
            tmp_path / "masks", tmp_path / truth, tmp_path / f"{truth}.csv", convention="paper"
        )
    of_store, of_source = (read_rows(tmp_path / f"{truth}.csv") for truth in ("store", "source"))
    assert of_store == of_source
    assert len(of_store) == 4


def test_images_beside_their_labels_are_not_taken_for_the_truth(tmp_path: Path) -> None:
    mask = box((3, 9, 9), 1, (1, 2), (2, 7), (2, 7))
    noise = np.random.default_rng(0).integers(0, 30, mask.shape).astype(np.uint8)
    write_mask(tmp_path / "scans" / "a.nii.gz", noise)
    write_mask(tmp_path / "scans" / "a_seg.nii.gz", mask)
    write_mask(tmp_path / "predictions" / "a.nii.gz", mask)
    rows = evaluate(tmp_path / "predictions", tmp_path / "scans", tmp_path / "metrics.csv")
    assert [(row.class_name, row.dice) for row in rows] == [("1", 1.0)]


def test_classes_are_named_by_the_record_of_the_predictions(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    record = PredictionsRecord(
        weights=("0",), classes=("nothing", "wall", "blood"), label_values=(0, 2, 5), cases=("a",)
    )
    masks = tmp_path / "ours"
    open_predictions(masks, record)
    shutil.copy(folders[0] / "a.nii.gz", masks)
    rows = evaluate(masks, folders[1], tmp_path / "metrics.csv")
    assert [row.class_name for row in rows] == ["wall", "blood"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_are_scored_too(
    suffix: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    image = SimpleITK.ReadImage(str(folders[1] / "a.nii.gz"))
    (tmp_path / "other").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "other" / f"a{suffix}"))
    assert all(
        row.dice == 1.0
        for row in evaluate(tmp_path / "other", folders[1], tmp_path / "metrics.csv")
    )


def test_pictures_are_scored_in_voxels(tmp_path: Path) -> None:
    for folder, columns in (("predictions", (3, 9)), ("truth", (2, 8))):
        (tmp_path / folder).mkdir()
        picture = SimpleITK.GetImageFromArray(box((1, 12, 12), 255, (0, 1), (2, 9), columns)[0])
        SimpleITK.WriteImage(picture, str(tmp_path / folder / "mole.png"))
    (row,) = evaluate(tmp_path / "predictions", tmp_path / "truth", tmp_path / "metrics.csv")
    assert (row.class_name, row.unit, row.hd95, row.slices) == ("255", "voxel", 1.0, 1)


def test_distances_in_different_units_have_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = box((3, 9, 9), 1, (1, 2), (2, 7), (2, 7))
    for folder in ("predictions", "truth"):
        write_mask(tmp_path / folder / "a.nii.gz", mask)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask[1]), str(tmp_path / folder / "b.png"))
    rows = evaluate(tmp_path / "predictions", tmp_path / "truth", tmp_path / "metrics.csv")
    assert [row.unit for row in rows] == ["mm", "voxel"]
    summary = summary_of(tmp_path / "metrics.csv")
    assert (summary["unit"], summary["mean"]["dice"]["mean"], summary["mean"]["hd95"]["mean"]) == (
        "mixed",
        1.0,
        None,
    )
    assert "no mean" in capsys.readouterr().err


# ---------------------------------------------------------------- who is scored, and mistakes


def test_cases_without_a_counterpart_are_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[0] / "b.nii.gz").unlink()
    (folders[1] / "c.nii.gz").unlink()
    rows = evaluate(*folders, tmp_path / "metrics.csv")
    assert {row.case for row in rows} == {"a", "d"}
    printed = capsys.readouterr().err
    assert "Masks without a truth are not scored: c." in printed
    assert "Cases without a mask are not scored: b." in printed


def test_only_cases_that_were_asked_for_are_missed(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = PredictionsRecord(
        weights=("0",), classes=("0", "2", "5"), label_values=(0, 2, 5), cases=("a", "b")
    )
    masks = tmp_path / "ours"
    open_predictions(masks, record)
    shutil.copy(folders[0] / "a.nii.gz", masks)
    evaluate(masks, folders[1], tmp_path / "metrics.csv")
    printed = capsys.readouterr().err
    assert "Cases that predictions.json lists without a mask are not scored: b." in printed


def test_mistakes_are_named_and_nothing_is_written(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, truth = folders
    out = tmp_path / "metrics.csv"
    (tmp_path / "none").mkdir()
    shape = (4, 8, 10)
    write_mask(tmp_path / "other" / "z.nii.gz", box(shape, 1, (0, 1), (0, 2), (0, 2)))
    write_mask(tmp_path / "grid" / "a.nii.gz", np.zeros(shape, np.uint8), (1.0, 2.0, 6.0))
    write_mask(tmp_path / "size" / "a.nii.gz", np.zeros((4, 8, 11), np.uint8), (1.0, 2.0, 5.0))
    broken = tmp_path / "broken" / "a.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes((predictions / "a.nii.gz").read_bytes()[:60])
    shutil.copytree(predictions, tmp_path / "twice")
    write_mask(tmp_path / "twice" / "a.nrrd", np.zeros(shape, np.uint8), (1.0, 2.0, 5.0))
    for masks, sentence in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "none", "No mask in"),
        (tmp_path / "other", r"No mask in .*\(z\).*\(a, b, c, d\)"),
        (tmp_path / "grid", "another grid .*spacing"),
        (tmp_path / "size", "another grid .*voxels"),
        (broken, "is not a folder"),
        (broken.parent, "cannot be used: .*truncated"),
        (tmp_path / "twice", "two masks"),
    ):
        with pytest.raises(MaclError, match=sentence):
            evaluate(masks, truth, out)
    with pytest.raises(MaclError, match="does not exist"):
        evaluate(predictions, tmp_path / "missing", out)
    with pytest.raises(MaclError, match=r"\.csv"):
        evaluate(predictions, truth, tmp_path / "metrics.txt")
    assert not list(tmp_path.glob("*metrics*"))


def test_a_value_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=3, side=32)
    label = store.read("patient001", "label")
    label[0, 0, 0] = 7
    write_volume(
        tmp_path / "predictions" / "patient001.nii.gz", label, store.case("patient001").geometry
    )
    with pytest.raises(MaclError, match=r"values \[7\] .* not among the classes \[0, 1, 2\]"):
        evaluate(tmp_path / "predictions", store.path, tmp_path / "metrics.csv")


def test_probabilities_and_records_are_no_masks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_mask(folders[0] / "a.probabilities.nii.gz", np.zeros((4, 8, 10), np.float32))
    (folders[0] / ".writing-1-a.nii.gz").write_bytes(b"half")
    assert len({row.case for row in evaluate(*folders, tmp_path / "metrics.csv")}) == 4


def test_values_of_a_label() -> None:
    label = np.random.default_rng(0).integers(0, 900, (3, 20, 20)).astype(np.int32)
    assert values_of(label) == set(np.unique(label).tolist())


def test_the_command_line(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "metrics.csv"
    command = [
        sys.executable,
        "-m",
        "macl",
        "evaluate",
        *map(str, folders),
        "--out",
        str(out),
        "--convention",
        "paper",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "convention paper (Dice pooled)" in done.stdout
    assert out.is_file()
    monkeypatch.setattr(sys, "argv", ["macl", "evaluate", str(tmp_path / "missing"), *command[5:]])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out, told.err.count("\n")) == (1, "", 1)
    assert told.err.startswith("macl: ")


# ---------------------------------------------------------------- stores, changed


def _turn(store: Store, values: tuple[int, ...]) -> Store:
    """Declare that the scans run from right to left and from top to bottom, with other labels."""
    index = store.index
    cases = []
    for case in index.cases:
        geometry = case.geometry.model_copy(
            update={"direction": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}
        )
        cases.append(
            case.model_copy(
                update={"geometry": geometry, "orientation": choose_orientation(geometry)}
            )
        )
        label = store.read(case.name, "label")
        assert (to_scan(label, choose_orientation(geometry)) == label[::-1, :, ::-1]).all()
    turned = index.model_copy(update={"cases": tuple(cases), "label_values": values})
    (store.path / "store.json").write_text(turned.model_dump_json())
    return Store.open(store.path)


def _add_truth(store: Store, name: str, truth: np.ndarray, factors: tuple[int, int, int]) -> None:
    """Declare that a case's scan, whose label is `truth`, has so many times its voxels."""
    import blosc2

    case = store.case(name)
    entry = case.arrays["label"].model_copy(
        update={"file": f"cases/{name}.truth.b2nd", "shape": truth.shape}
    )
    values: Any = np.ascontiguousarray(truth)
    blosc2.asarray(values, urlpath=str(store.path / entry.file), mode="w")
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    entry = entry.model_copy(update={"sha256": digest, "file_sha256": ""})
    size = truth.shape[::-1]
    geometry = case.geometry.model_copy(
        update={
            "size": size,
            "spacing": tuple(
                mm / factor for mm, factor in zip(case.geometry.spacing, factors[::-1], strict=True)
            ),
        }
    )
    changed = case.model_copy(
        update={
            "arrays": {**case.arrays, "truth": entry},
            "geometry": geometry,
            "orientation": choose_orientation(geometry, "axial"),
        }
    )
    cases = tuple(changed if one.name == name else one for one in store.index.cases)
    (store.path / "store.json").write_text(
        store.index.model_copy(update={"cases": cases}).model_dump_json()
    )


def test_the_written_mask_is_what_nibabel_reads(tmp_path: Path) -> None:
    """The masks of these tests are read back by a library that did not write them."""
    mask = box((4, 8, 10), 5, (1, 3), (2, 6), (2, 6))
    path = write_mask(tmp_path / "a.nii.gz", mask, (1.0, 2.0, 5.0))
    image = nifti1.load(path)
    np.testing.assert_array_equal(image.get_fdata().T, mask)
    assert image.header.get_zooms() == (1.0, 2.0, 5.0)
