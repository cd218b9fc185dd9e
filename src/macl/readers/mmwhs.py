"""MM-WHS 2017: `ct_train_1001_image.nii.gz`, `ct_train_1001_label.nii.gz`, `mr_test_…`, …"""

from __future__ import annotations

import re

from macl.readers._filenames import FilenameReader


class Mmwhs(FilenameReader):
    """Whole hearts: 20 labelled CT and 20 labelled MR scans, and 40 more of each without labels.

    Every scan is of another patient.

    Modality: CT (`mmwhs:ct`, the usual part) or MR (`mmwhs:mr`). Classes: myocardium of the left
    ventricle 205, LA 420, LV 500, RA 550, RV 600, ascending aorta 820, pulmonary artery 850. Some
    MR labels hold 421, which programs that met it take for 420.
    Terms: registration.
    Obtain: https://zmiclab.github.io/zxh/0/mmwhs/ (registration form).
    Cite: Zhuang and Shen, Medical Image Analysis 2016, doi 10.1016/j.media.2016.02.006; Zhuang et
    al., Medical Image Analysis 2019, doi 10.1016/j.media.2019.101537.
    Layout from: the organisers' page on the label values, OpenMEDLab's description of the folders,
    and published programs.
    """

    title = "MM-WHS"
    example = "ct_train_NNNN_image.nii.gz"
    files = re.compile(
        r"(?P<case>(?P<part>ct|mr)_(train|test)_\d{4})_(image|(?P<label>label))\.nii(\.gz)?"
    )
    parts = ("ct", "mr")
    classes = {
        0: "background", 205: "MYO", 420: "LA", 500: "LV", 550: "RA", 600: "RV", 820: "AO",
        850: "PA", 421: "LA",
    }  # fmt: skip

    def assumptions(self, part: str) -> tuple[str, ...]:
        """What 421 means, in MR."""
        if part != "mr":
            return ()
        return ("The label value 421, which some MR labels contain, counts as 420 (LA).",)


PLUGIN = Mmwhs
