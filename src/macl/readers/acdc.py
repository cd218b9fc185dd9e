"""ACDC's official layout: `patientNNN/patientNNN_frameFF.nii.gz` and `…_gt.nii.gz`, two labelled frames a patient."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Case, Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader
from macl.utils.files import files_below

_FRAME = re.compile(r"((patient\d{3})_frame\d{2})(_gt)?\.nii(\.gz)?")
_SERIES = re.compile(r"(patient\d{3})_4d\.nii(\.gz)?")


def _role(path: Path) -> Role | None:
    frame = _FRAME.fullmatch(path.name)
    return Role(frame[1], None if frame[3] else 0) if frame and frame[2] == path.parent.name else None


_LAYOUT = NamedLayout(
    reader="acdc",
    title="ACDC",
    example="patientNNN/patientNNN_frameFF.nii.gz",
    role=_role,
    patient=lambda case: case.partition("_")[0],
    beside=re.compile(rf"{_SERIES.pattern}|Info\.cfg|MANDATORY_CITATION\.md"),
)


class Acdc(Reader):
    """Cine MR of the heart: 100 patients for training and 50 for testing, two labelled frames each.

    Modality: MR (short axis). Classes: 1 RV, 2 myocardium, 3 LV.
    Terms: cite; see the challenge's page.
    Obtain: https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html
    Cite: Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502.
    Layout from: the challenge's page on evaluation (label values), the training scans themselves, and nnU-Net's conversion
    (`Dataset027_ACDC.py`) for the parts.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A frame in the folder of its patient."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every frame as a case of its patient; the whole cine series as the source's series.

        Raises:
            MaclError: there is no frame.
        """
        found = _LAYOUT.listing(source)
        series = [(name[1], path) for path in files_below(source) if (name := _SERIES.fullmatch(path.name))]
        return Source(
            reader=self.name,
            modality="MR",
            channels=("cine MR",),
            classes={0: "background", 1: "RV", 2: "MYO", 3: "LV"},
            cases=found.cases,
            refused=found.refused,
            series=tuple(Case(patient, (path,), patient) for patient, path in series),
            normalisation="zscore",
            notes=found.notes,
        )


PLUGIN = Acdc
