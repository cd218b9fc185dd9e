"""prepare, as a user calls it: good cases unharmed, bad ones refused, nothing half-written."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fakes import acdc, dicom, msd, nnunet
from fakes.command import macl
from fakes.scans import (
    affine,
    anatomy,
    announce,
    bomb,
    break_checksum,
    files_below,
    flip_bit,
    truncate,
    write_itk,
    write_nifti,
)
from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.preprocessing.case import CaseJob, PreparedCase, prepare_case
from macl.preprocessing.normalisation import measure
from macl.preprocessing.orientation import to_scan
from macl.preprocessing.resampling import to_scanned_size
from macl.stages.prepare import prepare
from macl.utils.errors import MaclError

TRACES = ("Traceback", "Error:", 'File "')


def sentence(err: str) -> str:
    """The last line on stderr, which must be all there is to an error."""
    assert not any(trace in err for trace in TRACES), err
    return err.strip().splitlines()[-1]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("write", "reader", "cases", "patients", "labelled"),
    [
        (acdc.write, "acdc", 4, 2, 4),
        (msd.write, "msd", 5, 5, 3),
        (nnunet.write, "nnunet_raw", 4, 4, 3),
    ],
)
def test_every_layout_becomes_a_store(
    tmp_path: Path, write, reader, cases, patients, labelled
) -> None:
    before = files_below(write(tmp_path / "data"))
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0
    assert answer.out == ""
    assert f"{cases} cases of {patients} patients ({labelled} labelled" in answer.err
    index = Store.open(tmp_path / "store").index
    assert (index.reader, len(index.cases), len({case.patient for case in index.cases})) == (
        reader,
        cases,
        patients,
    )
    assert sum(case.labelled for case in index.cases) == labelled
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["cases", "store.json"]
    assert files_below(tmp_path / "data") == before


def test_slices_are_the_scans_own_numbers_in_canonical_order(tmp_path: Path) -> None:
    msd.write(tmp_path / "data")
    macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    store = Store.open(tmp_path / "store")
    case = store.case("toy_002")
    image, label = anatomy(2)
    scan = nibabel.load(tmp_path / "data/imagesTr/toy_002.nii.gz")
    left_posterior_superior = np.asarray(nibabel.as_closest_canonical(scan).dataobj)[::-1, ::-1].T
    np.testing.assert_array_equal(store.read("toy_002")[0], left_posterior_superior)
    np.testing.assert_array_equal(to_scan(store.read("toy_002")[0], case.orientation), image)
    np.testing.assert_array_equal(to_scan(store.read("toy_002", "label"), case.orientation), label)
    assert case.class_voxels == tuple(np.bincount(label.ravel()))
    assert case.spacing_mm == pytest.approx((4.0, 1.5, 1.0))
    assert case.geometry.size == (24, 20, 6)
    assert case.normalisation == measure(store.read("toy_002"), "clip_zscore")
    assert store.index.classes == ("background", "Ring", "Disc")
    assert store.index.prepared == PrepareSettings(normalisation="clip_zscore")


def test_several_channels_in_one_file_or_in_several(tmp_path: Path) -> None:
    msd.write(tmp_path / "one", modality=("FLAIR", "T1w"))
    nnunet.write(tmp_path / "several", channels=("FLAIR", "T1w"))
    for name in ("one", "several"):
        assert (
            macl("prepare", tmp_path / name, tmp_path / f"{name}.store", "--workers", 1).code == 0
        )
        store = Store.open(tmp_path / f"{name}.store")
        case = store.index.cases[1]
        array = store.read(case.name)
        assert store.index.channels == ("FLAIR", "T1w")
        assert array.shape == (2, 6, 20, 24)
        np.testing.assert_array_equal(array[1], array[0] + 10)
        assert len(case.normalisation.mean) == 2


def test_resampling_keeps_the_truth_on_the_scans_own_grid(tmp_path: Path) -> None:
    msd.write(tmp_path / "data")
    assert (
        macl(
            "prepare", tmp_path / "data", tmp_path / "store", "--spacing-mm", 0.8, "--workers", 1
        ).code
        == 0
    )
    store = Store.open(tmp_path / "store")
    case = store.case("toy_001")
    assert case.size == (6, 38, 30)
    assert store.read("toy_001").shape == (1, 6, 38, 30)
    assert store.read("toy_001", "label").shape == (6, 38, 30)
    np.testing.assert_array_equal(
        to_scan(store.read("toy_001", "truth"), case.orientation), anatomy(1)[1]
    )
    assert case.orientation.scanned_size == (6, 20, 24)
    assert case.spacing_mm == pytest.approx((4.0, 30 / 38, 0.8))


def test_outliers_and_fractions_become_float16_that_normalises_well(tmp_path: Path) -> None:
    image = anatomy(1)[0] / 3
    image[0, 0, :20] = 3e5
    write_nifti(tmp_path / "data/a.nii.gz", image.astype(np.float32))
    prepare(tmp_path / "data", tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    case, array = store.case("a"), store.read("a").astype(np.float64)
    assert case.arrays["image"].dtype == "float16"
    assert np.isfinite(array).all()
    (slope, shift), inside = case.rescale[0], image < 1e3
    np.testing.assert_allclose(
        to_scan(array[0], case.orientation)[inside] * slope + shift, image[inside], atol=0.05
    )
    clipped = np.clip(array, case.normalisation.low[0], case.normalisation.high[0])
    assert clipped.mean() == pytest.approx(case.normalisation.mean[0], abs=0.01)
    assert clipped.std() == pytest.approx(case.normalisation.deviation[0], abs=0.01)


def test_undeclared_classes_are_those_of_the_labels_and_that_is_noted(tmp_path: Path) -> None:
    image, label = anatomy(0)
    for name, values in (("a", (0, 7, 255)), ("b", (0, 7, 7)), ("c", (3, 3, 3))):
        write_nifti(tmp_path / f"data/{name}.nii.gz", image)
        write_nifti(tmp_path / f"data/{name}_seg.nii.gz", np.array(values, np.uint8)[label])
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    index = Store.open(tmp_path / "store").index
    assert index.label_values == (0, 3, 7, 255)
    assert index.classes == ("background", "class 3", "class 7", "class 255")
    assert "the labels hold 0, 3, 7, 255" in answer.err
    stored = Store.open(tmp_path / "store").read("a", "label")
    restored = to_scan(stored, index.cases[0].orientation)
    np.testing.assert_array_equal(restored, np.array([0, 2, 3])[label])


def test_pictures_are_cases_of_one_slice_without_spacing(tmp_path: Path) -> None:
    for number in range(3):
        image, label = anatomy(number)
        write_itk(
            tmp_path / f"data/images/{number}.png",
            np.repeat(image[0][..., None].astype(np.uint8), 3, axis=-1),
        )
        write_itk(tmp_path / f"data/labels/{number}.png", label[0] * 127)
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0
    index = Store.open(tmp_path / "store").index
    assert index.channels == ("red", "green", "blue")
    assert [(case.slices, case.spacing_mm) for case in index.cases] == [(1, None)] * 3
    assert "3 of 3 cases: a single slice" in answer.err
    refused = macl(
        "prepare", tmp_path / "data", tmp_path / "other", "--spacing-mm", 1, "--workers", 1
    )
    assert refused.code == 1
    assert "gives no spacing" in sentence(refused.err)
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- volumes


def write_volumes(folder: Path, spacings: list[tuple[float, float, float]]) -> Path:
    """A labelled scan of smooth structures for each spacing (x, y, z), named a, b, …"""
    for name, spacing in zip("abcdefgh", spacings, strict=False):
        noise = gaussian_filter(np.random.default_rng(0).normal(size=(20, 24, 28)), 3)
        label = np.digitize(noise, np.quantile(noise, (0.5, 0.8))).astype(np.uint8)
        image = np.rint(2000 * noise).astype(np.int16)
        write_nifti(folder / f"{name}.nii.gz", image, affine(spacing))
        write_nifti(folder / f"{name}_seg.nii.gz", label, affine(spacing))
    return folder


def on_scanned_grid(store: Store, name: str, values: np.ndarray) -> np.ndarray:
    """(K, Z, Y, X) → (K, z, y, x)."""
    orientation = store.case(name).orientation
    slices = to_scanned_size(np.moveaxis(values, 1, 0), values.shape[1], orientation)
    return to_scan(np.stack([*slices], axis=1), orientation)


@pytest.mark.parametrize(
    ("spacing", "spacing_mm", "size"),
    [
        ((1.0, 1.2, 1.4), "0.7,0.8,0.9", (40, 36, 31)),
        ((1.0, 1.0, 5.0), "2.5,0.8,0.8", (40, 30, 35)),
    ],
)
def test_volumes_are_resampled_along_all_axes_and_come_back(
    tmp_path: Path, spacing: tuple[float, float, float], spacing_mm: str, size: tuple[int, int, int]
) -> None:
    data = write_volumes(tmp_path / "data", [spacing])
    answer = macl("prepare", data, tmp_path / "store", "--spacing-mm", spacing_mm, "--workers", 1)
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "store")
    assert store.index.prepared.spacing_mm == tuple(map(float, spacing_mm.split(",")))
    assert store.case("a").size == size
    assert store.case("a").spacing_mm == pytest.approx(store.index.prepared.spacing_mm, rel=0.02)
    image = np.asarray(nibabel.load(data / "a.nii.gz").dataobj).T
    label = np.asarray(nibabel.load(data / "a_seg.nii.gz").dataobj).T
    restored = on_scanned_grid(store, "a", store.read("a"))
    assert np.corrcoef(restored.ravel(), image.ravel())[0, 1] > 0.99
    one_hot = store.read("a", "label") == np.arange(3)[:, None, None, None]
    mask = on_scanned_grid(store, "a", one_hot).argmax(axis=0)
    for value in range(3):
        ours, theirs = mask == value, label == value
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.95
    truth = to_scan(store.read("a", "truth"), store.case("a").orientation)
    np.testing.assert_array_equal(truth, label)


def test_a_spacing_equal_to_the_scans_changes_nothing(tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "data", [(1.0, 1.5, 4.0)])
    prepare(data, tmp_path / "plain", workers=1)
    answer = macl("prepare", data, tmp_path / "store", "--spacing-mm", "4,1.5,1", "--workers", 1)
    assert answer.code == 0, answer.err
    ours = files_below(tmp_path / "store/cases")
    assert ours == files_below(tmp_path / "plain/cases")
    assert not any("truth" in name for name in ours)


def test_the_median_spacing_is_resolved_to_numbers(tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "data", [(1.0, 1.0, 1.5), (1.2, 1.1, 1.5), (2.0, 2.0, 2.0)])
    words = ("prepare", data, tmp_path / "store", "--spacing-mm", "median", "--workers", 1)
    answer = macl(*words)
    assert answer.code == 0, answer.err
    assert "Median spacing: 1.5 × 1.1 × 1.2 mm (z, y, x)." in answer.err
    store = Store.open(tmp_path / "store")
    assert store.index.prepared.spacing_mm == pytest.approx((1.5, 1.1, 1.2))
    assert [case.size for case in store.index.cases] == [(20, 22, 23), (20, 24, 28), (27, 44, 47)]
    assert ["truth" in case.arrays for case in store.index.cases] == [True, False, True]
    assert "is already prepared" in macl(*words).err


@pytest.mark.parametrize("spacing_mm", ["1,1,1", "median"])
def test_a_scan_without_spacing_cannot_be_resampled(tmp_path: Path, spacing_mm: str) -> None:
    data = write_volumes(tmp_path / "data", [(1.0, 1.0, 1.0)])
    write_itk(data / "picture.png", anatomy(0)[0][0].astype(np.uint8))
    words = ("--spacing-mm", spacing_mm, "--workers", 1)
    answer = macl("prepare", data, tmp_path / "store", *words)
    assert answer.code == 0, answer.err
    refused = {case.name: case.reason for case in Store.open(tmp_path / "store").index.refused}
    assert refused == {
        "picture": "its file gives no spacing, so it cannot be resampled to 1 × 1 × 1 mm: prepare "
        "without --spacing-mm"
    }
    write_itk(tmp_path / "pictures/a.png", anatomy(0)[0][0].astype(np.uint8))
    answer = macl("prepare", tmp_path / "pictures", tmp_path / "other", *words)
    assert answer.code == 1
    assert re.search("no file here gives one: leave it out|gives no spacing", sentence(answer.err))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("spacing_mm", ["1,2", "0", "-1", "1,1,0", "mean", "1;1;1", "nan", ""])
def test_a_wrong_spacing_is_one_sentence(tmp_path: Path, spacing_mm: str) -> None:
    answer = macl("prepare", tmp_path, tmp_path / "store", "--spacing-mm", spacing_mm)
    assert answer.code == 1
    assert "give one number (in plane), three as z,y,x, or median" in sentence(answer.err)


# ---------------------------------------------------------------- what is refused


def relabel(value: float, dtype: type = np.float32) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        label = anatomy(2)[1].astype(dtype)
        label[3, 4, 5] = value
        write_nifti(data / "labelsTr/toy_002.nii.gz", label)

    return change


def rescan(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def rewrite(data: Path) -> None:
        write_nifti(data / "imagesTr/toy_002.nii.gz", change(anatomy(2)[0].astype(np.float32)))

    return rewrite


def on_image(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda data: change(data / "imagesTr/toy_002.nii.gz")


def on_label(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda data: change(data / "labelsTr/toy_002.nii.gz")


def without_slices(path: Path) -> None:
    plain = write_nifti(path.with_name("plain.nii"), anatomy(2)[0])
    announce(plain, (24, 20, 0))
    nothing = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(nothing))


def link_out(path: Path) -> None:
    secret = path.parents[2] / "secret.nii.gz"
    shutil.move(path, secret)
    path.symlink_to(secret)


BAD = {
    "image cut": (on_image(truncate), "truncated|damaged"),
    "image empty": (on_image(lambda path: path.write_bytes(b"")), "empty"),
    "image of text": (on_image(lambda path: path.write_text("hello")), "not"),
    "image with a wrong CRC": (on_image(break_checksum), "checksum"),
    "image with a flipped bit": (on_image(flip_bit), "damaged"),
    "image missing": (on_image(Path.unlink), "is not there"),
    "image a bomb": (on_image(bomb), "more than the"),
    "image without slices": (on_image(without_slices), "no slices"),
    "image a link out": (on_image(link_out), "out of the source's folder"),
    "image constant": (rescan(lambda a: np.full_like(a, 3)), "constant"),
    "image with NaN": (rescan(lambda a: np.where(a > a.max() - 2, np.nan, a)), "NaN or infinite"),
    "image with infinity": (
        rescan(lambda a: np.where(a > a.max() - 2, np.inf, a)),
        "NaN or infinite",
    ),
    "image with numbers beyond float32": (
        on_image(lambda p: write_nifti(p, np.where(anatomy(2)[0] > 2, 1e200, 0.0))),
        "values as large as 1e",
    ),
    "image 4D": (rescan(lambda a: np.stack([a, a + 1])), "4D"),
    "image sheared": (
        on_image(
            lambda p: write_nifti(p, anatomy(2)[0], affine() + np.eye(4, k=1) * [0, 0.4, 0, 0])
        ),
        "sheared",
    ),
    "label cut": (on_label(truncate), "truncated|damaged"),
    "label with a wrong CRC": (on_label(break_checksum), "checksum"),
    "label missing": (on_label(Path.unlink), "is not there"),
    "label of another size": (
        on_label(lambda path: write_nifti(path, anatomy(2)[1][:5])),
        "different grids: 24 × 20 × 6 voxels against 24 × 20 × 5",
    ),
    "label elsewhere": (
        on_label(lambda path: write_nifti(path, anatomy(2)[1], affine() + np.eye(4, k=3) * 5)),
        "different grids: origin",
    ),
    "label of another spacing": (
        on_label(lambda path: write_nifti(path, anatomy(2)[1], affine((1.0, 1.5, 5.0)))),
        "different grids: spacing",
    ),
    "label undeclared": (relabel(7), r"holds 7, outside the declared classes \(0, 1, 2\)"),
    "label negative": (relabel(-1), "holds -1, outside"),
    "label fractional": (relabel(1.5), "not whole numbers"),
    "label with NaN": (relabel(np.nan), "not whole numbers"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source without fault, and the files of the store that it becomes."""
    folder = tmp_path_factory.mktemp("clean")
    msd.write(folder / "data")
    prepare(folder / "data", folder / "store", workers=1)
    return folder / "data", files_below(folder / "store" / "cases")


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_case_is_refused_and_the_good_ones_are_unharmed(
    tmp_path: Path, clean, fault: str
) -> None:
    change, reason = BAD[fault]
    shutil.copytree(clean[0], tmp_path / "data")
    change(tmp_path / "data")
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    assert not any(trace in answer.err for trace in TRACES)
    store = Store.open(tmp_path / "store")
    assert [refused.name for refused in store.index.refused] == ["toy_002"]
    assert re.search(reason, store.index.refused[0].reason), store.index.refused[0].reason
    assert f"refused: toy_002: {store.index.refused[0].reason}" in answer.err
    assert sorted(store.cases) == ["toy_001", "toy_003", "toy_004", "toy_005"]
    good = {name: data for name, data in clean[1].items() if "toy_002" not in name}
    assert files_below(tmp_path / "store" / "cases") == good
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["cases", "store.json"]


def test_a_scan_that_resampling_would_make_huge_is_refused_alone(tmp_path: Path) -> None:
    """Its header gives micrometres as millimetres."""
    for name, factor in (("a", 1), ("b", 1), ("c", 1000)):
        spacing = (1.0 * factor, 1.5 * factor, 4.0 * factor)
        write_nifti(tmp_path / f"data/{name}.nii.gz", anatomy(0)[0] + factor, affine(spacing))
    answer = macl(
        "prepare", tmp_path / "data", tmp_path / "store", "--spacing-mm", "1,1,1", "--workers", 1
    )
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "store")
    assert [*store.cases] == ["a", "b"]
    (refused,) = store.index.refused
    assert refused.name == "c"
    assert "a spacing of 4000 × 1500 × 1000 mm: correct that" in refused.reason


def test_strict_exits_1_and_still_keeps_the_good_cases(tmp_path: Path, clean) -> None:
    shutil.copytree(clean[0], tmp_path / "data")
    assert macl("prepare", tmp_path / "data", tmp_path / "a", "--strict", "--workers", 1).code == 0
    truncate(tmp_path / "data/imagesTr/toy_002.nii.gz")
    assert macl("prepare", tmp_path / "data", tmp_path / "b", "--strict", "--workers", 1).code == 1
    assert len(Store.open(tmp_path / "b").index.cases) == 4


def test_where_no_case_can_be_kept_nothing_is_left(tmp_path: Path) -> None:
    for name in ("a", "b"):
        break_checksum(write_nifti(tmp_path / f"data/{name}.nii.gz", anatomy(0)[0]))
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 1
    assert "No case in" in sentence(answer.err)
    assert "checksum" in sentence(answer.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("name", ["a.nrrd", "A.nii"])
def test_duplicate_names_are_refused(tmp_path: Path, name: str) -> None:
    for scan in ("a.nii.gz", "b.nii.gz", name):
        (write_itk if scan.endswith("nrrd") else write_nifti)(
            tmp_path / "data" / scan, anatomy(0)[0]
        )
    assert macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1).code == 0
    index = Store.open(tmp_path / "store").index
    assert [case.name for case in index.cases] == ["b"]
    assert "share this name" in index.refused[0].reason


def test_an_image_given_as_label_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_nifti(tmp_path / f"data/{name}.nii.gz", anatomy(0)[0])
    write_nifti(tmp_path / "data/a_seg.nii.gz", anatomy(0)[1])
    write_nifti(tmp_path / "data/b_seg.nii.gz", anatomy(0)[0])
    macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    index = Store.open(tmp_path / "store").index
    assert index.label_values == (0, 1, 2)
    assert "which change from voxel to voxel: is it an image?" in index.refused[0].reason


def test_scans_with_another_number_of_channels_than_most_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_itk(tmp_path / f"data/{name}.png", anatomy(0)[0][0].astype(np.uint8))
    write_itk(tmp_path / "data/c.png", np.stack([anatomy(0)[0][0].astype(np.uint8)] * 3, axis=-1))
    macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    index = Store.open(tmp_path / "store").index
    assert (len(index.cases), index.refused[0].name) == (2, "c")
    assert "3 channels, expected 1" in index.refused[0].reason


# ---------------------------------------------------------------- a user's mistakes


def mistakes(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    data = msd.write(tmp_path / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "empty").mkdir()
    return {
        "missing": ([tmp_path / "nowhere", tmp_path / "store"], "does not exist"),
        "file": ([data / "dataset.json", tmp_path / "store"], "is a file: name a folder of scans"),
        "empty": ([tmp_path / "empty", tmp_path / "store"], "holds no scans"),
        "reader": ([data, tmp_path / "store", "--reader", "mds"], "did you mean 'msd'"),
        "other reader": ([data, tmp_path / "store", "--reader", "acdc"], "holds no patientNNN"),
        "taken": ([data, tmp_path / "mine"], "already holds something that is not a store"),
        "taken by a file": ([data, tmp_path / "mine/thesis.txt"], "is a file"),
        "within": ([data, data / "store"], "lie within each other"),
    }


@pytest.mark.parametrize(
    "which",
    ["missing", "file", "empty", "reader", "other reader", "taken", "taken by a file", "within"],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(tmp_path: Path, which: str) -> None:
    words, expected = mistakes(tmp_path)[which]
    before = files_below(tmp_path)
    answer = macl("prepare", *words)
    assert answer.code == 1
    assert answer.out == ""
    assert expected in sentence(answer.err)
    assert len(answer.err.strip().splitlines()) == 1
    assert files_below(tmp_path) == before
    assert not (tmp_path / "store").exists()


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    assert macl("prepare", tmp_path).code == 2
    assert macl("prepare", tmp_path, tmp_path / "store", "--workers", 0).code == 2


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msd.write(tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # pyright: ignore
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 1
    assert "free some space" in sentence(answer.err)
    assert not (tmp_path / "store").exists()


# ---------------------------------------------------------------- again, in parallel, and killed


def test_an_image_under_two_patients_is_noted(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        write_nifti(tmp_path / f"data/{name}.nii.gz", anatomy(seed)[0])
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert "Images that several patients share: 1 (a = c)" in answer.err


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    msd.write(tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "store", workers=1)
    before = files_below(tmp_path / "store")
    answer = macl("prepare", tmp_path / "data", tmp_path / "store")
    assert answer.code == 0
    assert "already prepared: 5 cases" in answer.err
    other = macl("prepare", tmp_path / "data", tmp_path / "store", "--plane", "coronal")
    assert other.code == 1
    assert "with other settings" in sentence(other.err)
    write_nifti(tmp_path / "data/imagesTr/toy_001.nii.gz", anatomy(9)[0])
    assert macl("prepare", tmp_path / "data", tmp_path / "store").code == 1
    assert files_below(tmp_path / "store") == before


def test_any_number_of_workers_writes_the_same_store(tmp_path: Path, clean) -> None:
    prepare(clean[0], tmp_path / "store", workers=3)
    assert files_below(tmp_path / "store" / "cases") == clean[1]
    assert (tmp_path / "store/store.json").read_text() == (
        clean[0].parent / "store/store.json"
    ).read_text()


def begin(folder: Path, cases: int) -> subprocess.Popen[bytes]:
    """A process that prepares `data` into `store`, as soon as it has finished so many cases."""
    command = [sys.executable, "-m", "macl", "prepare", str(folder / "data"), str(folder / "store")]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if len(list((folder / "store/.preparing").glob("[!.]*"))) >= cases:
            break
        time.sleep(0.002)
    return process


def test_two_runs_at_once_do_not_write_one_store(tmp_path: Path) -> None:
    nnunet.write(tmp_path / "data", cases=40, test=0)
    process = begin(tmp_path, cases=1)
    process.send_signal(signal.SIGSTOP)
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    process.send_signal(signal.SIGCONT)
    assert answer.code == 1
    assert "Another `macl prepare` is writing" in sentence(answer.err)
    assert process.wait() == 0
    assert len(Store.open(tmp_path / "store").index.cases) == 40
    assert not (tmp_path / "store/.preparing").exists()


@pytest.mark.parametrize("other", [{}, {"spacing_mm": 0.8}])
def test_what_another_run_has_finished_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, float]
) -> None:
    msd.write(tmp_path / "data")

    def prepare_first(*_: object) -> None:
        monkeypatch.undo()
        prepare(
            tmp_path / "data",
            tmp_path / "store",
            settings=PrepareSettings.model_validate(other),
            workers=1,
        )

    monkeypatch.setattr("macl.stages.prepare.require_disk_space", prepare_first)
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    before = files_below(tmp_path / "store")
    assert ("other settings" if other else "by another run meanwhile") in answer.err
    assert (answer.code, Store.open(tmp_path / "store").index.prepared.spacing_mm) == (
        bool(other),
        other.get("spacing_mm"),
    )
    assert files_below(tmp_path / "store") == before
    assert not (tmp_path / "store/.preparing").exists()


def test_killed_in_the_middle_it_resumes_where_it_stopped(tmp_path: Path) -> None:
    nnunet.write(tmp_path / "data", cases=40, test=0)
    process = begin(tmp_path, cases=5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "store/.preparing/.lock").exists()
    assert not (tmp_path / "store/store.json").exists()
    with pytest.raises(MaclError, match="is not a store"):
        Store.open(tmp_path / "store")
    (tmp_path / "store/cases/.writing-1-toy_000.image.b2nd").write_bytes(b"half")
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0
    assert "Resuming" in answer.err
    prepare(tmp_path / "data", tmp_path / "whole", workers=1)
    assert files_below(tmp_path / "store") == files_below(tmp_path / "whole")


def test_an_interruption_is_one_sentence_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msd.write(tmp_path / "data")

    def interrupted_at_the_third(job: CaseJob) -> PreparedCase:
        if job.case.name == "toy_003":
            raise KeyboardInterrupt
        return prepare_case(job)

    with monkeypatch.context() as patch:
        patch.setattr("macl.stages.prepare.prepare_case", interrupted_at_the_third)
        answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 130
    assert "interrupted. Run the same command again" in sentence(answer.err)
    again = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert "2 of 5 cases are finished" in again.err


def test_a_resumed_run_does_not_keep_stale_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msd.write(tmp_path / "data")
    prepare_all_but_the_index(tmp_path / "data", tmp_path / "store", monkeypatch)
    write_nifti(tmp_path / "data/imagesTr/toy_001.nii.gz", anatomy(9)[0])
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert "4 of 5 cases are finished" in answer.err
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(
        to_scan(store.read("toy_001")[0], store.case("toy_001").orientation), anatomy(9)[0]
    )
    prepare_all_but_the_index(tmp_path / "data", tmp_path / "again", monkeypatch)
    answer = macl(
        "prepare", tmp_path / "data", tmp_path / "again", "--spacing-mm", 0.8, "--workers", 1
    )
    assert "Resuming" not in answer.err
    assert Store.open(tmp_path / "again").case("toy_001").size == (6, 38, 30)


def prepare_all_but_the_index(data: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("macl.stages.prepare.write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, store, workers=1)


# ---------------------------------------------------------------- who was scanned


def all_text(folder: Path, *streams: str) -> str:
    names = " ".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    contents = b" ".join(files_below(folder).values()).decode("latin-1")
    return " ".join([names, contents, *streams]).casefold()


def test_no_name_birth_date_or_id_of_a_patient_gets_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    dicom.write_series(data / "Quixote_A" / "t1")
    dicom.write_series(
        data / "anonymous7" / "t1", seed=1, PatientName="Panza^Sancho", PatientID="9-8-7"
    )
    dicom.write_series(data / "born 1947-12-09" / "t1", seed=2)
    dicom.write_series(data / "Alonso" / "broken", seed=3, missing=[2])
    dicom.write_series(data / "Dulcinea" / "t1", seed=4)
    for file in (data / "Dulcinea/t1").iterdir():
        file.write_bytes(b"no header" * 30)
    write_nifti(data / "quixote_seg.nii.gz", anatomy(0)[1])
    (data / "letter to Quixote.txt").write_text("x")
    answer = macl("prepare", data, tmp_path / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    # The user's own terminal may name the folder that could not be read.
    said = [line for line in answer.err.splitlines() if not line.startswith("No header of ")]
    text = all_text(tmp_path / "store", answer.out, *said)
    for secret in (
        "quixote",
        "alonso",
        "panza",
        "sancho",
        "dulcinea",
        "19471209",
        "1947-12-09",
        "mrn-4711",
        "9-8-7",
    ):
        assert secret not in text, secret
    index = Store.open(tmp_path / "store").index
    assert len(index.cases) == 3
    assert len(index.refused) == 3
    patients = [case.patient for case in index.cases]
    quixote = {patient for patient in patients if patients.count(patient) == 2}
    assert len(quixote) == 1
    assert next(iter(quixote)).startswith("patient-")
    assert index.modality == "MR"
    prepare(data, tmp_path / "again", workers=1)
    again = Store.open(tmp_path / "again").index.cases
    assert not {case.patient for case in again} & {case.patient for case in index.cases}, (
        "every store has a salt of its own"
    )
    size = [case.size for case in index.cases]
    assert sorted(case.size for case in again) == sorted(size)
    inspected = macl("inspect", data)
    assert inspected.code == 0
    assert not {"quixote", "alonso", "dulcinea", "panza"} & set(
        inspected.out.casefold().replace("_", " ").split()
    )


def test_ids_are_kept_where_asked_for_but_never_names(tmp_path: Path) -> None:
    dicom.write_series(tmp_path / "data/a/t1")
    dicom.write_series(tmp_path / "data/b/t1", seed=1, PatientID="Quixote19471209")
    answer = macl(
        "prepare", tmp_path / "data", tmp_path / "store", "--keep-identity", "--workers", 1
    )
    patients = [case.patient for case in Store.open(tmp_path / "store").index.cases]
    assert patients[0] == dicom.PATIENT_ID
    assert patients[1].startswith("patient-")
    assert "quixote" not in all_text(tmp_path / "store", answer.err)


def test_names_of_any_bytes_are_made_safe(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data/größe ÷ 2.nii.gz", anatomy(0)[0])
    (tmp_path / "data/caf\udce9.txt").write_text("x")
    answer = macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    index = json.loads((tmp_path / "store/store.json").read_text(encoding="utf-8"))
    assert index["cases"][0]["name"] == "gr_e_2"
    assert "caf\\udce9.txt" in " ".join(index["notes"])
