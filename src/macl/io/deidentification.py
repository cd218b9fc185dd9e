"""What would identify a patient, and the pseudonyms that replace it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_SALT = "macl/patient/1/"

_SHORTEST_PART = 3
"""Shorter identifiers count only as whole words."""


@dataclass(frozen=True)
class Identity:
    """What DICOM headers say about the patient.

    Attributes:
        patient_id: PatientID as written, perhaps empty.
        series_uid: SeriesInstanceUID, perhaps empty.
        identifiers: parts of the patient's names, and the birth date in its usual notations.
        readable: whether any header could be read; if not, the file's own name may identify the
            patient.
    """

    patient_id: str
    series_uid: str
    identifiers: tuple[str, ...]
    readable: bool


def pseudonym(kind: str, text: str) -> str:
    """A name such as "patient-3f2a…" that stands for `text`: the same one on every machine."""
    return f"{kind}-{hashlib.sha256((_SALT + text).encode()).hexdigest()[:12]}"


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
