"""Scan → slices → scan: orientation exact for any grid, resampling close."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from macl.config import PrepareSettings
from macl.io.geometry import Geometry, Volume, direction_matrix, nearest_axes, orientation
from macl.io.nifti import affine_of
from macl.preprocessing.orientation import orient, plan, to_scan
from macl.preprocessing.resampling import label_to_slices, to_scan_plane, to_slices
from macl.utils.errors import RefusedCaseError

AS_SCANNED = PrepareSettings()


def geometry_of(
    size: tuple[int, int, int], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), matrix: np.ndarray | None = None
) -> Geometry:
    flat = (np.eye(3) if matrix is None else matrix).ravel().tolist()
    return Geometry(size=size, spacing=spacing, origin=(3.0, -4.0, 5.0), direction=flat, spacing_known=True)


@st.composite
def geometries(draw: st.DrawFn, largest_tilt_degrees: float = 40.0) -> Geometry:
    """Any of the 48 orientations, then tilted: oblique, anisotropic, left- and right-handed."""
    axes = draw(st.permutations(range(3)))
    signs = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    turned = np.eye(3)[:, axes] * signs
    axis = np.array([1.0, *(draw(st.floats(-1, 1)) for _ in range(2))])
    tilt = np.radians(draw(st.floats(0.0, largest_tilt_degrees)))
    rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * tilt).as_matrix()
    size = tuple(draw(st.integers(1, 7)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.3, 6.0)) for _ in range(3))
    return geometry_of(size, spacing, rotation @ turned)  # pyright: ignore[reportArgumentType]


def numbered(geometry: Geometry) -> np.ndarray:
    """(1, z, y, x): every voxel another number."""
    return np.arange(np.prod(geometry.size), dtype=np.int32).reshape(1, *reversed(geometry.size))


@given(geometries(180.0), st.sampled_from(["auto", "axial", "coronal", "sagittal"]))
@settings(max_examples=200, deadline=None)
def test_there_and_back_is_exact(geometry: Geometry, plane) -> None:
    array = numbered(geometry)
    slices = to_slices(Volume(array, geometry), PrepareSettings(plane=plane))
    assert slices.array.shape[2:] == slices.orientation.scanned_size[1:]
    np.testing.assert_array_equal(to_scan(slices.array[:, 0], slices.orientation), array[0])
    label = (array[0] % 5).astype(np.uint8)
    there = label_to_slices(label, slices.orientation, slices.orientation.scanned_size[1:])
    np.testing.assert_array_equal(to_scan(there, slices.orientation), label)


@given(geometries())
@settings(max_examples=60, deadline=None)
def test_axial_slices_are_those_of_nibabel(geometry: Geometry) -> None:
    array = numbered(geometry)
    slices = to_slices(Volume(array, geometry), PrepareSettings(plane="axial"))
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(array[0].T, affine_of(geometry)))
    right_anterior_superior = np.asarray(canonical.dataobj)
    np.testing.assert_array_equal(slices.array[:, 0], right_anterior_superior[::-1, ::-1].T)


@given(geometries(30.0))
@settings(max_examples=30, deadline=None)
def test_axial_slices_are_those_of_simpleitk(geometry: Geometry) -> None:
    array = numbered(geometry)
    image = SimpleITK.GetImageFromArray(array[0])
    image.SetDirection(geometry.direction)
    turned = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
    slices = to_slices(Volume(array, geometry), PrepareSettings(plane="axial"))
    np.testing.assert_array_equal(slices.array[:, 0], turned)
    name = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(geometry.direction)
    assert orientation(geometry) == name


@given(geometries(180.0), st.sampled_from(["axial", "coronal", "sagittal"]))
@settings(max_examples=40, deadline=None)
def test_every_axis_of_the_slices_rises_towards_left_posterior_superior(geometry: Geometry, plane) -> None:
    orientation = plan(geometry, plane)
    matrix, axes = direction_matrix(geometry), nearest_axes(geometry)
    stacked = {"axial": [2, 1, 0], "coronal": [1, 2, 0], "sagittal": [0, 2, 1]}[plane]
    for place, anatomical in enumerate(stacked):
        grid_axis = 2 - orientation.permutation[place]
        assert axes[grid_axis] == anatomical
        rise = matrix[anatomical, grid_axis] * (-1 if orientation.flipped[place] else 1)
        assert rise >= 0


@pytest.mark.parametrize(
    ("size", "spacing", "plane"),
    [
        ((9, 9, 9), (1.0, 1.0, 1.0), "axial"),
        ((9, 9, 9), (1.0, 1.0, 5.0), "axial"),
        ((9, 9, 9), (1.0, 5.0, 1.0), "coronal"),
        ((9, 9, 9), (5.0, 1.0, 1.0), "sagittal"),
        ((9, 9, 9), (1.3, 1.0, 1.0), "axial"),
        ((9, 9, 9), (2.0, 2.0, 1.0), "axial"),
        ((1, 9, 9), (1.0, 1.0, 5.0), "sagittal"),
    ],
)
def test_slices_lie_across_the_coarsest_spacing(size, spacing, plane) -> None:
    assert plan(geometry_of(size, spacing)).plane == plane


def blobs(size: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """(z, y, x) smooth labels 0…3."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=tuple(reversed(size))), (2, 6, 6))
    return np.digitize(noise, np.quantile(noise, (0.5, 0.75, 0.9))).astype(np.uint8)


@pytest.mark.parametrize(("spacing_mm", "dice"), [(0.8, 0.985), (1.25, 0.95)])
def test_labels_survive_resampling_and_no_class_appears_between_others(spacing_mm: float, dice: float) -> None:
    geometry = geometry_of((90, 70, 8), (1.0, 1.1, 5.0), np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]]))
    label = blobs(geometry.size)
    slices = to_slices(Volume(label[None], geometry), PrepareSettings(spacing_mm=spacing_mm))
    size = slices.array.shape[2], slices.array.shape[3]
    assert size != slices.orientation.scanned_size[1:]
    assert slices.spacing_mm == pytest.approx((5.0, spacing_mm, spacing_mm), rel=0.02)
    fine = label_to_slices(label, slices.orientation, size)
    one_hot = (fine[:, None] == np.arange(4)[:, None, None]).astype(np.float32)
    back = to_scan(to_scan_plane(one_hot, slices.orientation).argmax(axis=1), slices.orientation)
    for value in range(4):
        ours, theirs = back == value, label == value
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > dice
    two_apart = label_to_slices(np.where(label > 1, 3, 0).astype(np.uint8), slices.orientation, size)
    assert set(np.unique(two_apart)) == {0, 3}


def test_resampling_keeps_edges_in_place() -> None:
    geometry = geometry_of((40, 30, 2))
    x = np.arange(40) + 0.5
    ramp = np.broadcast_to(x, (1, 2, 30, 40)).astype(np.float64)
    slices = to_slices(Volume(ramp, geometry), PrepareSettings(spacing_mm=0.5))
    assert slices.array.shape == (2, 1, 60, 80)
    positions = (np.arange(80) + 0.5) * 0.5
    np.testing.assert_allclose(slices.array[0, 0, 10, 8:-8], positions[8:-8], atol=1e-3)


def test_resampled_integers_stay_integers_within_the_scans_range() -> None:
    checks = (np.indices((2, 24, 24)).sum(axis=0) // 4 % 2 * 200).astype(np.int16)
    slices = to_slices(Volume(checks[None], geometry_of((24, 24, 2))), PrepareSettings(spacing_mm=0.7))
    assert slices.array.dtype == np.int16
    assert (slices.array.min(), slices.array.max()) == (0, 200)
    whole_floats = to_slices(Volume(checks[None] * 1.0, geometry_of((24, 24, 2))), PrepareSettings(spacing_mm=0.7))
    np.testing.assert_array_equal(whole_floats.array, slices.array)


def test_resampling_without_a_spacing_is_refused() -> None:
    geometry = geometry_of((9, 9, 1)).model_copy(update={"spacing_known": False})
    volume = Volume(numbered(geometry), geometry)
    assert to_slices(volume, AS_SCANNED).spacing_mm is None
    with pytest.raises(RefusedCaseError, match="tells no spacing"):
        to_slices(volume, PrepareSettings(spacing_mm=1.0))


def test_orientation_leaves_leading_axes_alone() -> None:
    geometry = geometry_of((4, 3, 2), matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]))
    array = np.random.default_rng(0).normal(size=(5, 2, 3, 4))
    orientation = plan(geometry)
    for channel in range(5):
        np.testing.assert_array_equal(orient(array, orientation)[channel], orient(array[channel], orientation))
