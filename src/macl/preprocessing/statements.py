"""What the user says about a source that its layout does not: who was scanned, where labels are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from macl.io.source import Case, ScanPath, Source
from macl.io.volume import stem_of, suffix_of
from macl.readers._filenames import LABEL_ALONE, label_without_image, several_labels
from macl.readers._naming import names_a_person, plain_words, tells_labels
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
    return "counts as a patient of its own" in note or "are the patients" in note


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
    by_name = _cases_by_name(cases)
    patients: dict[str, str] = {}
    for row in rows:
        name, patient = row.values["case"], row.values["patient"]
        case = _only_case(by_name.get(name, ()), name, f"{path}, line {row.line},")
        if case and patients.setdefault(case, patient) != patient:
            raise MaclError(
                f"{path} names two patients of the case {printable(name)} (line {row.line}): "
                "correct it there."
            )
    return patients


def _names_of(case: Case) -> tuple[str, ...]:
    """The names under which a user may know a case: its own and those of its files."""
    files = [path for scan in case.images for path in _paths(scan)[:1]]
    return (case.name, *(name for path in files for name in (stem_of(path), path.name, str(path))))


def _cases_by_name(cases: Iterable[Case]) -> dict[str, list[str]]:
    """Name → the cases that a user may mean by it: the one called so, or those with such files."""
    by_name: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}
    for case in cases:
        own[case.name] = [case.name]
        for name in {*_names_of(case)}:
            by_name.setdefault(name, []).append(case.name)
    return by_name | own


def _only_case(cases: Sequence[str], name: str, place: str) -> str | None:
    """The one case among those that a name in a table may mean; None: there is none.

    Raises:
        MaclError: there are several.
    """
    if len(cases) > 1:
        raise MaclError(
            f"{place} names {printable(name)}, which may be {len(cases)} cases ({listed(cases)}): "
            "name the case itself there."
        )
    return cases[0] if cases else None


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
        refused |= alone
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
) -> tuple[Mapping[str, list[Path]], dict[str, str]]:
    """Case → its labels, and label → why it is that of no case."""
    known = _KnownCases.of(cases)
    label_of: dict[str, list[Path]] = {}
    alone: dict[str, str] = {}
    files = [path for path in files_below(folder) if suffix_of(path)]
    for path in files:
        below = path.relative_to(folder)
        found = known.labelled_by(below)
        hint = ""
        if len(found) > 1:
            hint = _SEVERAL_SCANS.format(len(found), listed(found))
        elif found and (person := known.other_person(found[0], below)):
            hint = _OTHER_PERSON.format(found[0], printable(person))
        elif found:
            label_of.setdefault(found[0], []).append(path)
            continue
        alone[printable(below.as_posix())] = label_without_image(path, hint)
    if not label_of and not cases:
        raise MaclError(
            f"--labels {folder} holds all the scans: name the folder that holds masks alone."
        )
    if not label_of:
        names = listed(printable(path.name) for path in files) or "none"
        raise MaclError(
            f"No label in --labels {folder} ({names}) is named like one scan alone "
            f"({listed(case.name for case in cases)}): rename them, or give a table with the "
            "columns image, label."
        )
    return label_of, alone


_OTHER_PERSON = (
    "{} has its name, but does not seem to be of {}, as its folder says: if it is, give a table "
    "with the columns image, label"
)
_SEVERAL_SCANS = (
    "{} scans have its name ({}): put it into a folder named like its scan's, or give a table with "
    "the columns image, label"
)


@dataclass(frozen=True)
class _KnownCases:
    """Cases as a folder of labels may name them.

    Attributes:
        folders: case → the folders of its first image, outermost first.
        shared: the folders that all cases have in common.
        by_name: ways to look up a label's name or its words, the most exact first; each gives cases
            by such keys.
    """

    folders: Mapping[str, tuple[str, ...]]
    shared: tuple[str, ...]
    by_name: tuple[Mapping[str | tuple[str, ...], set[str]], ...]

    @classmethod
    def of(cls, cases: Iterable[Case]) -> _KnownCases:
        folders: dict[str, tuple[str, ...]] = {}
        by_name = tuple(defaultdict[str | tuple[str, ...], set[str]](set) for _ in range(4))
        for case in cases:
            folders[case.name] = _lower(case.paths[0].parent.parts)
            for name in _names_of(case):
                bare = _CHANNEL_NUMBER.sub("", name)
                keys = (name, bare, plain_words(name), plain_words(bare))
                for known, key in zip(by_name, keys, strict=True):
                    known[key].add(case.name)
        return cls(folders, _beginning(folders.values()), by_name)

    def labelled_by(self, label: Path) -> list[str]:
        """The cases that a label, by its path below the folder of labels, may belong to.

        Those whose folders are the label's, or else contain them, come before others of its name.
        """
        stem = stem_of(label)
        keys = (stem, stem, plain_words(stem), plain_words(stem))
        alike = [known.get(key, set()) for known, key in zip(self.by_name, keys, strict=True)]
        folders = _lower(part for part in label.parent.parts if not tells_labels(part))
        for fits in (self._lies_in, self._lies_below, lambda *_: True):
            for cases in alike:
                if found := [case for case in sorted(cases) if fits(case, folders)]:
                    return found
        return []

    def _lies_in(self, case: str, folders: tuple[str, ...]) -> bool:
        above = len(self.folders[case]) - len(folders)
        return above <= len(self.shared) and self.folders[case][above:] == folders

    def _lies_below(self, case: str, folders: tuple[str, ...]) -> bool:
        return bool(folders) and {*folders} <= {*self.folders[case]}

    def other_person(self, case: str, label: Path) -> str | None:
        """The person after whom a label's folder is named, if the case is not theirs."""
        for folder in label.parent.parts:
            named = names_a_person(folder)
            if named and folder.casefold() not in self.folders[case] and not _bears(case, folder):
                return folder
        return None


def _bears(name: str, person: str) -> bool:
    """Whether a name holds that of a person as a word: `p1_scan` that of `p1`, but not of `p`."""
    word = rf"(?<![^\W_]){re.escape(person.casefold())}(?![^\W_])"
    return re.search(word, name.casefold()) is not None


def _beginning(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts that all paths begin with."""
    levels = takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
    return tuple(parts[0] for parts in levels)


def _lower(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.casefold() for name in names)


def _labels_in_table(cases: Sequence[Case], path: Path) -> Mapping[str, list[Path]]:
    rows = read_table(path, "a table of images and labels", ("image", "label"))
    by_file: dict[Path, list[str]] = {}
    for case in cases:
        for file in {file.resolve() for file in case.paths}:
            by_file.setdefault(file, []).append(case.name)
    by_name = _cases_by_name(cases)
    label_of: dict[str, list[Path]] = {}
    for row in rows:
        image, label = row.values["image"], path.parent / row.values["label"]
        named = by_file.get((path.parent / image).resolve()) or by_name.get(image, ())
        case = _only_case(named, image, f"{path}, line {row.line},")
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
