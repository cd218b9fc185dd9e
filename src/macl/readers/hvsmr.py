"""HVSMR 2016: `training_axial_crop_pat0.nii.gz` and `training_axial_crop_pat0-label.nii.gz`; three versions of a scan."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FILE = re.compile(r"((?:training|testing)_(sa_crop|axial_crop|axial_full)_pat\d+)(-label)?\.nii(\.gz)?")


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    return Role(named[1], None if named[3] else 0, named[2]) if named else None


_LAYOUT = NamedLayout(
    reader="hvsmr",
    title="HVSMR",
    example="training_sa_crop_pat0.nii.gz or the like",
    role=_role,
    patient=lambda case: case.rpartition("_")[2],
    parts=("sa_crop", "axial_crop", "axial_full"),
)


class Hvsmr(Reader):
    """Hearts with congenital defects: 10 labelled and 10 unlabelled patients.

    Modality: MR. The same patients come in three versions: cropped along the short axis (`hvsmr:sa_crop`, what is read
    where several are there), axial and cropped around the heart (`hvsmr:axial_crop`), axial and whole
    (`hvsmr:axial_full`). Classes: 1 myocardium, 2 blood pool.
    Terms: registration.
    Obtain: http://segchd.csail.mit.edu/data.html
    Cite: Pace et al., "Interactive whole-heart segmentation in congenital heart disease", MICCAI 2015,
    doi 10.1007/978-3-319-24574-4_10.
    Layout from: `generate_hvsmr.py` of dewenzeng/positional_cl, on which the paper's program builds and which reads the
    short-axis version, and other published programs.
    """


    parts = _LAYOUT.parts

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan such as `training_axial_crop_pat0`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every patient's scan in one version as a case.

        Raises:
            MaclError: there is no scan, or none in the version that was asked for.
        """
        found = _LAYOUT.listing(source, self.part)
        return Source(
            reader=self.name,
            modality="MR",
            channels=("MR",),
            classes={0: "background", 1: "myocardium", 2: "blood pool"},
            cases=found.cases,
            refused=found.refused,
            notes=found.notes,
        )


PLUGIN = Hvsmr
