"""Images and labels that a layout's file names pair up, for readers whose layouts are told by names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from macl.data.layouts import one_of_each_name, readable
from macl.errors import MaclError
from macl.plugins import Case

DEEPEST = 4
"""How many folders below the one that a user names a data set may begin."""


@dataclass
class Files:
    """What lies below a folder, by case name.

    Attributes:
        images: case name → files of the image.
        labels: case name → files of the label.
        strange: files of no case.
    """

    images: dict[str, list[Path]] = field(default_factory=dict)
    labels: dict[str, list[Path]] = field(default_factory=dict)
    strange: list[Path] = field(default_factory=list)


def files_below(source: Path, deepest: int = DEEPEST) -> list[Path]:
    """Visible files at most `deepest` folders below `source`, sorted; links to folders are not followed."""
    if not source.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            found.append(path)
        elif deepest and path.is_dir() and not path.is_symlink():
            found += files_below(path, deepest - 1)
    return found


def folders_below(source: Path, deepest: int = DEEPEST) -> list[Path]:
    """`source` and the visible folders at most `deepest` levels below it, sorted; links are not followed."""
    if not source.is_dir():
        return []
    found = [source]
    if deepest:
        inside = (path for path in sorted(source.iterdir()) if path.is_dir() and not path.is_symlink())
        for path in inside:
            if not path.name.startswith("."):
                found += folders_below(path, deepest - 1)
    return found


def sort_files(paths: Iterable[Path], role: Callable[[Path], tuple[str, bool] | None]) -> Files:
    """Sort files by what `role` says of each: its case's name and whether it is the label; None: neither."""
    found = Files()
    for path in paths:
        told = role(path)
        if told is None:
            found.strange.append(path)
        else:
            name, is_label = told
            (found.labels if is_label else found.images).setdefault(name, []).append(path)
    return found


def pair(
    images: Mapping[str, list[Path]],
    labels: Mapping[str, list[Path]],
    patient: Callable[[str], str] = lambda name: name,
) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Cases of one image file each, with their labels, and case name → why it is refused.

    Refused: a label without an image, several labels of one image, several images of one name.
    """
    refused: dict[str, str] = {}
    for name, found in labels.items():
        if name not in images:
            refused[name] = f"a label without an image: {readable(found[0])}"
        elif len(found) > 1:
            refused[name] = f"{len(found)} labels fit it ({', '.join(map(readable, found))}): remove all but one"
    cases = [
        Case(name, (path,), patient(name), labels.get(name, [None])[0])
        for name, found in images.items()
        if name not in refused
        for path in found
    ]
    kept, duplicates = one_of_each_name(cases)
    return kept, refused | duplicates


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
