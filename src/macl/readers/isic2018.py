"""ISIC 2018, task 1: `…_Input/ISIC_NNNNNNN.jpg`, `…_GroundTruth/ISIC_NNNNNNN_segmentation.png`."""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader, no_patients_note


class Isic2018(FilenameReader):
    """Skin lesions: 2,594 training, 100 validation and 1,000 test pictures, all labelled.

    Modality: photograph (dermoscopy), RGB, of many sizes. Classes: lesion (255 in the masks).
    Licence and terms: copies name CC BY-NC 4.0; the challenge's own words were not available to us.
    Obtain: https://challenge.isic-archive.com/data/#2018
    Cite: Codella et al., arXiv 1902.03368; Tschandl et al., Scientific Data 2018,
    doi 10.1038/sdata.2018.161.
    Layout from: the archives' names as published programs fetch them; the form of files and masks
    from the challenge's pages for 2016 and 2017.
    """

    title = "ISIC 2018"
    example = "ISIC_NNNNNNN.jpg"
    files = re.compile(
        r"(?P<case>ISIC_\d{7})(\.jpe?g|(?P<label>_segmentation)\.png)", re.IGNORECASE
    )
    companions = re.compile(r"(ATTRIBUTION|LICENSE)\.txt")
    modality = "photograph"
    channels = ("red", "green", "blue")
    classes = {0: "background", 255: "lesion"}

    def assumptions(self, part: str) -> tuple[str, ...]:
        """Who counts as a patient."""
        return (no_patients_note(self.title),)


PLUGIN = Isic2018
