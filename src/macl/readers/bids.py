"""BIDS: `sub-*/[ses-*/]anat/sub-*_T1w.nii.gz` and the like; labels as `derivatives/…/sub-*_dseg.nii.gz`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from macl.io.source import Case, Source
from macl.io.volume import stem_of
from macl.readers._filenames import choose_part, one_of_each_name, readable
from macl.readers._reader import Reader
from macl.utils.errors import MaclError

_PARTS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "UNIT1", "inplaneT1", "inplaneT2", "PDT2", "angio", "T1rho")
_NIFTI = (".nii.gz", ".nii")
_OF_DERIVATIVES = ("space", "res", "den", "desc", "label", "atlas", "seg")
_NATIVE_SPACES = {"", "orig", "individual"}


class _Named(NamedTuple):
    """A file by its name: `sub-01_run-2_T1w` has the entities sub and run and the suffix T1w."""

    path: Path
    entities: Mapping[str, str]
    suffix: str


class Bids(Reader):
    """Anatomical scans of any data set in the Brain Imaging Data Structure.

    Modality: MR, one kind of scan at a time: the first of T1w, T2w, FLAIR … that is there, or as asked (`bids:T2w`).
    Classes: those that the labels' `…dseg.tsv` names, or else the values found. Labels are derivatives of one kind in
    the scan's own space, which is taken to be that of the first kind of scan where a label does not say; where there are
    several kinds of labels, none is read, and that is said.
    Licence and terms: the data set's own (`dataset_description.json`, `README`).
    Obtain: for example https://openneuro.org
    Cite: Gorgolewski et al., Scientific Data 2016, doi 10.1038/sdata.2016.44.
    Layout from: the specification, https://bids-specification.readthedocs.io
    """


    parts = tuple(_PARTS)

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """An anatomical scan in its subject's folder."""
        first = next((found for found in _files(source) if found.suffix in _PARTS), None)
        return (85, first.path.relative_to(source).as_posix()) if first else None

    def read(self, source: Path) -> Source:
        """Every scan of one kind as a case; a subject's scans are one patient's.

        Raises:
            MaclError: there is no anatomical scan, or none of the kind that was asked for.
        """
        scans = [found for found in _files(source) if found.suffix in _PARTS]
        if not scans:
            raise MaclError(
                f"{source} holds no sub-…/anat/sub-…_T1w.nii.gz or the like, as BIDS wants: check the folder."
            )
        counts = Counter(found.suffix for found in scans)
        part, notes = choose_part(self.name, {name: counts[name] for name in _PARTS}, self.part)
        scans = [found for found in scans if found.suffix == part]
        first = next(name for name in _PARTS if counts[name])
        labels, classes, told = _labels(source, {part} | (_NATIVE_SPACES if part == first else set()))
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for scan in scans:
            name = stem_of(scan.path)
            fitting = [label for label in labels if _belongs(label, scan)]
            shared = [label for label in fitting if sum(_belongs(label, other) for other in scans) > 1]
            if len(fitting) > 1:
                refused[name] = f"{len(fitting)} labels fit it: {', '.join(readable(one.path) for one in fitting)}"
            elif shared:
                refused[name] = f"its label {readable(shared[0].path)} fits several scans: name its run or session"
            else:
                patient = f"sub-{scan.entities['sub']}"
                cases.append(Case(name, (scan.path,), patient, fitting[0].path if fitting else None))
        kept, duplicates = one_of_each_name(cases)
        return Source(
            reader=self.name,
            modality="MR",
            channels=(part,),
            classes=classes,
            cases=kept,
            refused=refused | duplicates,
            notes=notes + told,
        )


def _files(folder: Path) -> list[_Named]:
    """Files below `folder/sub-*/[ses-*/]anat`, by their names."""
    paths = [*folder.glob("sub-*/anat/sub-*"), *folder.glob("sub-*/ses-*/anat/sub-*")]
    return [_name(path) for path in sorted(paths) if path.is_file() and path.name.endswith(_NIFTI)]


def _name(path: Path) -> _Named:
    *parts, suffix = stem_of(path).split("_")
    pairs = (part.partition("-") for part in parts)
    return _Named(path, {key: value for key, dash, value in pairs if dash}, suffix)


def _labels(source: Path, spaces: set[str]) -> tuple[list[_Named], dict[int, str], tuple[str, ...]]:
    """Labels of the only kind there is in `spaces`, what their values are called, and what is to be said of them."""
    kinds: dict[tuple[Path, str], list[_Named]] = {}
    for folder in (source / "derivatives", *sorted((source / "derivatives").glob("*"))):
        for found in _files(folder):
            if _is_label(found) and found.entities.get("space", "") in spaces:
                kind = "_".join(f"{key}-{found.entities[key]}" for key in ("desc", "label") if key in found.entities)
                kinds.setdefault((folder, f"{kind}_{found.suffix}".strip("_")), []).append(found)
    words = [f"{folder.relative_to(source).as_posix()}/…{kind}" for folder, kind in kinds]
    if len(kinds) > 1:
        return [], {}, (f"There are several kinds of labels, so none is read: {', '.join(words)}; leave one.",)
    for (folder, _), labels in kinds.items():
        return labels, _classes(folder), (f"Labels are taken from {words[0]}.",)
    return [], {}, ()


def _is_label(found: _Named) -> bool:
    return found.suffix == "dseg" or (found.suffix == "mask" and found.entities.get("desc") != "brain")


def _belongs(label: _Named, scan: _Named) -> bool:
    told = {key: value for key, value in label.entities.items() if key not in _OF_DERIVATIVES}
    return told.items() <= scan.entities.items()


def _classes(folder: Path) -> dict[int, str]:
    """Label value → name, as the table beside the labels has it; empty where there is none that can be read."""
    for table in sorted(folder.glob("*dseg.tsv")):
        try:
            with table.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            return {0: "background"} | {int(row["index"]): row["name"] for row in rows}
        except (OSError, ValueError, KeyError):
            continue
    return {}


PLUGIN = Bids
