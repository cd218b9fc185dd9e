"""BraTS 2018: `HGG|LGG/Brats18_X/Brats18_X_{t1,t1ce,t2,flair,seg}.nii.gz`; validation folders without grades."""

from __future__ import annotations

import re
from pathlib import Path

from macl.data.layouts import one_of_each_name, passed_over, visible_files
from macl.data.pairs import folders_below
from macl.errors import MaclError
from macl.plugins import Case, Source

_FOLDER = re.compile(r"Brats18_\w+")
_MODALITIES = ("t1", "t1ce", "t2", "flair")
_SUFFIXES = (".nii.gz", ".nii")
_CLASSES = {0: "background", 1: "necrotic and non-enhancing core", 2: "edema", 4: "enhancing tumour"}


class Brats2018:
    """Brain tumours: 285 labelled patients (210 HGG, 75 LGG), four registered MR channels each.

    Modality: MR (T1, T1 with contrast agent, T2, FLAIR), skull-stripped, 240 × 240 × 155 voxels of 1 mm. Classes: 1, 2
    and 4; there is no 3.
    Licence and terms: research use after registration, not to be redistributed.
    Obtain: https://www.med.upenn.edu/sbia/brats2018/data.html (registration).
    Cite: Menze et al., IEEE TMI 2015, doi 10.1109/TMI.2014.2377694; Bakas et al., Scientific Data 2017,
    doi 10.1038/sdata.2017.117.
    Layout from: the data page (classes, files) and published programs that read the unpacked archive (folders).
    """

    name = "brats2018"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A folder `Brats18_…` that holds its own FLAIR scan."""
        for folder in _patients(source):
            if _file(folder, "flair"):
                return 80, f"{folder.relative_to(source).as_posix()} with its FLAIR scan"
        return None

    def read(self, source: Path) -> Source:
        """Every patient as a case of four channels.

        Raises:
            MaclError: there is no patient's folder.
        """
        patients = _patients(source)
        if not patients:
            raise MaclError(f"{source} holds no folder Brats18_…, as BraTS 2018's layout wants: check the folder.")
        cases: list[Case] = []
        refused: dict[str, str] = {}
        strange: list[Path] = []
        for folder in patients:
            channels = [_file(folder, modality) for modality in _MODALITIES]
            label = _file(folder, "seg")
            strange += [path for path in visible_files(folder) if path not in (*channels, label)]
            missing = [name for name, path in zip(_MODALITIES, channels, strict=True) if path is None]
            if missing:
                refused[folder.name] = f"it has no {', '.join(missing)} scan"
            else:
                cases.append(Case(folder.name, tuple(path for path in channels if path), folder.name, label))
        kept, duplicates = one_of_each_name(cases)
        return Source(
            reader=self.name,
            modality="MR",
            channels=_MODALITIES,
            classes=_CLASSES,
            cases=kept,
            refused=refused | duplicates,
            notes=passed_over(strange, source, "not part of the layout"),
        )


def _patients(source: Path) -> list[Path]:
    return [folder for folder in folders_below(source) if _FOLDER.fullmatch(folder.name) and folder != source]


def _file(folder: Path, what: str) -> Path | None:
    """A patient's scan or label; some copies unpack a scan into a folder of its own name, which is no file."""
    paths = (folder / f"{folder.name}_{what}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


PLUGIN = Brats2018()
