"""Scans prepared by a plan of nnU-Net's: every step by hand, the whole through the command line.

`make check-nnunet` compares the same with nnU-Net's own preprocessor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from fakes import nnunet
from fakes.command import macl
from fakes.nnunet import scan_plans, write_scan_plans
from fakes.scans import affine, write_nifti
from fakes.threshold_run import known_case, write_threshold_run
from macl.config.settings import PrepareSettings, ScanPlan
from macl.data.store import Store
from macl.io.geometry import Geometry, Volume
from macl.io.volume import read_label, read_scan
from macl.preprocessing.case import prepare_image
from macl.preprocessing.normalisation import normalise
from macl.preprocessing.orientation import to_scan
from macl.preprocessing.planned import planned_label
from macl.preprocessing.plans import read_scan_plan
from macl.preprocessing.resampling import OnStoreGrid
from macl.utils.errors import MaclError

BODY = (slice(1, 4), slice(2, 6), slice(1, 7))


def plan_of(folder: Path, *arguments: Any, **options: Any) -> ScanPlan:
    path = write_scan_plans(folder / "nnUNetPlans.json", *arguments, **options)
    return read_scan_plan(path, *json.loads(path.read_text())["configurations"])


def volume(
    array: np.ndarray,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    rescale: tuple[tuple[float, float], ...] = (),
) -> Volume:
    """A scan (C, z, y, x), its spacing as (z, y, x)."""
    geometry = Geometry(
        size=array.shape[:0:-1],
        spacing=spacing[::-1],
        origin=(0, 0, 0),
        direction=direction,
        spacing_known=True,
    )
    return Volume(array, geometry, rescale)


def prepared(scan: Volume, plan: ScanPlan) -> tuple[np.ndarray, OnStoreGrid]:
    """What a network is shown of a scan, and its grid."""
    grid, stored = prepare_image(scan, PrepareSettings(plan=plan))
    assert stored.array.dtype == np.float32
    return normalise(stored.array, stored.normalisation), grid


def body(seed: int = 0, channels: int = 1) -> np.ndarray:
    """(C, 5, 7, 9) int16: a box of noise with a hole of zeros, on zeros."""
    array = np.zeros((channels, 5, 7, 9), np.int16)
    array[:, *BODY] = np.random.default_rng(seed).integers(10, 200, (channels, 3, 4, 6))
    array[:, 2, 3:5, 3] = 0
    return array


# ---------------------------------------------------------------- by hand


def test_a_scan_is_cropped_to_what_is_not_zero_and_normalised_within(tmp_path: Path) -> None:
    array = body()
    array[0, 1, 2, 1] = 0  # a corner of the box, outside of the body
    image, grid = prepared(volume(array), plan_of(tmp_path, masked=True))
    assert grid.orientation.crop == ((1, 4), (2, 6), (1, 7))
    box = array[0][BODY].astype(float)
    inside = np.ones(box.shape, bool)
    inside[0, 0, 0] = False
    expected = np.where(inside, (box - box[inside].mean()) / box[inside].std(), 0.0)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)
    whole, _ = prepared(volume(array), plan_of(tmp_path, masked=False))
    np.testing.assert_allclose(whole[0], (box - box.mean()) / box.std(), atol=1e-6)


def test_each_channel_has_its_scheme(tmp_path: Path) -> None:
    array = body(channels=5)
    array[3, 1, 2, 1] = 0  # not 0 in the others: part of the body
    schemes = (
        "CTNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
        "NoNormalization",
        "ZScoreNormalization",
    )
    image, _ = prepared(volume(array), plan_of(tmp_path, (1, 1, 1), schemes))
    box = array[:, *BODY].astype(float)
    np.testing.assert_allclose(image[0], (box[0].clip(20, 150) - 100) / 40, atol=1e-6)
    np.testing.assert_allclose(image[1], box[1] / box[1].max(), atol=1e-6)
    np.testing.assert_allclose(image[2], box[2] / 255, atol=1e-6)
    np.testing.assert_array_equal(image[3], box[3])
    np.testing.assert_allclose(image[4].std(), 1, atol=1e-5)


def test_values_are_the_scans_own(tmp_path: Path) -> None:
    """Stored 1024 with an intercept of −1024 is the air of a CT: cropped away."""
    array = np.full((1, 3, 4, 5), 1024, np.int16)
    array[0, 1, 1:3, 1:4] = 1100
    scan = volume(array, rescale=((1.0, -1024.0),))
    image, grid = prepared(scan, plan_of(tmp_path, (1, 1, 1), ("CTNormalization",)))
    assert grid.orientation.crop == ((1, 2), (1, 3), (1, 4))
    np.testing.assert_allclose(image, (76 - 100) / 40)


def test_a_scan_without_anything_in_it_is_kept_whole(tmp_path: Path) -> None:
    image, grid = prepared(volume(np.zeros((1, 3, 4, 5), np.int16)), plan_of(tmp_path))
    assert grid.orientation.crop is None
    np.testing.assert_array_equal(image, np.zeros((1, 3, 4, 5)))


def test_axes_are_those_of_the_file_in_the_plans_order(tmp_path: Path) -> None:
    """Whatever the anatomy: here x runs to the right and z downwards."""
    array = np.arange(1, 61, dtype=np.int16).reshape(1, 3, 4, 5)
    downwards = (-1, 0, 0, 0, 1, 0, 0, 0, -1)
    plan = plan_of(tmp_path, (3, 1, 2), ("NoNormalization",), axes=(2, 0, 1))
    image, grid = prepared(volume(array, (1, 2, 3), downwards), plan)
    np.testing.assert_array_equal(image[0], array[0].transpose(2, 0, 1))
    assert grid.spacing_mm == (3, 1, 2)
    assert grid.orientation.plane == "sagittal"
    np.testing.assert_array_equal(to_scan(image[0], grid.orientation), array[0])


def test_a_plan_that_reorients_turns_scans_to_right_anterior_superior(tmp_path: Path) -> None:
    array = np.arange(1, 61, dtype=np.int16).reshape(1, 3, 4, 5)
    plan = plan_of(tmp_path, schemes=("NoNormalization",), reader="NibabelIOWithReorient")
    turned = {
        (1, 0, 0, 0, 1, 0, 0, 0, 1): array[0, :, ::-1, ::-1],  # left-posterior-superior
        (-1, 0, 0, 0, -1, 0, 0, 0, -1): array[0, ::-1],
        (0, 1, 0, -1, 0, 0, 0, 0, 1): array[0].transpose(0, 2, 1)[:, :, ::-1],
    }
    for direction, expected in turned.items():
        image, _ = prepared(volume(array, direction=direction), plan)
        np.testing.assert_array_equal(image[0], expected)


def test_cubic_splines_bring_a_scan_to_the_spacing(tmp_path: Path) -> None:
    """Against SciPy's splines at coordinates worked out here; edges stay in place."""
    array = np.random.default_rng(1).normal(100, 20, (1, 6, 7, 8)).astype(np.float32)
    plan = plan_of(tmp_path, (1.5, 0.8, 1.0), ("NoNormalization",))
    image, grid = prepared(volume(array, (1.0, 1.2, 1.0)), plan)
    assert image.shape == (1, 4, 10, 8)  # 6 / 1.5, 7 × 1.2 / 0.8 = 10.5, to the even
    assert grid.spacing_mm == pytest.approx((1.5, 0.84, 1.0))
    centres = [
        (np.arange(new) + 0.5) * old / new - 0.5
        for old, new in zip((6, 7, 8), image.shape[1:], strict=True)
    ]
    at = np.meshgrid(*centres, indexing="ij")
    expected = map_coordinates(array[0].astype(float), at, order=3, mode="nearest")
    np.testing.assert_allclose(image[0], expected.clip(array.min(), array.max()), atol=1e-4)


def test_a_much_coarser_axis_is_resampled_by_the_nearest_slice(tmp_path: Path) -> None:
    """Cubic in plane: a ramp stays a ramp, away from the edges."""
    array = np.empty((1, 4, 12, 12), np.float32)
    array[0] = np.array([10, 20, 40, 80])[:, None, None] + np.arange(12)
    plan = plan_of(tmp_path, (2.5, 0.5, 0.5), ("NoNormalization",))
    image, grid = prepared(volume(array, (5.0, 1.0, 1.0)), plan)
    assert grid.nearest_axis == 0
    assert image.shape == (1, 8, 24, 24)
    slices = np.array([10, 10, 20, 20, 40, 40, 80, 80])[:, None, None]
    ramp = (np.arange(24) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(
        image[0, :, :, 8:16], slices + ramp[8:16] + np.zeros((24, 1)), atol=0.02
    )


def test_slices_keep_their_distance_in_2d(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(1, 99, (1, 3, 8, 10)).astype(np.int16)
    image, grid = prepared(volume(array, (4.0, 1.0, 1.0)), plan_of(tmp_path, (2.0, 2.0)))
    assert image.shape == (1, 3, 4, 5)
    assert grid.spacing_mm == (4, 2, 2)


def test_labels_go_to_the_largest_share_or_the_nearest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, (1.0, 1.0, 0.5), ("NoNormalization",))
    label = np.array([[[0, 0, 1, 2, 2, 2]]], np.uint8).repeat(2, 0).repeat(2, 1)
    _, grid = prepared(volume(np.ones((1, 2, 2, 6), np.int16)), plan)
    assert planned_label(label, grid, plan)[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    halved = plan_of(tmp_path, (1.0, 1.0, 1.5), ("NoNormalization",))
    _, grid = prepared(volume(np.ones((1, 2, 2, 6), np.int16)), halved)
    # Centres at 0.25, 1.75, 3.25 and 4.75: class 1 has 0.75 of the second.
    assert planned_label(label, grid, halved)[0, 0].tolist() == [0, 1, 2, 2]


# ---------------------------------------------------------------- through the command line


class Planned(NamedTuple):
    """A store of two scans, whose first three rows are empty, by a plan that moves axes."""

    source: Path
    store: Path
    image: np.ndarray
    label: np.ndarray


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("planned")
    image, label = known_case((6, 20, 24))
    image, label = image + 50, label.copy()
    image[:, :3], label[:, :3] = 0, 0
    source = folder / "Dataset004_Toy"
    labels = {"background": 0, "ring": 3, "core": 9}
    nnunet.write(source, cases=0, test=0, channels=("MR",), labels=labels, numTraining=2)
    for number in range(2):
        write_nifti(source / "imagesTr" / f"a{number}_0000.nii.gz", image, affine((1, 1, 1)))
        write_nifti(source / "labelsTr" / f"a{number}.nii.gz", label, affine((1, 1, 1)))
    plans = write_scan_plans(folder / "nnUNetPlans.json", axes=(1, 0, 2))
    store = folder / "a.store"
    answer = macl("prepare", source, store, "--plans", plans, "--workers", 1)
    assert answer.code == 0, answer.err
    assert "nnU-Net's 3d_fullres (1 × 1 × 1 mm, ZScoreNormalization)" in answer.err
    return Planned(source, store, image, label)


def test_a_store_keeps_what_the_plan_makes_of_a_scan(planned: Planned) -> None:
    opened = Store.open(planned.store)
    case = opened.case("a0")
    assert case.size == (17, 6, 24)
    assert case.orientation.crop == ((3, 20), (0, 6), (0, 24))
    assert case.anatomical_axes[0] == "anterior-posterior"
    truth = to_scan(opened.read("a0", "truth"), case.orientation)
    np.testing.assert_array_equal(truth > 0, planned.label > 0)
    box = planned.image[:, 3:].astype(float).transpose(1, 0, 2)
    np.testing.assert_allclose(opened.read("a0")[0], (box - box.mean()) / box.std(), atol=1e-5)


def test_runs_of_a_planned_store_predict_by_the_same_plan(planned: Planned, tmp_path: Path) -> None:
    """The run's segmenter thresholds what the plan normalises, so the right mask is known."""
    prepared = Store.open(planned.store).index.prepared
    run = write_threshold_run(tmp_path / "run", prepared=prepared)
    scan = planned.source / "imagesTr" / "a0_0000.nii.gz"
    for paths in ((scan,), (planned.store, "--cases", "all")):
        out = tmp_path / f"masks{len(paths)}"
        answer = macl("predict", run, *paths, "--out", out)
        assert answer.code == 0, answer.err
        mask = read_label(next(out.glob("a0*.nii.gz")))
        np.testing.assert_array_equal(mask.array[0], planned.label)
        assert mask.geometry.size == read_scan((scan,), 1).geometry.size
    other = tmp_path / "other.store"
    macl("prepare", planned.source, other, "--workers", 1)
    answer = macl("predict", run, other, "--cases", "all", "--out", tmp_path / "none")
    assert answer.code == 1
    assert "plan None, not nnU-Net's 3d_fullres" in answer.err


@pytest.mark.parametrize(
    ("crop", "plan"),
    [([[3, 21], [0, 6], [0, 24]], True), ([[5, 5], [0, 6], [0, 24]], True), (None, False)],
)
def test_an_index_whose_crop_cannot_be_is_refused(
    planned: Planned, tmp_path: Path, crop: Any, plan: bool
) -> None:
    index = json.loads((planned.store / "store.json").read_text())
    if plan:
        index["cases"][0]["orientation"]["crop"] = crop
    else:
        index["prepared"] |= {"plan": None, "normalisation": "zscore"}
    (tmp_path / "store.json").write_text(json.dumps(index))
    with pytest.raises(MaclError, match="cannot be right: of the case 'a0'"):
        Store.open(tmp_path)


# ---------------------------------------------------------------- plans are input

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "scheme": ({"normalization_schemes": ["MyNorm"]}, "scheme"),
    "count": ({"use_mask_for_norm": [False, True]}, "one length"),
    "spacing": ({"spacing": [1.0, 0.0, 1.0]}, "spacing_mm"),
    "no number": ({"spacing": "fine"}, "spacing_mm"),
    "preprocessor": ({"preprocessor_name": "Mine"}, "preprocessor_name 'Mine' is not built here"),
    "function": ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
    "order across": (
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 1}},
        "resampling_fn_seg_kwargs",
    ),
    "order": ({"resampling_fn_seg_kwargs": {"order": 9}}, "label_order"),
    "cascade": ({"previous_stage": "3d_lowres"}, "another network's masks"),
    "two channels": (
        {"normalization_schemes": ["NoNormalization"] * 2, "use_mask_for_norm": [False] * 2},
        "plans for 2 image channels",
    ),
}


@pytest.mark.parametrize(("changed", "named"), WRONG.values(), ids=list(WRONG))
def test_a_plan_that_cannot_be_followed_is_refused(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    source = nnunet.write(tmp_path / "Dataset004_Toy", channels=("MR",))
    plans = write_scan_plans(tmp_path / "nnUNetPlans.json", **changed)
    refused(source, tmp_path, named, "--plans", plans)


def test_what_else_is_refused_of_a_plan(tmp_path: Path) -> None:
    source = nnunet.write(tmp_path / "Dataset004_Toy", channels=("MR",))
    path = tmp_path / "nnUNetPlans.json"
    good = scan_plans(schemes=("CTNormalization",))
    for changed, named in (
        ({"image_reader_writer": "Tiff3DIO"}, "image_reader_writer 'Tiff3DIO' is not built here"),
        ({"transpose_forward": [0, 0, 1]}, "axes names each of 0, 1 and 2 once"),
        ({"transpose_forward": None}, "axes"),
        ({"foreground_intensity_properties_per_channel": {}}, "intensities of channel 0"),
    ):
        path.write_text(json.dumps({**good, **changed}))
        refused(source, tmp_path, named, "--plans", path)
    path.write_text(json.dumps({name: good[name] for name in good if name != "transpose_forward"}))
    refused(source, tmp_path, "'transpose_forward' is missing", "--plans", path)
    path.write_text(json.dumps(good))
    refused(source, tmp_path, "has no configuration '2d'", "--plans", path, "--configuration", "2d")
    refused(source, tmp_path, "leave out", "--plans", path, "--spacing-mm", "1,1,1")
    refused(source, tmp_path, "add --plans", "--configuration", "2d")
    path.write_text("{")
    refused(source, tmp_path, "nnUNetPlans.json", "--plans", path)


def test_colours_that_are_none_are_refused_case_by_case(tmp_path: Path) -> None:
    source = nnunet.write(tmp_path / "Dataset004_Toy", cases=1, test=0, channels=("MR",))
    bright = np.arange(200, 392, dtype=np.int16).reshape(3, 8, 8)
    write_nifti(source / "imagesTr" / "bright_0000.nii.gz", bright)
    plans = write_scan_plans(tmp_path / "nnUNetPlans.json", schemes=("RGBTo01Normalization",))
    answer = macl("prepare", source, tmp_path / "a.store", "--plans", plans, "--workers", 1)
    assert answer.code == 0, answer.err
    (refusal,) = Store.open(tmp_path / "a.store").index.refused
    assert refusal.name == "bright"
    assert "the plan takes its values as colours from 0 to 255" in refusal.reason


def refused(source: Path, folder: Path, named: str, *options: object) -> None:
    """One sentence, and nothing written."""
    answer = macl("prepare", source, folder / "none.store", "--workers", 1, *options)
    assert answer.code == 1
    assert named in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (folder / "none.store").exists()
