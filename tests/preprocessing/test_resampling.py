"""Resampling in plane or along all axes, and probabilities back: close, in place, in range."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from fakes.grids import geometry_of, numbered
from macl.config.settings import PrepareSettings
from macl.data.store_index import Orientation
from macl.io.geometry import Geometry, Volume
from macl.preprocessing.orientation import to_scan
from macl.preprocessing.resampling import (
    choose_nearest_axis,
    label_to_store_grid,
    to_scanned_size,
    to_store_grid,
)
from macl.utils.errors import RefusedCaseError

Spacing = tuple[float, float, float]

TURNED = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])
ISOTROPIC = geometry_of((40, 34, 30), (1.0, 1.1, 1.2), TURNED)
ANISOTROPIC = geometry_of((90, 70, 8), (1.0, 1.1, 5.0), TURNED)


def blobs(size: tuple[int, int, int], sigma: tuple[float, ...] = (2, 6, 6)) -> np.ndarray:
    """(z, y, x) smooth labels 0…3."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=tuple(reversed(size))), sigma)
    return np.digitize(noise, np.quantile(noise, (0.5, 0.75, 0.9))).astype(np.uint8)


def smooth(geometry: Geometry) -> np.ndarray:
    """(1, z, y, x) float64: structures a few voxels wide."""
    noise = np.random.default_rng(0).normal(size=tuple(reversed(geometry.size)))
    return gaussian_filter(noise, 3.0)[None]


def one_hot(label: np.ndarray) -> np.ndarray:
    """(4, Z, Y, X) float32."""
    return (label == np.arange(4)[:, None, None, None]).astype(np.float32)


def on_scanned_grid(values: np.ndarray, orientation: Orientation) -> np.ndarray:
    """(K, Z, Y, X) on the store's grid → (K, z, y, x) on the scan's."""
    slices = to_scanned_size(np.moveaxis(values, 1, 0), values.shape[1], orientation)
    return to_scan(np.stack([*slices], axis=1), orientation)


def dice(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the class that fits worst."""
    pairs = [(ours == value, theirs == value) for value in range(4)]
    return min(2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    ("geometry", "spacing_mm", "least_dice"),
    [
        (ANISOTROPIC, 0.8, 0.985),
        (ANISOTROPIC, 1.25, 0.95),
        (ANISOTROPIC, (5.0, 0.8, 0.8), 0.985),
        (ANISOTROPIC, (2.5, 0.8, 0.8), 0.985),
        (ISOTROPIC, (0.6, 0.7, 0.8), 0.97),
        (ISOTROPIC, (1.0, 1.0, 1.0), 0.94),
    ],
)
def test_labels_survive_and_no_class_appears_between_others(
    geometry: Geometry, spacing_mm: float | Spacing, least_dice: float
) -> None:
    label = blobs(geometry.size, (2, 6, 6) if geometry is ANISOTROPIC else (3, 3, 3))
    grid = to_store_grid(Volume(label[None], geometry), PrepareSettings(spacing_mm=spacing_mm))
    _, *size = grid.array.shape
    assert tuple(size) != grid.orientation.scanned_size
    wanted = spacing_mm if isinstance(spacing_mm, tuple) else (5.0, spacing_mm, spacing_mm)
    assert grid.spacing_mm == pytest.approx(wanted, rel=0.03)
    z, y, x = size
    prepared = label_to_store_grid(label, grid.orientation, (z, y, x), grid.nearest_axis)
    assert prepared.shape == (z, y, x)
    restored = on_scanned_grid(one_hot(prepared), grid.orientation).argmax(axis=0)
    assert dice(restored, label) > least_dice
    two_apart = np.where(label > 1, 3, 0).astype(np.uint8)
    resampled = label_to_store_grid(two_apart, grid.orientation, (z, y, x), grid.nearest_axis)
    assert set(np.unique(resampled)) == {0, 3}


@pytest.mark.parametrize(
    ("geometry", "spacing_mm"),
    [
        (ISOTROPIC, 0.8),
        (ISOTROPIC, (0.8, 0.8, 0.8)),
        (ISOTROPIC, (1.5, 0.8, 1.3)),
        (ANISOTROPIC, (5.0, 0.8, 0.8)),
        (ANISOTROPIC, (2.5, 1.0, 1.0)),
    ],
)
def test_an_image_comes_back_to_the_scans_grid(
    geometry: Geometry, spacing_mm: float | Spacing
) -> None:
    image = smooth(geometry)
    grid = to_store_grid(Volume(image, geometry), PrepareSettings(spacing_mm=spacing_mm))
    restored = on_scanned_grid(grid.array, grid.orientation)
    assert restored.shape == image.shape
    assert restored.dtype == np.float32
    assert np.corrcoef(restored.ravel(), image.ravel())[0, 1] > 0.99


def test_edges_stay_in_place_along_each_axis() -> None:
    geometry = geometry_of((40, 30, 20))
    middle = np.s_[8:-8, 8:-8, 8:-8]
    for axis, count in enumerate((20, 30, 40)):
        ramp = np.moveaxis(np.zeros((20, 30, 40)), axis, -1) + np.arange(count) + 0.5
        volume = Volume(np.moveaxis(ramp, -1, axis)[None], geometry)
        grid = to_store_grid(volume, PrepareSettings(spacing_mm=(0.5, 0.5, 0.5)))
        assert grid.array.shape == (1, 40, 60, 80)
        expected = np.moveaxis(np.zeros((40, 60, 80)), axis, -1) + (np.arange(2 * count) + 0.5) / 2
        expected = np.moveaxis(expected, -1, axis)
        np.testing.assert_allclose(grid.array[0][middle], expected[middle], atol=1e-2)


def test_a_volume_is_resampled_as_by_one_spline_in_three_dimensions() -> None:
    image = np.stack([smooth(ISOTROPIC)[0], 100 + smooth(ISOTROPIC)[0][::-1]])
    grid = to_store_grid(Volume(image, ISOTROPIC), PrepareSettings(spacing_mm=(0.9, 0.9, 0.9)))
    scanned = to_store_grid(Volume(image, ISOTROPIC), PrepareSettings()).array
    for ours, theirs in zip(grid.array, scanned, strict=True):
        factors = np.asarray(ours.shape) / theirs.shape
        expected = zoom(theirs, factors, order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(ours, np.clip(expected, image.min(), image.max()), atol=1e-4)


def test_three_equal_spacings_in_plane_are_one_number() -> None:
    image = np.rint(100 * smooth(ANISOTROPIC)).astype(np.int16)
    volume = Volume(image, ANISOTROPIC)
    in_plane = to_store_grid(volume, PrepareSettings(spacing_mm=0.8))
    in_space = to_store_grid(volume, PrepareSettings(spacing_mm=(5.0, 0.8, 0.8)))
    np.testing.assert_array_equal(in_plane.array, in_space.array)
    assert in_plane.spacing_mm == in_space.spacing_mm


# ---------------------------------------------------------------- anisotropic scans


@pytest.mark.parametrize(
    ("scanned_mm", "wanted_mm", "axis"),
    [
        ((5.0, 1.0, 1.0), (2.0, 1.0, 1.0), 0),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), 0),
        ((1.0, 0.3, 1.3), (1.0, 1.0, 1.0), 2),
        ((0.3, 1.3, 1.3), (4.0, 1.0, 1.0), None),
    ],
)
def test_an_axis_that_is_much_coarser_is_resampled_by_nearest_neighbour(
    scanned_mm: Spacing, wanted_mm: Spacing, axis: int | None
) -> None:
    assert choose_nearest_axis(scanned_mm, wanted_mm) == axis


@pytest.mark.parametrize(("slices", "wanted_mm"), [(16, 2.5), (4, 10.0), (12, 10 / 3)])
def test_between_distant_slices_nothing_is_interpolated(slices: int, wanted_mm: float) -> None:
    geometry = geometry_of((24, 20, 8), (1.0, 1.0, 5.0))
    image = np.random.default_rng(0).integers(0, 99, (1, 8, 20, 24), dtype=np.int16)
    label = blobs(geometry.size)
    asked = PrepareSettings(spacing_mm=(wanted_mm, 0.8, 0.8))
    grid = to_store_grid(Volume(image, geometry), asked)
    size = (slices, 25, 30)
    assert grid.array.shape[1:] == size
    nearest = np.floor((np.arange(slices) + 0.5) * 8 / slices).astype(int)
    in_plane = to_store_grid(Volume(image, geometry), PrepareSettings(spacing_mm=0.8)).array
    np.testing.assert_array_equal(grid.array, in_plane[:, nearest])
    whole = label_to_store_grid(label, grid.orientation, (8, 25, 30))
    prepared = label_to_store_grid(label, grid.orientation, size, grid.nearest_axis)
    np.testing.assert_array_equal(prepared, whole[nearest])


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("spacing_mm", [0.7, (0.7, 0.7, 0.7), (0.2, 0.7, 0.7)])
def test_resampled_integers_stay_integers_within_the_scans_range(
    spacing_mm: float | Spacing,
) -> None:
    geometry = geometry_of((24, 24, 6))
    checks = (np.indices((6, 24, 24)).sum(axis=0) // 4 % 2 * 200).astype(np.int16)
    asked = PrepareSettings(spacing_mm=spacing_mm)
    grid = to_store_grid(Volume(checks[None], geometry), asked)
    assert grid.array.dtype == np.int16
    assert (grid.array.min(), grid.array.max()) == (0, 200)
    whole_floats = to_store_grid(Volume(checks[None] * 1.0, geometry), asked)
    np.testing.assert_array_equal(whole_floats.array, grid.array)


def test_probabilities_stay_probabilities_and_come_slice_by_slice() -> None:
    image = smooth(ISOTROPIC)
    grid = to_store_grid(Volume(image, ISOTROPIC), PrepareSettings(spacing_mm=(0.8, 1.3, 0.7)))
    share = (grid.array[0] - image.min()) / np.ptp(image)
    slices = np.stack([share, 1 - share], axis=1).astype(np.float32)
    taken = []

    def one_at_a_time():
        for index, plane in enumerate(slices):
            taken.append(index)
            yield plane

    scanned = to_scanned_size(one_at_a_time(), len(slices), grid.orientation)
    ratio = len(slices) / grid.orientation.scanned_size[0]
    for index, plane in enumerate(scanned):
        assert plane.shape == (2, *grid.orientation.scanned_size[1:])
        assert plane.min() >= 0
        np.testing.assert_allclose(plane.sum(axis=0), 1, atol=1e-5)
        assert len(taken) <= (index + 1) * ratio + 2
    assert len(taken) == len(slices)


@pytest.mark.parametrize("spacing_mm", [1.0, (3.0, 1.0, 1.0)])
def test_resampling_without_a_spacing_is_refused(spacing_mm: float | Spacing) -> None:
    geometry = geometry_of((9, 9, 1)).model_copy(update={"spacing_known": False})
    volume = Volume(numbered(geometry), geometry)
    assert to_store_grid(volume, PrepareSettings()).spacing_mm is None
    with pytest.raises(RefusedCaseError, match="gives no spacing"):
        to_store_grid(volume, PrepareSettings(spacing_mm=spacing_mm))
