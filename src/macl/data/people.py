"""Names that suggest that several cases are of one person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from macl.utils.errors import listed

_OCCASION = re.compile(
    r"(?P<person>.*[^_.-])[_.-]+"
    r"(?:frame|fr|session|ses|visit|v|time ?point|time|tp|t|phase|ph|scan|run|repeat|rep|"
    r"day|d|week|wk|w|month|mo|m|year|yr|y|pre|post|pre-?op|post-?op|baseline|base|bl|"
    r"follow[_-]?up|fu|ed|es|left|right|lh|rh|l|r)[_-]?\d*",
    re.IGNORECASE,
)
"""A name that ends in a time, a side or a number of a scan: `patient006_frame01`."""

_NUMBERED = re.compile(r"(?!(?:(?:19|20)\d\d|t[12])[_.-])(?P<person>\D*\d+)[_.-].+", re.IGNORECASE)
"""A name that goes on after a number, not of a year or a sequence: `P12-a`, but not `2019_a`."""

_MOST_SCANS = 40
"""More cases with one beginning are a study rather than a person."""

_PATTERNS = ("^[^_]+", "^[^-]+", r"^\D*\d+", r"^[^_]+_[^_]+", r"^.+(?=[_.-])")
"""Regular expressions to propose, the simplest first."""


def suspected_people(patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Person that names suggest → their cases, where these count as several patients.

    Args:
        patients: case → patient.
    """
    counts = Counter(patients.values())
    alone = [case for case, patient in patients.items() if counts[patient] == 1]
    for person_of in (_by_occasion, _by_number):
        cases_of: dict[str, list[str]] = {}
        for case in alone:
            cases_of.setdefault(person_of(case), []).append(case)
        suspected = {
            person: cases for person, cases in cases_of.items() if 1 < len(cases) <= _MOST_SCANS
        }
        if suspected and (person_of is _by_occasion or len(cases_of) > 1):
            return suspected
    return {}


def suspicion(patients: Mapping[str, str]) -> str:
    """`suspected_people` as a sentence that says what to do; "" if there are none."""
    suspected = suspected_people(patients)
    if not suspected:
        return ""
    first, cases = next(iter(suspected.items()))
    count = sum(map(len, suspected.values()))
    people = "one person" if len(suspected) == 1 else f"{len(suspected)} people"
    return (
        f"Their names suggest that {count} cases are of {people} (such as {first}: "
        f"{listed(cases)}), but each counts as a patient of its own, so that a split may part "
        f"them: say who was scanned with --patients {_proposal(suspected)} when preparing."
    )


def _by_occasion(case: str) -> str:
    while match := _OCCASION.fullmatch(case):
        case = match["person"]
    return case


def _by_number(case: str) -> str:
    match = _NUMBERED.fullmatch(case)
    return match["person"] if match else case


def _proposal(suspected: Mapping[str, list[str]]) -> str:
    """A regular expression that finds the people in their cases' names, or else a table."""
    for pattern in _PATTERNS:
        matches = (
            (re.search(pattern, case), person)
            for person, cases in suspected.items()
            for case in cases
        )
        if all(match and match[0] == person for match, person in matches):
            return f"'{pattern}'"
    return "FILE.csv (columns case, patient)"
