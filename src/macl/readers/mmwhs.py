"""MM-WHS 2017: `ct_train/ct_train_1001_image.nii.gz` and `…_label.nii.gz`; `mr_train`, `ct_test`, `mr_test` alike."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import choose_part, files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FILE = re.compile(r"((?:ct|mr)_(?:train|test)_\d{4})_(image|label)\.nii(\.gz)?")
_PARTS = ("ct", "mr")
_CLASSES = {0: "background", 205: "MYO", 420: "LA", 500: "LV", 550: "RA", 600: "RV", 820: "AO", 850: "PA"}


class Mmwhs:
    """Whole hearts: 20 labelled CT and 20 labelled MR scans, 40 more of each without labels; every one a patient.

    Modality: CT (`mmwhs:ct`, what is read where both are there) or MR (`mmwhs:mr`). Classes: myocardium of the left
    ventricle 205, LA 420, LV 500, RA 550, RV 600, ascending aorta 820, pulmonary artery 850.
    Licence and terms: research use after registration, not to be redistributed.
    Obtain: https://zmiclab.github.io/zxh/0/mmwhs/ (registration form).
    Cite: Zhuang and Shen, Medical Image Analysis 2016, doi 10.1016/j.media.2016.02.006; Zhuang et al., Medical Image
    Analysis 2019, doi 10.1016/j.media.2019.101537.
    Layout from: the data set's page (classes) and published programs that read the unpacked archives (file names).
    """

    name = "mmwhs"

    def __init__(self, part: str | None = None) -> None:
        self._part = part
        self.parts = {} if part else {name: Mmwhs(name) for name in _PARTS}

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan such as `ct_train_1001_image`."""
        for path in files_below(source):
            role = _role(path)
            if role and not role[1]:
                return 80, f"{path.relative_to(source).as_posix()}, as MM-WHS names its scans"
        return None

    def read(self, source: Path) -> Source:
        """Every scan of one modality as a case of its own patient.

        Raises:
            MaclError: there is no scan, or none of the modality that was asked for.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(
                f"{source} holds no ct_train_NNNN_image.nii.gz, as MM-WHS's layout wants: check the folder."
            )
        counts = Counter(name[:2] for name in files.images)
        part, notes = choose_part(self.name, {name: counts[name] for name in _PARTS}, self._part)
        cases, refused = pair(
            {name: paths for name, paths in files.images.items() if name.startswith(part)},
            {name: paths for name, paths in files.labels.items() if name.startswith(part)},
        )
        return Source(
            reader=self.name,
            modality=part.upper(),
            channels=(part.upper(),),
            classes=_CLASSES,
            cases=cases,
            refused=refused,
            notes=notes + passed_over(files.strange, source, "not part of the layout"),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named = _FILE.fullmatch(path.name)
    return (named[1], named[2] == "label") if named else None


PLUGIN = Mmwhs()
