"""ACDC's official layout: `patientNNN/patientNNN_frameFF.nii.gz` and `…_gt.nii.gz`, two labelled frames a patient."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from macl.data.layouts import one_of_each_name, passed_over, readable, visible_files
from macl.errors import MaclError
from macl.plugins import Case, Source

_PATIENT = re.compile(r"patient\d{3}")
_FRAME = re.compile(r"(patient\d{3}_frame\d{2})(_gt)?\.nii(\.gz)?")
_SERIES = re.compile(r"patient\d{3}_4d\.nii(\.gz)?|Info\.cfg")
_PARTS = ("", "training", "testing", "database/training", "database/testing")


class Acdc:
    """Cine MR of the heart: RV, myocardium, LV."""

    name = "acdc"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A folder `patientNNN` that holds one of its frames."""
        for folder in _patients(source):
            if any(path.name.startswith(folder.name) and _FRAME.fullmatch(path.name) for path in visible_files(folder)):
                return 80, f"{folder.relative_to(source).as_posix()} with its frames"
        return None

    def read(self, source: Path) -> Source:
        """Every frame as a case of its patient; the whole cine series are passed over.

        Raises:
            MaclError: there is no patient's folder.
        """
        patients = _patients(source)
        if not patients:
            raise MaclError(f"{source} holds no folder patientNNN, as ACDC's layout wants: check the folder.")
        frames = [_frames(folder) for folder in patients]
        refused = {name: reason for found in frames for name, reason in found.refused.items()}
        strange = [path for found in frames for path in found.strange]
        series = sum(found.series for found in frames)
        kept, duplicates = one_of_each_name(case for found in frames for case in found.cases)
        cine = (f"Passed over: {series} whole cine series (…_4d), which have no labels.",) if series else ()
        return Source(
            reader=self.name,
            modality="MR",
            channels=("cine MR",),
            classes={0: "background", 1: "RV", 2: "MYO", 3: "LV"},
            cases=kept,
            refused=refused | duplicates,
            normalisation="zscore",
            notes=cine + passed_over(strange, source, "not part of the layout"),
        )


@dataclass
class _Frames:
    """What one patient's folder holds."""

    cases: list[Case] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    strange: list[Path] = field(default_factory=list)
    series: int = 0


def _frames(folder: Path) -> _Frames:
    frames = _Frames()
    images: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in visible_files(folder):
        if frame := _FRAME.fullmatch(path.name):
            (labels if frame[2] else images).setdefault(frame[1], []).append(path)
        elif _SERIES.fullmatch(path.name):
            frames.series += path.name.endswith((".nii", ".nii.gz"))
        else:
            frames.strange.append(path)
    for name, found in labels.items():
        if name not in images:
            frames.refused[name] = f"a label without an image: {readable(found[0])}"
        elif len(found) > 1:
            frames.refused[name] = f"two labels ({', '.join(readable(path) for path in found)}): remove one"
    for name, found in images.items():
        if name not in frames.refused:
            frames.cases += [Case(name, (path,), folder.name, labels.get(name, [None])[0]) for path in found]
    return frames


def _patients(source: Path) -> list[Path]:
    folders = (source / part for part in _PARTS)
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_dir() and _PATIENT.fullmatch(path.name)
    ]


PLUGIN = Acdc()
