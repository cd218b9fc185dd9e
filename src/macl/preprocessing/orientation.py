"""A scan's own grid and its oriented grid: which axis the slices are stacked along, and the way back."""

from __future__ import annotations

from typing import Literal

import numpy as np

from macl.data.store import Slicing
from macl.io.geometry import Geometry, direction_matrix, nearest_axes

Plane = Literal["axial", "coronal", "sagittal"]


ACROSS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The anatomical axis (0 left, 1 posterior, 2 superior) that the slices of a plane are stacked along."""


PLANES: dict[int, Plane] = {axis: plane for plane, axis in ACROSS.items()}


STANDS_OUT = 1.5
"""Slices lie across the coarsest spacing where it is this many times the next coarsest."""


def choose_plane(geometry: Geometry, plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto") -> Plane:
    """The plane of the slices: as asked, or across the only axis of one voxel, the coarsest spacing, or else axial."""
    if plane != "auto":
        return plane
    axes = nearest_axes(geometry)
    single = [index for index, count in enumerate(geometry.size) if count == 1]
    if len(single) == 1:
        return PLANES[axes[single[0]]]
    if geometry.spacing_known:
        finest_first = sorted(range(3), key=lambda index: geometry.spacing[index])
        if geometry.spacing[finest_first[2]] >= STANDS_OUT * geometry.spacing[finest_first[1]]:
            return PLANES[axes[finest_first[2]]]
    return "axial"


def plan(geometry: Geometry, plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto") -> Slicing:
    """How a grid becomes slices."""
    chosen = choose_plane(geometry, plane)
    axes = nearest_axes(geometry)
    matrix = direction_matrix(geometry)
    wanted = [ACROSS[chosen], *(axis for axis in (2, 1, 0) if axis != ACROSS[chosen])]
    grid_axes = [axes.index(axis) for axis in wanted]
    flipped = [bool(matrix[axis, index] < 0) for axis, index in zip(wanted, grid_axes, strict=True)]
    slices, rows, columns = grid_axes
    return Slicing(
        plane=chosen,
        permutation=(2 - slices, 2 - rows, 2 - columns),
        flipped=(flipped[0], flipped[1], flipped[2]),
        scanned_size=(geometry.size[rows], geometry.size[columns]),
    )


def orient(array: np.ndarray, slicing: Slicing) -> np.ndarray:
    """(…, z, y, x) → (…, slices, rows, columns) on the scan's own grid, as a view."""
    lead = array.ndim - 3
    turned = np.transpose(array, (*range(lead), *(lead + axis for axis in slicing.permutation)))
    return np.flip(turned, tuple(lead + axis for axis in range(3) if slicing.flipped[axis]))


def to_scan(slices: np.ndarray, slicing: Slicing) -> np.ndarray:
    """(n, rows, columns) at `scanned_size` → (z, y, x): the exact inverse of the orientation."""
    turned = np.flip(slices, tuple(axis for axis in range(3) if slicing.flipped[axis]))
    return np.ascontiguousarray(np.transpose(turned, np.argsort(slicing.permutation)))


def spacing_of(geometry: Geometry, slicing: Slicing) -> tuple[float, float, float]:
    """The scan's spacing across slices, rows and columns."""
    slices, rows, columns = (geometry.spacing[2 - axis] for axis in slicing.permutation)
    return slices, rows, columns
