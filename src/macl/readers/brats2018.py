"""BraTS 2018: `HGG|LGG/Brats18_X/Brats18_X_{t1,t1ce,t2,flair,seg}.nii.gz`; validation folders without grades."""

from __future__ import annotations

import re
from pathlib import Path

from macl.io.source import Source
from macl.readers._filenames import NamedLayout, Role
from macl.readers._reader import Reader

_MODALITIES = ("t1", "t1ce", "t2", "flair")
_FILE = re.compile(r"(Brats18_\w+)_(t1|t1ce|t2|flair|seg)\.nii(\.gz)?")


def _role(path: Path) -> Role | None:
    named = _FILE.fullmatch(path.name)
    if not named or named[1] != path.parent.name:
        return None
    return Role(named[1], None if named[2] == "seg" else _MODALITIES.index(named[2]))


_LAYOUT = NamedLayout(
    reader="brats2018",
    title="BraTS 2018",
    example="Brats18_…/Brats18_…_flair.nii.gz",
    role=_role,
    channels=_MODALITIES,
    beside=re.compile(r"survival_(data|evaluation)\.csv"),
)


class Brats2018(Reader):
    """Brain tumours: 285 labelled patients (210 HGG, 75 LGG), four registered MR channels each.

    Modality: MR (T1, T1 with contrast agent, T2, FLAIR), skull-stripped, 240 × 240 × 155 voxels of 1 mm. Classes: 1, 2
    and 4; there is no 3.
    Terms: registration.
    Obtain: https://www.med.upenn.edu/sbia/brats2018/data.html (registration).
    Cite: Menze et al., IEEE TMI 2015, doi 10.1109/TMI.2014.2377694; Bakas et al., Scientific Data 2017,
    doi 10.1038/sdata.2017.117; Bakas et al., arXiv 1811.02629.
    Layout from: the challenge's page on the tasks (label values), OpenMEDLab's description of the archive, and nnU-Net's
    conversion of it (`Dataset042_BraTS18.py`).
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan in its patient's folder `Brats18_…`."""
        return _LAYOUT.evidence(source)

    def read(self, source: Path) -> Source:
        """Every patient as a case of four channels.

        Raises:
            MaclError: there is no patient's folder.
        """
        found = _LAYOUT.listing(source)
        return Source(
            reader=self.name,
            modality="MR",
            channels=_MODALITIES,
            classes={0: "background", 1: "necrotic and non-enhancing core", 2: "edema", 4: "enhancing tumour"},
            cases=found.cases,
            refused=found.refused,
            notes=found.notes,
        )


PLUGIN = Brats2018
