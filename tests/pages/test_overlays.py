from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as images

from fakes.toy_store import on_its_side, write_toy_store
from macl.data.store import Store
from macl.io.volume import write_volume
from macl.pages.overlays import (
    SMALLEST_CROP,
    CaseSlice,
    choose_cases,
    colour_of,
    crop_around,
    draw,
    fullest_slice,
)
from macl.preprocessing.orientation import to_scan
from macl.utils.errors import MaclError

CASE = "patient001"


def case_slice(truth: np.ndarray, prediction: np.ndarray, aspect: float = 1.0) -> CaseSlice:
    return CaseSlice("case", 1, 1, np.full(truth.shape, 0.5), truth, prediction, aspect)


def decoded(png: bytes) -> np.ndarray:
    return images.imread(io.BytesIO(png))[..., :3]


def turned(store: Store) -> Store:
    """On its side, with other values in the scans' labels."""
    straight = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    lying = on_its_side(store, CASE, straight)
    return Store(store.path, lying.index.model_copy(update={"label_values": (0, 7, 200)}))


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        (
            {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.8, "e": 0.1},
            [("Best case", "b"), ("Median case", "c"), ("Worst case", "e")],
        ),
        ({"a": 0.5, "b": 0.9}, [("Best case", "b"), ("Worst case", "a")]),
        ({"a": 0.5}, [("The only case", "a")]),
        ({}, []),
    ],
)  # fmt: skip
def test_best_median_and_worst(means: dict[str, float], chosen: list[tuple[str, str]]) -> None:
    assert choose_cases(means) == chosen


def test_a_mask_in_the_scan_s_own_grid_and_values_comes_back_to_the_slices(tmp_path: Path) -> None:
    store = turned(write_toy_store(tmp_path / "store", patients=1))
    case, label = store.case(CASE), store.read(CASE, "label")
    assert case.orientation.permutation != (0, 1, 2)
    assert any(case.orientation.flipped)
    mask = tmp_path / f"{CASE}.nii.gz"
    values = np.array(store.index.label_values, dtype=np.uint8)
    write_volume(mask, values[to_scan(label, case.orientation)], case.geometry)
    seen = fullest_slice(store, CASE, mask, store.index.label_values)
    foreground = (label > 0).sum(axis=(1, 2))
    assert foreground[seen.number - 1] == foreground.max()
    np.testing.assert_array_equal(seen.truth, label[seen.number - 1])
    np.testing.assert_array_equal(seen.prediction, seen.truth)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1)
    geometry = store.case(CASE).geometry.model_copy(update={"size": (5, 6, 7)})
    write_volume(tmp_path / "mask.nii.gz", np.ones((7, 6, 5), dtype=np.uint8), geometry)
    with pytest.raises(MaclError, match="does not lie on the grid"):
        fullest_slice(store, CASE, tmp_path / "mask.nii.gz", (0, 1, 2))


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1)
    (tmp_path / "mask.nii.gz").write_bytes(b"not a mask")
    with pytest.raises(MaclError, match=r"mask\.nii\.gz"):
        fullest_slice(store, CASE, tmp_path / "mask.nii.gz", (0, 1, 2))


def test_the_crop_holds_everything_labelled_in_any_version() -> None:
    truth, first, second = (np.zeros((200, 300), dtype=np.uint8) for _ in range(3))
    truth[90:110, 140:160] = 1
    first[40:50, 140:160] = 1
    second[90:110, 250:255] = 2
    rows, columns = crop_around([case_slice(truth, first), case_slice(truth, second)])
    assert rows.start <= 40
    assert rows.stop >= 110
    assert columns.start <= 140
    assert columns.stop >= 255
    assert 0 <= rows.start < rows.stop <= 200
    assert rows.stop - rows.start < 200


def test_a_tiny_structure_is_shown_with_its_surroundings_and_none_with_everything() -> None:
    truth = np.zeros((100, 100), dtype=np.uint8)
    assert crop_around([case_slice(truth, truth)]) == (slice(0, 100), slice(0, 100))
    truth[0, 0] = 1
    rows, columns = crop_around([case_slice(truth, truth)])
    assert rows == columns == slice(0, SMALLEST_CROP)


def test_the_prediction_is_filled_and_the_truth_outlined() -> None:
    truth, prediction = np.zeros((60, 60), dtype=np.uint8), np.zeros((60, 60), dtype=np.uint8)
    truth[10:50, 10:30] = 1
    prediction[10:50, 30:50] = 2
    shown = case_slice(truth, prediction)
    crop = (slice(0, 60), slice(0, 60))
    scan, true, predicted = (
        decoded(draw([(kind, shown)], crop)) for kind in ("scan", "truth", "prediction")
    )
    assert scan.shape == true.shape == predicted.shape
    middle, left, right = scan.shape[0] // 2, scan.shape[1] // 3, scan.shape[1] * 2 // 3
    assert np.ptp(scan[middle, left]) == 0
    assert np.ptp(true[middle, left]) > 0.2
    assert np.ptp(true[middle, right]) == 0
    assert np.ptp(predicted[middle, left]) == 0
    assert np.ptp(predicted[middle, right]) > 0.2
    edge = predicted[
        middle, round(scan.shape[1] * 10 / 60) - 6 : round(scan.shape[1] * 10 / 60) + 6
    ]
    assert np.ptp(edge, axis=1).max() > 0.2


def test_anisotropic_pixels_keep_their_shape_and_captions_make_room() -> None:
    empty = np.zeros((40, 80), dtype=np.uint8)
    shown, crop = case_slice(empty, empty, aspect=2.0), (slice(0, 40), slice(0, 80))
    height, width, _ = decoded(draw([("scan", shown)], crop)).shape
    assert height == width
    captioned = decoded(draw([("scan", shown), ("truth", shown)], crop, ("a", "b")))
    assert captioned.shape[1] == 2 * width
    assert captioned.shape[0] > height


def test_colours_go_round_and_neighbours_differ() -> None:
    colours = [colour_of(label) for label in range(1, 31)]
    assert all(colour != following for colour, following in pairwise(colours))
