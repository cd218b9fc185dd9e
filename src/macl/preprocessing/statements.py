"""What the user says about a source that its layout does not: who was scanned, where labels are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from macl.io.source import Case, ScanPath, Source
from macl.io.volume import stem_of, suffix_of
from macl.readers._filenames import LABEL_ALONE, label_without_image, several_labels
from macl.readers.folder import plain_words
from macl.utils.errors import MaclError, listed
from macl.utils.files import files_below
from macl.utils.text import printable
from macl.utils.user_text import read_table

TABLES = (".csv", ".tsv")

_CHANNEL_NUMBER = re.compile(r"_\d{4}$")


def with_statements(source: Source, patients: str | None, labels: Path | None) -> Source:
    """A source with labels and patients as the user states them.

    Args:
        source: as its reader lists it.
        patients: a regular expression that finds the patient in a case's name (its group `patient`,
            or its first group, or all of it), or a table (.csv, .tsv) with the columns case and
            patient; None: as the layout says.
        labels: a folder of labels named like the cases, or a table with the columns image and
            label, whose paths are relative to it; None: as the layout says.

    Raises:
        MaclError: a statement cannot be read, or leaves a case out.
    """
    if labels is not None:
        source = _with_labels(source, labels)
    return source if patients is None else _with_patients(source, patients)


# ---------------------------------------------------------------- patients


def _with_patients(source: Source, statement: str) -> Source:
    everyone = (*source.cases, *source.series)
    if statement.lower().endswith(TABLES):
        named = _patients_in_table(everyone, Path(statement))
    else:
        named = _patients_in_names(everyone, statement)
    if missing := [case.name for case in everyone if not named.get(case.name)]:
        raise MaclError(
            f"--patients {statement} names no patient of {listed(missing)}: every case needs one."
        )

    def stated(cases: Iterable[Case]) -> tuple[Case, ...]:
        return tuple(replace(case, patient=printable(named[case.name])) for case in cases)

    count = len({named[case.name] for case in source.cases})
    notes = (f"Patients are as --patients states: {count} in {len(source.cases)} cases.",)
    return replace(
        source,
        cases=stated(source.cases),
        series=stated(source.series),
        patients_stated=True,
        notes=(*(note for note in source.notes if not _is_about_patients(note)), *notes),
    )


def _is_about_patients(note: str) -> bool:
    return "counts as a patient of its own" in note or note.endswith("are the patients.")


def _patients_in_names(cases: Iterable[Case], pattern: str) -> dict[str, str]:
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise MaclError(
            f"--patients {pattern} is neither a table (.csv) nor a regular expression ({error}): "
            r"an example is --patients '^patient\d+'."
        ) from None
    patients: dict[str, str] = {}
    for case in cases:
        if match := expression.search(case.name):
            groups = match.groupdict()
            patients[case.name] = groups.get("patient") or (match[1] if match.re.groups else "")
            patients[case.name] = patients[case.name] or match[0]
    return patients


def _patients_in_table(cases: Sequence[Case], path: Path) -> dict[str, str]:
    rows = read_table(path, "a table of cases and patients", ("case", "patient"))
    stated: dict[str, str] = {}
    for row in rows:
        case, patient = row.values["case"], row.values["patient"]
        if stated.setdefault(case, patient) != patient:
            raise MaclError(
                f"{path} names two patients of the case {printable(case)} (line {row.line}): "
                "correct it there."
            )
    return {
        case.name: next((stated[name] for name in _names_of(case) if name in stated), "")
        for case in cases
    }


def _names_of(case: Case) -> tuple[str, ...]:
    """The names under which a user may know a case: its own and those of its files."""
    files = [path for scan in case.images for path in _paths(scan)[:1]]
    return (case.name, *(name for path in files for name in (stem_of(path), path.name, str(path))))


# ---------------------------------------------------------------- labels


def _with_labels(source: Source, labels: Path) -> Source:
    if not labels.exists():
        raise MaclError(f"--labels {labels} does not exist: name a folder of labels or a table.")
    refused = dict(source.refused)
    if labels.is_dir():
        # What lies in the folder of labels is no scan, whatever the reader took it for.
        inside = labels.resolve()
        cases = [
            case
            for case in source.cases
            if not all(path.resolve().is_relative_to(inside) for path in case.paths)
        ]
        refused = {name: why for name, why in refused.items() if not why.startswith(LABEL_ALONE)}
        label_of, alone = _labels_in_folder(cases, labels)
        refused |= {printable(stem_of(path)): label_without_image(path) for path in alone}
    elif labels.name.lower().endswith(TABLES):
        cases = list(source.cases)
        label_of = _labels_in_table(cases, labels)
    else:
        raise MaclError(f"--labels {labels} should be a folder of labels or a table (.csv).")
    kept: list[Case] = []
    for case in cases:
        found = label_of.get(case.name, [])
        if len(found) > 1:
            refused[case.name] = several_labels(found)
        else:
            kept.append(replace(case, label=found[0] if found else case.label))
    unlabelled = [case.name for case in kept if case.label is None]
    note = f"Labels are read from --labels: {len(kept) - len(unlabelled)} of {len(kept)} cases."
    return replace(source, cases=tuple(kept), refused=refused, notes=(*source.notes, note))


def _labels_in_folder(
    cases: Sequence[Case], folder: Path
) -> tuple[Mapping[str, list[Path]], list[Path]]:
    """Case → its labels, and the labels of no case."""
    files = [path for path in files_below(folder) if suffix_of(path)]
    by_stem: dict[str, str] = {}
    by_words: dict[tuple[str, ...], set[str]] = {}
    for case in cases:
        for name in _names_of(case):
            by_stem[_CHANNEL_NUMBER.sub("", name)] = by_stem[name] = case.name
            by_words.setdefault(plain_words(_CHANNEL_NUMBER.sub("", name)), set()).add(case.name)
    label_of: dict[str, list[Path]] = {}
    alone: list[Path] = []
    for path in files:
        stem = stem_of(path)
        alike = by_words.get(plain_words(stem), set())
        case = by_stem.get(stem) or (next(iter(alike)) if len(alike) == 1 else None)
        if case is None:
            alone.append(path)
        else:
            label_of.setdefault(case, []).append(path)
    if not label_of and not cases:
        raise MaclError(
            f"--labels {folder} holds all the scans: name the folder that holds masks alone."
        )
    if not label_of:
        names = listed(printable(path.name) for path in files) or "none"
        raise MaclError(
            f"No label in --labels {folder} ({names}) is named like a scan "
            f"({listed(case.name for case in cases)}): rename them, or give a table with the "
            "columns image, label."
        )
    return label_of, alone


def _labels_in_table(cases: Sequence[Case], path: Path) -> Mapping[str, list[Path]]:
    rows = read_table(path, "a table of images and labels", ("image", "label"))
    case_of = {file.resolve(): case.name for case in cases for file in case.paths}
    by_name = {name: case.name for case in cases for name in _names_of(case)}
    label_of: dict[str, list[Path]] = {}
    for row in rows:
        image, label = row.values["image"], path.parent / row.values["label"]
        case = case_of.get((path.parent / image).resolve()) or by_name.get(image)
        if case is None:
            raise MaclError(
                f"{path} names the image {printable(image)} in line {row.line}, which is no scan "
                "of the source: correct it there."
            )
        if not label.exists():
            raise MaclError(
                f"{path} names the label {printable(row.values['label'])} in line {row.line}, "
                "which does not exist: correct it there."
            )
        label_of.setdefault(case, []).append(label)
    return label_of


def _paths(scan: ScanPath) -> tuple[Path, ...]:
    return (scan,) if isinstance(scan, Path) else scan.files
