"""The numbers of a case's slices: what normalises them, how a store keeps them, and how much of a slice is not air."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from macl.data.store import Normalisation

WINDOWS = {
    "soft_tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
}
"""Lowest and highest Hounsfield units of CT windows (level ± half the width that radiologists use)."""

# ---------------------------------------------------------------- normalisation


def measure(
    array: np.ndarray,
    kind: Literal["clip_zscore", "zscore"],
    limits: Sequence[tuple[float, float]] | None = None,
) -> Normalisation:
    """What normalises a case (n, C, rows, columns), per channel, in the array's own units.

    "clip_zscore" clips to the 1st and 99th percentile before mean and deviation are taken; a channel that is constant
    between the two (a few bright voxels on a flat ground) is not clipped. "zscore" clips nothing: low and high are the
    channel's own. `limits` are low and high of every channel where they are given, such as those of a CT window.
    """
    channels = [
        _measure_channel(array[:, channel], kind, limits[channel] if limits else None)
        for channel in range(array.shape[1])
    ]
    low, high, mean, deviation = zip(*channels, strict=True)
    return Normalisation(low=low, high=high, mean=mean, deviation=deviation)


def normalise(array: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """(…, C, rows, columns) in stored units → float32: (clip(stored, low, high) − mean) / deviation."""
    low, high, mean, deviation = (
        np.asarray(values, dtype=np.float32)[:, None, None]
        for values in (normalisation.low, normalisation.high, normalisation.mean, normalisation.deviation)
    )
    return (np.clip(array.astype(np.float32), low, high) - mean) / deviation


def content_of(array: np.ndarray, normalisation: Normalisation) -> tuple[float, ...]:
    """Every slice's share of pixels, 0 to 1 to four digits, that are not air: brighter than the scan's mean in a channel.

    Array (n, C, rows, columns) and normalisation are in the same units. The mean is that of the clipped scan, between the
    dark of the air and the tissue's brightness wherever air takes a good part of the scan.
    """
    mean = np.asarray(normalisation.mean)[:, None, None]
    return tuple(round(float((one > mean).any(axis=0).mean()), 4) for one in array)


def _measure_channel(
    channel: np.ndarray, kind: str, limits: tuple[float, float] | None
) -> tuple[float, float, float, float]:
    channel = channel.astype(np.float32) if channel.dtype == np.float16 else channel
    lowest, highest = float(channel.min()), float(channel.max())
    low, high = lowest, highest
    if limits:
        low, high = limits
    elif kind == "clip_zscore":
        low, high = (float(value) for value in np.percentile(channel, (1.0, 99.0)))
        if low == high:
            low, high = lowest, highest
    mean = _mean(np.clip(one.astype(np.float64), low, high) for one in channel)
    variance = _mean((np.clip(one.astype(np.float64), low, high) - mean) ** 2 for one in channel)
    return low, high, mean, float(np.sqrt(variance)) or 1.0


def _mean(planes: Iterable[np.ndarray]) -> float:
    """The mean over slices of equal size, one slice in memory at a time."""
    return float(np.mean([plane.mean() for plane in planes]))


# ---------------------------------------------------------------- storage


@dataclass(frozen=True)
class Stored:
    """Slices in the numbers that a store keeps.

    Attributes:
        array: (n, C, rows, columns): the scan's own integers, or float16.
        rescale: per channel, the scan's value = array × first + second; empty where the array holds the values.
        normalisation: in the array's units.
    """

    array: np.ndarray
    rescale: tuple[tuple[float, float], ...]
    normalisation: Normalisation


def as_stored(
    array: np.ndarray,
    rescale: tuple[tuple[float, float], ...],
    kind: Literal["clip_zscore", "zscore"],
    window: str | None = None,
) -> Stored:
    """Slices (n, C, rows, columns) in the smallest type that holds them: whole numbers as they are, others as float16.

    A `window` of `WINDOWS` takes the place of the percentiles that `kind` clips to.

    Before they become float16, values are shifted and scaled to mean 0 and deviation 1 of the range that normalisation
    keeps, so only what it clips can exceed float16 (and is then held at its limit).
    """
    scales = rescale or ((1.0, 0.0),) * array.shape[1]
    limits = [_window(window, slope, intercept) for slope, intercept in scales] if window else None
    normalisation = measure(array, kind, limits)
    low, high = array.min(), array.max()
    if is_whole(array):
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return Stored(array.astype(dtype), rescale, normalisation)
    limit = float(np.finfo(np.float16).max)
    stored = np.empty(array.shape, dtype=np.float16)
    mean, deviation = (np.asarray(values)[:, None, None] for values in (normalisation.mean, normalisation.deviation))
    for index, one in enumerate(array):
        stored[index] = np.clip((one.astype(np.float64) - mean) / deviation, -limit, limit)
    channels = list(zip(normalisation.mean, normalisation.deviation, strict=True))
    return Stored(
        array=stored,
        rescale=tuple(
            (scale * slope, shift * slope + intercept)
            for (shift, scale), (slope, intercept) in zip(channels, scales, strict=True)
        ),
        normalisation=Normalisation(
            low=tuple((v - shift) / scale for v, (shift, scale) in zip(normalisation.low, channels, strict=True)),
            high=tuple((v - shift) / scale for v, (shift, scale) in zip(normalisation.high, channels, strict=True)),
            mean=(0.0,) * len(channels),
            deviation=(1.0,) * len(channels),
        ),
    )


def _window(name: str, slope: float, intercept: float) -> tuple[float, float]:
    """Low and high of a window, in the numbers of an array whose values are array × slope + intercept."""
    low, high = WINDOWS[name]
    return (low - intercept) / slope, (high - intercept) / slope


def is_whole(array: np.ndarray) -> bool:
    """Whether every value is a whole number, whatever type holds it."""
    return array.dtype.kind in "iu" or all(bool((one == np.rint(one)).all()) for one in array)
