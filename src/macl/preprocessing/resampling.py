"""A scan's grid ↔ slices: orientation, and resampling in plane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from macl.config import PrepareSettings
from macl.data.store import Slicing
from macl.io.geometry import Geometry, Volume
from macl.preprocessing.normalisation import is_whole
from macl.preprocessing.orientation import orient, plan, spacing_of
from macl.utils.errors import RefusedCaseError


@dataclass(frozen=True)
class Slices:
    """A scan as slices.

    Attributes:
        array: (n, C, rows, columns), numbers as in the scan's file.
        slicing: how to come back.
        spacing_mm: slice, row, column; None where the scan's file tells none.
    """

    array: np.ndarray
    slicing: Slicing
    spacing_mm: tuple[float, float, float] | None


# ---------------------------------------------------------------- orientation












# ---------------------------------------------------------------- scan → slices


def to_slices(volume: Volume, settings: PrepareSettings) -> Slices:
    """A scan as slices in left-posterior-superior order, resampled in plane (cubic) where the settings ask for it.

    Resampled values stay within the scan's range; integers stay integers.

    Raises:
        RefusedCaseError: resampling is asked for and the scan's spacing is unknown.
    """
    geometry = volume.geometry
    slicing = plan(geometry, settings.plane)
    if settings.spacing_mm is not None and not geometry.spacing_known:
        raise RefusedCaseError(
            f"its file tells no spacing, so it cannot be resampled to {settings.spacing_mm:g} mm: "
            "prepare without --spacing-mm"
        )
    _, rows, columns = prepared_size(geometry, settings)
    array = _resample(np.moveaxis(orient(volume.array, slicing), 0, 1), (rows, columns))
    slices_mm, rows_mm, columns_mm = spacing_of(geometry, slicing)
    scanned_rows, scanned_columns = slicing.scanned_size
    spacing = (slices_mm, rows_mm * scanned_rows / rows, columns_mm * scanned_columns / columns)
    return Slices(np.ascontiguousarray(array), slicing, spacing if geometry.spacing_known else None)


def prepared_size(geometry: Geometry, settings: PrepareSettings) -> tuple[int, int, int]:
    """How many slices, rows and columns a scan becomes."""
    slicing = plan(geometry, settings.plane)
    slices = geometry.size[2 - slicing.permutation[0]]
    rows, columns = slicing.scanned_size
    if settings.spacing_mm is not None:
        _, rows_mm, columns_mm = spacing_of(geometry, slicing)
        rows = max(1, round(rows * rows_mm / settings.spacing_mm))
        columns = max(1, round(columns * columns_mm / settings.spacing_mm))
    return slices, rows, columns


def label_to_slices(label: np.ndarray, slicing: Slicing, size: tuple[int, int]) -> np.ndarray:
    """(z, y, x) labels 0…K → (n, *size) uint8.

    Resampling interpolates every class's share linearly and takes the largest, so no class appears between two others.
    """
    slices = orient(label, slicing)
    if size == slicing.scanned_size:
        return np.ascontiguousarray(slices, dtype=np.uint8)
    classes = np.arange(int(label.max(initial=0)) + 1, dtype=np.uint8)[:, None, None]
    resampled = np.empty((len(slices), *size), dtype=np.uint8)
    for index, one in enumerate(slices):
        resampled[index] = _apply(one == classes, size, order=1).argmax(axis=0)
    return resampled


def to_scan_plane(probabilities: np.ndarray, slicing: Slicing) -> np.ndarray:
    """(n, K, rows, columns) → (n, K, *scanned_size) float32, linearly interpolated to the scan's in-plane grid."""
    if probabilities.shape[2:] == slicing.scanned_size:
        return np.asarray(probabilities, dtype=np.float32)
    scanned = np.empty((*probabilities.shape[:2], *slicing.scanned_size), dtype=np.float32)
    for index, one in enumerate(probabilities):
        scanned[index] = _apply(one, slicing.scanned_size, order=1)
    return scanned


def _resample(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if array.shape[2:] == size:
        return array
    low, high = array.min(), array.max()
    whole = is_whole(array)
    resampled = np.empty((*array.shape[:2], *size), dtype=array.dtype)
    for index, one in enumerate(array):
        fine = _apply(one, size, order=3)
        resampled[index] = np.clip(np.rint(fine) if whole else fine, low, high)
    return resampled


def _apply(planes: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    rows = _interpolation(planes.shape[-2], size[0], order)
    columns = _interpolation(planes.shape[-1], size[1], order)
    return rows @ planes.astype(np.float64) @ columns.T


@lru_cache(maxsize=64)
def _interpolation(old: int, new: int, order: int) -> np.ndarray:
    """(new, old): B-spline interpolation along one axis, the outer edges of the pixels kept in place."""
    from scipy.ndimage import zoom

    return np.asarray(zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True))
