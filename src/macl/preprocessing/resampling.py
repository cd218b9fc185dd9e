"""A scan's grid ↔ the store's: orientation, and resampling in plane or in all three axes.

Resampling is separable, a matrix for each axis: cubic for images, and for labels the linear
interpolation of each class's share. Where one axis is much coarser than the others, it is resampled
by nearest neighbour instead, as nnU-Net does: a curve between distant slices would be a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from macl.config.settings import PrepareSettings
from macl.data.store_index import Orientation
from macl.io.geometry import Volume
from macl.preprocessing.normalisation import is_whole
from macl.preprocessing.orientation import choose_orientation, kept_part, orient, spacing_of
from macl.utils.errors import RefusedCaseError
from macl.utils.text import format_size

ANISOTROPIC_RATIO = 3.0
"""An axis is much coarser than another if its spacing is more than this many times as large."""

MOST_VOXELS = 2**31
"""More than a resampled scan has, if its own spacing is right and the wanted one in use."""

ROWS_AT_A_TIME = 64
"""Rows that are interpolated across the slices at once, which bounds the memory."""

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
WantedSpacing = float | Spacing | Literal["median"] | None


@dataclass(frozen=True)
class OnStoreGrid:
    """A scan on the store's grid.

    Attributes:
        array: (C, Z, Y, X), in the numbers of the scan's file.
        orientation: the way back to the scan's axes.
        spacing_mm: (z, y, x); None where the scan's file gives none.
        nearest_axis: the axis of (Z, Y, X) that is resampled by nearest neighbour, if any.
        outside: (*kept_size) where a plan sees no body: outside the region that is not 0; None:
            not asked for.
    """

    array: np.ndarray
    orientation: Orientation
    spacing_mm: Spacing | None
    nearest_axis: int | None
    outside: np.ndarray | None = None


# ---------------------------------------------------------------- scan → store


def to_store_grid(volume: Volume, settings: PrepareSettings) -> OnStoreGrid:
    """Orient a scan, and resample it where the settings ask for a spacing.

    Resampled values stay within the scan's range, and integers stay integers.

    Raises:
        RefusedCaseError: a spacing is asked for, and the scan's own is unknown or would make it
            huge.
    """
    geometry = volume.geometry
    orientation = choose_orientation(geometry, settings.plane)
    wanted = settings.spacing_mm
    if wanted is not None and not geometry.spacing_known:
        raise RefusedCaseError(
            f"its file gives no spacing, so it cannot be resampled to {_in_mm(wanted)}: prepare "
            "without --spacing-mm"
        )
    scanned_mm = spacing_of(geometry, orientation)
    size = prepared_size(orientation.scanned_size, scanned_mm, wanted)
    if wanted is not None:
        require_feasible(size, scanned_mm)
    axis = choose_nearest_axis(scanned_mm, wanted) if isinstance(wanted, tuple) else None
    array = _resample(orient(volume.array, orientation), size, axis)
    z_mm, y_mm, x_mm = (
        mm if old == new else mm * old / new
        for mm, old, new in zip(scanned_mm, orientation.scanned_size, size, strict=True)
    )
    spacing_mm = (z_mm, y_mm, x_mm) if geometry.spacing_known else None
    return OnStoreGrid(np.ascontiguousarray(array), orientation, spacing_mm, axis)


def prepared_size(size: Size, spacing_mm: Spacing | None, wanted_mm: WantedSpacing) -> Size:
    """The (Z, Y, X) voxels of a scan in the store.

    Args:
        size: of the scan along the same axes.
        spacing_mm: of the scan along the same axes; None: unknown.
        wanted_mm: as in `PrepareSettings`, a median being resolved.
    """
    if wanted_mm is None or spacing_mm is None:
        return size
    assert wanted_mm != "median", "resolved before scans are read"
    if not isinstance(wanted_mm, tuple):
        wanted_mm = (spacing_mm[0], wanted_mm, wanted_mm)
    z, y, x = (
        max(1, round(count * mm / wanted))
        for count, mm, wanted in zip(size, spacing_mm, wanted_mm, strict=True)
    )
    return z, y, x


def is_feasible(size: Size) -> bool:
    """Whether a scan of this size, after resampling, is one that a scanner could have made."""
    return math.prod(size) <= MOST_VOXELS


def require_feasible(size: Size, scanned_mm: Spacing) -> None:
    """RefusedCaseError where resampling would make a scan of (Z, Y, X) voxels that is huge."""
    if not is_feasible(size):
        raise RefusedCaseError(
            f"resampled it would have {format_size(size)} voxels, since its file gives a spacing "
            f"of {_in_mm(scanned_mm)}: correct that, or ask for a coarser one"
        )


def choose_nearest_axis(scanned_mm: Spacing, wanted_mm: Spacing) -> int | None:
    """The axis to resample by nearest neighbour: one much coarser than the finest, or None.

    The scan's own spacing decides, or the wanted one where the scan's is about the same in all
    axes. Two axes that are equally coarse are interpolated.
    """
    for spacing in (scanned_mm, wanted_mm):
        coarsest = max(spacing)
        if coarsest > ANISOTROPIC_RATIO * min(spacing):
            coarse = [axis for axis, mm in enumerate(spacing) if mm > 0.999 * coarsest]
            return coarse[0] if len(coarse) == 1 else None
    return None


def label_to_store_grid(
    label: np.ndarray, orientation: Orientation, size: Size, nearest_axis: int | None = None
) -> np.ndarray:
    """Orient and crop a label, and resample it to `size`.

    Interpolates each class's share and takes the largest, so that no class appears between two
    others.

    Args:
        label: (z, y, x) labels 0…K on the scan's own grid.
        orientation: of its scan.
        size: (Z, Y, X) voxels.
        nearest_axis: as for its scan.

    Returns:
        (*size) uint8.
    """
    oriented = kept_part(orient(label, orientation), orientation)
    if size == orientation.kept_size:
        return np.ascontiguousarray(oriented, dtype=np.uint8)
    classes = np.arange(int(label.max(initial=0)) + 1, dtype=np.uint8)[:, None, None]
    orders = _orders(1, nearest_axis)
    planes = (_in_plane(plane == classes, size[1:], orders[1:]) for plane in oriented)
    resampled = np.empty(size, dtype=np.uint8)
    for index, shares in enumerate(_across_planes(planes, len(oriented), size[0], orders[0])):
        resampled[index] = shares.argmax(axis=0)
    return resampled


def _in_mm(wanted: WantedSpacing) -> str:
    numbers = wanted if isinstance(wanted, tuple) else (wanted,)
    return " × ".join(f"{number:g}" for number in numbers) + " mm"


def _resample(array: np.ndarray, size: Size, nearest_axis: int | None) -> np.ndarray:
    """(C, *scanned size) → (C, *size), cubic but along `nearest_axis`."""
    channels, slices = array.shape[:2]
    if array.shape[1:] == size:
        return array
    low, high = array.min(), array.max()
    whole = is_whole(array)
    orders = _orders(3, nearest_axis)

    def fitting(values: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values) if whole else values, low, high)

    resampled = np.empty((channels, *size), dtype=array.dtype)
    planes = (_in_plane(array[:, index], size[1:], orders[1:]) for index in range(slices))
    if slices == size[0] or orders[0] == 0:
        for index, plane in enumerate(_across_planes(planes, slices, size[0], order=0)):
            resampled[:, index] = fitting(plane)
        return resampled
    # A cubic spline reaches over all slices, so all of them must be there, resampled in plane.
    volume = np.empty((slices, channels, *size[1:]), np.promote_types(array.dtype, np.float32))
    for index, plane in enumerate(planes):
        volume[index] = plane
    matrix = _interpolation(slices, size[0], order=3)
    for channel, first_row in product(range(channels), range(0, size[1], ROWS_AT_A_TIME)):
        rows = slice(first_row, first_row + ROWS_AT_A_TIME)
        resampled[channel, :, rows] = fitting(np.tensordot(matrix, volume[:, channel, rows], 1))
    return resampled


# ---------------------------------------------------------------- store → scan


def to_scanned_size(
    slices: Iterable[np.ndarray], count: int, orientation: Orientation
) -> Iterator[np.ndarray]:
    """Bring what was kept of a scan back to its own resolution, linearly in each axis.

    Takes slices as they come and keeps two of them, so that a volume need not fit into memory.

    Args:
        slices: (K, Y, X) probabilities of each slice on the store's grid, from the first on.
        count: Z, the number of these slices.
        orientation: of the scan.

    Yields:
        (K, *kept_size[1:]) float32 probabilities for each slice that was kept of the scan,
        kept_size[0] of them; `to_scan` brings whole scans to their own axes.
    """
    depth, *size = orientation.kept_size
    for plane in _across_planes(iter(slices), count, depth, 1, np.float32):
        yield _in_plane(plane, (size[0], size[1]), (1, 1), np.float32)


# ---------------------------------------------------------------- along one axis


def _orders(order: int, nearest_axis: int | None) -> tuple[int, int, int]:
    """Of interpolation along Z, Y and X."""
    z, y, x = (0 if axis == nearest_axis else order for axis in range(3))
    return z, y, x


def _in_plane(
    planes: np.ndarray,
    size: tuple[int, int],
    orders: tuple[int, int],
    dtype: DTypeLike = np.float64,
) -> np.ndarray:
    """(…, rows, columns) → (…, *size), in `dtype`; unchanged where the size is the same."""
    if planes.shape[-2:] == size:
        return planes
    rows = _interpolation(planes.shape[-2], size[0], orders[0]).astype(dtype)
    columns = _interpolation(planes.shape[-1], size[1], orders[1]).astype(dtype)
    return rows @ planes.astype(dtype) @ columns.T


def _across_planes(
    planes: Iterator[np.ndarray],
    count: int,
    wanted: int,
    order: int,
    dtype: DTypeLike = np.float64,
) -> Iterator[np.ndarray]:
    """Interpolate `count` planes to `wanted`, nearest (0) or linear (1), and keep two in memory."""
    if count == wanted:
        yield from planes
        return
    kept: dict[int, np.ndarray] = {}
    taken = 0
    for weights in _interpolation(count, wanted, order).astype(dtype):
        needed = np.flatnonzero(weights).tolist()
        kept = {index: plane for index, plane in kept.items() if index >= needed[0]}
        while taken <= needed[-1]:
            plane = next(planes)
            if taken >= needed[0]:
                kept[taken] = plane
            taken += 1
        yield np.sum([weights[index] * kept[index] for index in needed], axis=0)


@lru_cache(maxsize=64)
def _interpolation(old: int, new: int, order: int) -> np.ndarray:
    """(new, old): B-spline interpolation along an axis, whose outer edges stay in place."""
    if order == 0:
        nearest = ((np.arange(new) + 0.5) * old / new).astype(int)
        return np.eye(old)[nearest]
    from scipy.ndimage import zoom

    return np.asarray(
        zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True)
    )
