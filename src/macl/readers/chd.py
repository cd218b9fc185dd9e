"""CHD: `ct_NNNN_image.nii.gz` and `ct_NNNN_label.nii.gz`, side by side."""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader

_STRUCTURES = ("LV", "RV", "LA", "RA", "MYO", "AO", "PA")
_LARGEST_VALUE = 255


class Chd(FilenameReader):
    """Cardiac CT of congenital heart disease: 68 scans of 68 patients.

    ImageCHD, its successor, has 110 scans in this layout.

    Modality: CT. Classes: LV, RV, LA, RA, myocardium, aorta, pulmonary artery (1…7); larger values
    mark airways and the like, which the authors say to ignore.
    Licence: Apache 2.0 on Kaggle.
    Obtain: https://www.kaggle.com/datasets/xiaoweixumedicalai/chd68-segmentation-dataset-miccai19
    Cite: Xu et al., "Whole heart and great vessel segmentation in congenital heart disease using
    deep neural networks and graph matching", MICCAI 2019.
    Layout from: the authors' READMEs (classes), and `generate_chd.py` of dewenzeng/positional_cl
    (file names).
    """

    title = "CHD"
    example = "ct_NNNN_image.nii.gz"
    files = re.compile(r"(?P<case>ct_\d{4})_(image|(?P<label>label))\.nii(\.gz)?")
    modality = "CT"
    classes = {
        **dict.fromkeys(range(_LARGEST_VALUE + 1), "background"),
        **dict(enumerate(_STRUCTURES, start=1)),
    }

    def assumptions(self, part: str) -> tuple[str, ...]:
        """What becomes of values that mark no class."""
        return (
            "Label values above 7 (airways and the like) count as background, as the authors say.",
        )


PLUGIN = Chd
