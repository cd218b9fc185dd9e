"""BIDS: `sub-*/[ses-*/]anat/sub-*_T1w.nii.gz`; labels `derivatives/…/sub-*_dseg.nii.gz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from macl.io.nifti import SUFFIXES
from macl.io.source import Case, Source
from macl.io.volume import stem_of
from macl.readers._dataset_json import label_value
from macl.readers._filenames import keep_unique_names, printable_name, several_labels
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.text import printable
from macl.utils.user_text import read_table

_DERIVATIVE_ENTITIES = {"space", "res", "den", "desc", "label", "atlas", "seg"}
"""Entities that a label has and its scan need not have."""

_NATIVE_SPACES = {"", "orig", "individual"}
"""Values of `space` that mean the scan's own space."""


class _BidsFile(NamedTuple):
    """A file by its name: `sub-01_run-2_T1w` has the entities sub and run and the suffix T1w."""

    path: Path
    entities: Mapping[str, str]
    suffix: str


class _Labels(NamedTuple):
    """Labels of one kind, label value → class name, and notes for the user."""

    files: list[_BidsFile]
    classes: Mapping[int, str]
    notes: tuple[str, ...]


class Bids(Reader):
    """Anatomical scans of any data set in the Brain Imaging Data Structure.

    Modality: MR, one kind of scan at a time: the first of T1w, T2w, FLAIR … that is there, or as
    asked (`bids:T2w`).
    Classes: those that the labels' `…dseg.tsv` names, or else the values found. Labels are
    derivatives of one kind in the scan's own space, which is taken to be that of the first kind of
    scan if a label does not say. If there are several kinds of labels, none is read, and a note
    says so.
    Licence and terms: the data set's own (`dataset_description.json`, `README`).
    Obtain: for example https://openneuro.org
    Cite: Gorgolewski et al., Scientific Data 2016, doi 10.1038/sdata.2016.44.
    Layout from: the specification, https://bids-specification.readthedocs.io
    """

    parts = (
        "T1w", "T2w", "FLAIR", "PDw", "T2starw", "UNIT1", "inplaneT1", "inplaneT2", "PDT2", "angio",
        "T1rho",
    )  # fmt: skip

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """An anatomical scan in its subject's folder."""
        scan = next((file for file in _anatomical_files(source) if file.suffix in self.parts), None)
        return (85, scan.path.relative_to(source).as_posix()) if scan else None

    def read(self, source: Path) -> Source:
        """Every scan of one kind as a case; a subject's scans are one patient's.

        Raises:
            MaclError: there are no anatomical scans, or none of the kind that was asked for.
        """
        files = _anatomical_files(source)
        counts = Counter(file.suffix for file in files if file.suffix in self.parts)
        if not counts:
            raise MaclError(
                f"{source} holds no sub-…/anat/sub-…_T1w.nii.gz or the like, as BIDS names scans: "
                "check the folder."
            )
        part, ignored_parts = self.choose_part({name: counts[name] for name in self.parts})
        is_first_kind = part == next(name for name in self.parts if counts[name])
        labels = _find_labels(source, {part} | (_NATIVE_SPACES if is_first_kind else set()))
        scans = [file for file in files if file.suffix == part]
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for scan in scans:
            name = stem_of(scan.path)
            own = [label for label in labels.files if _labels_scan(label, scan)]
            shared = [label for label in own if sum(_labels_scan(label, s) for s in scans) > 1]
            if len(own) > 1:
                refused[name] = several_labels([label.path for label in own])
            elif shared:
                label = printable_name(shared[0].path)
                refused[name] = f"its label {label} fits several scans: name its run or session"
            else:
                patient = f"sub-{scan.entities['sub']}"
                cases.append(Case(name, (scan.path,), patient, own[0].path if own else None))
        kept, refused = keep_unique_names(cases, refused)
        return Source(
            reader=self.name,
            cases=kept,
            modality="MR",
            channels=(part,),
            classes=labels.classes,
            refused=refused,
            notes=(*ignored_parts, *labels.notes),
        )


def _anatomical_files(folder: Path) -> list[_BidsFile]:
    """NIfTI files below `folder/sub-*/[ses-*/]anat`."""
    paths = [*folder.glob("sub-*/anat/sub-*"), *folder.glob("sub-*/ses-*/anat/sub-*")]
    return [
        _parse_name(path)
        for path in sorted(paths)
        if path.is_file() and path.name.endswith(SUFFIXES)
    ]


def _parse_name(path: Path) -> _BidsFile:
    *pairs, suffix = stem_of(path).split("_")
    entities = (pair.partition("-") for pair in pairs)
    return _BidsFile(path, {key: value for key, dash, value in entities if dash}, suffix)


def _find_labels(source: Path, spaces: set[str]) -> _Labels:
    """The labels in one of these spaces, if they are all of one kind."""
    kinds: dict[tuple[Path, str], list[_BidsFile]] = {}
    for folder in (source / "derivatives", *sorted((source / "derivatives").glob("*"))):
        for file in _anatomical_files(folder):
            if _is_label(file) and file.entities.get("space", "") in spaces:
                kinds.setdefault((folder, _kind(file)), []).append(file)
    names = [f"{folder.relative_to(source).as_posix()}/…{kind}" for folder, kind in kinds]
    if not kinds:
        return _Labels([], {}, ())
    if len(kinds) > 1:
        note = f"There are several kinds of labels, so none is read: {', '.join(names)}; leave one."
        return _Labels([], {}, (note,))
    ((folder, _), files) = next(iter(kinds.items()))
    return _Labels(files, _read_classes(folder), (f"Labels are read from {names[0]}.",))


def _is_label(file: _BidsFile) -> bool:
    is_brain_mask = file.suffix == "mask" and file.entities.get("desc") == "brain"
    return file.suffix in ("dseg", "mask") and not is_brain_mask


def _kind(label: _BidsFile) -> str:
    """What tells a kind of labels from another: "desc-manual_dseg"."""
    pairs = [f"{key}-{label.entities[key]}" for key in ("desc", "label") if key in label.entities]
    return "_".join((*pairs, label.suffix))


def _labels_scan(label: _BidsFile, scan: _BidsFile) -> bool:
    """Whether a label belongs to a scan: their entities agree but for those of derivatives."""
    entities = label.entities.items()
    return {
        item for item in entities if item[0] not in _DERIVATIVE_ENTITIES
    } <= scan.entities.items()


def _read_classes(folder: Path) -> dict[int, str]:
    """Label value → class name from the table beside the labels; {} if there is none.

    Raises:
        MaclError: the table cannot be read.
    """
    for table in sorted(folder.glob("*dseg.tsv")):
        rows = read_table(table, "a table of label names", ("index", "name"))
        names = {label_value(row.values["index"], table): row.values["name"] for row in rows}
        return {0: "background"} | {value: printable(name) for value, name in names.items()}
    return {}


PLUGIN = Bids
