"""AMOS 2022: `imagesTr/amos_NNNN.nii.gz`, `labelsTr/amos_NNNN.nii.gz`, Va and Ts alike; ids above 500 are MR."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from macl.data.layouts import passed_over
from macl.data.pairs import choose_part, files_below, pair, sort_files
from macl.errors import MaclError
from macl.plugins import Source

_FILE = re.compile(r"(amos_\d{4})\.nii(\.gz)?")
_FOLDER = re.compile(r"(images|labels)(Tr|Va|Ts)")
_PARTS = ("ct", "mr")
_LAST_CT = 500
ORGANS = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip


class Amos:
    """Abdominal organs: 500 CT and 100 MR scans of as many patients.

    Modality: CT (`amos:ct`, what is read where both are there) or MR (`amos:mr`). Classes: 15 organs.
    Licence: CC BY 4.0 on Zenodo; its own description says CC BY-SA 4.0.
    Obtain: https://zenodo.org/records/7262581
    Cite: Ji et al., "AMOS: a large-scale abdominal multi-organ benchmark", NeurIPS 2022, arXiv 2206.08023.
    Layout from: the challenge's page (classes, numbers of CT and MR) and published programs that read the archive.
    """

    name = "amos"

    def __init__(self, part: str | None = None) -> None:
        self._part = part
        self.parts = {} if part else {name: Amos(name) for name in _PARTS}

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan `imagesTr/amos_NNNN`: more specific than the Decathlon's description, which AMOS carries too."""
        for path in files_below(source):
            role = _role(path)
            if role and not role[1]:
                return 95, f"{path.relative_to(source).as_posix()}, as AMOS names its scans"
        return None

    def read(self, source: Path) -> Source:
        """Every scan of one modality as a case of its own patient.

        Raises:
            MaclError: there is no scan, or none of the modality that was asked for.
        """
        files = sort_files(files_below(source), _role)
        if not files.images:
            raise MaclError(f"{source} holds no imagesTr/amos_NNNN.nii.gz, as AMOS's layout wants: check the folder.")
        counts = Counter(_modality(name) for name in files.images)
        part, notes = choose_part(self.name, {name: counts[name] for name in _PARTS}, self._part)
        cases, refused = pair(_only(files.images, part), _only(files.labels, part))
        told = (f"{part.upper()} is told from the ids: up to {_LAST_CT} is CT, above it MR.", *notes)
        return Source(
            reader=self.name,
            modality=part.upper(),
            channels=(part.upper(),),
            classes={0: "background"} | dict(enumerate(ORGANS, start=1)),
            cases=cases,
            refused=refused,
            notes=told + passed_over(files.strange, source, "not part of the layout"),
        )


def _role(path: Path) -> tuple[str, bool] | None:
    named, folder = _FILE.fullmatch(path.name), _FOLDER.fullmatch(path.parent.name)
    return (named[1], folder[1] == "labels") if named and folder else None


def _modality(name: str) -> str:
    return "ct" if int(name.removeprefix("amos_")) <= _LAST_CT else "mr"


def _only(files: Mapping[str, list[Path]], part: str) -> dict[str, list[Path]]:
    return {name: paths for name, paths in files.items() if _modality(name) == part}


PLUGIN = Amos()
