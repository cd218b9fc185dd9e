"""Scan a source folder: its cases, headers, channels, links, and names that identify patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from macl.data.people import suspicion
from macl.io import dicom
from macl.io.deidentification import (
    Pseudonyms,
    contains_identifier,
    looks_identifying,
)
from macl.io.source import Case, ScanPath, Source
from macl.io.time_series import split_time_series
from macl.io.volume import Header, lossy_file, read_header, safe_name, stem_of
from macl.readers._dataset_json import DESCRIBED, require_no_description
from macl.readers._filenames import link_leads_out
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.files import entries, inside, unreadable_below
from macl.utils.progress import warn
from macl.utils.text import printable

PICTURE_FORMATS = ("PNG", "JPEG")

LOSSY_LABELS = "Labels that are JPEG pictures, which smear label values, are not read"


class UnknownLayoutError(MaclError):
    """No reader knows a folder."""


UNNAMED_CHANNEL = "channel "
"""What the names of channels begin with that the layout does not name."""

NOT_READABLE = "it cannot be read (permission denied)"


@dataclass(frozen=True)
class SourceScan:
    """What a source holds, as far as headers tell.

    Attributes:
        source: with the final names, patients, channels and modality, without the refused cases.
        headers: case name → the header of its first image; of a frame, as if it were alone.
        series: of time series that were split, name → its frames, in order.
    """

    source: Source
    headers: Mapping[str, Header]
    series: Mapping[str, tuple[Case, ...]] = field(default_factory=dict)

    def without(self, refused: Mapping[str, str]) -> SourceScan:
        """Leave out more cases: name → reason."""
        source = replace(
            self.source,
            cases=tuple(case for case in self.source.cases if case.name not in refused),
            refused=dict(sorted({**self.source.refused, **refused}.items())),
        )
        headers = {name: self.headers[name] for name in self.headers if name not in refused}
        return replace(self, source=source, headers=headers)


def scan_source(
    folder: Path,
    source: Source,
    keep_identity: bool = False,
    frames: bool = False,
    pseudonyms: Pseudonyms | None = None,
    shared: bool = False,
) -> SourceScan:
    """Check what a reader found in a folder, without reading a voxel.

    Refuses links out of the folder, headers that make no sense or announce too much, and channel
    counts other than the declared one (or the usual one, if none is declared). Replaces names that
    contain a part of a DICOM patient's name, birth date or id by pseudonyms, in notes and reasons
    too.

    Args:
        folder: the source.
        source: as the reader lists it.
        keep_identity: keep patient ids.
        frames: the fourth axis of a file is time, and each frame becomes a case.
        pseudonyms: makes them; None: names that nobody keeps.
        shared: the names go into something that may be shared, a store: replace those of folders
            and files with DICOM too, and others that look like dates, record numbers or addresses.

    Raises:
        MaclError: frames are asked for, but the layout declares channels along the fourth axis.
    """
    source = _with_series(source) if frames else _without_series(source)
    source = _without_lossy_labels(source)
    source = _refuse_unreadable(folder, _refuse_links_out(folder, source))
    source = _deidentify(source, keep_identity, pseudonyms or Pseudonyms(), shared)
    series: Mapping[str, tuple[Case, ...]] = {}
    if frames:
        source, series = split_time_series(source)
    headers, refused = _read_headers(source.cases)
    channels = source.channels or _usual_channels(headers)
    for case in source.cases:
        header = headers.get(case.name)
        if header and len(case.images) == 1 and header.channels != len(channels):
            refused[case.name] = _wrong_channels(header, len(channels))
    notes = (*source.notes, *_fourth_axis_note(source, headers, channels))
    if not source.patients_stated and not frames:
        people = suspicion({case.name: case.patient for case in source.cases})
        notes = (*notes, people) if people else notes
    source = replace(source, channels=channels, notes=notes)
    return _with_modality(SourceScan(source, headers, series).without(refused))


def recognise(folder: Path, readers: Iterable[Reader]) -> Reader:
    """The reader for which the folder gives the strongest evidence.

    Raises:
        UnknownLayoutError: no reader knows the folder.
        MaclError: the evidence for two is equally strong; or the folder has a description that is
            broken or fits no layout, or lies above a data set that has one.
    """
    evidence = [
        (*sign, reader) for reader in readers if (sign := reader.evidence(folder)) is not None
    ]
    if not evidence:
        if unreadable := unreadable_below(folder):
            names = listed(printable(str(path)) for path in unreadable)
            raise MaclError(
                f"{folder} holds no scans that can be read: permission is denied to {names}; ask "
                "for the right to read them."
            )
        raise UnknownLayoutError(
            f"{folder} holds no scans in a known layout: check the folder or name a --reader."
        )
    strongest = max(strength for strength, _, _ in evidence)
    best = [(reader, words) for strength, words, reader in evidence if strength == strongest]
    if len(best) > 1:
        names = " and ".join(f"{reader.name} ({words})" for reader, words in best)
        raise MaclError(f"{folder} looks like {names}: choose one with --reader.")
    if strongest < DESCRIBED:
        require_no_description(folder)
    return best[0][0]


def lone_case(path: Path, pseudonyms: Pseudonyms | None = None) -> Case:
    """A single scan as a case, under a name that does not identify the patient."""
    name = safe_name(stem_of(path.absolute()))
    source = Source(reader="", cases=(Case(name, (path,), name),))
    return _deidentify(source, False, pseudonyms or Pseudonyms(), shared=False).cases[0]


# ---------------------------------------------------------------- time series


def _with_series(source: Source) -> Source:
    return replace(source, cases=(*source.cases, *source.series), series=())


def _without_series(source: Source) -> Source:
    if not source.series:
        return source
    count = len(source.series)
    note = f"Ignored {count} whole time series: --frames makes each of their frames a case."
    return replace(source, series=(), notes=(*source.notes, note))


# ---------------------------------------------------------------- labels


def _without_lossy_labels(source: Source) -> Source:
    """Leave out labels that are JPEG; their scans stay, and a note says why."""
    lossy = {case.name for case in source.cases if case.label and lossy_file(case.label)}
    if not lossy:
        return source
    cases = tuple(
        replace(case, label=None) if case.name in lossy else case for case in source.cases
    )
    note = (
        f"{LOSSY_LABELS} ({listed(sorted(lossy))}): save them as PNG from the originals. Their "
        "scans count as unlabelled."
    )
    return replace(source, cases=cases, notes=(*source.notes, note))


# ---------------------------------------------------------------- headers


def _read_headers(cases: Iterable[Case]) -> tuple[dict[str, Header], dict[str, str]]:
    """Case name → the header of its first image, and case name → why there is none."""
    headers: dict[str, Header] = {}
    refused: dict[str, str] = {}
    of_series: dict[ScanPath, Header] = {}
    for case in cases:
        image = case.images[0]
        try:
            header = of_series.get(image) or read_header(image)
        except RefusedCaseError as error:
            refused[case.name] = str(error)
            continue
        if case.frame is not None:
            of_series[image] = header
            channels = header.channels // header.time_points
            header = replace(header, channels=channels, time_points=1)
        headers[case.name] = header
    return headers, refused


def _with_modality(scan: SourceScan) -> SourceScan:
    """Take the modality from the headers where the layout declares none and all agree."""
    modalities = {header.modality for header in scan.headers.values()}
    if scan.source.modality != "unknown" or len(modalities) != 1:
        return scan
    return replace(scan, source=replace(scan.source, modality=modalities.pop()))


def _usual_channels(headers: Mapping[str, Header]) -> tuple[str, ...]:
    """Names for as many channels as most cases have."""
    counts = Counter(header.channels for header in headers.values())
    usual = min(counts, key=lambda count: (-counts[count], count), default=1)
    formats = {header.format for header in headers.values() if header.channels == usual}
    if usual == 3 and formats <= {*PICTURE_FORMATS}:
        return "red", "green", "blue"
    if usual == 1:
        return ("image",)
    return tuple(f"{UNNAMED_CHANNEL}{number}" for number in range(1, usual + 1))


def _fourth_axis_note(
    source: Source, headers: Mapping[str, Header], channels: tuple[str, ...]
) -> tuple[str, ...]:
    """A note if volumes along a fourth axis are taken as channels though nothing declares them."""
    count = len(channels)
    if source.channels or count == 1:
        return ()
    if all(header.time_points != count for header in headers.values()):
        return ()
    return (
        f"Nothing declares what the fourth axis of the files is: its {count} volumes are taken as "
        "channels. If they are time points, use --frames.",
    )


def _wrong_channels(header: Header, expected: int) -> str:
    if header.format in (*PICTURE_FORMATS, "DICOM"):
        return f"it has {header.channels} channels, expected {expected}"
    return (
        f"it holds {header.channels} volumes or channels (4D), expected {expected}: save one "
        "volume per file, or use --frames if they are time points"
    )


# ---------------------------------------------------------------- links and identities


def _refuse_links_out(folder: Path, source: Source) -> Source:
    refused = dict(source.refused)
    kept: list[Case] = []
    for case in source.cases:
        outside = [
            file
            for path in case.paths
            for file in (path, *(entries(path) if path.is_dir() else ()))
            if not _lies_inside(folder, file)
        ]
        if outside:
            refused[case.name] = link_leads_out(outside[0].relative_to(folder).as_posix())
        else:
            kept.append(case)
    return replace(source, cases=tuple(kept), refused=refused)


def _lies_inside(folder: Path, file: Path) -> bool:
    if not file.is_relative_to(folder):
        # The user has named it: readers only list what lies below the folder.
        return True
    try:
        inside(folder, str(file.relative_to(folder)))
    except MaclError:
        return False
    return True


def _refuse_unreadable(folder: Path, source: Source) -> Source:
    """Refuse what the user may not read and no case names: a folder may hold many scans."""
    in_cases = {path for case in source.cases for path in case.paths}
    refused = {
        printable(path.relative_to(folder).as_posix()): NOT_READABLE
        for path in unreadable_below(folder)
        if path not in in_cases
    }
    return replace(source, refused={**source.refused, **refused})


_NAMED_BY_USERS = ("folder", "dicom")
"""Readers of layouts that leave the names of folders and files to the user."""


def _deidentify(
    source: Source, keep_identity: bool, pseudonyms: Pseudonyms, shared: bool
) -> Source:
    """Replace names and patients that would identify someone, unless the data set is anonymous."""
    if source.anonymous:
        return source
    identities = {
        case.name: dicom.read_identity(case.images[0])
        for case in source.cases
        if dicom.is_dicom(case.images[0])
    }
    hidden = shared and not keep_identity and source.reader in _NAMED_BY_USERS
    if not identities and not hidden:
        return source
    identifiers = {word for identity in identities.values() for word in identity.identifiers}
    if not keep_identity:
        ids = {identity.patient_id for identity in identities.values()}
        identifiers |= ids - {""}

    def tells(text: str, is_dicom: bool) -> bool:
        return contains_identifier(text, identifiers) or (
            hidden and (is_dicom or looks_identifying(text))
        )

    cases: list[Case] = []
    for case in source.cases:
        identity = identities.get(case.name)
        is_dicom = identity is not None
        unknown = is_dicom and not identity.readable
        name, patient = case.name, case.patient
        file_tells = hidden and looks_identifying(case.paths[0].name)
        if unknown or file_tells or tells(name, is_dicom) or tells(patient, is_dicom):
            name = pseudonyms("case", name, str(case.paths[0]))
            if unknown:
                warn(
                    f"No header of {printable(str(case.paths[0]))} can be read, so it is called "
                    f"{name} in what is written."
                )
        if unknown or tells(patient, is_dicom):
            patient = pseudonyms("patient", patient)
        if identity and identity.patient_id and not source.patients_stated:
            kept = keep_identity and not contains_identifier(identity.patient_id, identifiers)
            patient = identity.patient_id
            patient = patient if kept else pseudonyms("patient", patient)
        cases.append(replace(case, name=name, patient=patient))
    hides_paths = hidden and bool(identities)
    refused = {
        pseudonyms("case", name) if tells(name, bool(identities)) else name: _mask(
            reason, identifiers, hides_paths
        )
        for name, reason in source.refused.items()
    }
    notes = [_mask(note, identifiers, hides_paths) for note in source.notes]
    renamed = sum(old.name != new.name for old, new in zip(source.cases, cases, strict=True))
    if renamed:
        notes.append(f"{renamed} cases have hashed names: their own might identify the patient.")
    if identities:
        done = "kept, as asked" if keep_identity else "hashed"
        notes.append(f"DICOM patient ids are {done}.")
    cases.sort(key=lambda case: case.name)
    return replace(source, cases=tuple(cases), refused=refused, notes=tuple(notes))


def _mask(text: str, identifiers: Collection[str], hides_paths: bool = False) -> str:
    """Replace each word that contains an identifier, or lists of files, by "…"."""
    if hides_paths:
        text = re.sub(r"^(Ignored \([^)]*\)|a label without an image): .*", r"\1: ….", text)
        text = re.sub(r"\(.+\): rename", "(…): rename", text)
    return " ".join(
        "…"
        if contains_identifier(word, identifiers)
        or (hides_paths and ("/" in word or looks_identifying(word)))
        else word
        for word in text.split(" ")
    )
