"""AMOS 2022: `imagesTr/amos_NNNN.nii.gz`, `labelsTr/amos_NNNN.nii.gz`, likewise `…Va` and `…Ts`."""

from __future__ import annotations

import re
from pathlib import Path

from macl.readers._filenames import FilenameReader, FileRole

LAST_CT_ID = 500

ORGANS = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach",
    "aorta", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
    "bladder", "prostate/uterus",
)  # fmt: skip


class Amos(FilenameReader):
    """Abdominal organs: 500 CT and 100 MR scans of as many patients.

    Labels of 300 CT and 60 MR scans are public.

    Modality: CT (`amos:ct`, the usual part) or MR (`amos:mr`). Classes: 15 organs.
    Licence: CC BY 4.0 on Zenodo; the archive's own description says CC BY-SA 4.0.
    Obtain: https://zenodo.org/records/7262581
    Cite: Ji et al., "AMOS: a large-scale abdominal multi-organ benchmark", NeurIPS 2022,
    arXiv 2206.08023.
    Layout from: the archive's readme, and nnU-Net's conversion of it
    (`Dataset218_Amos2022_task1.py`).
    """

    title = "AMOS"
    example = "imagesTr/amos_NNNN.nii.gz"
    files = re.compile(r"(images|(?P<label>labels))(Tr|Va|Ts)/(?P<case>amos_\d{4})\.nii(\.gz)?")
    companions = re.compile(r"dataset\.json|readme\.md", re.IGNORECASE)
    parts = ("ct", "mr")
    classes = dict(enumerate(("background", *ORGANS)))
    specificity = 95  # above the Decathlon's description, which AMOS carries too

    def role(self, path: Path) -> FileRole | None:
        """As the name says; the case's number tells CT from MR."""
        role = super().role(path)
        if role is None:
            return None
        return role._replace(part="ct" if int(role.case[-4:]) <= LAST_CT_ID else "mr")

    def assumptions(self, part: str) -> tuple[str, ...]:
        """How CT is told from MR."""
        return (f"Scans numbered up to {LAST_CT_ID} are taken as CT, the others as MR.",)


PLUGIN = Amos
