"""BraTS 2018: `Brats18_X/Brats18_X_{t1,t1ce,t2,flair,seg}.nii.gz`, the training part by grade."""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader


class Brats2018(FilenameReader):
    """Brain tumours: 285 labelled patients (210 HGG, 75 LGG), four registered MR channels each.

    Modality: MR (T1, T1 with contrast agent, T2, FLAIR), skull-stripped, 240 × 240 × 155 voxels of
    1 mm. Classes: 1, 2 and 4; there is no 3.
    Terms: registration.
    Obtain: https://www.med.upenn.edu/sbia/brats2018/data.html (registration).
    Cite: Menze et al., IEEE TMI 2015, doi 10.1109/TMI.2014.2377694; Bakas et al., Scientific Data
    2017, doi 10.1038/sdata.2017.117; Bakas et al., arXiv 1811.02629.
    Layout from: the challenge's page on the tasks (label values), OpenMEDLab's description of the
    archive, and nnU-Net's conversion of it (`Dataset042_BraTS18.py`).
    """

    title = "BraTS 2018"
    example = "Brats18_…/Brats18_…_flair.nii.gz"
    files = re.compile(
        r"(?P<case>Brats18_\w+)/"
        r"(?P=case)_((?P<channel>t1|t1ce|t2|flair)|(?P<label>seg))\.nii(\.gz)?"
    )
    companions = re.compile(r"survival_(data|evaluation)\.csv")
    modality = "MR"
    channels = ("t1", "t1ce", "t2", "flair")
    classes = {
        0: "background",
        1: "necrotic and non-enhancing core",
        2: "edema",
        4: "enhancing tumour",
    }


PLUGIN = Brats2018
