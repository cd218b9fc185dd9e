"""The intensities of a case: how they are normalised and stored, and which slices show only air."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from macl.data.store_index import Normalisation

NormalisationKind = Literal["clip_zscore", "zscore"]

WINDOWS = {
    "soft_tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
}
"""Lowest and highest Hounsfield units of radiologists' CT windows (level ± half the width)."""

# ---------------------------------------------------------------- normalisation


def measure(
    array: np.ndarray,
    kind: NormalisationKind,
    limits: Sequence[tuple[float, float]] | None = None,
) -> Normalisation:
    """Measure what normalises a scan (C, Z, Y, X), per channel, in the array's own units.

    "clip_zscore" clips to the 1st and 99th percentile before it takes mean and deviation, but not a
    channel that is constant between the two (a few bright voxels on a flat ground). "zscore" does
    not clip: `low` and `high` are the channel's own.

    Args:
        array: the scan.
        kind: how to normalise.
        limits: low and high of each channel, such as those of a CT window, in place of the
            percentiles.
    """
    channels = [
        _measure_channel(channel, kind, limits[number] if limits else None)
        for number, channel in enumerate(array)
    ]
    low, high, mean, deviation = zip(*channels, strict=True)
    return Normalisation(low=low, high=high, mean=mean, deviation=deviation)


def normalise(array: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Normalise a scan or a part of it: (C, Z, Y, X) as stored → the same shape in float32.

    normalised = (clip(stored, low, high) − mean) / deviation, for each channel.
    """
    low, high, mean, deviation = (
        np.asarray(values, dtype=np.float32)[:, None, None, None]
        for values in (
            normalisation.low,
            normalisation.high,
            normalisation.mean,
            normalisation.deviation,
        )
    )
    return (np.clip(array.astype(np.float32), low, high) - mean) / deviation


def content_of(array: np.ndarray, normalisation: Normalisation) -> tuple[float, ...]:
    """Each slice's share of voxels that are not air, from 0 to 1 with four digits.

    A voxel is not air where a channel is brighter than its mean in the scan. The mean is that of
    the clipped scan: wherever air fills a good part of the scan, it lies between air and tissue.

    Args:
        array: (C, Z, Y, X).
        normalisation: in the array's units.
    """
    mean = np.asarray(normalisation.mean)[:, None, None]
    shares = ((array[:, z] > mean).any(axis=0).mean() for z in range(array.shape[1]))
    return tuple(round(float(share), 4) for share in shares)


def _measure_channel(
    channel: np.ndarray, kind: NormalisationKind, limits: tuple[float, float] | None
) -> tuple[float, float, float, float]:
    channel = channel.astype(np.float32) if channel.dtype == np.float16 else channel
    lowest, highest = float(channel.min()), float(channel.max())
    low, high = lowest, highest
    if limits:
        low, high = limits
    elif kind == "clip_zscore":
        low, high = _percentiles(channel, (1.0, 99.0))
        if low == high:
            low, high = lowest, highest
    mean = _mean(np.clip(plane.astype(np.float64), low, high) for plane in channel)
    variance = _mean(
        (np.clip(plane.astype(np.float64), low, high) - mean) ** 2 for plane in channel
    )
    return low, high, mean, float(np.sqrt(variance)) or 1.0


def _percentiles(channel: np.ndarray, wanted: tuple[float, float]) -> list[float]:
    """As `np.percentile` has them; integers that are not far apart are counted, slice by slice, and
    not sorted."""
    lowest, highest = channel.min(), channel.max()
    if channel.dtype.kind not in "iu" or int(highest) - int(lowest) > channel[0].size:
        return np.percentile(channel, wanted).tolist()
    lowest = int(lowest)
    counts = np.zeros(int(highest) - lowest + 1, dtype=np.int64)
    for plane in channel:
        counts += np.bincount(plane.ravel().astype(np.intp) - lowest, minlength=len(counts))
    ranks = counts.cumsum()
    found = []
    for per_cent in wanted:
        place = per_cent / 100 * (channel.size - 1)
        below, above = (
            lowest + int(ranks.searchsorted(rank, side="right"))
            for rank in (math.floor(place), math.ceil(place))
        )
        share = place - math.floor(place)
        step = above - below
        found.append(below + step * share if share < 0.5 else above - step * (1 - share))
    return found


def _mean(planes: Iterable[np.ndarray]) -> float:
    """The mean over slices of equal size, with a single slice in memory at a time."""
    return float(np.mean([plane.mean() for plane in planes]))


# ---------------------------------------------------------------- storage


@dataclass(frozen=True)
class StoredScan:
    """A scan in the numbers that a store keeps.

    Attributes:
        array: (C, Z, Y, X): the scan's own integers, or float16.
        rescale: per channel, the scan's value = array × first + second; empty where the array holds
            the values themselves.
        normalisation: in the array's units.
    """

    array: np.ndarray
    rescale: tuple[tuple[float, float], ...]
    normalisation: Normalisation


def as_stored(
    array: np.ndarray,
    rescale: tuple[tuple[float, float], ...],
    kind: NormalisationKind,
    window: str | None = None,
) -> StoredScan:
    """Put a scan into the smallest type that holds it: integers as they are, others as float16.

    Before they become float16, values are shifted and scaled to mean 0 and deviation 1 of the range
    that normalisation keeps. Only values that normalisation clips can then exceed float16; they are
    held at its limit.

    Args:
        array: (C, Z, Y, X).
        rescale: per channel (slope, intercept) from the array to the scan's values; empty: the
            array holds the values.
        kind: how to normalise.
        window: a window of `WINDOWS`, in place of the percentiles that `kind` clips to.
    """
    scales = rescale or ((1.0, 0.0),) * len(array)
    limits = None
    if window:
        limits = [_window_limits(window, slope, intercept) for slope, intercept in scales]
    normalisation = measure(array, kind, limits)
    low, high = array.min(), array.max()
    if is_whole(array):
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return StoredScan(array.astype(dtype, copy=False), rescale, normalisation)
    return _as_float16(array, scales, normalisation)


def _as_float16(
    array: np.ndarray, scales: Sequence[tuple[float, float]], normalisation: Normalisation
) -> StoredScan:
    limit = float(np.finfo(np.float16).max)
    mean, deviation = (
        np.asarray(values)[:, None, None]
        for values in (normalisation.mean, normalisation.deviation)
    )
    stored = np.empty(array.shape, dtype=np.float16)
    for z in range(array.shape[1]):
        stored[:, z] = np.clip((array[:, z].astype(np.float64) - mean) / deviation, -limit, limit)
    channels = list(zip(normalisation.mean, normalisation.deviation, strict=True))

    def in_float16(limits: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            (value - shift) / scale for value, (shift, scale) in zip(limits, channels, strict=True)
        )

    return StoredScan(
        array=stored,
        rescale=tuple(
            (scale * slope, shift * slope + intercept)
            for (shift, scale), (slope, intercept) in zip(channels, scales, strict=True)
        ),
        normalisation=Normalisation(
            low=in_float16(normalisation.low),
            high=in_float16(normalisation.high),
            mean=(0.0,) * len(channels),
            deviation=(1.0,) * len(channels),
        ),
    )


def _window_limits(name: str, slope: float, intercept: float) -> tuple[float, float]:
    """Low and high of a window, for an array whose values are array × slope + intercept."""
    low, high = WINDOWS[name]
    return (low - intercept) / slope, (high - intercept) / slope


def is_whole(array: np.ndarray) -> bool:
    """Whether all values of (C, Z, Y, X) are whole numbers, in whatever type."""
    return array.dtype.kind in "iu" or all(
        bool((plane == np.rint(plane)).all()) for channel in array for plane in channel
    )
