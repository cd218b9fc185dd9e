"""Time series: each frame becomes a case of the same patient, and masks are series too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nibabel import nifti1

from fakes import acdc, msd
from fakes.command import macl
from fakes.scans import anatomy, flip_bit, write_nifti
from fakes.threshold_run import known_case, write_threshold_run
from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.preprocessing.orientation import to_scan
from macl.stages.inspect import inspect

TIME_POINTS = 13


def cine(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(time points, z, y, x): scans and labels."""
    frames = (anatomy(100 * seed + index) for index in range(TIME_POINTS))
    images, labels = zip(*frames, strict=True)
    return np.stack(images), np.stack(labels)


def prepared(data: Path, *words: object) -> Store:
    answer = macl("prepare", data, data.parent / "store", *words)
    assert answer.code == 0, answer.err
    return Store.open(data.parent / "store")


def scan_of(store: Store, name: str, kind: str = "image") -> np.ndarray:
    slices = store.read(name, kind)  # pyright: ignore[reportArgumentType]
    return to_scan(slices[0] if kind == "image" else slices, store.case(name).orientation)


def sentence(err: str) -> str:
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_acdc_brings_its_labelled_frames_once_and_every_other_without_label(tmp_path: Path) -> None:
    acdc.write(tmp_path / "data", patients=2)
    series = [cine(number)[0] for number in (1, 2)]
    for number, images in enumerate(series, start=1):
        write_nifti(tmp_path / f"data/patient00{number}/patient00{number}_4d.nii.gz", images)
    store = prepared(tmp_path / "data", "--frames", "--workers", 1)
    frames = [
        f"patient00{number}_frame{frame:02d}"
        for number in (1, 2)
        for frame in range(1, TIME_POINTS + 1)
    ]
    assert list(store.cases) == frames
    assert [name for name, case in store.cases.items() if case.labelled] == [
        f"patient00{number}_frame{frame}" for number in (1, 2) for frame in ("01", "12")
    ]
    assert {case.patient for case in store.index.cases} == {"patient001", "patient002"}
    np.testing.assert_array_equal(scan_of(store, "patient002_frame05"), series[1][4])
    np.testing.assert_array_equal(scan_of(store, "patient001_frame01"), anatomy(101)[0])
    assert "2 series became 22 frames, numbered from 1." in " ".join(store.index.notes)
    answer = macl(
        "split", tmp_path / "store", "--out", tmp_path / "s.json", "--test", 1, "--budgets", 1
    )
    assert answer.code == 0
    assert "pre-training" in answer.err
    row = next(line for line in answer.err.splitlines() if line.startswith("pre-training"))
    assert row.split() == ["pre-training", "1", "13", "2"]


def test_acdc_ignores_its_series_if_frames_are_not_asked_for(tmp_path: Path) -> None:
    acdc.write(tmp_path / "data", patients=2)
    store = prepared(tmp_path / "data", "--workers", 1)
    assert (len(store.cases), store.index.prepared.frames) == (4, False)
    assert "2 whole time series: --frames makes each of their frames a case." in " ".join(
        store.index.notes
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_labels_are_split_like_their_images(tmp_path: Path, suffix: str) -> None:
    images, labels = cine(1)
    for name, array in (("a", images), ("a_seg", labels), ("still", images[0])):
        path = tmp_path / f"data/{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == ".nii.gz":
            write_nifti(path, array)
        else:
            volumes = [
                SimpleITK.GetImageFromArray(volume)
                for volume in (array if array.ndim == 4 else [array])
            ]
            SimpleITK.WriteImage(
                SimpleITK.JoinSeries(volumes) if array.ndim == 4 else volumes[0], str(path), True
            )
    store = prepared(tmp_path / "data", "--frames", "--workers", 2)
    assert len(store.cases) == TIME_POINTS + 1
    assert not store.case("still").labelled
    for index in range(TIME_POINTS):
        name = f"a_frame{index + 1:02d}"
        assert store.case(name).patient == "a"
        np.testing.assert_array_equal(scan_of(store, name), images[index])
        np.testing.assert_array_equal(scan_of(store, name, "label"), labels[index])


def test_a_series_whose_label_or_channels_do_not_fit_is_refused(tmp_path: Path) -> None:
    images, labels = cine(1)
    for name, label in (("flat", labels[0]), ("short", labels[:5]), ("good", labels)):
        write_nifti(tmp_path / f"data/{name}.nii.gz", images)
        write_nifti(tmp_path / f"data/{name}_seg.nii.gz", label)
    flip_bit(write_nifti(tmp_path / "data/broken.nii.gz", images))
    described = inspect(tmp_path / "data", frames=True, workers=1)
    reasons = {case["name"]: case["reason"] for case in described["refused"]}
    assert "13 time points and its label 1" in reasons.pop("flat")
    assert "13 time points and its label 5" in reasons.pop("short")
    assert all(name.startswith("broken") for name in reasons)
    counts = (described["cases"], described["labelled"], described["patients"])
    assert counts == (TIME_POINTS, TIME_POINTS, 1)
    store = prepared(tmp_path / "data", "--frames", "--workers", 1)
    refused = {case["name"] for case in described["refused"]}
    assert {case.name for case in store.index.refused} == refused


def test_declared_channels_are_never_taken_as_time(tmp_path: Path) -> None:
    msd.write(tmp_path / "data", modality=("FLAIR", "T1w"))
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--frames")
    assert answer.code == 1
    assert "declares 2 channels there (FLAIR, T1w): leave it out" in sentence(answer.err)
    assert not (tmp_path / "store").exists()


def test_a_fourth_axis_that_nothing_explains_is_reported_or_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data/a.nii.gz", cine(1)[0][:3])
    store = prepared(tmp_path / "data", "--workers", 1)
    assert len(store.index.channels) == 3
    assert any("3 volumes are taken as channels. If they are time points, use --frames" in note
               for note in store.index.notes)  # fmt: skip
    write_nifti(tmp_path / "data/b.nii.gz", anatomy(2)[0])
    write_nifti(tmp_path / "data/c.nii.gz", anatomy(3)[0])
    refused = inspect(tmp_path / "data", workers=1)["refused"]
    assert [case["name"] for case in refused] == ["a"]
    assert "use --frames if they are time points" in refused[0]["reason"]


def test_frames_without_a_fourth_axis_are_reported(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data/a.nii.gz", anatomy(1)[0])
    assert "No file here has a fourth axis" in " ".join(
        prepared(tmp_path / "data", "--frames").index.notes
    )


# ---------------------------------------------------------------- prediction


@pytest.fixture
def beating(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A folder with a series and a still scan, and the true masks (time points, z, y, x)."""
    images, truths = zip(*(known_case((5, 20, 24), seed) for seed in range(4)), strict=True)
    write_nifti(tmp_path / "scans/heart.nii.gz", np.stack(images))
    write_nifti(tmp_path / "scans/still.nii.gz", images[0])
    return tmp_path / "scans", np.stack(truths)


def as_zyx(path: Path) -> np.ndarray:
    return np.asarray(nifti1.load(path).dataobj).T


@pytest.mark.parametrize("trained_on_frames", [True, False])
def test_every_frame_of_a_series_is_segmented_into_one_4d_mask(
    tmp_path: Path, beating: tuple[Path, np.ndarray], trained_on_frames: bool
) -> None:
    scans, truths = beating
    run = write_threshold_run(
        tmp_path / "run", prepared=PrepareSettings(normalisation="zscore", frames=trained_on_frames)
    )
    asked = () if trained_on_frames else ("--frames",)
    for place in (scans, scans / "heart.nii.gz"):
        out = tmp_path / f"masks-{place.stem}"
        answer = macl("predict", run, place, "--out", out, "--device", "cpu", *asked)
        assert answer.code == 0, answer.err
        np.testing.assert_array_equal(as_zyx(out / "heart.nii.gz"), truths)
        mask, scan = nifti1.load(out / "heart.nii.gz"), nifti1.load(scans / "heart.nii.gz")
        np.testing.assert_allclose(mask.affine, scan.affine)
    np.testing.assert_array_equal(as_zyx(tmp_path / "masks-scans/still.nii.gz"), truths[0])
    again = macl(
        "predict", run, scans, "--out", tmp_path / "masks-scans", "--device", "cpu", *asked
    )
    assert "2 of 2 scans already have their mask" in again.err


def test_a_series_is_no_scan_where_nothing_says_that_it_is_one(
    tmp_path: Path, beating: tuple[Path, np.ndarray]
) -> None:
    run = write_threshold_run(tmp_path / "run")
    answer = macl(
        "predict", run, beating[0] / "heart.nii.gz", "--out", tmp_path / "masks", "--device", "cpu"
    )
    assert answer.code == 1
    assert "4D (4 volumes)" in sentence(answer.err)
    assert "--frames" in sentence(answer.err)


def test_probabilities_of_series_are_refused(
    tmp_path: Path, beating: tuple[Path, np.ndarray]
) -> None:
    run = write_threshold_run(tmp_path / "run")
    answer = macl(
        "predict", run, beating[0], "--out", tmp_path / "masks", "--frames", "--probabilities"
    )
    assert answer.code == 1
    assert "not for time series" in sentence(answer.err)
    assert not (tmp_path / "masks").exists()
