"""What the headers of a folder of scans tell, and how long its scans take to prepare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import median

from macl import plugins
from macl.config.settings import PrepareSettings
from macl.io.source import Case
from macl.preprocessing.case import CaseJob, prepare_case
from macl.preprocessing.fingerprint import DatasetFingerprint, fingerprint_source
from macl.preprocessing.resampling import Size, Spacing, prepared_size
from macl.preprocessing.source import SourceScan, recognise, scan_source
from macl.preprocessing.statements import with_statements
from macl.utils.errors import MaclError
from macl.utils.parallel import available_cores
from macl.workflows.run.plan import RunRequest

TRIED_AT = (0.25, 0.5, 0.75)
"""Which scans are prepared to see how long it takes: at these places in the order of size."""

WORKER_SECONDS = 4.0
"""Until worker processes have started."""

UNKNOWN_CLASSES = 3
"""Classes to reckon with where no layout declares them."""


@dataclass(frozen=True)
class SourceFacts:
    """What is known before a voxel is read.

    Attributes:
        scan: the folder.
        fingerprint: of its headers.
        seconds: that reading the headers took.
    """

    scan: SourceScan
    fingerprint: DatasetFingerprint
    seconds: float

    @property
    def channels(self) -> int:
        """Image channels of a scan."""
        return len(self.scan.source.channels)

    @property
    def classes(self) -> int:
        """Classes of the labels, with background; a guess where the layout declares none."""
        return len(self.fingerprint.classes) or UNKNOWN_CLASSES

    @property
    def oriented(self) -> bool:
        """Whether every scan says how it lies."""
        return all(header.geometry.orientation_known for header in self.scan.headers.values())

    @property
    def labelled(self) -> int:
        """Number of scans with a label."""
        return sum(case.labelled for case in self.fingerprint.cases)

    @cached_property
    def labelled_people(self) -> frozenset[str]:
        """Patients with a labelled scan."""
        return frozenset(case.patient for case in self.fingerprint.cases if case.labelled)

    @cached_property
    def unlabelled_people(self) -> frozenset[str]:
        """Patients without any labelled scan."""
        people = frozenset(case.patient for case in self.fingerprint.cases)
        return people - self.labelled_people

    @cached_property
    def median_size(self) -> Size:
        """(z, y, x) voxels, each the median over the scans."""
        z, y, x = median_of_axes([case.size for case in self.fingerprint.cases])
        return round(z), round(y), round(x)

    @cached_property
    def median_spacing_mm(self) -> Spacing | None:
        """(z, y, x), each the median over the scans; None: some scan does not know its own."""
        spacings = self.fingerprint.spacings_mm
        if len(spacings) < len(self.fingerprint.cases):
            return None
        return median_of_axes(spacings)

    def prepared_sizes(self, spacing_mm: float | Spacing | None) -> list[Size]:
        """(z, y, x) voxels of every scan in a store of this spacing."""
        return [
            prepared_size(case.size, case.spacing_mm, spacing_mm) for case in self.fingerprint.cases
        ]

    @property
    def voxels(self) -> int:
        """Of all scans, on their own grids."""
        return sum(prod(case.size) for case in self.fingerprint.cases)

    @property
    def labelled_voxels(self) -> int:
        """Of the labelled scans, on their own grids."""
        return sum(prod(case.size) for case in self.fingerprint.cases if case.labelled)


def median_of_axes(rows: Sequence[Spacing]) -> Spacing:
    """The median along z, along y and along x."""
    z, y, x = (float(median(axis)) for axis in zip(*rows, strict=True))
    return z, y, x


def read_facts(request: RunRequest) -> SourceFacts:
    """Read the headers of a folder of scans.

    Args:
        request: names the folder, and what else `prepare` wants to know.

    Raises:
        MaclError: there is no such folder, no reader knows it, or it holds no scan that can be
            used.
    """
    start, scans = time.perf_counter(), request.scans
    if not scans.is_dir():
        what = "is a file" if scans.exists() else "does not exist"
        raise MaclError(f"{scans} {what}: name a folder of scans.")
    reader = request.reader
    layout = plugins.reader(reader) if reader else recognise(scans, plugins.readers())
    listing = with_statements(layout.read(scans), request.patients, request.labels)
    scan = scan_source(scans, listing)
    if not scan.source.cases:
        reasons = [f"{name}: {why}" for name, why in scan.source.refused.items()][:3]
        raise MaclError(f"No scan in {scans} can be used ({'; '.join(reasons)}): correct them.")
    fingerprint = fingerprint_source(scan, scan.source.plane)
    return SourceFacts(scan, fingerprint, time.perf_counter() - start)


def expected_prepare_seconds(facts: SourceFacts, spacing_mm: float | Spacing | None) -> float:
    """How long `prepare` will take, from preparing a few scans in a folder that is removed."""
    source = facts.scan.source
    settings = PrepareSettings(
        spacing_mm=spacing_mm, normalisation=source.normalisation, plane=source.plane
    )
    voxels = {case.name: prod(case.size) for case in facts.fingerprint.cases}
    tried = _spread_over(sorted(source.cases, key=lambda case: voxels[case.name]))
    with tempfile.TemporaryDirectory(prefix="macl-run-") as folder:
        jobs = [
            CaseJob(replace(case, label=None), facts.channels, {}, settings, Path(folder))
            for case in tried
        ]
        prepare_case(jobs[0])  # untimed, since it loads what reads such files
        start = time.perf_counter()
        for job in jobs:
            prepare_case(job)
        seconds = time.perf_counter() - start
    per_voxel = seconds / sum(voxels[case.name] for case in tried)
    # A label is read twice (for the classes, then for the store) and written twice.
    work = per_voxel * (facts.voxels + 2 * facts.labelled_voxels)
    workers = min(available_cores(), len(source.cases))
    return facts.seconds + WORKER_SECONDS + work / workers


def _spread_over(cases: Sequence[Case]) -> list[Case]:
    places = {int(place * len(cases)) for place in TRIED_AT}
    return [cases[place] for place in sorted(places)]
