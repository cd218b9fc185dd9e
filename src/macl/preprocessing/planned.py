"""Scans as a plan of nnU-Net's prepares them: transposed, cropped, normalised, then resampled.

The numbers are those of nnU-Net's own preprocessor, from the same operations in the same order:

1. The scan's axes (z, y, x) are put into the plan's order, without a flip.
2. The box around the voxels where any channel is not 0 is kept; holes count as not 0.
3. Each channel is normalised by the plan's scheme, in the scan's own values.
4. Splines bring the box to the plan's spacing. If one axis is much coarser than the others, slices
   across it are resampled one by one, and it by nearest neighbour.

A store keeps the result as it is, in float32: clipped or masked values can no longer be told from
the scan's own integers once they are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from macl.config.settings import PlannedChannel, ScanPlan
from macl.data.store_index import Normalisation, Orientation
from macl.io.geometry import Geometry, Volume, nearest_axes
from macl.preprocessing.normalisation import StoredScan
from macl.preprocessing.orientation import (
    PLANES,
    choose_orientation,
    kept_part,
    orient,
    spacing_of,
)
from macl.preprocessing.resampling import (
    ANISOTROPIC_RATIO,
    OnStoreGrid,
    Size,
    Spacing,
    require_feasible,
)
from macl.utils.errors import RefusedCaseError

SMALLEST_DEVIATION = 1e-8
"""What nnU-Net divides by at least."""

_OUTSIDE = -1
"""The label of voxels outside the region that is not 0, as long as labels are resampled."""


def planned_image(volume: Volume, plan: ScanPlan) -> tuple[OnStoreGrid, StoredScan]:
    """Prepare a scan as planned.

    Raises:
        RefusedCaseError: the plan is of other channels, its spacing needs the scan's own, which is
            unknown or would make it huge, or the values are not those of colours where the plan
            says so.
    """
    geometry = volume.geometry
    if len(volume.array) != len(plan.channels):
        raise RefusedCaseError(
            f"it has {len(volume.array)} channels, but the plan is of {len(plan.channels)}"
        )
    if not geometry.spacing_known and min(geometry.size) > 1:
        raise RefusedCaseError("its file gives no spacing, which the plan resamples from")
    orientation = planned_orientation(geometry, plan)
    values = _own_values(orient(volume.array, orientation), volume.rescale)
    body = _body(values)
    orientation = orientation.model_copy(update={"crop": _box(body)})
    values, body = kept_part(values, orientation), kept_part(body, orientation)
    own_mm = spacing_of(geometry, orientation)
    size, axis = _grid(orientation.kept_size, own_mm, plan)
    require_feasible(size, own_mm)
    array = np.empty((len(values), *size), dtype=np.float32)
    rescale = []
    for index, (channel, scheme) in enumerate(zip(values, plan.channels, strict=True)):
        normalised, scale = _normalise(channel, body, scheme)
        rescale.append(scale)
        array[index] = _resample(
            normalised.astype(np.float64),
            size,
            axis,
            lambda part, to: _spline(part, to, plan.image_order),
        )
    z_mm, y_mm, x_mm = (
        mm if old == new else mm * old / new
        for mm, old, new in zip(own_mm, orientation.kept_size, size, strict=True)
    )
    spacing_mm = (z_mm, y_mm, x_mm) if geometry.spacing_known else None
    return (
        OnStoreGrid(array, orientation, spacing_mm, axis, outside=~body),
        StoredScan(array, tuple(rescale), _as_it_is(array)),
    )


def planned_label(label: np.ndarray, grid: OnStoreGrid, plan: ScanPlan) -> np.ndarray:
    """Prepare a label as its scan was.

    The class with the largest share wins, of equal ones that of the nearest voxel. Background
    outside the scan's body is a class of its own until then, as in nnU-Net.

    Args:
        label: (z, y, x) labels 0…K on the scan's own grid.
        grid: of its scan.
        plan: of its scan.

    Returns:
        (Z, Y, X) uint8.
    """
    kept = kept_part(orient(label, grid.orientation), grid.orientation).astype(np.int16)
    if grid.outside is not None:
        kept[(kept == 0) & grid.outside] = _OUTSIDE
    _, slices, rows, columns = grid.array.shape
    size = (slices, rows, columns)
    resampled = _resample(
        kept, size, grid.nearest_axis, lambda part, to: _vote(part, to, plan.label_order)
    )
    return np.maximum(resampled, 0).astype(np.uint8)


def planned_orientation(geometry: Geometry, plan: ScanPlan) -> Orientation:
    """How a scan's axes are put into the plan's order."""
    permutation, flipped = (0, 1, 2), (False, False, False)
    if plan.reoriented:
        turned = choose_orientation(geometry, "axial")
        upwards, backwards, leftwards = turned.flipped
        permutation, flipped = turned.permutation, (upwards, not backwards, not leftwards)
    first, second, third = (permutation[axis] for axis in plan.axes)
    return Orientation(
        plane=PLANES[nearest_axes(geometry)[2 - first]],
        permutation=(first, second, third),
        flipped=(flipped[plan.axes[0]], flipped[plan.axes[1]], flipped[plan.axes[2]]),
        scanned_size=(
            geometry.size[2 - first],
            geometry.size[2 - second],
            geometry.size[2 - third],
        ),
    )


def planned_size(geometry: Geometry, plan: ScanPlan) -> Size:
    """(Z, Y, X) voxels of a scan as planned, if nothing is cropped."""
    orientation = planned_orientation(geometry, plan)
    return _grid(orientation.scanned_size, spacing_of(geometry, orientation), plan)[0]


def _own_values(array: np.ndarray, rescale: Sequence[tuple[float, float]]) -> np.ndarray:
    """(C, Z, Y, X) float32: what the scan's numbers stand for."""
    if not rescale:
        return array.astype(np.float32)
    channels = zip(array, rescale, strict=True)
    return np.stack(
        [
            (channel.astype(np.float64) * slope + intercept).astype(np.float32)
            for channel, (slope, intercept) in channels
        ]
    )


# ---------------------------------------------------------------- the box


def _body(values: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bool: where any channel is not 0, and the holes in there."""
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes((values != 0).any(axis=0)))


def _box(body: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """The smallest box around a region; None: it is the whole array, or there is no region."""
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(body.any(axis=others))
        if not len(found):
            return None
        spans.append((int(found[0]), int(found[-1]) + 1))
    whole = all(span == (0, side) for span, side in zip(spans, body.shape, strict=True))
    return None if whole else tuple(spans)


def _grid(size: Size, own_mm: Spacing, plan: ScanPlan) -> tuple[Size, int | None]:
    """The size at the plan's spacing, and the axis to resample by nearest neighbour, if any."""
    wanted_mm = (*own_mm[: 3 - len(plan.spacing_mm)], *plan.spacing_mm)
    z, y, x = (
        max(1, round(own / wanted * side))
        for own, wanted, side in zip(own_mm, wanted_mm, size, strict=True)
    )
    return (z, y, x), _coarse_axis(own_mm, wanted_mm, plan.separate_coarse_axis)


def _coarse_axis(own_mm: Spacing, wanted_mm: Sequence[float], separate: bool | None) -> int | None:
    """The only coarsest axis, of the scan or else as wanted, if it stands out or is asked for."""
    for spacing in (own_mm, wanted_mm):
        if separate or (separate is None and max(spacing) / min(spacing) > ANISOTROPIC_RATIO):
            coarsest = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


# ---------------------------------------------------------------- normalisation


def _normalise(
    values: np.ndarray, body: np.ndarray, planned: PlannedChannel
) -> tuple[np.ndarray, tuple[float, float]]:
    """A channel (Z, Y, X) as planned, and (slope, intercept) of the way back to its own values."""
    match planned.scheme:
        case "ZScoreNormalization":
            measured = values[body] if planned.masked else values
            shift = float(measured.mean(dtype=np.float64)) if measured.size else 0.0
            deviation = float(measured.std(dtype=np.float64)) if measured.size else 0.0
            scale = max(deviation, SMALLEST_DEVIATION)
            normalised = (values - shift) / scale
            if planned.masked:
                normalised[~body] = values[~body]
        case "CTNormalization":
            shift, scale = planned.mean, max(planned.deviation, SMALLEST_DEVIATION)
            normalised = (np.clip(values, planned.low, planned.high) - shift) / scale
        case "RescaleTo01Normalization":
            shift = float(values.min())
            scale = max(float(values.max()) - shift, SMALLEST_DEVIATION)
            normalised = (values - shift) / scale
        case "RGBTo01Normalization":
            if values.min() < 0 or values.max() > 255:
                raise RefusedCaseError(
                    "the plan takes its values as colours from 0 to 255, but they go from "
                    f"{values.min():g} to {values.max():g}"
                )
            shift, scale = 0.0, 255.0
            normalised = values / scale
        case "NoNormalization":
            shift, scale = 0.0, 1.0
            normalised = values
    return normalised, (scale, shift)


def _as_it_is(array: np.ndarray) -> Normalisation:
    """The normalisation that changes nothing."""
    channels = len(array)
    return Normalisation(
        low=tuple(float(channel.min()) for channel in array),
        high=tuple(float(channel.max()) for channel in array),
        mean=(0.0,) * channels,
        deviation=(1.0,) * channels,
    )


# ---------------------------------------------------------------- resampling


def _resample(
    array: np.ndarray,
    size: Size,
    axis: int | None,
    resize: Callable[[np.ndarray, tuple[int, ...]], np.ndarray],
) -> np.ndarray:
    """(Z, Y, X) → size, all at once; or slice by slice across an axis, and it by the nearest."""
    if array.shape == size:
        return array
    if axis is None:
        return resize(array, size)
    slices = np.moveaxis(array, axis, 0)
    in_plane = tuple(side for other, side in enumerate(size) if other != axis)
    resized = np.stack([resize(part, in_plane) for part in slices])
    centres = (np.arange(size[axis]) + 0.5) * (len(slices) / size[axis]) - 0.5
    nearest = np.clip(np.floor(centres + 0.5).astype(int), 0, len(slices) - 1)
    return np.moveaxis(resized[nearest], 0, axis)


def _spline(array: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    """Spline interpolation whose outer edges stay in place, within the array's own range."""
    from scipy.ndimage import zoom

    factors = [1 / (old / new) for old, new in zip(array.shape, size, strict=True)]
    resized = np.asarray(zoom(array, factors, order=order, mode="nearest", grid_mode=True))
    return np.clip(resized, array.min(), array.max())


def _vote(label: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    """The label with the largest share at each voxel; of equal ones the nearest voxel's."""
    nearest = _spline(label.astype(np.float64), size, 0).astype(label.dtype)
    if order == 0:
        return nearest
    winner, largest, of_nearest = nearest.copy(), np.full(size, -1.0), np.zeros(size)
    for value in np.unique(label):
        share = _spline((label == value).astype(np.float64), size, order)
        better = share > largest
        winner[better], largest[better] = value, share[better]
        of_nearest[nearest == value] = share[nearest == value]
    tied = of_nearest == largest
    winner[tied] = nearest[tied]
    return winner
