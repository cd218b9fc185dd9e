"""A scan in memory and the grid it lies on; no file format is known here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from pydantic import Field

from macl.config import Settings

LARGEST_CORNER_SHIFT = 0.1
"""Two grids are one where their corner voxels lie within this part of the smallest spacing."""


class Geometry(Settings):
    """A scan's own grid, in ITK's convention: index order x, y, z; millimetres; left-posterior-superior axes."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]
    spacing_known: bool = Field(description="False: the file told none, 1 stands in, and distances are in voxels")


@dataclass(frozen=True)
class Volume:
    """One scan or label.

    Attributes:
        array: (channels, z, y, x), in the file's own numbers.
        geometry: the grid of z, y and x.
        rescale: per channel (slope, intercept): the scan's value = array × slope + intercept, slope above 0;
            empty where the array holds the values themselves.
        notes: what was assumed about this scan, in phrases without its name.
    """

    array: np.ndarray
    geometry: Geometry
    rescale: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()


def direction_matrix(geometry: Geometry) -> np.ndarray:
    """(3, 3): its columns are the unit vectors of the x, y and z axes in left-posterior-superior coordinates."""
    return np.asarray(geometry.direction, dtype=np.float64).reshape(3, 3)


def nearest_axes(geometry: Geometry) -> tuple[int, int, int]:
    """The anatomical axis (0 left, 1 posterior, 2 superior) that x, y and z lie nearest to, each taken once."""
    closeness = np.abs(direction_matrix(geometry))
    # Rounded, so that at exactly 45° the choice does not hang on the last bit.
    axes = max(
        permutations(range(3)), key=lambda axes: round(sum(closeness[axis, i] for i, axis in enumerate(axes)), 6)
    )
    return axes[0], axes[1], axes[2]


def corners(geometry: Geometry) -> np.ndarray:
    """(8, 3) positions in mm of the eight corner voxels' centres, left-posterior-superior."""
    last = np.asarray(geometry.size, dtype=np.float64) - 1
    steps = np.asarray(list(product((0, 1), repeat=3))) * last * np.asarray(geometry.spacing)
    return steps @ direction_matrix(geometry).T + np.asarray(geometry.origin)


def grid_difference(a: Geometry, b: Geometry) -> str | None:
    """In words how two grids differ, or None where they are one up to the noise of headers.

    Where only one of the two knows its spacing, sizes alone are compared.
    """
    if a.size != b.size:
        return f"{_by(a.size)} voxels against {_by(b.size)}"
    if a.spacing_known != b.spacing_known:
        return None
    shift = float(np.linalg.norm(corners(a) - corners(b), axis=1).max())
    if shift <= LARGEST_CORNER_SHIFT * min(*a.spacing, *b.spacing):
        return None
    for what in ("spacing", "origin", "direction"):
        ours, theirs = getattr(a, what), getattr(b, what)
        if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            return f"{what} {_numbers(ours)} against {_numbers(theirs)}"
    return f"grids whose corners lie {shift:.3g} mm apart"


def orientation(geometry: Geometry) -> str:
    """Where the x, y and z axes point, by the nearest anatomical direction: "LPS", "RAS", …"""
    matrix = direction_matrix(geometry)
    letters = ("RL", "AP", "IS")
    return "".join(letters[axis][int(matrix[axis, index] > 0)] for index, axis in enumerate(nearest_axes(geometry)))


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
