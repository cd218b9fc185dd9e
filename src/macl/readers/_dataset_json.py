"""What the readers of scan folders share: descriptions, listings, one name per case, and what was passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macl.utils.errors import MaclError
from macl.utils.files import read_json

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












