"""What the readers of scan folders share: listings, one name per case, JSON descriptions, and what was passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from macl.data.volumes import safe_name, suffix_of
from macl.errors import MaclError
from macl.files import read_json
from macl.plugins import Case, Scan

DESCRIPTION = "dataset.json"

_MR_WORDS = re.compile(
    r"mri?|mr[-_ ]?.*|t1.*|t2.*|flair|adc|dwi|pd.*|dce.*|bold|lge|bssfp|cine.*|perfusion|swi", re.IGNORECASE
)
_LISTED = 5


def description(source: Path) -> dict[str, Any] | None:
    """`dataset.json` of a folder; None where there is none or it is no JSON object."""
    try:
        return read_json(source / DESCRIPTION, "the data set's description")
    except MaclError:
        return None


def required(found: Mapping[str, Any], key: str, kind: type, source: Path) -> Any:
    """A value of `dataset.json`.

    Raises:
        MaclError: it is missing or of another type.
    """
    value = found.get(key)
    if not isinstance(value, kind):
        raise MaclError(f"{source / DESCRIPTION} has no usable {key!r}: mend it, or choose another --reader.")
    return value


def modality_of(channels: Iterable[str]) -> str:
    """ "CT", "MR", "photograph" or "unknown", by the names of image channels."""
    names = [name.strip() for name in channels]
    if any(name.upper() == "CT" for name in names):
        return "CT"
    if [name.upper()[:1] for name in names] == ["R", "G", "B"]:
        return "photograph"
    return "MR" if any(_MR_WORDS.fullmatch(name) for name in names) else "unknown"


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
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (f"Passed over, {what}: {', '.join(names[:_LISTED])}{more}.",)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
