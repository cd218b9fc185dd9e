"""AMOS 2022: `imagesTr/amos_NNNN.nii.gz`, `labelsTr/amos_NNNN.nii.gz`, Va and Ts alike; ids above 500 are MR."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_FILE = re.compile(r"amos_(\d{4})\.nii(\.gz)?")
_FOLDER = re.compile(r"(images|labels)(Tr|Va|Ts)")
_LAST_CT = 500
ORGANS = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip


def _role(path: Path) -> Role | None:
    named, folder = _FILE.fullmatch(path.name), _FOLDER.fullmatch(path.parent.name)
    if not named or not folder:
        return None
    is_image = folder[1] == "images"
    return Role(f"amos_{named[1]}", 0 if is_image else None, "ct" if int(named[1]) <= _LAST_CT else "mr")


_LAYOUT = NamedLayout(
    reader="amos",
    title="AMOS",
    example="imagesTr/amos_NNNN.nii.gz",
    role=_role,
    parts=("ct", "mr"),
    beside=re.compile(r"dataset\.json|readme\.md", re.IGNORECASE),
    strength=95,  # more specific than the Decathlon's description, which AMOS carries too
)


class Amos(Reader):
    """Abdominal organs: 500 CT and 100 MR scans of as many patients; 300 CT and 60 MR with public labels.

    Modality: CT (`amos:ct`, what is read where both are there) or MR (`amos:mr`). Classes: 15 organs.
    Licence: CC BY 4.0 on Zenodo; the archive's own description says CC BY-SA 4.0.
    Obtain: https://zenodo.org/records/7262581
    Cite: Ji et al., "AMOS: a large-scale abdominal multi-organ benchmark", NeurIPS 2022, arXiv 2206.08023.
    Layout from: the archive's readme, and nnU-Net's conversion of it (`Dataset218_Amos2022_task1.py`).
    """


    parts = _LAYOUT.parts

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan `imagesTr/amos_NNNN`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every scan of one modality as a case of its own patient.

        Raises:
            MaclError: there is no scan, or none of the modality that was asked for.
        """
        found = _LAYOUT.listing(source, self.part)
        modality = found.part.upper()
        told = f"{modality} is told from the ids: up to {_LAST_CT} is CT, above it MR."
        return Source(
            reader=self.name,
            modality=modality,
            channels=(modality,),
            classes={0: "background"} | dict(enumerate(ORGANS, start=1)),
            cases=found.cases,
            refused=found.refused,
            notes=(told, *found.notes),
        )


PLUGIN = Amos
