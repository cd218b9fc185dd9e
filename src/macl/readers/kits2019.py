"""KiTS 2019: `case_NNNNN/imaging.nii.gz` and `case_NNNNN/segmentation.nii.gz`, as its repository lays them out."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FOLDER = re.compile(r"case_\d{5}")
_FILE = re.compile(r"(imaging|segmentation)\.nii(\.gz)?")


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    if not named or not _FOLDER.fullmatch(path.parent.name):
        return None
    return Role(path.parent.name, 0 if named[1] == "imaging" else None)


_LAYOUT = NamedLayout(
    reader="kits2019",
    title="KiTS 2019",
    example="case_NNNNN/imaging.nii.gz",
    role=_role,
    beside=re.compile(r"kits\.json|LICENSE|requirements\.txt|.+\.(md|py)"),
)


class Kits2019(Reader):
    """Kidney tumours: 210 labelled abdominal CT scans, 90 more without labels.

    Modality: CT in the late arterial phase. Classes: kidney, tumour.
    Licence and terms: CC BY-NC-SA 4.0.
    Obtain: https://github.com/neheller/kits19 (`python3 -m starter_code.get_imaging` fetches the scans).
    Cite: Heller et al., arXiv 1904.00445; Heller et al., Medical Image Analysis 2021, doi 10.1016/j.media.2020.101821.
    Layout from: the repository's README, which also has the headers' matrix: the first array axis counts axial slices.
    Some are thinner than their pixels are wide, so the coarsest spacing does not tell the plane.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A folder `case_NNNNN` with its `imaging.nii.gz`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every folder as a case of its own patient.

        Raises:
            MaclError: there is no case.
        """
        found = _LAYOUT.listing(source)
        return Source(
            reader=self.name,
            modality="CT",
            channels=("CT",),
            classes={0: "background", 1: "kidney", 2: "tumour"},
            cases=found.cases,
            refused=found.refused,
            plane="axial",
            notes=found.notes,
        )


PLUGIN = Kits2019
