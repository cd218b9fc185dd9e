"""ISIC 2018, task 1: `ISIC2018_Task1-2_…_Input/ISIC_NNNNNNN.jpg`, `…_GroundTruth/ISIC_NNNNNNN_segmentation.png`."""

from __future__ import annotations

import re
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FILE = re.compile(r"(ISIC_\d{7})(?:\.jpe?g|(_segmentation)\.png)", re.IGNORECASE)


class Isic2018:
    """Skin lesions: 2,594 training, 100 validation and 1,000 test pictures, all labelled.

    Modality: photograph (dermoscopy), RGB, of many sizes. Classes: lesion (255 in the masks).
    Licence and terms: told per picture by the archive (CC0, CC BY-NC or other); research use, cite both papers.
    Obtain: https://challenge.isic-archive.com/data/#2018
    Cite: Codella et al., arXiv 1902.03368; Tschandl et al., Scientific Data 2018, doi 10.1038/sdata.2018.161.
    Layout from: the challenge's data page.
    """

    name = "isic2018"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A picture `ISIC_NNNNNNN.jpg`."""
        for path in files_below(source):
            role = _role(path)
            if role and not role[1]:
                return 80, f"{path.relative_to(source).as_posix()}, as ISIC names its pictures"
        return None

    def read(self, source: Path) -> Source:
        """Every picture as a case.

        Raises:
            MaclError: there is no picture.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(f"{source} holds no ISIC_NNNNNNN.jpg, as ISIC 2018's layout wants: check the folder.")
        cases, refused = pair(files.images, files.labels)
        note = "ISIC names no patients: every picture counts as a patient of its own."
        return Source(
            reader=self.name,
            modality="photograph",
            channels=("red", "green", "blue"),
            classes={0: "background", 255: "lesion"},
            cases=cases,
            refused=refused,
            notes=(note, *passed_over(files.strange, source, "not part of the layout")),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named = _FILE.fullmatch(path.name)
    return (named[1], named[2] is not None) if named else None


PLUGIN = Isic2018()
