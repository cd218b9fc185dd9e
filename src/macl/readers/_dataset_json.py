"""Layouts that a `dataset.json` describes."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from macl.io.source import MAX_CLASSES, MAX_VALUE, Case, Source
from macl.readers._filenames import no_patients_note
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, listed
from macl.utils.files import entries, read_json
from macl.utils.text import printable, shown

DESCRIPTION = "dataset.json"

DESCRIBED = 80
"""Evidence this strong needs no description: file names themselves are those of a data set."""

_MR_NAMES = re.compile(
    r"mri?|mr[-_ ]?.*|t1.*|t2.*|flair|adc|dwi|pd.*|dce.*|bold|lge|bssfp|cine.*|perfusion|swi",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Description:
    """A data set's `dataset.json`.

    Attributes:
        path: the file.
        entries: what it holds.
    """

    path: Path
    entries: Mapping[str, Any]

    @classmethod
    def find(cls, folder: Path) -> Description | None:
        """The description in a folder; None: there is none.

        Raises:
            MaclError: it is broken.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            return None
        return cls(path, read_json(path, "the data set's description"))

    def value(self, key: str, kind: type) -> Any:
        """An entry of the expected type.

        Raises:
            MaclError: it is missing or of another type.
        """
        value = self.entries.get(key)
        if not isinstance(value, kind):
            raise MaclError(
                f"{self.path} has no usable {key!r}: correct it, or choose another --reader."
            )
        return value

    def channels(self, key: str) -> tuple[str, ...]:
        """The names of the image channels, from an entry that numbers them from 0.

        Raises:
            MaclError: it does not.
        """
        names = self.value(key, dict)
        if not names or names.keys() != {str(index) for index in range(len(names))}:
            raise MaclError(f"{self.path} does not number its {key} 0, 1, …: correct it.")
        return tuple(printable(str(names[str(index)])) for index in range(len(names)))

    def classes(self, pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
        """Label value → class name, sorted by value, from the declared pairs of both.

        Raises:
            MaclError: a label value is not a whole number or occurs twice, none is 0, or there
                are too many.
        """
        declared = list(pairs)
        classes = {label_value(value, self.path): printable(str(name)) for value, name in declared}
        if len(classes) != len(declared) or 0 not in classes:
            values = ", ".join(shown(value) for value, _ in declared)
            raise MaclError(
                f"{self.path} must declare one number per label, 0 for the background, but "
                f"declares {values or 'none'}: correct it."
            )
        if len(classes) > MAX_CLASSES:
            raise MaclError(
                f"{self.path} declares {len(classes)} labels, more than the {MAX_CLASSES} "
                "(background included) that a store can tell apart: leave out or merge some."
            )
        return dict(sorted(classes.items()))


def label_value(value: Any, path: Path) -> int:
    """A label's number, as a description or table at `path` declares it: 3, 3.0 or "3".

    Raises:
        MaclError: it is not a whole number from 0 to 65535.
    """
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    match = None if isinstance(value, bool) else re.fullmatch(r"(\d{1,5})(\.0*)?", text)
    if match is None or int(match[1]) > MAX_VALUE:
        raise MaclError(
            f"{path} declares the label value {shown(value)}, which is not a whole number from 0 "
            f"to {MAX_VALUE}: correct it."
        )
    return int(match[1])


class Listing(NamedTuple):
    """The cases of a data set, case name → why it is refused, and notes for the user."""

    cases: tuple[Case, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...]


class DescribedReader(Reader):
    """A layout that is known by its `dataset.json`, and names channels and classes in it.

    Attributes:
        title: the layout's name, for messages.
        required_entries: entries that tell its description from those of other layouts.
        channels_entry: the entry that names the channels.
        specificity: how specific a sign of the layout such a description is.
    """

    title: ClassVar[str]
    required_entries: ClassVar[tuple[str, ...]]
    channels_entry: ClassVar[str]
    specificity: ClassVar[int]

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A description with the layout's entries."""
        description = Description.find(source)
        if description is None or not description.entries.keys() >= {*self.required_entries}:
            return None
        return self.specificity, f"{DESCRIPTION} with {', '.join(self.required_entries)}"

    def read(self, source: Path) -> Source:
        """Every case of the data set; each counts as a patient.

        Raises:
            MaclError: the description is missing or cannot be used.
        """
        description = Description.find(source)
        if description is None:
            raise MaclError(
                f"{source} has no readable {DESCRIPTION}, which the layout of {self.title} "
                "requires: check the folder."
            )
        channels = description.channels(self.channels_entry)
        classes = self.classes(description)
        cases, refused, notes = self.list_cases(source, description, channels)
        return Source(
            reader=self.name,
            cases=cases,
            modality=modality_of(channels),
            channels=channels,
            classes=classes,
            refused=refused,
            notes=(no_patients_note(self.title), *notes),
        )

    @abstractmethod
    def classes(self, description: Description) -> dict[int, str]:
        """Label value → class name; MaclError if the description declares something else."""

    @abstractmethod
    def list_cases(
        self, source: Path, description: Description, channels: tuple[str, ...]
    ) -> Listing:
        """The cases; MaclError if the description cannot be used."""


def require_no_description(folder: Path) -> None:
    """Refuse to read a folder as nothing but scans where a description says what they are.

    Raises:
        MaclError: the folder itself, or folders in it, have one.
    """
    others = "choose the --reader yourself, such as --reader folder"
    if _is_described(folder):
        raise MaclError(
            f"{folder / DESCRIPTION} is neither nnU-Net's, which has channel_names, labels and "
            "file_ending, nor the Decathlon's, which has modality, labels and training: complete "
            f"it, or {others}."
        )
    inside = [
        path for path in entries(folder) if not path.name.startswith(".") and _is_described(path)
    ]
    if inside:
        names = listed(printable(path.name) for path in inside)
        some = "a data set" if len(inside) == 1 else "data sets"
        raise MaclError(
            f"{folder} is not {some} but the folder above, with {names} in it: name "
            f"{folder / inside[0].name} itself, or {others}."
        )


def _is_described(folder: Path) -> bool:
    """Whether a folder that may be read has a description beside folders of images."""
    names = {path.name for path in entries(folder)}
    return DESCRIPTION in names and bool(names & {"imagesTr", "imagesTs"})


def modality_of(channels: Iterable[str]) -> str:
    """ "CT", "MR", "photograph" or "unknown", judging by the names of image channels."""
    names = [name.strip() for name in channels]
    if any(name.upper() == "CT" for name in names):
        return "CT"
    if [name.upper()[:1] for name in names] == ["R", "G", "B"]:
        return "photograph"
    return "MR" if any(_MR_NAMES.fullmatch(name) for name in names) else "unknown"
