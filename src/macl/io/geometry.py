"""A scan in memory, its header, and the grid of its voxels, whatever its file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from macl.config.settings import AnatomicalAxis, ArrayAxis, Settings
from macl.utils.text import format_size

Plane = Literal["axial", "coronal", "sagittal"]

AnatomicalAxes = tuple[AnatomicalAxis, AnatomicalAxis, AnatomicalAxis]
"""Along which slices, rows and columns are numbered."""

_NAMES: AnatomicalAxes = ("left-right", "anterior-posterior", "inferior-superior")
"""Of the axes to the left, to the back and up."""

ANATOMICAL_AXES: dict[Plane, AnatomicalAxes] = {
    "axial": ("inferior-superior", "anterior-posterior", "left-right"),
    "coronal": ("anterior-posterior", "inferior-superior", "left-right"),
    "sagittal": ("left-right", "inferior-superior", "anterior-posterior"),
}
"""Of slices in a plane, in a store whose scans were turned left-posterior-superior."""

LARGEST_CORNER_SHIFT = 0.1
"""Grids are equal if their corners lie no further apart than this share of the smallest spacing."""


class NiftiForms(Settings):
    """How a NIfTI header describes its grid, number by number, in the file's own units.

    Programs differ in which of the two forms they follow, and in what they make of an odd one. A
    mask that repeats the scan's numbers lies on the scan in all of them.
    """

    version: Literal[1, 2]
    units: int = Field(description="xyzt_units: codes of the units of length and time")
    qform_code: int
    sform_code: int
    pixdim: tuple[float, float, float, float, float] = Field(
        description="handedness, voxel size along x, y and z, time step"
    )
    time_offset: float
    quaternion: tuple[float, float, float]
    quaternion_offset: tuple[float, float, float]
    sform: tuple[float, ...] = Field(min_length=12, max_length=12, description="rows x, y and z")


class Geometry(Settings):
    """A scan's own grid, in ITK's convention.

    Index order is x, y, z; spacing and origin are in millimetres; axes are left-posterior-superior.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]
    spacing_known: bool = Field(
        description="False: the file gives no spacing, 1 stands in, and distances are in voxels"
    )
    unit_mm: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 1.0),
        description="millimetres in the unit of the file's own left, posterior and superior "
        "coordinates, for NRRD and MetaImage",
    )
    nifti: NiftiForms | None = Field(
        default=None, description="None: both forms say the above, as those of scanner coordinates"
    )

    @property
    def orientation_known(self) -> bool:
        """Whether the file says how the scan lies; formats that give no spacing do not."""
        return self.spacing_known


@dataclass(frozen=True)
class Header:
    """What a scan's file announces before its voxels are read.

    Attributes:
        format: "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG" or "DICOM".
        geometry: the grid.
        channels: components per voxel, or volumes along a fourth axis.
        dtype: of the stored numbers, as the file's library names it.
        modality: "MR", "CT" or "unknown".
        time_points: volumes along a fourth axis, which `channels` counts too; 1 without such an
            axis.
    """

    format: str
    geometry: Geometry
    channels: int
    dtype: str
    modality: str = "unknown"
    time_points: int = 1


@dataclass(frozen=True)
class Volume:
    """One scan or label.

    Attributes:
        array: (channels, z, y, x), in the file's own numbers.
        geometry: the grid of z, y and x.
        rescale: per channel (slope, intercept), slope above 0: the scan's value is array × slope +
            intercept; empty: the array holds the values themselves.
        notes: assumptions about this scan, in phrases without its name.
        is_4d: whether the channels are volumes along a fourth axis of the file.
    """

    array: np.ndarray
    geometry: Geometry
    rescale: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    is_4d: bool = False


def direction_matrix(geometry: Geometry) -> np.ndarray:
    """(3, 3): the unit vectors of the x, y and z axes as columns, left-posterior-superior."""
    return np.asarray(geometry.direction, dtype=np.float64).reshape(3, 3)


def nearest_axes(geometry: Geometry) -> tuple[int, int, int]:
    """The anatomical axes (0 left, 1 posterior, 2 superior) nearest to x, y and z, each once."""
    closeness = np.abs(direction_matrix(geometry))

    def total(axes: tuple[int, ...]) -> float:
        # Rounded, so that at exactly 45° the choice does not depend on the last bit.
        return round(sum(closeness[axis, index] for index, axis in enumerate(axes)), 6)

    x, y, z = max(permutations(range(3)), key=total)
    return x, y, z


def corners(geometry: Geometry) -> np.ndarray:
    """(8, 3): the centres of the eight corner voxels in mm, left-posterior-superior."""
    last = np.asarray(geometry.size, dtype=np.float64) - 1
    steps = np.asarray(list(product((0, 1), repeat=3))) * last * np.asarray(geometry.spacing)
    return steps @ direction_matrix(geometry).T + np.asarray(geometry.origin)


def grid_difference(a: Geometry, b: Geometry) -> str | None:
    """How two grids differ, in words; None: they are equal up to the noise of headers.

    Sizes alone are compared if one of the spacings is unknown.
    """
    if a.size != b.size:
        return f"{format_size(a.size)} voxels against {format_size(b.size)}"
    if a.spacing_known != b.spacing_known:
        return None
    shift = float(np.linalg.norm(corners(a) - corners(b), axis=1).max())
    if shift <= LARGEST_CORNER_SHIFT * min(*a.spacing, *b.spacing):
        return None
    for name in ("spacing", "origin", "direction"):
        first, second = getattr(a, name), getattr(b, name)
        if not np.allclose(first, second, rtol=1e-3, atol=1e-3):
            return f"{name} {_format_numbers(first)} against {_format_numbers(second)}"
    return f"corners {shift:.3g} mm apart"


def axis_codes(geometry: Geometry) -> str:
    """The directions in which x, y and z point, by the nearest anatomical axis: "LPS", "RAS", …"""
    matrix = direction_matrix(geometry)
    letters = ("RL", "AP", "IS")
    return "".join(
        letters[axis][int(matrix[axis, index] > 0)]
        for index, axis in enumerate(nearest_axes(geometry))
    )


def anatomical_axes(geometry: Geometry, permutation: Sequence[int]) -> AnatomicalAxes:
    """The anatomical axes nearest to those of a scan's array (z, y, x), once it is transposed."""
    nearest = nearest_axes(geometry)

    def name(axis: int) -> AnatomicalAxis:
        return _NAMES[nearest[2 - axis]]

    slices, rows, columns = permutation
    return name(slices), name(rows), name(columns)


def array_axis(axis: ArrayAxis | AnatomicalAxis, along: AnatomicalAxes) -> ArrayAxis:
    """The array axis that a name of the array or of the anatomy means, for axes that run so."""
    match axis:
        case "slice" | "row" | "column":
            return axis
        case _:
            return get_args(ArrayAxis)[along.index(axis)]


def _format_numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
