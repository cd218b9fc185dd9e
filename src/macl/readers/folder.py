"""Any folder of scans; labels are optional and matched by name.

A label lies in a folder `labels…` or `masks…` while its image lies in `images…` (or in neither), or
its name has one more word than its image's: `a_seg.nii.gz` or `a-label.nii.gz` beside `a.nii.gz`,
`label.nii.gz` beside `image.nii.gz`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from macl.io.dicom import SUFFIXES as DICOM_SUFFIXES
from macl.io.dicom import is_series_folder
from macl.io.source import Case, Source
from macl.io.volume import stem_of, suffix_of
from macl.readers._dataset_json import DESCRIPTION
from macl.readers._filenames import (
    ignored_note,
    keep_unique_names,
    label_without_image,
    printable_name,
    several_labels,
)
from macl.readers._naming import (
    IMAGE_FOLDER,
    IMAGE_NAME,
    LABEL_FOLDER,
    LABEL_NAME,
    SPLIT_FOLDER,
    gathers_people,
    holds_label_word,
    names_a_person,
    plain_words,
    without_occasion,
    without_remarks,
)
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, listed
from macl.utils.files import entries
from macl.utils.text import counted, printable

_HEADERS_OF_DATA_FILES = (".mhd", ".nhdr")

Key = tuple[str, ...]
"""What the paths of an image and its label have in common; "/tr" is `imagesTr` and `labelsTr`."""

_NO_PATIENTS = "Nothing tells who was scanned: every case counts as a patient of its own."

_ROLE_FOLDER = "/"
"""Begins the entry of a key that replaces a folder of images or labels."""


@dataclass
class _Contents:
    """What lies below a folder: images and labels by key, and what is ignored.

    `named_as_labels` are among the labels, by a less common form of name.
    """

    images: dict[Key, list[Path]] = field(default_factory=dict)
    labels: dict[Key, list[Path]] = field(default_factory=dict)
    named_as_labels: dict[Key, list[Path]] = field(default_factory=dict)
    not_scans: list[Path] = field(default_factory=list)
    folder_links: list[Path] = field(default_factory=list)
    hidden: int = 0


class Folder(Reader):
    """The reader of last resort."""

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan's file or a DICOM series anywhere below."""
        if not source.is_dir():
            return None
        contents = _find_scans(source)
        if not contents.images and not contents.labels:
            return None
        return 10, "scans, in no layout that another reader knows"

    def read(self, source: Path) -> Source:
        """Every scan below the folder as a case.

        Raises:
            MaclError: there are none.
        """
        contents = _find_scans(source)
        doubtful = _pair_loosely(contents)
        if not contents.images:
            labels = [path.name for paths in contents.labels.values() for path in paths]
            if labels:
                raise MaclError(
                    f"{source} holds labels alone, by their names ({listed(map(printable, labels))}"
                    "): name a folder that holds their scans too, or give --labels."
                )
            raise MaclError(f"{source} holds no scans that macl can read: check the folder.")
        doubtful_keys = contents.named_as_labels.keys()
        patients, assumption = _patients(contents.images)
        names = _case_names(contents.images, source.resolve().name)
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for key, images in contents.images.items():
            name, labels = names[key], contents.labels.get(key, [])
            if len(labels) > 1:
                refused[name] = several_labels(labels)
                continue
            label = labels[0] if labels else None
            cases += [Case(name, (path,), patients.get(key, name), label) for path in images]
        for key, labels in contents.labels.items():
            if key not in contents.images:
                name = _join(key) or printable_name(labels[0])
                hint = "if it is a scan, its name needs other words" if key in doubtful_keys else ""
                refused[name] = label_without_image(labels[0], hint)
        kept, refused = keep_unique_names(cases, refused)
        return Source(
            reader=self.name,
            cases=kept,
            refused=refused,
            notes=(assumption, *doubtful, *_ignored_notes(contents, source)),
        )


def _pair_loosely(contents: _Contents) -> tuple[str, ...]:
    """Pair labels whose names say so in a less common form: `segmentation-0` of `volume-0`.

    Where nothing but such labels is there, they are scans after all, and a sentence says so.
    """
    if not contents.images and contents.named_as_labels:
        contents.images |= contents.named_as_labels
        for key in contents.named_as_labels:
            del contents.labels[key]
        names = [printable(path.name) for paths in contents.images.values() for path in paths]
        return (
            f"Names as masks have them, but no other scans: {listed(names)} are read as scans. If "
            "they are labels, name a folder that holds their scans too, or give --labels.",
        )
    images, labels = (
        _by_words(key for key in keys if key not in other)
        for keys, other in (
            (contents.images, contents.labels),
            (contents.labels, contents.images),
        )
    )
    for words, label_keys in labels.items():
        for key in label_keys:
            image_keys = images.get(words) or images.get(_without_remarks(key), [])
            if len(image_keys) == 1:
                contents.labels.setdefault(image_keys[0], []).extend(contents.labels.pop(key))
    return ()


def _by_words(keys: Iterable[Key]) -> dict[Key, list[Key]]:
    """Keys by what is left of them without all words that tell images from labels.

    Those of which nothing is left belong to none another.
    """
    by_words: dict[Key, list[Key]] = {}
    for key in keys:
        if words := plain_words(key[-1]):
            by_words.setdefault(_plain(key, words), []).append(key)
    return by_words


def _plain(key: Key, words: Iterable[str]) -> Key:
    return (*(part for part in key[:-1] if not part.startswith(_ROLE_FOLDER)), "", *words)


def _without_remarks(key: Key) -> Key:
    """A label's key without the remarks in its name; () if it has none."""
    scan = without_remarks(key[-1])
    return _plain(key, plain_words(scan)) if scan else ()


def _ignored_notes(contents: _Contents, source: Path) -> Iterable[str]:
    """What is ignored, in sentences."""
    yield from ignored_note(contents.not_scans, source, "not scans")
    for path in contents.not_scans:
        if path.name == DESCRIPTION and path.parent != source:
            folder = path.parent.relative_to(source)
            yield f"{folder} has a {DESCRIPTION}, which is read if you name that folder itself."
    if (source.parent / DESCRIPTION).is_file() and IMAGE_FOLDER.fullmatch(source.name):
        yield (
            f"The folder above has a {DESCRIPTION}, which names labels, classes and channels: name "
            "that folder to read them."
        )
    yield from ignored_note(contents.folder_links, source, "links to folders")
    if contents.hidden:
        yield f"Ignored: {counted(contents.hidden, 'hidden file')}."


def _find_scans(source: Path) -> _Contents:
    contents = _Contents()
    folders = [source]
    while folders:
        folder = folders.pop()
        is_series = is_series_folder(folder)
        if is_series:
            _add_scan(contents, folder, source)
        paths = entries(folder)
        headers = {
            stem_of(path) for path in paths if path.name.lower().endswith(_HEADERS_OF_DATA_FILES)
        }
        for path in paths:
            if path.name.startswith("."):
                contents.hidden += path.is_file()
            elif path.is_dir():
                (contents.folder_links if path.is_symlink() else folders).append(path)
            elif is_series and suffix_of(path) in (None, *DICOM_SUFFIXES):
                continue
            elif suffix_of(path):
                _add_scan(contents, path, source)
            elif path.name.partition(".")[0] not in headers:
                # A file named like a header holds that header's voxels.
                contents.not_scans.append(path)
    return contents


def _add_scan(contents: _Contents, path: Path, source: Path) -> None:
    """Add a scan under its path, without the words that tell images from labels."""
    *folders, _ = path.relative_to(source).parts or ("",)
    stem = stem_of(path) if path != source else ""
    is_label = is_named_as_label = False
    key: list[str] = []
    for folder in folders:
        label_folder, image_folder = (
            LABEL_FOLDER.fullmatch(folder),
            IMAGE_FOLDER.fullmatch(folder),
        )
        is_label = is_label or label_folder is not None
        role = label_folder or image_folder
        if not role and holds_label_word(folder):
            is_named_as_label = True
            key.append(_ROLE_FOLDER)
            continue
        is_named_as_label = is_named_as_label and image_folder is None
        key.append(_ROLE_FOLDER + (role[1] or "").lower() if role else folder)
    word = LABEL_NAME.fullmatch(stem) if path.is_file() else None
    is_label = is_label or word is not None
    if not is_label:
        word = IMAGE_NAME.fullmatch(stem)
    key.append(word[1] if word else stem)
    whole = tuple(part for part in key if part not in ("", _ROLE_FOLDER))
    is_named_as_label = is_named_as_label or (path.is_file() and holds_label_word(stem))
    scans = contents.labels if is_label or is_named_as_label else contents.images
    scans.setdefault(whole, []).append(path)
    if is_named_as_label and not is_label:
        contents.named_as_labels.setdefault(whole, []).append(path)


def _case_names(keys: Iterable[Key], fallback: str) -> dict[Key, str]:
    """Case names: the parts of the path, with the "Tr" of `imagesTr` if they clash without it."""
    short = {
        key: "_".join(part for part in key if not part.startswith(_ROLE_FOLDER)) or fallback
        for key in keys
    }
    uses = Counter(name.casefold() for name in short.values())
    return {key: name if uses[name.casefold()] == 1 else _join(key) for key, name in short.items()}


def _join(key: Key) -> str:
    return "_".join(part.removeprefix(_ROLE_FOLDER) for part in key)


def _patients(keys: Iterable[Key]) -> tuple[dict[Key, str], str]:
    """Who each case belongs to, and a note about it.

    The first level of folders that differs and gathers no people; or else, or where names of people
    occur in several folders, the names of the scans.
    """
    folders = {key: tuple(part for part in key[:-1] if _may_be_a_patient(part)) for key in keys}
    names = {key: without_occasion(key[-1]) for key in folders if key}
    shared = _names_in_several_folders(names)
    for depth in range(max((len(parts) for parts in folders.values()), default=0)):
        patients = {key: parts[depth] for key, parts in folders.items() if len(parts) > depth}
        if len(set(patients.values())) < 2:
            continue
        names_are_people = bool(shared) and all(map(names_a_person, shared))
        if names_are_people and not any(map(names_a_person, patients.values())):
            break
        return patients, _folders_note(patients)
    if not shared:
        return {}, _NO_PATIENTS
    count = len(set(names.values()))
    return names, (
        f"Assuming that scans of one name in several folders (such as {listed(shared)}) are of one "
        f"person: {count} names are the patients."
    )


def _may_be_a_patient(folder: str) -> bool:
    return not (
        folder.startswith(_ROLE_FOLDER) or SPLIT_FOLDER.fullmatch(folder) or gathers_people(folder)
    )


def _names_in_several_folders(names: dict[Key, str]) -> list[str]:
    """The names of scans that several folders hold, but for names of visits and modalities."""
    folders_of: dict[str, set[Key]] = {}
    for key, name in names.items():
        if not gathers_people(name):
            inside = tuple(part for part in key[:-1] if not part.startswith(_ROLE_FOLDER))
            folders_of.setdefault(name, set()).add(inside)
    return sorted(printable(name) for name, inside in folders_of.items() if len(inside) > 1)


def _folders_note(patients: dict[Key, str]) -> str:
    scans = Counter(patients.values())
    note = f"Assuming that the {len(scans)} folders that hold scans are the patients."
    doubtful = [name for name in scans if scans[name] > 1 and not names_a_person(name)]
    if 2 * len(doubtful) <= len(scans):
        return note
    return (
        f"{note} That may be wrong, since most hold several scans and nothing in their names "
        f"({listed(map(printable, doubtful))}) says that they are people: if so, say who was "
        "scanned with --patients."
    )


PLUGIN = Folder
