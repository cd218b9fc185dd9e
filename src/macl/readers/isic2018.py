"""ISIC 2018, task 1: `ISIC2018_Task1-2_…_Input/ISIC_NNNNNNN.jpg`, `…_GroundTruth/ISIC_NNNNNNN_segmentation.png`."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FILE = re.compile(r"(ISIC_\d{7})(?:\.jpe?g|(_segmentation)\.png)", re.IGNORECASE)


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    return Role(named[1], None if named[2] else 0) if named else None


_LAYOUT = NamedLayout(
    reader="isic2018",
    title="ISIC 2018",
    example="ISIC_NNNNNNN.jpg",
    role=_role,
    beside=re.compile(r"(ATTRIBUTION|LICENSE)\.txt"),
)


class Isic2018(Reader):
    """Skin lesions: 2,594 training, 100 validation and 1,000 test pictures, all labelled.

    Modality: photograph (dermoscopy), RGB, of many sizes. Classes: lesion (255 in the masks).
    Licence and terms: copies name CC BY-NC 4.0; the challenge's own words were not available to us.
    Obtain: https://challenge.isic-archive.com/data/#2018
    Cite: Codella et al., arXiv 1902.03368; Tschandl et al., Scientific Data 2018, doi 10.1038/sdata.2018.161.
    Layout from: the archives' names as published programs fetch them; the form of files and masks from the challenge's
    pages for 2016 and 2017.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A picture `ISIC_NNNNNNN.jpg`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every picture as a case.

        Raises:
            MaclError: there is no picture.
        """
        found = _LAYOUT.listing(source)
        note = "ISIC names no patients: every picture counts as a patient of its own."
        return Source(
            reader=self.name,
            modality="photograph",
            channels=("red", "green", "blue"),
            classes={0: "background", 255: "lesion"},
            cases=found.cases,
            refused=found.refused,
            notes=(note, *found.notes),
        )


PLUGIN = Isic2018
