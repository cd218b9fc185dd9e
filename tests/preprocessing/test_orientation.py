"""A scan's axes ↔ the store's: exact there and back, and in left-posterior-superior order."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.grids import geometries, geometry_of, numbered
from macl.config.settings import PrepareSettings
from macl.io.geometry import Geometry, Volume, axis_codes, direction_matrix, nearest_axes
from macl.io.nifti import affine_of
from macl.preprocessing.orientation import (
    choose_orientation,
    kept_part,
    orient,
    store_affine,
    to_scan,
)
from macl.preprocessing.resampling import label_to_store_grid, to_store_grid


@given(geometries(180.0), st.sampled_from(["auto", "axial", "coronal", "sagittal"]))
@settings(max_examples=200, deadline=None)
def test_there_and_back_is_exact(geometry: Geometry, plane) -> None:
    array = numbered(geometry)
    grid = to_store_grid(Volume(array, geometry), PrepareSettings(plane=plane))
    assert grid.array.shape[1:] == grid.orientation.scanned_size
    np.testing.assert_array_equal(to_scan(grid.array, grid.orientation), array)
    label = (array[0] % 5).astype(np.uint8)
    prepared = label_to_store_grid(label, grid.orientation, grid.orientation.scanned_size)
    np.testing.assert_array_equal(to_scan(prepared, grid.orientation), label)


@given(geometries())
@settings(max_examples=60, deadline=None)
def test_axial_slices_are_those_of_nibabel(geometry: Geometry) -> None:
    array = numbered(geometry)
    grid = to_store_grid(Volume(array, geometry), PrepareSettings(plane="axial"))
    image = nibabel.Nifti1Image(array[0].T, affine_of(geometry))
    right_anterior_superior = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    np.testing.assert_array_equal(grid.array[0], right_anterior_superior[::-1, ::-1].T)


@given(geometries(30.0))
@settings(max_examples=30, deadline=None)
def test_axial_slices_are_those_of_simpleitk(geometry: Geometry) -> None:
    array = numbered(geometry)
    image = SimpleITK.GetImageFromArray(array[0])
    image.SetDirection(geometry.direction)
    turned = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
    grid = to_store_grid(Volume(array, geometry), PrepareSettings(plane="axial"))
    np.testing.assert_array_equal(grid.array[0], turned)
    codes = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(geometry.direction)
    assert axis_codes(geometry) == codes


@given(geometries(180.0), st.sampled_from(["axial", "coronal", "sagittal"]))
@settings(max_examples=40, deadline=None)
def test_each_axis_of_the_store_rises_towards_left_posterior_superior(
    geometry: Geometry, plane
) -> None:
    orientation = choose_orientation(geometry, plane)
    matrix, axes = direction_matrix(geometry), nearest_axes(geometry)
    stacked = {"axial": [2, 1, 0], "coronal": [1, 2, 0], "sagittal": [0, 2, 1]}[plane]
    for place, anatomical in enumerate(stacked):
        grid_axis = 2 - orientation.permutation[place]
        assert axes[grid_axis] == anatomical
        assert orientation.scanned_size[place] == geometry.size[grid_axis]
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
    assert choose_orientation(geometry_of(size, spacing)).plane == plane


def test_leading_axes_are_left_alone() -> None:
    geometry = geometry_of((4, 3, 2), matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]))
    array = np.random.default_rng(0).normal(size=(5, 2, 3, 4))
    orientation = choose_orientation(geometry)
    oriented = orient(array, orientation)
    for channel in range(5):
        np.testing.assert_array_equal(oriented[channel], orient(array[channel], orientation))
    np.testing.assert_array_equal(to_scan(oriented, orientation), array)


@given(geometries(180.0), st.sampled_from(["axial", "coronal", "sagittal"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_voxel_of_the_store_lies_where_the_scan_has_it(
    geometry: Geometry, plane, cropped: bool
) -> None:
    orientation = choose_orientation(geometry, plane)
    if cropped:
        crop = [(size // 3, size) for size in orientation.scanned_size]
        orientation = orientation.model_copy(update={"crop": tuple(crop)})
    scan = numbered(geometry)[0]
    kept = kept_part(orient(scan, orientation), orientation)
    affine = store_affine(geometry, orientation, orientation.kept_size)
    z, y, x = np.unravel_index(np.argsort(scan.ravel())[kept.ravel()], scan.shape)
    steps = direction_matrix(geometry) * geometry.spacing
    in_scan = geometry.origin + np.stack([x, y, z], axis=1) @ steps.T
    indices = np.stack(np.unravel_index(np.arange(kept.size), kept.shape), axis=1)
    in_store = indices @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(in_store, in_scan, atol=1e-6)


@given(geometries(180.0))
@settings(max_examples=20, deadline=None)
def test_resampling_keeps_the_edges_of_the_grid(geometry: Geometry) -> None:
    orientation = choose_orientation(geometry)
    z, y, x = orientation.scanned_size
    for size in ((z, y, x), (z, 2 * y, 3 * x), (z, y + 1, max(1, x - 1))):
        affine = store_affine(geometry, orientation, size)
        edges = [affine @ (*[-0.5] * 3, 1), affine @ (*(np.array(size) - 0.5), 1)]
        if size == (z, y, x):
            before = edges
        np.testing.assert_allclose(edges, before, atol=1e-6)
