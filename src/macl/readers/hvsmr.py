"""HVSMR 2016: `training_axial_crop_pat0.nii.gz`, `training_axial_crop_pat0-label.nii.gz`, …"""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader


class Hvsmr(FilenameReader):
    """Hearts with congenital defects: 10 labelled and 10 unlabelled patients.

    Modality: MR. The same patients come in three versions: cropped along the short axis
    (`hvsmr:sa_crop`, the usual part), axial and cropped around the heart (`hvsmr:axial_crop`),
    axial and whole (`hvsmr:axial_full`). Classes: 1 myocardium, 2 blood pool.
    Terms: registration.
    Obtain: http://segchd.csail.mit.edu/data.html
    Cite: Pace et al., "Interactive whole-heart segmentation in congenital heart disease",
    MICCAI 2015, doi 10.1007/978-3-319-24574-4_10.
    Layout from: `generate_hvsmr.py` of dewenzeng/positional_cl, on which the paper's program builds
    and which reads the short-axis version, and other published programs.
    """

    title = "HVSMR"
    example = "training_sa_crop_pat0.nii.gz or the like"
    files = re.compile(
        r"(?P<case>(training|testing)_(?P<part>sa_crop|axial_crop|axial_full)_(?P<patient>pat\d+))"
        r"(?P<label>-label)?\.nii(\.gz)?"
    )
    parts = ("sa_crop", "axial_crop", "axial_full")
    modality = "MR"
    classes = {0: "background", 1: "myocardium", 2: "blood pool"}


PLUGIN = Hvsmr
