"""CHD: `ct_NNNN_image.nii.gz` and `ct_NNNN_label.nii.gz`, side by side."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FILE = re.compile(r"(ct_\d{4})_(image|label)\.nii(\.gz)?")
_STRUCTURES = ("LV", "RV", "LA", "RA", "MYO", "AO", "PA")
_LARGEST_EXTRA = 255


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    return Role(named[1], 0 if named[2] == "image" else None) if named else None


_LAYOUT = NamedLayout(reader="chd", title="CHD", example="ct_NNNN_image.nii.gz", role=_role)


class Chd(Reader):
    """Cardiac CT of congenital heart disease: 68 scans of 68 patients; ImageCHD, its successor, has 110 in this layout.

    Modality: CT. Classes: LV, RV, LA, RA, myocardium, aorta, pulmonary artery (1…7); larger values mark airways and the
    like, which the authors say to ignore.
    Licence: Apache 2.0 on Kaggle.
    Obtain: https://www.kaggle.com/datasets/xiaoweixumedicalai/chd68-segmentation-dataset-miccai19
    Cite: Xu et al., "Whole heart and great vessel segmentation in congenital heart disease using deep neural networks
    and graph matching", MICCAI 2019.
    Layout from: the authors' READMEs (classes), and `generate_chd.py` of dewenzeng/positional_cl (file names).
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan `ct_NNNN_image`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every scan as a case of its own patient.

        Raises:
            MaclError: there is no scan.
        """
        found = _LAYOUT.listing(source)
        classes = {0: "background"} | dict(enumerate(_STRUCTURES, start=1))
        classes |= dict.fromkeys(range(len(classes), _LARGEST_EXTRA + 1), "background")
        note = "Label values above 7 (airways and the like) count as background, as the authors say."
        return Source(
            reader=self.name,
            modality="CT",
            channels=("CT",),
            classes=classes,
            cases=found.cases,
            refused=found.refused,
            notes=(note, *found.notes),
        )


PLUGIN = Chd
