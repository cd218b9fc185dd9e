"""CHAOS: `MR/N/T2SPIR|T1DUAL/DICOM_anon/…` and `CT/N/DICOM_anon/…`; labels as PNG in `Ground`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from macl.io.source import Case, SliceFiles, Source
from macl.readers._filenames import keep_unique_names, visible_files
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import folders_below

_PATIENT = re.compile(r"\d+")

_MR_VALUES = {
    "liver": (63, range(55, 71)),
    "right kidney": (126, range(110, 136)),
    "left kidney": (189, range(175, 201)),
    "spleen": (252, range(240, 256)),
}
"""Organ → its label value, and the range around it that means the same."""

_MR_CLASSES = (
    {0: "background"}
    | {value: organ for organ, (value, _) in _MR_VALUES.items()}
    | {value: organ for organ, (_, values) in _MR_VALUES.items() for value in values}
)
_CT_CLASSES = {0: "background", 255: "liver", 1: "liver"}


class _Part(NamedTuple):
    """A part of the data set.

    Attributes:
        modality: of its scans.
        folder: in the patient's folder; "" is that folder itself.
        series: folders in `DICOM_anon`, one per channel; "" is `DICOM_anon` itself.
        channels: the channels' names.
        classes: label value → class name.
    """

    modality: str
    folder: str
    series: tuple[str, ...]
    channels: tuple[str, ...]
    classes: Mapping[int, str]


class _Patient(NamedTuple):
    """A patient's folder, and its series of one part."""

    folder: Path
    series: list[Path]


_PARTS = {
    "t2spir": _Part("MR", "T2SPIR", ("",), ("T2-SPIR",), _MR_CLASSES),
    "t1dual": _Part(
        "MR",
        "T1DUAL",
        ("InPhase", "OutPhase"),
        ("T1 in phase", "T1 out of phase"),
        _MR_CLASSES,
    ),
    "ct": _Part("CT", "", ("",), ("CT",), _CT_CLASSES),
}


class Chaos(Reader):
    """Abdominal organs: MR of 40 patients (20 labelled), CT of 40 others (20 labelled).

    Modality: T2-SPIR MR (`chaos:t2spir`, the usual part), T1-DUAL MR with the in-phase and the
    out-of-phase image as two channels (`chaos:t1dual`), or CT (`chaos:ct`). Classes: MR liver 63,
    right kidney 126, left kidney 189, spleen 252, each with the range of values around it that the
    organisers name; CT the liver alone, the other organs being background there.
    Licence: CC BY-NC-SA 4.0.
    Obtain: https://zenodo.org/records/3431873
    Cite: Kavur et al., Medical Image Analysis 2021, doi 10.1016/j.media.2020.101950.
    Layout from: the challenge's data page, nnU-Net's conversion (`Dataset047_Chaos_Challenge.py`)
    and other published programs. The files of slices and of labels, both in the order of their
    names, belong together one by one.
    """

    parts = tuple(_PARTS)

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A patient's folder with a series in `DICOM_anon`."""
        for part in _PARTS.values():
            for folder, series in _find_patients(source, part):
                first = series[0].relative_to(source).as_posix()
                return 85, f"{first} of the patient {folder.name}"
        return None

    def read(self, source: Path) -> Source:
        """Every patient's scan of one part as a case.

        Raises:
            MaclError: there are no scans, or none of the part that was asked for.
        """
        patients_of = {name: list(_find_patients(source, part)) for name, part in _PARTS.items()}
        if not any(patients_of.values()):
            raise MaclError(
                f"{source} holds no patient's folder with DICOM_anon, as CHAOS does: check it."
            )
        counts = {name: len(patients) for name, patients in patients_of.items()}
        name, ignored_parts = self.choose_part(counts)
        part = _PARTS[name]
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for folder, series in patients_of[name]:
            patient = f"{part.modality}_{folder.name}"
            case = f"{patient}_{part.folder}" if part.folder else patient
            images = tuple(SliceFiles(tuple(visible_files(slices))) for slices in series)
            pictures = tuple(visible_files(folder / part.folder / "Ground"))
            if pictures and len(pictures) != len(images[0].files):
                slices = len(images[0].files)
                refused[case] = f"{len(pictures)} label pictures for {slices} slices"
            else:
                cases.append(
                    Case(case, images, patient, SliceFiles(pictures) if pictures else None)
                )
        kept, refused = keep_unique_names(cases, refused)
        return Source(
            reader=self.name,
            cases=kept,
            modality=part.modality,
            channels=part.channels,
            classes=part.classes,
            refused=refused,
            anonymous=True,
            notes=(
                *ignored_parts,
                "Label pictures are matched to the slices' files by the order of their names.",
            ),
        )


def _find_patients(source: Path, part: _Part) -> Iterator[_Patient]:
    """The patients' folders that hold all series of a part."""
    for folder in folders_below(source):
        if _PATIENT.fullmatch(folder.name):
            series = [folder / part.folder / "DICOM_anon" / name for name in part.series]
            if all(visible_files(slices) for slices in series):
                yield _Patient(folder, series)


PLUGIN = Chaos
