"""A scan's own axes and the store's: the plane of its slices, and the way there and back."""

from __future__ import annotations

from typing import Literal

import numpy as np

from macl.data.store_index import Orientation
from macl.io.geometry import Geometry, Plane, direction_matrix, nearest_axes

PlaneSetting = Literal["auto", "axial", "coronal", "sagittal"]

ACROSS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The anatomical axis (0 left, 1 posterior, 2 superior) across the slices of each plane."""

PLANES: dict[int, Plane] = {axis: plane for plane, axis in ACROSS.items()}

COARSE_RATIO = 1.5
"""An axis stands out as the coarsest from this many times the next coarsest spacing."""


def choose_plane(geometry: Geometry, plane: PlaneSetting = "auto") -> Plane:
    """The plane of the slices.

    "auto": across the only axis of a single voxel, else across the axis that stands out as the
    coarsest, else axial.
    """
    if plane != "auto":
        return plane
    axes = nearest_axes(geometry)
    single = [index for index, count in enumerate(geometry.size) if count == 1]
    if len(single) == 1:
        return PLANES[axes[single[0]]]
    if geometry.spacing_known:
        finest_first = sorted(range(3), key=lambda index: geometry.spacing[index])
        coarsest, next_coarsest = (geometry.spacing[index] for index in finest_first[:0:-1])
        if coarsest >= COARSE_RATIO * next_coarsest:
            return PLANES[axes[finest_first[2]]]
    return "axial"


def choose_orientation(geometry: Geometry, plane: PlaneSetting = "auto") -> Orientation:
    """How a scan on this grid is transposed and flipped to the store's axes."""
    chosen = choose_plane(geometry, plane)
    axes = nearest_axes(geometry)
    matrix = direction_matrix(geometry)
    across = ACROSS[chosen]
    anatomical = [across, *(axis for axis in (2, 1, 0) if axis != across)]
    slices, rows, columns = (axes.index(axis) for axis in anatomical)
    flipped = [
        bool(matrix[axis, index] < 0)
        for axis, index in zip(anatomical, (slices, rows, columns), strict=True)
    ]
    return Orientation(
        plane=chosen,
        permutation=(2 - slices, 2 - rows, 2 - columns),
        flipped=(flipped[0], flipped[1], flipped[2]),
        scanned_size=(geometry.size[slices], geometry.size[rows], geometry.size[columns]),
    )


def orient(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A scan's array (…, z, y, x) along the store's axes: a view (…, *scanned_size)."""
    lead = array.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in orientation.permutation))
    return np.flip(np.transpose(array, axes), _flipped_axes(lead, orientation))


def kept_part(oriented: np.ndarray, orientation: Orientation) -> np.ndarray:
    """What cropping keeps of an oriented array (…, *scanned_size): a view (…, *kept_size)."""
    if orientation.crop is None:
        return oriented
    return oriented[..., *(slice(start, stop) for start, stop in orientation.crop)]


def to_scan(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Undo `orient`: (…, *scanned_size) → the scan's own (…, z, y, x), as a copy."""
    lead = array.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in np.argsort(orientation.permutation)))
    flipped = np.flip(array, _flipped_axes(lead, orientation))
    return np.ascontiguousarray(np.transpose(flipped, axes))


def _flipped_axes(lead: int, orientation: Orientation) -> tuple[int, ...]:
    return tuple(lead + axis for axis in range(3) if orientation.flipped[axis])


def spacing_of(geometry: Geometry, orientation: Orientation) -> tuple[float, float, float]:
    """The scan's spacing along the store's axes (Z, Y, X); 1 where it is unknown."""
    slices, rows, columns = (geometry.spacing[2 - axis] for axis in orientation.permutation)
    return slices, rows, columns


def store_affine(
    geometry: Geometry, orientation: Orientation, size: tuple[int, int, int]
) -> np.ndarray:
    """(4, 4): index (Z, Y, X, 1) in a store's array of that size → mm, left-posterior-superior.

    Resampling keeps the edges of the grid, not the centres of its first voxels.
    """
    axes = [2 - axis for axis in orientation.permutation]
    steps = (direction_matrix(geometry) * geometry.spacing)[:, axes]
    flipped = np.array(orientation.flipped)
    last = np.array(orientation.scanned_size) - 1
    origin = geometry.origin + steps @ np.where(flipped, last, 0)
    steps = np.where(flipped, -steps, steps)
    start = 0 if orientation.crop is None else np.array(orientation.crop)[:, 0]
    scale = np.array(orientation.kept_size) / size
    affine = np.eye(4)
    affine[:3, :3] = steps * scale
    affine[:3, 3] = origin + steps @ (start + (scale - 1) / 2)
    return affine
