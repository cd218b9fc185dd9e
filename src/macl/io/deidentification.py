"""Who was scanned: what must not be told of a patient, and the names that stand in for it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_SALT = "macl/patient/1/"
_SHORTEST_PART = 3


@dataclass(frozen=True)
class Identity:
    """What a DICOM header says of the patient.

    Attributes:
        patient_id: PatientID as written, perhaps empty.
        series: SeriesInstanceUID, perhaps empty.
        secrets: parts of the patient's names, and the birth date in the ways it is written.
        readable: whether any header could be read; if not, a file's own name may tell who was scanned.
    """

    patient_id: str
    series: str
    secrets: tuple[str, ...]
    readable: bool


def hashed(kind: str, text: str) -> str:
    """A stand-in such as "patient-3f2a…": the same for the same text, everywhere."""
    return f"{kind}-{hashlib.sha256((_SALT + text).encode()).hexdigest()[:12]}"


def secrets_of(names: Iterable[str], birth_date: str) -> tuple[str, ...]:
    """The parts of DICOM person names, and a birth date (YYYYMMDD) in its usual orders of digits."""
    parts = {part for name in names for part in _tokens(name)}
    if re.fullmatch(r"\d{8}", birth_date):
        year, month, day = birth_date[:4], birth_date[4:6], birth_date[6:]
        parts |= {year + month + day, day + month + year, month + day + year}
        parts |= {year[2:] + month + day, day + month + year[2:]}
    return tuple(sorted(parts))


def reveals(text: str, secrets: Iterable[str]) -> bool:
    """Whether `text` contains a secret, whatever its case, accents and separators; very short ones as whole words."""
    words = _tokens(text)
    together = "".join(words)
    return any(
        secret in together if len(secret) >= _SHORTEST_PART or not secret.isascii() else secret in words
        for part in secrets
        if (secret := "".join(_tokens(part)))
    )


def _tokens(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return re.findall(r"[^\W_]+", plain)
