"""Scans read whole before anything is converted: which would be refused, what their labels hold, and what is odd."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from macl.io.source import Case, Source
from macl.io.volume import read_scan
from macl.preprocessing.labels import (
    Classes,
    count_values,
    declared_classes,
    found_classes,
    label_on_grid,
    require_declared,
)
from macl.preprocessing.orientation import choose_plane, plan, spacing_of
from macl.preprocessing.source import Survey
from macl.utils.errors import MaclError, RefusedCaseError

SPACINGS_DIFFER = 1.1
"""Spacings in plane are mixed where the coarsest is more than so many times the finest."""


@dataclass(frozen=True)
class Examination:
    """What a worker needs to read one case.

    Attributes:
        case: names and files.
        channels: how many there must be.
        values: label values that mean a class; empty where none are declared.
    """

    case: Case
    channels: int
    values: frozenset[int]


@dataclass(frozen=True)
class Finding:
    """What a case's files hold.

    Attributes:
        name: of the case.
        reason: why `prepare` would refuse it; "" where it would not.
        voxels: label value → voxels; empty without a label.
        notes: what was assumed about it.
        checksum: of its image's numbers.
    """

    name: str
    reason: str = ""
    voxels: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checksum: str = ""


@dataclass(frozen=True)
class Oddity:
    """Something worth a look that keeps no case out, and the cases that show it, sorted (none: it is about all)."""

    what: str
    cases: tuple[str, ...] = ()


def examine(task: Examination) -> Finding:
    """Read one case; whatever is wrong with it becomes the finding's reason."""
    case = task.case
    try:
        volume = read_scan(case.images, task.channels, case.frame)
        voxels = count_values(label_on_grid(case, volume)) if case.label else {}
        if case.label and task.values:
            require_declared(voxels, task.values)
    except RefusedCaseError as error:
        return Finding(case.name, str(error))
    except MemoryError:
        return Finding(case.name, "it does not fit into memory: try --workers 1")
    checksum = hashlib.sha256(np.ascontiguousarray(volume.array).data).hexdigest()
    return Finding(case.name, voxels=voxels, notes=volume.notes, checksum=checksum)


def classes_of(source: Source, findings: Iterable[Finding]) -> Classes:
    """The classes as declared, or else as the labels hold them; none, and why, where these hold too many values."""
    if source.classes:
        return declared_classes(source.classes)
    labels = [finding.voxels for finding in findings if finding.voxels]
    try:
        return found_classes(value for voxels in labels for value in voxels) if labels else Classes((), {})
    except MaclError as error:
        return Classes((), {}, (str(error),))


def class_counts(classes: Classes, findings: Iterable[Finding]) -> tuple[list[int], list[int]]:
    """For every class its voxels over all labels, and in how many cases it occurs."""
    voxels, cases = [0] * len(classes.names), [0] * len(classes.names)
    for finding in findings:
        found: Counter[int] = Counter()
        for value, count in finding.voxels.items():
            found[classes.labels[value]] += count
        for label, count in found.items():
            voxels[label] += count
            cases[label] += 1
    return voxels, cases


def odd_geometries(looked: Survey) -> Iterator[Oddity]:
    """Planes, spacings and modalities that are not the same for all, so far as headers tell."""
    geometries = {name: header.geometry for name, header in sorted(looked.headers.items())}
    wanted = looked.source.plane
    planes = {name: choose_plane(geometry, wanted) for name, geometry in geometries.items()}
    yield from _unlike_most(planes, "slices would be {}, those of most cases {}: --plane decides for all")
    known = {name: str(geometry.spacing_known) for name, geometry in geometries.items()}
    if len(set(known.values())) > 1:
        unknown = [name for name, geometry in geometries.items() if not geometry.spacing_known]
        yield Oddity("no spacing is told, where other cases tell theirs", tuple(unknown))
    in_plane = [
        spacing
        for geometry in geometries.values()
        if geometry.spacing_known
        for spacing in spacing_of(geometry, plan(geometry, wanted))[1:]
    ]
    if in_plane and max(in_plane) > SPACINGS_DIFFER * min(in_plane):
        span = f"{min(in_plane):.3g} to {max(in_plane):.3g} mm"
        yield Oddity(f"spacings in plane differ, from {span}: --spacing-mm brings slices to one")
    told = {name: header.modality for name, header in sorted(looked.headers.items()) if header.modality != "unknown"}
    yield from _unlike_most(told, "the header says {}, that of most cases {}")


def odd_contents(source: Source, findings: Sequence[Finding], classes: Classes) -> Iterator[Oddity]:
    """What was assumed on reading, scans that are there twice, labels that show nothing, and classes that none shows."""
    noted: dict[str, list[str]] = defaultdict(list)
    twice: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for note in finding.notes:
            noted[note].append(finding.name)
        twice[finding.checksum].append(finding.name)
    yield from (Oddity(note, tuple(cases)) for note, cases in sorted(noted.items()))
    patients = {case.name: case.patient for case in source.cases}
    for cases in twice.values():
        if len({patients[case] for case in cases}) > 1:
            yield Oddity("the same image under several patients, whom a split would part: remove one", tuple(cases))
        elif len(cases) > 1:
            yield Oddity("the same image", tuple(cases))
    if not classes.names:
        return
    background = {value for value, label in classes.labels.items() if label == 0}
    if empty := [finding.name for finding in findings if finding.voxels and finding.voxels.keys() <= background]:
        yield Oddity("the label is all background", tuple(empty))
    _, cases = class_counts(classes, findings)
    if any(finding.voxels for finding in findings):
        missing = [name for name, count in zip(classes.names, cases, strict=True) if not count]
        yield from (Oddity(f"no label shows {name}") for name in missing)


def _unlike_most(told: Mapping[str, str], sentence: str) -> Iterator[Oddity]:
    counts = Counter(told.values())
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for other in sorted(counts.keys() - {usual}):
        cases = tuple(name for name, one in told.items() if one == other)
        yield Oddity(sentence.format(other, usual), cases)
