"""Layouts whose files tell by their names what they are: whose scan, which channel of it, or its label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from macl.io.source import Case, Scan
from macl.io.volume import safe_name, suffix_of
from macl.utils.errors import MaclError, listed
from macl.utils.files import files_below


def choose_part(reader: str, counts: Mapping[str, int], wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """The part of a data set that is read, and a sentence about the parts that are not.

    Args:
        reader: its name, for the sentence.
        counts: part → how many scans there are, the usual part first.
        wanted: the part that was asked for; None: the first that is there.

    Raises:
        MaclError: there is no scan of the part that was asked for.
    """
    there = [part for part, count in counts.items() if count]
    part = wanted or there[0]
    if part not in there:
        raise MaclError(
            f"There is no {part} scan here: read it with --reader {reader}:{there[0]}, or check the folder."
        )
    others = [f"{counts[other]} of {other} (--reader {reader}:{other})" for other in there if other != part]
    return part, (f"Of this data set, {part} is read; passed over: {', '.join(others)}.",) if others else ()


class Role(NamedTuple):
    """What a file's name says of it.

    Attributes:
        case: the case that it belongs to.
        channel: which of the image's channels it is, from 0; None: it is the label.
        part: the part of the data set that the case is in, where there are several.
    """

    case: str
    channel: int | None
    part: str = ""


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        part: the part that is read.
        cases: those of that part.
        refused: case name → why it is none.
        notes: what is passed over.
    """

    part: str
    cases: tuple[Case, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NamedLayout:
    """A data set's layout, as far as names tell it.

    Attributes:
        reader: the reader's name.
        title: the data set's name, for sentences.
        example: the path of a scan, for sentences.
        role: what a file's name says of it; None: it is neither scan nor label.
        patient: case name → who was scanned.
        channels: what the files of one scan show, in order.
        parts: the data set's parts, the usual one first.
        beside: names of files that come with the data set and are neither scans nor labels.
        strength: how specific a sign of the layout a scan's name is.
    """

    reader: str
    title: str
    example: str
    role: Callable[[Path], Role | None]
    patient: Callable[[str], str] = lambda case: case
    channels: tuple[str, ...] = ("image",)
    parts: tuple[str, ...] = ("",)
    beside: re.Pattern[str] | None = None
    strength: int = 80

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A scan's name, as `Reader.evidence` wants it."""
        for path in files_below(source):
            role = self.role(path)
            if role and role.channel is not None:
                return self.strength, f"{path.relative_to(source).as_posix()}, as {self.title} names its scans"
        return None

    def listing(self, source: Path, part: str | None = None) -> Listing:
        """The scans of one part with their labels.

        Refused: a label without an image, a scan that lacks a channel, several files where one is meant.

        Raises:
            MaclError: there is no scan, or none of the part that was asked for.
        """
        files: dict[str, dict[int | None, list[Path]]] = {}
        part_of: dict[str, str] = {}
        strange: list[Path] = []
        for path in files_below(source):
            if role := self.role(path):
                files.setdefault(role.case, {}).setdefault(role.channel, []).append(path)
                part_of[role.case] = role.part
            elif not (self.beside and self.beside.fullmatch(path.name)):
                strange.append(path)
        counts = Counter(part_of[case] for case, found in files.items() if found.keys() != {None})
        if not counts:
            raise MaclError(f"{source} holds no {self.example}, as {self.title} names its scans: check the folder.")
        part, notes = choose_part(self.reader, {name: counts[name] for name in self.parts}, part)
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for name, found in files.items():
            if part_of[name] != part:
                continue
            if problem := self._problem(found):
                refused[name] = problem
            else:
                images = tuple(found[channel][0] for channel in range(len(self.channels)))
                cases.append(Case(name, images, self.patient(name), found.get(None, [None])[0]))
        kept, duplicates = one_of_each_name(cases)
        notes += passed_over(strange, source, "neither scans nor labels of this layout")
        return Listing(part, kept, refused | duplicates, notes)

    def _problem(self, found: Mapping[int | None, list[Path]]) -> str | None:
        if found.keys() == {None}:
            return f"a label without an image: {readable(found[None][0])}"
        missing = [name for channel, name in enumerate(self.channels) if channel not in found]
        if missing:
            return f"it has no {', '.join(missing)} scan"
        for channel, paths in found.items():
            if len(paths) > 1:
                what = "labels fit it" if channel is None else "scans share this name"
                return f"{len(paths)} {what} ({', '.join(map(readable, paths))}): rename or remove all but one"
        return None


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted; hidden ones (`.DS_Store`, `._scan.nii.gz`) are left out; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def is_scan(path: Path) -> bool:
    """Whether a file's name says that it is a scan."""
    return suffix_of(path) is not None


def one_of_each_name(cases: Iterable[Case]) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Cases under safe names, sorted; where several share a name, upper and lower case aside, all are refused."""
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        safe = Case(safe_name(case.name), case.images, case.patient, case.label)
        by_name.setdefault(safe.name.casefold(), []).append(safe)
    kept = [found[0] for found in by_name.values() if len(found) == 1]
    refused = {
        found[0].name: f"{len(found)} scans share this name ({', '.join(readable(case.images[0]) for case in found)}): "
        "rename or remove all but one"
        for found in by_name.values()
        if len(found) > 1
    }
    return tuple(sorted(kept, key=lambda case: case.name)), dict(sorted(refused.items()))


def readable(path: Scan) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it holds."""
    return _as_text(path.name)


def passed_over(paths: Iterable[Path], source: Path, what: str) -> tuple[str, ...]:
    """One sentence about files that were not used, or none."""
    names = sorted(_as_text(path.relative_to(source).as_posix()) for path in paths)
    if not names:
        return ()
    return (f"Passed over, {what}: {listed(names)}.",)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
