"""ACDC: `patientNNN/patientNNN_frameFF.nii.gz` and `…_gt.nii.gz`, two labelled frames a patient."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from macl.io.source import Case, Source
from macl.readers._filenames import FilenameReader
from macl.utils.files import files_below

_SERIES = re.compile(r"(patient\d{3})_4d\.nii(\.gz)?")


class Acdc(FilenameReader):
    """Cine MR of the heart: 100 patients for training and 50 for testing, two labelled frames each.

    Modality: MR (short axis). Classes: 1 RV, 2 myocardium, 3 LV.
    Terms: cite; see the challenge's page.
    Obtain: https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html
    Cite: Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502.
    Layout from: the challenge's page on evaluation (label values), the training scans themselves,
    and nnU-Net's conversion (`Dataset027_ACDC.py`) for the parts.
    """

    title = "ACDC"
    example = "patientNNN/patientNNN_frameFF.nii.gz"
    files = re.compile(
        r"(?P<patient>patient\d{3})/"
        r"(?P<case>(?P=patient)_frame\d{2})(?P<label>_gt)?\.nii(\.gz)?"
    )
    companions = re.compile(rf"{_SERIES.pattern}|Info\.cfg|MANDATORY_CITATION\.md")
    modality = "MR"
    channels = ("cine MR",)
    classes = {0: "background", 1: "RV", 2: "MYO", 3: "LV"}
    normalisation = "zscore"

    def read(self, source: Path) -> Source:
        """Every frame as a case of its patient; the whole cine series as the source's series.

        Raises:
            MaclError: there are no frames.
        """
        named = ((_SERIES.fullmatch(path.name), path) for path in files_below(source))
        series = (Case(match[1], (path,), patient=match[1]) for match, path in named if match)
        return replace(super().read(source), series=tuple(series))


PLUGIN = Acdc
