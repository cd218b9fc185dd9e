"""Predict: masks on the scan's own grid, whatever its axes and format; ensembles; what is refused.

Everything about a single run holds for segmenters of slices and of volumes.
"""

from __future__ import annotations

import locale
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nibabel import nifti1

from fakes.command import macl
from fakes.threshold_run import BRIGHTNESS, LABEL_VALUES, known_case, write_threshold_run
from fakes.toy_store import write_toy_store
from macl.cli import main
from macl.config.settings import PrepareSettings
from macl.records.predictions import lock_predictions, read_predictions
from macl.records.runs import WEIGHTS
from macl.records.scores import read_rows
from macl.stages.predict import predict
from macl.utils import checkpoint
from macl.utils.errors import MaclError


def rotation(x_degrees: float, z_degrees: float) -> np.ndarray:
    x, z = math.radians(x_degrees), math.radians(z_degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return about_z @ about_x


GRIDS = {
    "axial": ((7, 40, 50), (0.7, 0.9, 5.0), np.eye(3)),
    "flipped": ((7, 40, 50), (0.7, 0.7, 5.0), np.diag([-1.0, -1.0, 1.0])),
    "left-handed": ((7, 40, 28), (1.0, 1.0, 4.0), np.diag([1.0, -1.0, 1.0])),
    "oblique": ((9, 30, 37), (0.8, 0.8, 3.3), rotation(17, -31)),
    "sagittal": ((11, 36, 29), (0.9, 1.1, 6.0), np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])),
    "coronal": ((6, 33, 41), (1.2, 1.2, 7.0), np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
    "isotropic": ((20, 21, 22), (1.0, 1.0, 1.0), np.eye(3)),
}


def write_scan(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), direction=None) -> Path:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-31.5, 12.25, 104.0))
    image.SetDirection((np.eye(3) if direction is None else direction).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=path.suffix != ".nii")
    return path


def assert_same_grid(mask: Path, scan: Path) -> None:
    ours, theirs = SimpleITK.ReadImage(str(mask)), SimpleITK.ReadImage(str(scan))
    assert ours.GetSize() == theirs.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(
            getattr(ours, name)(), getattr(theirs, name)(), rtol=1e-5, atol=1e-5
        )
    if ".nii" in scan.name:
        first, second = nifti1.load(mask), nifti1.load(scan)
        assert first.shape == second.shape
        np.testing.assert_allclose(first.affine, second.affine, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(first.header.get_zooms(), second.header.get_zooms(), rtol=1e-6)
        np.testing.assert_allclose(
            first.header.get_qform(), second.header.get_qform(), rtol=1e-4, atol=1e-3
        )


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A segmenter of slices or of volumes."""
    if request.param == 2:
        return write_threshold_run(tmp_path / "run")
    return write_threshold_run(tmp_path / "run", dims=3, size=(8, 32, 16))


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mask_lies_on_its_scans_own_grid(grid: str, run: Path, tmp_path: Path) -> None:
    shape, spacing, direction = GRIDS[grid]
    image, label = known_case(shape)
    scan = write_scan(tmp_path / "scan.nii.gz", image, spacing, direction)
    (mask,) = predict([run, scan], tmp_path / "out")
    assert mask.name == "scan.nii.gz"
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask))), label
    )
    assert_same_grid(mask, scan)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_a_mask_has_its_scans_own_format(suffix: str, run: Path, tmp_path: Path) -> None:
    shape, spacing, direction = GRIDS["oblique"]
    image, label = known_case(shape, seed=1)
    scan = write_scan(tmp_path / f"scan{suffix}", image, spacing, direction)
    (mask,) = predict([run, scan], tmp_path / "out")
    assert mask.name == f"scan{suffix}"
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask))), label
    )
    assert_same_grid(mask, scan)


def test_a_picture_becomes_a_picture(run: Path, tmp_path: Path) -> None:
    image, label = known_case((1, 45, 61))
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray((image[0] // 2).astype(np.uint8)), str(tmp_path / "photo.png")
    )
    (mask,) = predict([run, tmp_path / "photo.png"], tmp_path / "out")
    assert mask.name == "photo.png"
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask))), label[0]
    )


@pytest.mark.parametrize("grid", ["oblique", "sagittal"])
@pytest.mark.parametrize(
    ("dims", "spacing_mm"), [(2, 0.6), (3, 0.6), (3, (2.0, 0.6, 0.7)), (3, (1.5, 1.5, 1.5))]
)
def test_scans_resampled_for_the_network_come_back_to_their_grid(
    dims: int, spacing_mm: float | tuple[float, float, float], grid: str, tmp_path: Path
) -> None:
    shape, spacing, direction = GRIDS[grid]
    image, label = known_case(shape)
    prepared = PrepareSettings(normalisation="clip_zscore", spacing_mm=spacing_mm)
    run = write_threshold_run(tmp_path / "run", prepared=prepared, dims=dims)
    scan = write_scan(tmp_path / "scan.nii.gz", image, spacing, direction)
    (mask,) = predict([run, scan], tmp_path / "out")
    assert_same_grid(mask, scan)
    predicted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask)))
    # Edges are blurred by the interpolation there and back; a flip or shift would cost far more.
    assert np.mean(predicted == label) > (0.93 if spacing_mm == 0.6 else 0.85)


def test_probabilities_sum_to_one_and_agree_with_the_mask(run: Path, tmp_path: Path) -> None:
    shape, spacing, direction = GRIDS["sagittal"]
    scan = write_scan(tmp_path / "scan.nii.gz", known_case(shape)[0], spacing, direction)
    (mask,) = predict([run, scan], tmp_path / "out", probabilities=True)
    probabilities = nifti1.load(tmp_path / "out" / "scan.probabilities.nii.gz")
    values = probabilities.get_fdata()
    assert values.shape == (*shape[::-1], 3)
    np.testing.assert_allclose(values.sum(axis=-1), 1.0, atol=1e-4)
    np.testing.assert_array_equal(
        np.asarray(LABEL_VALUES)[values.argmax(axis=-1)], nifti1.load(mask).get_fdata()
    )
    np.testing.assert_allclose(probabilities.affine, nifti1.load(scan).affine, atol=1e-4)


def test_dimensions_windows_and_batches_change_nothing(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    masks = []
    for number, (size, batch_size) in enumerate(
        ((16, 1), (32, 5), (64, 16), ((2, 16, 16), None), ((8, 32, 16), 1), (16, 3))
    ):
        dims = 2 if number < 3 else 3
        run = write_threshold_run(tmp_path / f"run{number}", size=size, dims=dims)
        masks += predict([run, scan], tmp_path / f"out{number}", batch_size=batch_size)
    assert len({nifti1.load(mask).get_fdata().tobytes() for mask in masks}) == 1


def test_masks_are_of_the_smallest_type_that_holds_the_label_values(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    for values, dtype in (((0, 3, 9), np.uint8), ((0, 3, 900), np.uint16)):
        run = write_threshold_run(tmp_path / f"run{values[-1]}", label_values=values)
        (mask,) = predict([run, scan], tmp_path / f"out{values[-1]}")
        image = nifti1.load(mask)
        assert image.get_data_dtype() == dtype
        assert {*np.unique(np.asarray(image.dataobj)).tolist()} == {*values}


def _args(grid: str) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    shape, spacing, direction = GRIDS[grid]
    return known_case(shape)[0], spacing, direction


# ---------------------------------------------------------------- folders


def test_a_folder_skips_what_is_done_and_goes_on_past_a_broken_scan(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_scan(folder / f"{name}.nii.gz", *_args("axial"))
    whole = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        MaclError, match=r"1 of 3 scans could not be segmented \(b: it is truncated"
    ):
        predict([run, folder], out)
    assert sorted(path.name for path in out.iterdir()) == [
        "a.nii.gz",
        "c.nii.gz",
        "predictions.json",
    ]
    first = (out / "a.nii.gz").stat().st_mtime_ns
    (folder / "b.nii.gz").write_bytes(whole)
    capsys.readouterr()
    masks = predict([run, folder], out)
    assert [mask.name for mask in masks] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (out / "a.nii.gz").stat().st_mtime_ns == first
    assert "2 of 3 scans already have their mask" in capsys.readouterr().err
    record = read_predictions(out)
    assert record is not None
    assert record.cases == ("a", "b", "c")


def test_where_all_scans_fail_for_one_reason_it_is_printed_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    for name in ("a", "b", "c"):
        write_scan(folder / f"{name}.nii.gz", np.zeros((7, 40, 50), np.int16))
    with pytest.raises(MaclError) as raised:
        predict([run, folder], tmp_path / "out")
    assert str(raised.value) == (
        "3 of 3 scans could not be segmented (a, b, c: it is constant: every voxel is 0): correct "
        "them and run this again."
    )
    assert "constant" not in capsys.readouterr().err


def test_reasons_are_printed_as_soon_as_scans_differ(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    for name in ("a", "c", "f"):
        write_scan(folder / f"{name}.nii.gz", np.zeros((7, 40, 50), np.int16))
    for name in ("b", "d"):
        write_scan(folder / f"{name}.nii.gz", *_args("axial"))
    write_scan(folder / "e.nii.gz", np.full((7, 40, 50), np.nan, np.float32))
    with pytest.raises(MaclError) as raised:
        predict([run, folder], tmp_path / "out")
    error = str(raised.value)
    assert error.startswith("4 of 6 scans could not be segmented (")
    assert "a, c, f: it is constant: every voxel is 0" in error
    assert "; e: 14000 of its 14000 voxels are NaN" in error
    printed = capsys.readouterr().err
    assert printed.count("Not segmented: a (it is constant: every voxel is 0).") == 1
    assert printed.count("is constant") == 1
    assert printed.count("Not segmented: e (14000 of its 14000 voxels are NaN") == 1


def test_a_mask_of_another_scan_of_its_name_is_neither_kept_nor_replaced(
    run: Path, tmp_path: Path
) -> None:
    array, spacing, direction = _args("axial")
    first = write_scan(tmp_path / "monday" / "scan.nii.gz", array, spacing, direction)
    second = write_scan(tmp_path / "tuesday" / "scan.nii.gz", array[::-1], spacing, direction)
    out = tmp_path / "out"
    predict([run, first], out)
    mask = (out / "scan.nii.gz").read_bytes()
    with pytest.raises(MaclError, match=r"masks of other scans of these names.*\(scan\)"):
        predict([run, second.parent], out)
    assert (out / "scan.nii.gz").read_bytes() == mask
    (out / "scan.nii.gz").unlink()
    predict([run, second], out)
    (of_second,) = predict([run, second], tmp_path / "apart")
    assert (out / "scan.nii.gz").read_bytes() == of_second.read_bytes() != mask


def test_a_mask_without_probabilities_is_made_again(run: Path, tmp_path: Path) -> None:
    scan, out = write_scan(tmp_path / "scan.nii.gz", *_args("axial")), tmp_path / "out"
    predict([run, scan], out)
    predict([run, scan], out, probabilities=True)
    assert (out / "scan.probabilities.nii.gz").is_file()


def test_two_commands_do_not_write_the_same_folder(run: Path, tmp_path: Path) -> None:
    scan, out = write_scan(tmp_path / "scan.nii.gz", *_args("axial")), tmp_path / "out"
    with lock_predictions(out), pytest.raises(MaclError, match="Another `macl predict` is writing"):
        predict([run, scan], out)
    assert not out.exists()
    predict([run, scan], out)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json", "scan.nii.gz"]


def test_masks_are_not_written_among_the_scans(run: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "scans" / "scan.nii.gz", *_args("axial"))
    with pytest.raises(MaclError, match="lies within the scans"):
        predict([run, tmp_path / "scans"], tmp_path / "scans" / "masks")
    assert not (tmp_path / "scans" / "masks").exists()


def test_channels_of_equal_names_in_two_folders_are_two_scans(run: Path, tmp_path: Path) -> None:
    for site in ("site1", "site2"):
        write_scan(tmp_path / "scans" / site / "scan_0000.nii.gz", *_args("axial"))
    predict([run, tmp_path / "scans"], tmp_path / "out")
    record = read_predictions(tmp_path / "out")
    assert record
    assert record.cases == ("site1_scan", "site2_scan")
    assert all((tmp_path / "out" / f"{name}.nii.gz").is_file() for name in record.cases)


def test_two_files_of_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    for suffix in (".nii.gz", ".nrrd"):
        write_scan(tmp_path / "scans" / f"scan_0000{suffix}", *_args("axial"))
    with pytest.raises(MaclError, match="scan"):
        predict([run, tmp_path / "scans"], tmp_path / "out")


def test_failures_are_counted_among_the_scans_of_the_call(run: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz", *_args("axial"))
    predict([run, tmp_path / "a.nii.gz"], tmp_path / "out")
    write_scan(tmp_path / "b.nii.gz", np.zeros((5, 20, 20), np.int16))
    with pytest.raises(MaclError, match="1 of 1 scans could not be segmented"):
        predict([run, tmp_path / "b.nii.gz"], tmp_path / "out")


def test_arguments_that_mean_nothing_are_refused(run: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    with pytest.raises(MaclError, match="name one of test, all"):
        predict([run, scan], tmp_path / "out", cases="tests")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaclError, match="no device 'cuda:0'"):
        predict([run, scan], tmp_path / "out", device="cuda:0")
    with pytest.raises(MaclError, match="take 1 or more"):
        predict([run, scan], tmp_path / "out", batch_size=-1)


# ---------------------------------------------------------------- stores and ensembles


@pytest.mark.parametrize(("dims", "size"), [(2, 32), (3, (4, 16, 32))])
def test_of_a_store_the_test_cases_are_segmented(
    dims: int, size: int | tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_toy_store(tmp_path / "store", patients=4, slices=5, side=40)
    run = write_threshold_run(
        tmp_path / "run",
        dims=dims,
        size=size,
        test_cases=("patient002", "patient004"),
        cases=("patient001",),
    )
    masks = predict([run, store.path], tmp_path / "test")
    assert [mask.name for mask in masks] == ["patient002.nii.gz", "patient004.nii.gz"]
    stored = store.read("patient002")[0].astype(float)
    numbers = store.case("patient002").normalisation
    normalised = (stored - numbers.mean[0]) / numbers.deviation[0]
    expected = np.where(normalised > 1.001, 9, np.where(normalised > 0, 3, 0))
    predicted = nifti1.load(masks[0]).get_fdata().T
    assert (
        np.mean(predicted == expected) > 0.999
    )  # BatchNorm's epsilon moves the threshold by a hair
    capsys.readouterr()
    assert len(predict([run, store.path], tmp_path / "all", cases="all")) == 4
    assert "trained on 1 of these cases" in capsys.readouterr().err


def test_a_segmenter_of_volumes_goes_from_a_store_to_scores_on_the_command_line(
    tmp_path: Path,
) -> None:
    store = write_toy_store(tmp_path / "store", patients=3, slices=5, side=40)
    run = write_threshold_run(
        tmp_path / "run",
        dims=3,
        size=(4, 16, 32),
        test_cases=("patient002", "patient003"),
        label_values=store.index.label_values,
    )
    out = tmp_path / "masks"
    for arguments in (
        ("predict", run, store.path, "--out", out, "--batch-size", "2"),
        ("evaluate", out, store.path, "--out", tmp_path / "scores.csv"),
    ):
        answer = macl(*arguments)
        assert answer.code == 0, answer.err
    rows = read_rows(tmp_path / "scores.csv")
    assert {row.case for row in rows} == {"patient002", "patient003"}
    for row in rows:
        assert row.truth_voxels == np.count_nonzero(
            store.read(row.case, "label") == store.index.classes.index(row.class_name)
        )


@pytest.mark.parametrize(
    "sizes", [(16, 32), ((4, 16, 16), (4, 16, 16)), (16, (4, 32, 16)), ((2, 16, 16), (4, 32, 16))]
)
def test_several_runs_are_averaged(sizes: tuple, tmp_path: Path) -> None:
    runs = [
        write_threshold_run(
            tmp_path / f"run{number}", size=size, dims=2 if isinstance(size, int) else 3
        )
        for number, size in enumerate(sizes)
    ]
    weights = checkpoint.read(runs[1] / WEIGHTS)
    weights.tensors["head.bias"][1] += 8.0  # sure of class 1
    checkpoint.write(runs[1] / WEIGHTS, weights.tensors, weights.about)
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    values = []
    for name, ensemble in (("first", runs[:1]), ("second", runs[1:]), ("both", runs)):
        predict([*ensemble, scan], tmp_path / name, probabilities=True)
        values.append(nifti1.load(tmp_path / name / "scan.probabilities.nii.gz").get_fdata())
    np.testing.assert_allclose(values[2], (values[0] + values[1]) / 2, atol=1e-5)
    assert np.abs(values[0] - values[1]).max() > 0.1
    record = read_predictions(tmp_path / "both")
    assert record is not None
    assert len(set(record.weights)) == 2


# ---------------------------------------------------------------- mistakes


def test_an_ensemble_must_agree(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    first = write_threshold_run(tmp_path / "first")
    others = {
        "classes": write_threshold_run(
            tmp_path / "classes", classes=("background", "left", "right")
        ),
        "settings of prepare": write_threshold_run(
            tmp_path / "prepared", prepared=PrepareSettings(normalisation="zscore", spacing_mm=2.0)
        ),
        "channels": write_threshold_run(tmp_path / "channels", channels=("T1", "T2")),
    }
    for what, other in others.items():
        with pytest.raises(MaclError, match=what):
            predict([first, other, scan], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_is_refused_if_it_holds_something_else(run: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scans" / "scan.nii.gz", *_args("axial"))
    before = scan.read_bytes()
    with pytest.raises(MaclError, match="not predictions"):
        predict([run, scan], tmp_path / "scans")
    assert [path.read_bytes() for path in (tmp_path / "scans").iterdir()] == [before]
    predict([run, scan], tmp_path / "out")
    other = write_threshold_run(
        tmp_path / "other", mirror_axes=(), classes=("background", "wall", "core")
    )
    with pytest.raises(MaclError, match="other runs"):
        predict([other, scan], tmp_path / "out")


def test_what_cannot_be_segmented_is_named(run: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", *_args("axial"))
    pretrained = write_threshold_run(tmp_path / "pretrained", kind="pretrain")
    unfinished = write_threshold_run(tmp_path / "unfinished", finished=False)
    store = write_toy_store(tmp_path / "store", patients=2, slices=2, side=32)
    (tmp_path / "empty").mkdir()
    twin = write_scan(tmp_path / "twin" / "scan.nii.gz", *_args("axial"))
    for paths, sentence in (
        ([scan], "is not a run"),
        ([run], "nothing to segment"),
        ([pretrained, scan], "pre-training run"),
        ([unfinished, scan], "not finished"),
        ([run, tmp_path / "missing.nii.gz"], "does not exist"),
        ([run, scan, run], "runs first"),
        ([run, scan, twin], "Two scans are called 'scan'"),
        ([run, store.path], "no test cases"),
        ([run, tmp_path / "empty"], "holds no scans"),
    ):
        with pytest.raises(MaclError, match=sentence):
            predict(paths, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    other = write_threshold_run(
        tmp_path / "resampled", prepared=PrepareSettings(normalisation="zscore", spacing_mm=2)
    )
    with pytest.raises(
        MaclError, match=r"differ from those of the run's store \(spacing_mm None, not 2\.0\)"
    ):
        predict([other, store.path], tmp_path / "out", cases="all")


def test_a_scan_with_the_wrong_number_of_channels_is_refused(run: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.nii.gz"
    nifti1.save(
        nifti1.Nifti1Image(np.stack([BRIGHTNESS[np.eye(3, dtype=int)][None]] * 2, -1), np.eye(4)),
        two,
    )
    with pytest.raises(MaclError, match="two: it is 4D"):
        predict([run, two], tmp_path / "out")


def test_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shape, spacing, direction = GRIDS["coronal"]
    image, label = known_case(shape)
    scan = write_scan(tmp_path / "scan.nii.gz", image, spacing, direction)
    arguments = ["predict", str(run), str(scan), "--probabilities", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "macl", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(list((tmp_path / "out").glob("scan.*"))) == 2
    mask = tmp_path / "out" / "scan.nii.gz"
    np.testing.assert_array_equal(np.asarray(nifti1.load(mask).dataobj).T, label)
    assert_same_grid(mask, scan)
    scan.write_bytes(scan.read_bytes()[:200])
    monkeypatch.setattr(sys, "argv", ["macl", *arguments[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("macl: 1 of 1 scans could not be segmented (scan: ")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["predictions.json"]


# ---------------------------------------------------------------- DICOM


def write_series(folder: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    folder.mkdir(parents=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(len(array)):
        piece = image[:, :, number]
        tags = {
            "0008|0060": "MR",
            "0010|0010": "Doe^Jane",
            "0010|0020": "4711",
            "0010|0030": "19560203",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|0013": str(number + 1),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": str(spacing[2]),
            "0020|0032": f"-20\\-30\\{-40 + number * spacing[2]}",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{90 - number}.dcm"))
        writer.Execute(piece)
    locale.setlocale(
        locale.LC_ALL, ""
    )  # writing DICOM leaves the process in the C locale, for all tests to come


def test_a_dicom_series_gives_a_mask_on_its_grid_that_names_nobody(
    run: Path, tmp_path: Path, capsys
) -> None:
    image, label = known_case((6, 24, 30))
    write_series(tmp_path / "Doe_Jane", image, (0.8, 0.8, 3.0))
    (mask,) = predict([run, tmp_path / "Doe_Jane"], tmp_path / "out")
    written = SimpleITK.ReadImage(str(mask))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), label)
    np.testing.assert_allclose(written.GetSpacing(), (0.8, 0.8, 3.0), rtol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), (-20, -30, -40), rtol=1e-6)
    shown = (
        mask.name + (tmp_path / "out" / "predictions.json").read_text() + capsys.readouterr().err
    )
    assert not any(secret in shown for secret in ("Jane", "4711", "19560203"))
