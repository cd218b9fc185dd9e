"""CHAOS: `Train_Sets/MR/N/T2SPIR|T1DUAL/DICOM_anon/…`, `Train_Sets/CT/N/DICOM_anon/…`; labels as PNG in `Ground`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from macl.io.source import Case, Source, Stack
from macl.readers._filenames import choose_part, one_of_each_name, visible_files
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import folders_below

_PATIENT = re.compile(r"\d+")
_PARTS = ("t2spir", "t1dual", "ct")
_FOLDERS = {"t2spir": ("T2SPIR",), "t1dual": ("T1DUAL",), "ct": ()}
_SERIES = {"t2spir": ("",), "t1dual": ("InPhase", "OutPhase"), "ct": ("",)}
_CHANNELS = {"t2spir": ("T2-SPIR",), "t1dual": ("T1 in phase", "T1 out of phase"), "ct": ("CT",)}
_MR_RANGES = {
    "liver": (63, range(55, 71)),
    "right kidney": (126, range(110, 136)),
    "left kidney": (189, range(175, 201)),
    "spleen": (252, range(240, 256)),
}
_MR_CLASSES = (
    {0: "background"}
    | {value: organ for organ, (value, _) in _MR_RANGES.items()}
    | {value: organ for organ, (_, values) in _MR_RANGES.items() for value in values}
)
_CT_CLASSES = {0: "background", 255: "liver", 1: "liver"}


class Chaos(Reader):
    """Abdominal organs: MR of 40 patients (20 labelled), CT of 40 others (20 labelled).

    Modality: T2-SPIR MR (`chaos:t2spir`, what is read where all are there), T1-DUAL MR with the in-phase and the
    out-of-phase image as two channels (`chaos:t1dual`), or CT (`chaos:ct`). Classes: MR liver 63, right kidney 126, left
    kidney 189, spleen 252, each with the range of values around it that the organisers name; CT the liver alone, the
    other organs being background there.
    Licence: CC BY-NC-SA 4.0.
    Obtain: https://zenodo.org/records/3431873
    Cite: Kavur et al., Medical Image Analysis 2021, doi 10.1016/j.media.2020.101950.
    Layout from: the challenge's data page, nnU-Net's conversion (`Dataset047_Chaos_Challenge.py`) and other published
    programs. The slices' files in order of their names and the labels' belong together one by one.
    """


    parts = tuple(_PARTS)

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A patient's folder with a series in `DICOM_anon`."""
        for part in _PARTS:
            for folder, series in _found(source, part):
                return 85, f"{series[0].relative_to(source).as_posix()} of the patient {folder.name}"
        return None

    def read(self, source: Path) -> Source:
        """Every patient's scan of one kind as a case.

        Raises:
            MaclError: there is no scan, or none of the kind that was asked for.
        """
        found = {part: list(_found(source, part)) for part in _PARTS}
        if not any(found.values()):
            raise MaclError(f"{source} holds no patient's folder with DICOM_anon, as CHAOS's layout wants: check it.")
        part, notes = choose_part(self.name, {name: len(scans) for name, scans in found.items()}, self.part)
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for folder, series in found[part]:
            patient = f"{'CT' if part == 'ct' else 'MR'}_{folder.name}"
            name = patient if part == "ct" else f"{patient}_{_FOLDERS[part][0]}"
            images = tuple(Stack(tuple(visible_files(one))) for one in series)
            pictures = tuple(visible_files(folder.joinpath(*_FOLDERS[part], "Ground")))
            if pictures and len(pictures) != len(images[0].files):
                refused[name] = f"{len(pictures)} label pictures for {len(images[0].files)} slices"
            else:
                cases.append(Case(name, images, patient, Stack(pictures) if pictures else None))
        kept, duplicates = one_of_each_name(cases)
        return Source(
            reader=self.name,
            modality="CT" if part == "ct" else "MR",
            channels=_CHANNELS[part],
            classes=_CT_CLASSES if part == "ct" else _MR_CLASSES,
            cases=kept,
            refused=refused | duplicates,
            anonymous=True,
            notes=(*notes, "Label pictures are matched to the slices' files by the order of their names."),
        )


def _found(source: Path, part: str) -> Iterator[tuple[Path, list[Path]]]:
    """Patients' folders that hold a part of the data set, and the folders of its series."""
    for folder in folders_below(source):
        if _PATIENT.fullmatch(folder.name):
            series = [folder.joinpath(*_FOLDERS[part], "DICOM_anon", name) for name in _SERIES[part]]
            if all(one.is_dir() and visible_files(one) for one in series):
                yield folder, series


PLUGIN = Chaos
