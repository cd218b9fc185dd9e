"""KiTS 2019: `case_NNNNN/imaging.nii.gz` and `case_NNNNN/segmentation.nii.gz`, as its repository lays them out."""

from __future__ import annotations

import re
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FOLDER = re.compile(r"case_\d{5}")
_FILE = re.compile(r"(imaging|segmentation)\.nii(\.gz)?")


class Kits2019:
    """Kidney tumours: 210 labelled abdominal CT scans, 90 more without labels.

    Modality: CT in the arterial phase, 512 × 512, slices 0.5 to 5 mm apart. Classes: kidney, tumour.
    Licence and terms: CC BY-NC-SA 4.0.
    Obtain: https://github.com/neheller/kits19 (`python -m starter_code.get_imaging` fetches the scans).
    Cite: Heller et al., arXiv 1904.00445; Heller et al., Medical Image Analysis 2021, doi 10.1016/j.media.2020.101821.
    Layout from: the repository's README, which also has the headers' matrix: the first array axis counts axial slices.
    Some are thinner than their pixels are wide, so the coarsest spacing does not tell the plane.
    """

    name = "kits2019"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A folder `case_NNNNN` with its `imaging.nii.gz`."""
        for path in files_below(source):
            if _role(path) == (path.parent.name, False):
                return 80, path.relative_to(source).as_posix()
        return None

    def read(self, source: Path) -> Source:
        """Every folder as a case of its own patient.

        Raises:
            MaclError: there is no case.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(f"{source} holds no case_NNNNN/imaging.nii.gz, as KiTS 2019's layout wants: check it.")
        cases, refused = pair(files.images, files.labels)
        return Source(
            reader=self.name,
            modality="CT",
            channels=("CT",),
            classes={0: "background", 1: "kidney", 2: "tumour"},
            cases=cases,
            refused=refused,
            plane="axial",
            notes=passed_over(files.strange, source, "not part of the layout"),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named = _FILE.fullmatch(path.name)
    return (path.parent.name, named[1] == "segmentation") if named and _FOLDER.fullmatch(path.parent.name) else None


PLUGIN = Kits2019()
