"""KiTS 2019: `case_NNNNN/imaging.nii.gz` and `case_NNNNN/segmentation.nii.gz`."""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader


class Kits2019(FilenameReader):
    """Kidney tumours: 210 labelled abdominal CT scans, and 90 without labels.

    Modality: CT in the late arterial phase. Classes: kidney, tumour.
    Licence and terms: CC BY-NC-SA 4.0.
    Obtain: https://github.com/neheller/kits19 (`python3 -m starter_code.get_imaging` fetches the
    scans).
    Cite: Heller et al., arXiv 1904.00445; Heller et al., Medical Image Analysis 2021,
    doi 10.1016/j.media.2020.101821.
    Layout from: the repository's README, which also has the headers' matrix: the first array axis
    counts axial slices. Some are thinner than their pixels are wide, so the coarsest spacing does
    not tell the plane.
    """

    title = "KiTS 2019"
    example = "case_NNNNN/imaging.nii.gz"
    files = re.compile(r"(?P<case>case_\d{5})/(imaging|(?P<label>segmentation))\.nii(\.gz)?")
    companions = re.compile(r"kits\.json|LICENSE|requirements\.txt|.+\.(md|py)")
    modality = "CT"
    classes = {0: "background", 1: "kidney", 2: "tumour"}
    plane = "axial"


PLUGIN = Kits2019
