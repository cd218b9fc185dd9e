"""What the readers of scan folders share: descriptions, listings, one name per case, and what was passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macl.data.volumes import safe_name, suffix_of
from macl.errors import MaclError, listed
from macl.files import read_json
from macl.plugins import Case, Scan

DESCRIPTION = "dataset.json"

_MR_WORDS = re.compile(
    r"mri?|mr[-_ ]?.*|t1.*|t2.*|flair|adc|dwi|pd.*|dce.*|bold|lge|bssfp|cine.*|perfusion|swi", re.IGNORECASE
)


@dataclass(frozen=True)
class Description:
    """The description of a data set in its folder, `dataset.json`.

    Attributes:
        path: where it is.
        found: what it holds.
    """

    path: Path
    found: Mapping[str, Any]

    @classmethod
    def of(cls, source: Path) -> Description | None:
        """That of a folder; None where there is none or it is no JSON object."""
        try:
            return cls(source / DESCRIPTION, read_json(source / DESCRIPTION, "the data set's description"))
        except MaclError:
            return None

    @classmethod
    def required(cls, source: Path, layout: str) -> Description:
        """That of a folder.

        Raises:
            MaclError: there is none, as `layout` wants it.
        """
        described = cls.of(source)
        if described is None:
            raise MaclError(f"{source} has no readable {DESCRIPTION}, as {layout}'s layout wants: check the folder.")
        return described

    def value(self, key: str, kind: type) -> Any:
        """A value.

        Raises:
            MaclError: it is missing or of another type.
        """
        value = self.found.get(key)
        if not isinstance(value, kind):
            raise MaclError(f"{self.path} has no usable {key!r}: mend it, or choose another --reader.")
        return value

    def channels(self, key: str) -> tuple[str, ...]:
        """The names of the image channels, which are numbered from 0.

        Raises:
            MaclError: they are not.
        """
        named = self.value(key, dict)
        if not named or named.keys() != {str(index) for index in range(len(named))}:
            raise MaclError(f"{self.path} does not number its {key} 0, 1, …: mend it.")
        return tuple(str(named[str(index)]) for index in range(len(named)))

    def classes(self, values: Iterable[tuple[Any, Any]]) -> dict[int, str]:
        """Label value → class name, background first.

        Args:
            values: the pairs of label value and class name that are declared.

        Raises:
            MaclError: a label value is no whole number, stands twice, or none is 0.
        """
        declared = list(values)
        try:
            classes = {int(value): str(name) for value, name in declared}
        except (TypeError, ValueError):
            raise MaclError(f"{self.path} declares a label that is no whole number: mend it.") from None
        if len(classes) != len(declared) or 0 not in classes:
            raise MaclError(f"{self.path} must declare one number per label, 0 for the background: mend it.")
        return dict(sorted(classes.items()))


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
    return (f"Passed over, {what}: {listed(names)}.",)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
