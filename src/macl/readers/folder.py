"""Any folder of scans: labels are optional and matched by name.

A label lies in a folder `labels…` or `masks…` where its image lies in `images…` (or in none), or carries a word more
than its image: `a_seg.nii.gz` or `a-label.nii.gz` beside `a.nii.gz`, `label.nii.gz` beside `image.nii.gz`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from macl.io.dicom import SUFFIXES as DICOM_SUFFIXES
from macl.io.dicom import is_series
from macl.io.source import Case, Source
from macl.io.volume import stem_of
from macl.readers._dataset_json import DESCRIPTION
from macl.readers._filenames import is_scan, one_of_each_name, passed_over, readable
from macl.readers._reader import Reader
from macl.utils.errors import MaclError

_PART = r"[ _-]?(tr|ts|va|te|val|train|training|test|testing|valid|validation)?"
_IMAGE_FOLDER = re.compile(r"(?:images?|imgs?|scans?)" + _PART, re.IGNORECASE)
_LABEL_FOLDER = re.compile(
    r"(?:labels?|masks?|segs?|segmentations?|gts?|ground[ _-]?truths?|annotations?)" + _PART, re.IGNORECASE
)
_SPLIT_FOLDER = re.compile(r"tr|ts|va|te|val|train|training|test|testing|valid|validation", re.IGNORECASE)
_IMAGE_WORD = re.compile(r"(.*?)(?:^|[._-])(?:image|img|orig)", re.IGNORECASE)
_LABEL_WORD = re.compile(r"(.*?)(?:^|[._-])(?:gt|segs?|segmentation|labels?|masks?|ground[_-]?truth)", re.IGNORECASE)

Key = tuple[str, ...]
"""The parts of a scan's path that an image and its label share; "/tr" stands for `imagesTr` and `labelsTr`."""

_ROLE = "/"


@dataclass
class _Found:
    images: dict[Key, list[Path]] = field(default_factory=dict)
    labels: dict[Key, list[Path]] = field(default_factory=dict)
    strange: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    hidden: int = 0


class Folder(Reader):
    """The reader of last resort."""


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan's file or a DICOM series anywhere below."""
        if not source.is_dir():
            return None
        found = _walk(source)
        first = next((path for paths in (*found.images.values(), *found.labels.values()) for path in paths), None)
        return (10, "scans, in no layout that another reader knows") if first else None

    def read(self, source: Path) -> Source:
        """Every scan below the folder as a case.

        Raises:
            MaclError: there is none.
        """
        found = _walk(source)
        if not found.images:
            raise MaclError(f"{source} holds no scans that can be read: check the folder.")
        cases: list[Case] = []
        refused: dict[str, str] = {}
        patients, assumption = _patients(list(found.images))
        names = _names(list(found.images), source.resolve().name)
        for key, images in found.images.items():
            name = names[key]
            labels = found.labels.pop(key, [])
            if len(labels) > 1:
                refused[name] = (
                    f"{len(labels)} labels fit it ({', '.join(readable(path) for path in labels)}): remove one"
                )
                continue
            cases += [Case(name, (path,), patients.get(key, name), labels[0] if labels else None) for path in images]
        for key, labels in found.labels.items():
            refused[_words(key) or readable(labels[0])] = f"a label without an image: {readable(labels[0])}"
        kept, duplicates = one_of_each_name(cases)
        notes = (assumption, *passed_over(found.strange, source, "no scans"))
        notes += tuple(
            f"{described.parent.relative_to(source)} has a {DESCRIPTION}, which counts only where that folder is named itself."
            for described in found.strange
            if described.name == DESCRIPTION and described.parent != source
        )
        notes += passed_over(found.links, source, "links to folders")
        if found.hidden:
            notes += (f"Passed over: {found.hidden} hidden files.",)
        return Source(
            reader=self.name,
            modality="unknown",
            channels=(),
            classes={},
            cases=kept,
            refused=refused | duplicates,
            notes=notes,
        )


def _walk(source: Path) -> _Found:
    found = _Found()
    folders = [source]
    while folders:
        folder = folders.pop()
        series = is_series(folder)
        if series:
            _place(found, folder, source)
        inside = sorted(folder.iterdir())
        stems = {stem_of(path) for path in inside if path.name.lower().endswith((".mhd", ".nhdr"))}
        for path in inside:
            if path.name.startswith("."):
                found.hidden += path.is_file()
            elif path.is_dir():
                (found.links if path.is_symlink() else folders).append(path)
            elif series and (path.name.lower().endswith(DICOM_SUFFIXES) or not is_scan(path)):
                continue
            elif is_scan(path):
                _place(found, path, source)
            elif path.name.partition(".")[0] not in stems:
                # What shares its name with a header holds that header's voxels.
                found.strange.append(path)
    return found


def _place(found: _Found, path: Path, source: Path) -> None:
    """File a scan under its key: the path without the words that tell images from labels."""
    *folders, _ = path.relative_to(source).parts or ("",)
    stem = stem_of(path) if path != source else ""
    is_label = False
    key: list[str] = []
    for folder in folders:
        label, image = _LABEL_FOLDER.fullmatch(folder), _IMAGE_FOLDER.fullmatch(folder)
        is_label = is_label or label is not None
        role = label or image
        key.append(_ROLE + (role[1] or "").lower() if role else folder)
    word = _LABEL_WORD.fullmatch(stem) if path.is_file() else None
    is_label = is_label or word is not None
    word = word or (None if is_label else _IMAGE_WORD.fullmatch(stem))
    key.append(word[1] if word else stem)
    place = found.labels if is_label else found.images
    place.setdefault(tuple(part for part in key if part not in ("", _ROLE)), []).append(path)


def _names(keys: list[Key], alone: str) -> dict[Key, str]:
    """Case names: the parts of the path, with the "Tr" of `imagesTr` only where names would clash without."""
    short = {key: "_".join(part for part in key if not part.startswith(_ROLE)) or alone for key in keys}
    taken = Counter(name.casefold() for name in short.values())
    return {key: name if taken[name.casefold()] == 1 else _words(key) for key, name in short.items()}


def _words(key: Key) -> str:
    return "_".join(part.removeprefix(_ROLE) for part in key)


def _patients(keys: list[Key]) -> tuple[dict[Key, str], str]:
    """Who each case belongs to, by the first level of folders that tells cases apart, and that assumption in words."""
    folders = {
        key: tuple(part for part in key[:-1] if part[0] != _ROLE and not _SPLIT_FOLDER.fullmatch(part)) for key in keys
    }
    for depth in range(max((len(parts) for parts in folders.values()), default=0)):
        named = {key: parts[depth] for key, parts in folders.items() if len(parts) > depth}
        if len(set(named.values())) > 1:
            return named, f"Patients are assumed to be the {len(set(named.values()))} folders that hold their scans."
    return {}, "Nothing tells who was scanned: every case counts as a patient of its own."


PLUGIN = Folder
