"""What a run was trained on, in numbers, and how a scan differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from macl.config.settings import Settings
from macl.data.store import Store
from macl.data.store_index import Normalisation

_Spacing = tuple[float, float, float]

_SPACING_FACTOR = 1.5
"""A spacing is unlike the training's if it is this many times finer or coarser."""

_CONTRAST_FACTOR = 3.0
"""Intensities are unlike the training's if their deviation is this many times smaller or larger."""


class ChannelRange(Settings):
    """The intensities of a channel over the cases of a training, in the scans' own values."""

    low: float
    high: float
    smallest_deviation: float
    largest_deviation: float


class TrainingRange(Settings):
    """The cases of a training; spacings are those in the store, along its axes (z, y, x)."""

    modality: str
    finest_mm: _Spacing | None = None
    coarsest_mm: _Spacing | None = None
    channels: tuple[ChannelRange, ...] = ()


class ScanFacts(NamedTuple):
    """What is compared of a scan, as prepared."""

    modality: str
    spacing_mm: _Spacing | None
    normalisation: Normalisation
    rescale: tuple[tuple[float, float], ...]


class Difference(NamedTuple):
    """Something in which a scan is unlike the training: the training's in words, and its own."""

    trained_on: str
    scan: str


def measure_range(store: Store, cases: Iterable[str]) -> TrainingRange:
    """The range of some cases of a store."""
    chosen = [store.case(name) for name in cases]
    spacings = [case.spacing_mm for case in chosen if case.spacing_mm]
    moments = [_moments(case.normalisation, case.rescale) for case in chosen]
    channels = []
    for channel in zip(*moments, strict=True):
        means, deviations = np.asarray(channel).T
        channels.append(
            ChannelRange(
                low=float((means - 2 * deviations).min()),
                high=float((means + 2 * deviations).max()),
                smallest_deviation=float(deviations.min()),
                largest_deviation=float(deviations.max()),
            )
        )
    return TrainingRange(
        modality=store.index.modality,
        finest_mm=_spacing(np.min(spacings, axis=0)) if spacings else None,
        coarsest_mm=_spacing(np.max(spacings, axis=0)) if spacings else None,
        channels=tuple(channels),
    )


def spanning(ranges: Sequence[TrainingRange]) -> TrainingRange | None:
    """The range of what any of several trainings has seen; None of none."""
    if not ranges:
        return None
    modalities = {each.modality for each in ranges}
    finest = [each.finest_mm for each in ranges if each.finest_mm]
    coarsest = [each.coarsest_mm for each in ranges if each.coarsest_mm]
    return TrainingRange(
        modality=modalities.pop() if len(modalities) == 1 else "unknown",
        finest_mm=_spacing(np.min(finest, axis=0)) if finest else None,
        coarsest_mm=_spacing(np.max(coarsest, axis=0)) if coarsest else None,
        channels=tuple(
            ChannelRange(
                low=min(each.low for each in channel),
                high=max(each.high for each in channel),
                smallest_deviation=min(each.smallest_deviation for each in channel),
                largest_deviation=max(each.largest_deviation for each in channel),
            )
            for channel in zip(*(each.channels for each in ranges), strict=True)
        ),
    )


def differences(trained: TrainingRange, scan: ScanFacts) -> tuple[Difference, ...]:
    """In what a scan is unlike the scans of a training."""
    found: list[Difference] = []
    if "unknown" not in (trained.modality, scan.modality) and trained.modality != scan.modality:
        found.append(Difference(f"trained on {trained.modality}", scan.modality))
    if trained.finest_mm and trained.coarsest_mm:
        words = f"trained on spacings of {_range_in_mm(trained.finest_mm, trained.coarsest_mm)}"
        if scan.spacing_mm is None:
            found.append(Difference(words, "unknown spacing"))
        elif any(
            not finest / _SPACING_FACTOR <= mm <= coarsest * _SPACING_FACTOR
            for mm, finest, coarsest in zip(
                scan.spacing_mm, trained.finest_mm, trained.coarsest_mm, strict=True
            )
        ):
            found.append(Difference(words, _in_mm(scan.spacing_mm)))
    moments = _moments(scan.normalisation, scan.rescale)
    for (mean, deviation), channel in zip(moments, trained.channels, strict=False):
        smallest = channel.smallest_deviation / _CONTRAST_FACTOR
        largest = channel.largest_deviation * _CONTRAST_FACTOR
        if channel.low <= mean <= channel.high and smallest <= deviation <= largest:
            continue
        words = f"trained on intensities of about {channel.low:.4g} to {channel.high:.4g}"
        own = f"{mean - 2 * deviation:.4g} to {mean + 2 * deviation:.4g}"
        found.append(Difference(words, own))
        break
    return tuple(found)


def range_differences(trained: TrainingRange, other: TrainingRange) -> tuple[Difference, ...]:
    """In what the scans of a store are unlike those of an earlier training."""
    found: list[Difference] = []
    if "unknown" not in (trained.modality, other.modality) and trained.modality != other.modality:
        found.append(Difference(f"trained on {trained.modality}", other.modality))
    if trained.finest_mm and trained.coarsest_mm and other.finest_mm and other.coarsest_mm:
        pairs = zip(
            trained.finest_mm, trained.coarsest_mm, other.finest_mm, other.coarsest_mm, strict=True
        )
        if any(
            coarse < finest / _SPACING_FACTOR or fine > coarsest * _SPACING_FACTOR
            for finest, coarsest, fine, coarse in pairs
        ):
            words = f"trained on spacings of {_range_in_mm(trained.finest_mm, trained.coarsest_mm)}"
            found.append(Difference(words, _range_in_mm(other.finest_mm, other.coarsest_mm)))
    return tuple(found)


def _moments(
    normalisation: Normalisation, rescale: tuple[tuple[float, float], ...]
) -> list[tuple[float, float]]:
    """Mean and deviation of each channel, in the scan's own values."""
    scales = rescale or ((1.0, 0.0),) * len(normalisation.mean)
    return [
        (mean * slope + intercept, deviation * slope)
        for mean, deviation, (slope, intercept) in zip(
            normalisation.mean, normalisation.deviation, scales, strict=True
        )
    ]


def _spacing(values: np.ndarray) -> _Spacing:
    z, y, x = (float(value) for value in values)
    return z, y, x


def _range_in_mm(finest: _Spacing, coarsest: _Spacing) -> str:
    low, high = _in_mm(finest), _in_mm(coarsest)
    return low if low == high else f"{low} to {high}"


def _in_mm(spacing: _Spacing) -> str:
    return " × ".join(f"{mm:.3g}" for mm in spacing) + " mm"
