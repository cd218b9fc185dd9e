"""A data set's fingerprint: sizes, spacings, intensities and classes of its cases, and oddities.

`inspect` shows it, and `prepare` takes the target spacing of volumes from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from macl.data.store_index import StoredCase, StoreIndex
from macl.io.geometry import Header, Plane
from macl.io.source import Case
from macl.preprocessing.findings import CaseFinding, Intensities, classes_of
from macl.preprocessing.labels import Classes
from macl.preprocessing.orientation import PlaneSetting, choose_orientation, spacing_of
from macl.preprocessing.resampling import ANISOTROPIC_RATIO, Size, Spacing
from macl.preprocessing.source import SourceScan
from macl.utils.errors import MaclError

SPACINGS_DIFFER = 1.1
"""In-plane spacings are mixed if the coarsest is more than this many times the finest."""


@dataclass(frozen=True)
class CaseFingerprint:
    """What is known of one case.

    Attributes:
        name: of the case.
        patient: who was scanned.
        labelled: whether it has a label.
        plane: of its slices.
        size: (Z, Y, X) voxels along the store's axes.
        spacing_mm: (z, y, x); None: unknown.
        modality: as its header says.
        format: of its file; "" in a store.
        class_voxels: number of voxels of each label 0…K; None: unlabelled or not read.
        intensities: of each channel; empty: not read.
    """

    name: str
    patient: str
    labelled: bool
    plane: Plane
    size: Size
    spacing_mm: Spacing | None
    modality: str = "unknown"
    format: str = ""
    class_voxels: tuple[int, ...] | None = None
    intensities: tuple[Intensities, ...] = ()


@dataclass(frozen=True)
class Oddity:
    """Something to check that refuses no case.

    Attributes:
        what: the finding, in words.
        cases: the cases that show it, sorted; none: it concerns all.
    """

    what: str
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetFingerprint:
    """What a source or a store holds.

    Attributes:
        reader: the layout.
        modality: of the data set.
        channels: names, in order.
        classes: names of labels 0…K; empty: unknown or unlabelled.
        cases: the cases that are kept.
        refused: name of a refused case → reason.
        voxels_read: whether labels were read; False: headers alone.
        oddities: what to check.
        notes: assumptions, in sentences.
    """

    reader: str
    modality: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    refused: Mapping[str, str]
    voxels_read: bool
    oddities: tuple[Oddity, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def class_voxels(self) -> list[int] | None:
        """Voxels of each class in all labels; None: labels were not read."""
        return self._over_labels(sum)

    @property
    def class_cases(self) -> list[int] | None:
        """In how many cases each class occurs; None: labels were not read."""
        return self._over_labels(lambda voxels: sum(count > 0 for count in voxels))

    def _over_labels(self, total: Callable[[Sequence[int]], int]) -> list[int] | None:
        if not self.voxels_read:
            return None
        labels = [case.class_voxels for case in self.cases if case.class_voxels]
        if not labels:
            return [0] * len(self.classes)
        return [total(voxels) for voxels in zip(*labels, strict=True)]

    @property
    def intensities(self) -> tuple[Intensities, ...] | None:
        """Of each channel: the range over all cases, and the median case's other numbers."""
        cases = [case.intensities for case in self.cases if case.intensities]
        return tuple(_summarise(channel) for channel in zip(*cases, strict=True)) if cases else None

    @property
    def spacings_mm(self) -> list[Spacing]:
        """(z, y, x) of each case whose spacing is known."""
        return [case.spacing_mm for case in self.cases if case.spacing_mm]

    def target_spacing_mm(self) -> Spacing | None:
        """The spacing to resample volumes to, by nnU-Net's rule; None: no case knows its spacing.

        The median of each axis. If one axis is much coarser than the others and has much fewer
        voxels, the median would waste the resolution of the finer cases there: it takes the 10th
        percentile of its spacings instead, but never one finer than the other axes.
        """
        if not self.spacings_mm:
            return None
        spacings = np.asarray(self.spacings_mm)
        target = np.median(spacings, axis=0)
        size = np.median([case.size for case in self.cases if case.spacing_mm], axis=0)
        coarsest = int(target.argmax())
        other_mm, other_voxels = np.delete(target, coarsest), np.delete(size, coarsest)
        much_coarser = target[coarsest] > ANISOTROPIC_RATIO * other_mm.max()
        much_shorter = ANISOTROPIC_RATIO * size[coarsest] < other_voxels.min()
        if much_coarser and much_shorter:
            target[coarsest] = max(np.percentile(spacings[:, coarsest], 10), other_mm.max())
        z, y, x = (float(mm) for mm in target)
        return z, y, x


# ---------------------------------------------------------------- making one


def fingerprint_source(
    scan: SourceScan, plane: PlaneSetting = "auto", findings: Sequence[CaseFinding] | None = None
) -> DatasetFingerprint:
    """The fingerprint of a folder of scans.

    Args:
        scan: its headers.
        plane: of the slices.
        findings: of its cases, in their order; None: headers alone were read.
    """
    source = scan.source
    kept = None
    if findings is not None:
        refused = {finding.name: finding.reason for finding in findings if finding.reason}
        scan = scan.without(refused)
        kept = [finding for finding in findings if finding.name not in refused]
        source = scan.source
    try:
        classes = classes_of(source, kept or ())
    except MaclError as error:
        classes = Classes((), {}, (str(error),))
    contents = {finding.name: finding for finding in kept or ()}
    cases = tuple(
        _fingerprint_case(case, scan.headers[case.name], plane, contents.get(case.name), classes)
        for case in source.cases
    )
    oddities = [*_geometry_oddities(cases)]
    if kept is not None:
        oddities += _content_oddities(cases, kept, classes)
    return DatasetFingerprint(
        reader=source.reader,
        modality=source.modality,
        channels=source.channels,
        classes=classes.names,
        cases=cases,
        refused=source.refused,
        voxels_read=kept is not None,
        oddities=tuple(oddities),
        notes=(*source.notes, *classes.notes),
    )


def fingerprint_store(index: StoreIndex) -> DatasetFingerprint:
    """The fingerprint of a store, of its cases as prepared."""
    return DatasetFingerprint(
        reader=index.reader,
        modality=index.modality,
        channels=index.channels,
        classes=index.classes,
        cases=tuple(_fingerprint_stored(case) for case in index.cases),
        refused={case.name: case.reason for case in index.refused},
        voxels_read=True,
        notes=index.notes,
    )


def _fingerprint_case(
    case: Case, header: Header, plane: PlaneSetting, finding: CaseFinding | None, classes: Classes
) -> CaseFingerprint:
    orientation = choose_orientation(header.geometry, plane)
    spacing_mm = spacing_of(header.geometry, orientation)
    return CaseFingerprint(
        name=case.name,
        patient=case.patient,
        labelled=case.label is not None,
        plane=orientation.plane,
        size=orientation.scanned_size,
        spacing_mm=spacing_mm if header.geometry.spacing_known else None,
        modality=header.modality,
        format=header.format,
        class_voxels=_class_voxels(finding, classes) if finding else None,
        intensities=finding.intensities if finding else (),
    )


def _fingerprint_stored(case: StoredCase) -> CaseFingerprint:
    return CaseFingerprint(
        name=case.name,
        patient=case.patient,
        labelled=case.labelled,
        plane=case.orientation.plane,
        size=case.size,
        spacing_mm=case.spacing_mm,
        class_voxels=case.class_voxels,
    )


def _class_voxels(finding: CaseFinding, classes: Classes) -> tuple[int, ...] | None:
    if not finding.label_values or not classes.names:
        return None
    voxels = [0] * len(classes.names)
    for value, count in finding.label_values.items():
        voxels[classes.labels[value]] += count
    return tuple(voxels)


def _summarise(cases: Sequence[Intensities]) -> Intensities:
    """One channel over all cases."""
    middle = Intensities(*np.median([astuple(case) for case in cases], axis=0).tolist())
    lowest, highest = min(case.minimum for case in cases), max(case.maximum for case in cases)
    return replace(middle, minimum=lowest, maximum=highest)


# ---------------------------------------------------------------- oddities


def _geometry_oddities(cases: Sequence[CaseFingerprint]) -> Iterator[Oddity]:
    """Planes, spacings and modalities that differ between cases."""
    planes = {case.name: str(case.plane) for case in cases}
    yield from _unlike_most(
        planes, "slices would be {}, those of most cases {}: --plane decides for all"
    )
    known = [case.spacing_mm for case in cases if case.spacing_mm]
    unknown = tuple(case.name for case in cases if not case.spacing_mm)
    if known and unknown:
        yield Oddity("the file gives no spacing, unlike those of other cases", unknown)
    in_plane = [mm for spacing_mm in known for mm in spacing_mm[1:]]
    if in_plane and max(in_plane) > SPACINGS_DIFFER * min(in_plane):
        extent = f"{min(in_plane):.3g} to {max(in_plane):.3g} mm"
        yield Oddity(f"in-plane spacings differ, from {extent}: --spacing-mm makes them equal")
    modalities = {case.name: case.modality for case in cases if case.modality != "unknown"}
    yield from _unlike_most(modalities, "the header says {}, that of most cases {}")


def _content_oddities(
    cases: Sequence[CaseFingerprint], findings: Sequence[CaseFinding], classes: Classes
) -> Iterator[Oddity]:
    """Assumptions, images that occur twice, labels that are empty, and classes that never occur."""
    by_note: dict[str, list[str]] = defaultdict(list)
    by_checksum: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for note in finding.notes:
            by_note[note].append(finding.name)
        by_checksum[finding.checksum].append(finding.name)
    yield from (Oddity(note, tuple(names)) for note, names in sorted(by_note.items()))
    patients = {case.name: case.patient for case in cases}
    for names in by_checksum.values():
        if len({patients[name] for name in names}) > 1:
            yield Oddity(
                "the same image under several patients, which a split may part: remove one",
                tuple(names),
            )
        elif len(names) > 1:
            yield Oddity("the same image", tuple(names))
    labels = {case.name: case.class_voxels for case in cases if case.class_voxels}
    if empty := tuple(name for name, voxels in labels.items() if not any(voxels[1:])):
        yield Oddity("the label is all background", empty)
    if labels:
        totals = np.sum([*labels.values()], axis=0)
        missing = [name for name, total in zip(classes.names, totals, strict=True) if not total]
        yield from (Oddity(f"no label shows {name}") for name in missing)


def _unlike_most(values: Mapping[str, str], sentence: str) -> Iterator[Oddity]:
    """For each value other than the most common, the cases that have it."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for other in sorted(counts.keys() - {usual}):
        names = tuple(name for name, value in values.items() if value == other)
        yield Oddity(sentence.format(other, usual), names)
