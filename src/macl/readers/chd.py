"""CHD: `ct_NNNN_image.nii.gz` and `ct_NNNN_label.nii.gz`, side by side."""

from __future__ import annotations

import re
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FILE = re.compile(r"(ct_\d{4})_(image|label)\.nii(\.gz)?")
_STRUCTURES = ("LV", "RV", "LA", "RA", "MYO", "AO", "PA")
_LARGEST_EXTRA = 255


class Chd:
    """Cardiac CT of congenital heart disease: 68 scans of 68 patients; ImageCHD, its successor, has 110 in this layout.

    Modality: CT, 512 × 512 × 130–340 voxels. Classes: LV, RV, LA, RA, myocardium, aorta, pulmonary artery (1…7); larger
    values mark airways and the like, which the authors say to ignore.
    Licence: Apache 2.0 on Kaggle.
    Obtain: https://www.kaggle.com/datasets/xiaoweixumedicalai/chd68-segmentation-dataset-miccai19
    Cite: Xu et al., "Whole heart and great vessel segmentation in congenital heart disease using deep neural networks
    and graph matching", MICCAI 2019.
    Layout from: the authors' page (classes) and published programs that read the unpacked archive (file names).
    """

    name = "chd"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan `ct_NNNN_image`."""
        first = next((path for path in files_below(source) if _role(path) == (path.name[:7], False)), None)
        return (80, f"{first.relative_to(source).as_posix()}, as CHD names its scans") if first else None

    def read(self, source: Path) -> Source:
        """Every scan as a case of its own patient.

        Raises:
            MaclError: there is no scan.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(f"{source} holds no ct_NNNN_image.nii.gz, as CHD's layout wants: check the folder.")
        cases, refused = pair(files.images, files.labels)
        classes = {0: "background"} | dict(enumerate(_STRUCTURES, start=1))
        classes |= dict.fromkeys(range(len(classes), _LARGEST_EXTRA + 1), "background")
        notes = ("Label values above 7 (airways and the like) count as background, as the authors say.",)
        return Source(
            reader=self.name,
            modality="CT",
            channels=("CT",),
            classes=classes,
            cases=cases,
            refused=refused,
            notes=notes + passed_over(files.strange, source, "not part of the layout"),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named = _FILE.fullmatch(path.name)
    return (named[1], named[2] == "label") if named else None


PLUGIN = Chd()
