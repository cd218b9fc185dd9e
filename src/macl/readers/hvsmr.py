"""HVSMR 2016: `training_axial_crop_pat0.nii.gz` and `training_axial_crop_pat0-label.nii.gz`; three versions of a scan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import choose_part, files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FILE = re.compile(r"((?:training|testing)_(axial_crop|axial_full|sa_crop)_pat\d+)(-label)?\.nii(\.gz)?")
_PARTS = ("axial_crop", "axial_full", "sa_crop")


class Hvsmr:
    """Hearts with congenital defects: 10 labelled and 10 unlabelled patients.

    Modality: MR. The same patients come in three versions: axial, cropped around the heart (`hvsmr:axial_crop`, what is
    read where several are there), axial and whole (`hvsmr:axial_full`), cropped along the short axis
    (`hvsmr:sa_crop`). Classes: 1 myocardium, 2 blood pool.
    Licence and terms: research use after registration, not to be redistributed.
    Obtain: http://segchd.csail.mit.edu/data.html
    Cite: Pace et al., "Interactive whole-heart segmentation in congenital heart disease", MICCAI 2015,
    doi 10.1007/978-3-319-24574-4_10.
    Layout from: the data set's page (classes, versions) and published programs that read the files (names, folders).
    """

    name = "hvsmr"

    def __init__(self, part: str | None = None) -> None:
        self._part = part
        self.parts = {} if part else {name: Hvsmr(name) for name in _PARTS}

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan such as `training_axial_crop_pat0`."""
        for path in files_below(source):
            role = _role(path)
            if role and not role[1]:
                return 80, f"{path.relative_to(source).as_posix()}, as HVSMR names its scans"
        return None

    def read(self, source: Path) -> Source:
        """Every patient's scan in one version as a case.

        Raises:
            MaclError: there is no scan, or none in the version that was asked for.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(f"{source} holds no training_axial_crop_pat0.nii.gz or the like, as HVSMR's layout wants.")
        counts = Counter(_version(name) for name in files.images)
        part, notes = choose_part(self.name, {name: counts[name] for name in _PARTS}, self._part)
        cases, refused = pair(_only(files.images, part), _only(files.labels, part), lambda name: name.split("_")[-1])
        return Source(
            reader=self.name,
            modality="MR",
            channels=("MR",),
            classes={0: "background", 1: "myocardium", 2: "blood pool"},
            cases=cases,
            refused=refused,
            notes=notes + passed_over(files.strange, source, "not part of the layout"),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named = _FILE.fullmatch(path.name)
    return (named[1], named[3] is not None) if named else None


def _version(name: str) -> str:
    return next(part for part in _PARTS if f"_{part}_" in name)


def _only(files: Mapping[str, list[Path]], part: str) -> dict[str, list[Path]]:
    return {name: paths for name, paths in files.items() if _version(name) == part}


PLUGIN = Hvsmr()
