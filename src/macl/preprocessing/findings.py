"""What reading each case finds, before anything is converted: faults, label values, intensities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from macl.io.source import Case, Source
from macl.io.volume import read_label, read_scan
from macl.preprocessing.labels import (
    NO_CLASSES,
    Classes,
    classes_from_values,
    count_values,
    declared_classes,
    label_on_grid,
    mask_note,
    require_declared,
    require_plausible,
)
from macl.utils.errors import RefusedCaseError
from macl.utils.parallel import workers_for
from macl.utils.progress import progress

TOO_LARGE = "it does not fit into memory"

_VOXELS_SAMPLED = 2_000

_RARE_VOXELS = 3
"""Up to as many voxels of a class, in one label alone, may be a slip of the brush."""


@dataclass(frozen=True)
class Intensities:
    """The intensities of a channel, in the scan's values (Hounsfield units in CT).

    The range is exact; the other numbers are those of a random sample of voxels.
    """

    minimum: float
    percentile_0_5: float
    median: float
    percentile_99_5: float
    maximum: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class CaseFinding:
    """What the files of a case hold.

    Attributes:
        name: of the case.
        reason: why `prepare` would refuse it; "" if it would not.
        label_values: value in the label → number of voxels; empty without a label.
        intensities: of each channel; empty if the image was not read.
        notes: assumptions about the case.
        checksum: of the image's numbers; "" if the image was not read.
    """

    name: str
    reason: str = ""
    label_values: Mapping[int, int] = field(default_factory=dict)
    intensities: tuple[Intensities, ...] = ()
    notes: tuple[str, ...] = ()
    checksum: str = ""


def examine_case(case: Case, channels: int, declared: frozenset[int]) -> CaseFinding:
    """Read a case's image and label.

    Args:
        case: names and files.
        channels: expected number of channels.
        declared: the label values that are classes; empty: any value is one.
    """

    def examine() -> CaseFinding:
        volume = read_scan(case.images, channels, case.frame)
        values = _label_values(label_on_grid(case, volume), declared) if case.label else {}
        array = np.ascontiguousarray(volume.array)
        checksum = hashlib.sha256(array.data).hexdigest()
        intensities = _measure_intensities(array, volume.rescale)
        notes = (*volume.notes, *mask_note(array))
        return CaseFinding(case.name, "", values, intensities, notes, checksum)

    return _or_refused(case, examine)


def examine_label(case: Case) -> CaseFinding:
    """Read a case's label alone."""

    def examine() -> CaseFinding:
        assert case.label
        label = read_label(case.label, frame=case.frame)
        return CaseFinding(case.name, label_values=_label_values(label.array))

    return _or_refused(case, examine)


def examine_all(
    examine: Callable[[Case], CaseFinding], cases: Sequence[Case], workers: int, title: str
) -> list[CaseFinding]:
    """Examine cases in several processes, showing the progress; the findings keep their order."""
    findings: dict[int, CaseFinding] = {}
    with workers_for(len(cases), workers) as run, progress(title, len(cases)) as advance:
        for index, finding in run(examine, cases):
            findings[index] = finding
            advance(note=finding.name)
    return [findings[index] for index in range(len(cases))]


def classes_of(source: Source, findings: Iterable[CaseFinding]) -> Classes:
    """The classes that the layout declares, or else those of the values in the labels.

    Raises:
        MaclError: none are declared, and the labels hold too many values together.
    """
    if source.classes:
        return declared_classes(source.classes)
    labels = {finding.name: finding.label_values for finding in findings if finding.label_values}
    if not labels:
        return NO_CLASSES
    classes = classes_from_values(value for label in labels.values() for value in label)
    return replace(classes, notes=(*classes.notes, *_rare_values(labels)))


def _rare_values(labels: Mapping[str, Mapping[int, int]]) -> Iterable[str]:
    """A sentence about each value of a few voxels in one case alone, of several."""
    cases_of: dict[int, list[str]] = {}
    for name, counts in labels.items():
        for value in counts:
            cases_of.setdefault(value, []).append(name)
    for value, names in sorted(cases_of.items()):
        voxels = labels[names[0]][value]
        if len(names) == 1 < len(labels) and voxels <= _RARE_VOXELS:
            yield (
                f"Class {value} has {voxels} {'voxel' if voxels == 1 else 'voxels'} in 1 of "
                f"{len(labels)} labels ({names[0]}): if that is a slip of the brush, correct it "
                "there."
            )


def _label_values(label: np.ndarray, declared: frozenset[int] = frozenset()) -> dict[int, int]:
    """Value → number of voxels; RefusedCaseError if it is undeclared or not plausible."""
    values = count_values(label)
    if declared:
        require_declared(values, declared)
    else:
        require_plausible(label, values)
    return values


def _or_refused(case: Case, examine: Callable[[], CaseFinding]) -> CaseFinding:
    try:
        return examine()
    except RefusedCaseError as error:
        return CaseFinding(case.name, str(error))
    except MemoryError:
        return CaseFinding(case.name, TOO_LARGE)


def _measure_intensities(
    array: np.ndarray, rescale: Sequence[tuple[float, float]]
) -> tuple[Intensities, ...]:
    """Of a contiguous array (C, z, y, x)."""
    scales = rescale or ((1.0, 0.0),) * len(array)
    return tuple(_of_channel(*both) for both in zip(array, scales, strict=True))


def _of_channel(channel: np.ndarray, rescale: tuple[float, float]) -> Intensities:
    voxels = channel.ravel()
    sample = np.sort(voxels[(_random_places() * len(voxels)).astype(int)].astype(np.float64))
    low, median, high = sample[[round(part * (len(sample) - 1)) for part in (0.005, 0.5, 0.995)]]
    mean, deviation = sample.mean(), sample.std()
    slope, intercept = rescale
    numbers = (channel.min(), low, median, high, channel.max(), mean)
    values = [float(number) * slope + intercept for number in numbers]
    return Intensities(*values, deviation=float(deviation) * slope)


@cache
def _random_places() -> np.ndarray:
    """Where voxels are sampled, as shares of their number: the same places in every case."""
    return np.random.default_rng(0).random(_VOXELS_SAMPLED)
