"""Layouts whose file names say what a file is, and what readers share about files and names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from macl.io.source import Case, ScanPath, Source
from macl.io.volume import safe_name
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, listed
from macl.utils.files import entries, files_below
from macl.utils.text import printable

LABEL_ALONE = "a label without an image"


class FileRole(NamedTuple):
    """What a file's name says about it.

    Attributes:
        case: the case that it belongs to.
        patient: who was scanned.
        part: the part of the data set that the case belongs to; "" if there are no parts.
        channel: which channel of the image it holds, from 0; None: it is the label.
    """

    case: str
    patient: str
    part: str
    channel: int | None


@dataclass
class _CaseFiles:
    """The files of one case: its images by channel, and its labels."""

    patient: str
    part: str
    images: dict[int, list[Path]] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)


class FilenameReader(Reader):
    """A layout in which file names tell images from labels, and whose they are.

    Attributes:
        title: the data set's name, for messages.
        example: the path of a scan, for messages.
        files: fits the name of a scan or label, alone or with its folder ("folder/name"). Its group
            `case` names the case; `patient` who was scanned (without it, the case); `part` the part
            of the data set; `label` fits labels only; `channel` is one of `channels`, in layouts
            with one file per channel.
        companions: fits the names of other files of the data set, which are ignored without a note.
        modality: of the scans; "" if the parts are named after their modalities ("ct", "mr").
        channels: names of the image channels; () if there is one, named after the modality.
        classes: label value → class name, as in `Source`.
        plane: as in `Source`.
        normalisation: as in `Source`.
        specificity: how specific a sign of the layout a scan's name is.
    """

    title: ClassVar[str]
    example: ClassVar[str]
    files: ClassVar[re.Pattern[str]]
    companions: ClassVar[re.Pattern[str] | None] = None
    modality: ClassVar[str] = ""
    channels: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[Mapping[int, str]]
    plane: ClassVar[Literal["auto", "axial"]] = "auto"
    normalisation: ClassVar[Literal["clip_zscore", "zscore"]] = "clip_zscore"
    specificity: ClassVar[int] = 80

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """The name of a scan."""
        for path in files_below(source):
            role = self.role(path)
            if role and role.channel is not None:
                scan = path.relative_to(source).as_posix()
                return self.specificity, f"{scan}, as {self.title} names its scans"
        return None

    def read(self, source: Path) -> Source:
        """Every scan of one part as a case, with its label if there is one.

        Labels without an image, scans without all channels, and doubled files are refused.

        Raises:
            MaclError: there are no scans, or none of the part that was asked for.
        """
        files_of, unrecognised = self._find_files(source)
        counts = Counter(files.part for files in files_of.values() if files.images)
        if not counts:
            expected = f"{self.example}, as {self.title} names its scans"
            raise MaclError(f"{source} holds no {expected}: check the folder.")
        part, ignored_parts = self.choose_part({name: counts[name] for name in self.parts or ("",)})
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for name, files in files_of.items():
            if files.part != part:
                continue
            if problem := self._problem(files):
                refused[name] = problem
            else:
                images = tuple(files.images[channel][0] for channel in sorted(files.images))
                label = files.labels[0] if files.labels else None
                cases.append(Case(name, images, files.patient, label))
        kept, refused = keep_unique_names(cases, refused)
        strays = ignored_note(unrecognised, source, "neither scans nor labels of this layout")
        modality = self.modality or part.upper()
        return Source(
            reader=self.name,
            cases=kept,
            modality=modality,
            channels=self.channels or (modality,),
            classes=self.classes,
            refused=refused,
            plane=self.plane,
            normalisation=self.normalisation,
            notes=(*self.assumptions(part), *ignored_parts, *strays),
        )

    def role(self, path: Path) -> FileRole | None:
        """What a file's name says about it; None: it is neither a scan nor a label."""
        name, parent = path.name, path.parent.name
        match = self.files.fullmatch(name) or self.files.fullmatch(f"{parent}/{name}")
        if match is None:
            return None
        groups = match.groupdict()
        channel = groups.get("channel")
        index = self.channels.index(channel) if channel else 0
        return FileRole(
            case=groups["case"],
            patient=groups.get("patient") or groups["case"],
            part=groups.get("part") or "",
            channel=None if groups["label"] else index,
        )

    def assumptions(self, part: str) -> tuple[str, ...]:
        """What is assumed about a part of the data set, in sentences for the user."""
        return ()

    def _find_files(self, source: Path) -> tuple[dict[str, _CaseFiles], list[Path]]:
        """The files of every case, and the files that are neither scans nor labels."""
        files_of: dict[str, _CaseFiles] = {}
        unrecognised: list[Path] = []
        for path in files_below(source):
            role = self.role(path)
            if role is None:
                if not (self.companions and self.companions.fullmatch(path.name)):
                    unrecognised.append(path)
                continue
            files = files_of.setdefault(role.case, _CaseFiles(role.patient, role.part))
            if role.channel is None:
                files.labels.append(path)
            else:
                files.images.setdefault(role.channel, []).append(path)
        return files_of, unrecognised

    def _problem(self, files: _CaseFiles) -> str | None:
        if not files.images:
            return label_without_image(files.labels[0])
        channels = self.channels if "channel" in self.files.groupindex else ("image",)
        missing = [name for index, name in enumerate(channels) if index not in files.images]
        if missing:
            return f"it has no {', '.join(missing)} scan"
        for paths in files.images.values():
            if len(paths) > 1:
                return several_scans(paths)
        return several_labels(files.labels) if len(files.labels) > 1 else None


def keep_unique_names(
    cases: Iterable[Case], refused: Mapping[str, str]
) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Cases under safe names, sorted, and the refused ones with those that share a name.

    Names that differ only in upper and lower case are the same.
    """
    cases_of: dict[str, list[Case]] = {}
    for case in cases:
        safe = replace(case, name=safe_name(case.name), patient=printable(case.patient))
        cases_of.setdefault(safe.name.casefold(), []).append(safe)
    kept = [same[0] for same in cases_of.values() if len(same) == 1]
    duplicates = {
        same[0].name: several_scans([case.images[0] for case in same])
        for same in cases_of.values()
        if len(same) > 1
    }
    named = {printable(name): reason for name, reason in refused.items()}
    return tuple(sorted(kept, key=lambda case: case.name)), {**named, **duplicates}


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted, without hidden ones (`._scan.nii.gz`); [] if it is missing."""
    files = (path for path in entries(folder) if path.is_file())
    return [path for path in files if not path.name.startswith(".")]


def printable_name(scan: ScanPath) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it holds."""
    return printable(scan.name)


def ignored_note(paths: Iterable[Path], source: Path, why: str) -> tuple[str, ...]:
    """A sentence about files below `source` that are not used, or () if there are none."""
    names = sorted(printable(path.relative_to(source).as_posix()) for path in paths)
    return (f"Ignored ({why}): {listed(names)}.",) if names else ()


def no_patients_note(title: str) -> str:
    """A sentence about a layout that does not say who was scanned."""
    return f"{title} names no patients: every case counts as a patient of its own."


def label_without_image(label: Path, hint: str = "") -> str:
    """Why a label alone is not a case."""
    return f"{LABEL_ALONE}: {printable_name(label)}{'; ' if hint else ''}{hint}"


def link_leads_out(relative: str) -> str:
    """Why a file that is a link cannot be used."""
    return (
        f"{printable(relative)} is a link, or lies behind one, that leads out of the source's "
        "folder: copy the file itself there"
    )


def several_scans(scans: Sequence[ScanPath]) -> str:
    """Why scans under one name are not a case."""
    return f"{len(scans)} scans share this name ({_names(scans)}): rename or remove all but one"


def several_labels(labels: Sequence[ScanPath]) -> str:
    """Why a scan with several labels is not a case."""
    return f"{len(labels)} labels fit it ({_names(labels)}): rename or remove all but one"


def _names(scans: Iterable[ScanPath]) -> str:
    return ", ".join(map(printable_name, scans))
