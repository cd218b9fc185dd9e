"""MM-WHS 2017: `ct_train/ct_train_1001_image.nii.gz` and `…_label.nii.gz`; `mr_train`, `ct_test`, `mr_test` alike."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FILE = re.compile(r"((ct|mr)_(?:train|test)_\d{4})_(image|label)\.nii(\.gz)?")
_CLASSES = {0: "background", 205: "MYO", 420: "LA", 500: "LV", 550: "RA", 600: "RV", 820: "AO", 850: "PA", 421: "LA"}


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    return Role(named[1], 0 if named[3] == "image" else None, named[2]) if named else None


_LAYOUT = NamedLayout(
    reader="mmwhs", title="MM-WHS", example="ct_train_NNNN_image.nii.gz", role=_role, parts=("ct", "mr")
)


class Mmwhs(Reader):
    """Whole hearts: 20 labelled CT and 20 labelled MR scans, 40 more of each without labels; every one a patient.

    Modality: CT (`mmwhs:ct`, what is read where both are there) or MR (`mmwhs:mr`). Classes: myocardium of the left
    ventricle 205, LA 420, LV 500, RA 550, RV 600, ascending aorta 820, pulmonary artery 850. Some MR labels hold 421,
    which programs that met it take for 420.
    Terms: registration.
    Obtain: https://zmiclab.github.io/zxh/0/mmwhs/ (registration form).
    Cite: Zhuang and Shen, Medical Image Analysis 2016, doi 10.1016/j.media.2016.02.006; Zhuang et al., Medical Image
    Analysis 2019, doi 10.1016/j.media.2019.101537.
    Layout from: the organisers' page on the label values, OpenMEDLab's description of the folders, and published programs.
    """


    parts = _LAYOUT.parts

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan such as `ct_train_1001_image`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every scan of one modality as a case of its own patient.

        Raises:
            MaclError: there is no scan, or none of the modality that was asked for.
        """
        found = _LAYOUT.listing(source, self.part)
        note = "The label value 421, which is in some MR labels, counts as 420 (LA)."
        return Source(
            reader=self.name,
            modality=found.part.upper(),
            channels=(found.part.upper(),),
            classes=_CLASSES,
            cases=found.cases,
            refused=found.refused,
            notes=found.notes + ((note,) if found.part == "mr" else ()),
        )


PLUGIN = Mmwhs
