"""What would identify a patient, and the pseudonyms that replace it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, read_json
from macl.utils.progress import say

_IDENTIFYING = re.compile(
    r"""[@^]                                                         # e-mail, DICOM name
    | (?<!\d)(?:19|20)\d\d[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:0[1-9]|[12]\d|3[01])(?!\d)
    | (?<!\d)(?:0[1-9]|[12]\d|3[01])[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:19|20)\d\d(?!\d)
    | (?<!\d)[1-9]\d{5,}(?!\d)                                     # a record or accession number
    | \d+(?:\.\d+){4,}                                            # a DICOM UID
    | (?:street|stra(?:ss|ß)e|avenue|road|(?:^|[^a-z])(?:acc|mrn|accession)[-_ ]?\d)
    """,
    re.IGNORECASE | re.VERBOSE,
)

_SHORTEST_PART = 3
"""Shorter identifiers count only as whole words."""


@dataclass(frozen=True)
class Identity:
    """What DICOM headers say about the patient.

    Attributes:
        patient_id: PatientID as written, perhaps empty.
        series_uid: SeriesInstanceUID, perhaps empty.
        identifiers: parts of the patient's names, the birth date in its usual notations, and
            other ids and addresses.
        readable: whether any header could be read; if not, the file's own name may identify the
            patient.
    """

    patient_id: str
    series_uid: str
    identifiers: tuple[str, ...]
    readable: bool


class Pseudonyms:
    """Names such as "patient-3f2a…" that stand for others, by a random salt.

    The salt, and what each name stands for, are kept in a private file beside the folder in which
    the names are used, so that sharing the folder gives neither away.

    Args:
        folder: where the names are used; None: nowhere, so that the salt is not kept.

    Raises:
        MaclError: the private file cannot be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = private_file(folder) if folder else None
        self._names: dict[str, str] = {}
        self._used = False
        self.is_new = self.path is None or not self.path.exists()
        if self.path is None or self.is_new:
            self._salt = secrets.token_hex(32)
            return
        raw = read_json(self.path, "the private names of a store or of masks")
        if not isinstance(raw.get("salt"), str) or not isinstance(raw.get("names"), dict):
            raise MaclError(
                f"{self.path} does not hold a salt and names: restore it, or choose another folder."
            )
        self._salt, self._names = raw["salt"], raw["names"]

    def __call__(self, kind: str, text: str, original: str | None = None) -> str:
        """The name that stands for `text`; `original` says what it is to the user."""
        digest = hmac.new(self._salt.encode(), f"{kind}/{text}".encode(), hashlib.sha256)
        name = f"{kind}-{digest.hexdigest()[:12]}"
        self._names[name] = text if original is None else original
        self._used = True
        return name

    def save(self) -> None:
        """Write the private file, if any name was needed; only its owner can read it."""
        if self.path is None or not self._used:
            return
        with atomic_path(self.path) as aside:
            aside.touch(mode=0o600)
            text = json.dumps({"salt": self._salt, "names": self._names}, indent=1)
            aside.write_text(text + "\n", encoding="utf-8")
        if self.is_new:
            say(f"Names are hashed. {self.path} says what they stand for: keep it to yourself.")

    def discard(self) -> None:
        """Delete the private file if it is new, as nothing uses its names."""
        if self.path is not None and self.is_new:
            self.path.unlink(missing_ok=True)


def private_file(folder: Path) -> Path:
    """Where salt and names of a folder lie: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.private.json")


def is_pseudonym(name: str) -> bool:
    """Whether a name is one of `Pseudonyms`."""
    return re.fullmatch(r"(?:patient|case)-[0-9a-f]{12}", name) is not None


def looks_identifying(text: str) -> bool:
    """Whether a name looks as if it told who somebody is: a date, a number, an address."""
    return _IDENTIFYING.search(text) is not None


def identifiers_in(names: Iterable[str], birth_date: str) -> tuple[str, ...]:
    """The parts of DICOM person names, and a birth date (YYYYMMDD) in its usual notations."""
    parts = {word for name in names for word in _words(name)}
    if re.fullmatch(r"\d{8}", birth_date):
        year, month, day = birth_date[:4], birth_date[4:6], birth_date[6:]
        parts |= {year + month + day, day + month + year, month + day + year}
        parts |= {year[2:] + month + day, day + month + year[2:]}
    return tuple(sorted(parts))


def contains_identifier(text: str, identifiers: Iterable[str]) -> bool:
    """Whether `text` contains an identifier, whatever its case, accents and separators.

    Very short identifiers count only as whole words.
    """
    words = _words(text)
    joined = "".join(words)
    for identifier in identifiers:
        plain = "".join(_words(identifier))
        whole_words_only = len(plain) < _SHORTEST_PART and plain.isascii()
        if plain and plain in (words if whole_words_only else joined):
            return True
    return False


def _words(text: str) -> list[str]:
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()
    return re.findall(r"[^\W_]+", plain)
