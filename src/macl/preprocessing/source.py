"""A source looked over before its scans are read: headers, channels, links, and names that would tell who was scanned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from macl.io import dicom
from macl.io.deidentification import Identity, hashed, reveals
from macl.io.source import Case, Scan, Source, files_of, scans_of
from macl.io.time_series import take_apart
from macl.io.volume import Header, read_header, safe_name, stem_of
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.files import inside

PICTURES = ("PNG", "JPEG")


@dataclass(frozen=True)
class Survey:
    """What a source holds, so far as headers tell.

    Attributes:
        source: names, patients, channels and modality settled; only cases that may be read are left.
        headers: case name → the header of its first image, of a frame as if it were alone.
        series: where time series were taken apart, the name of each → all its frames, in order.
    """

    source: Source
    headers: Mapping[str, Header]
    series: Mapping[str, tuple[Case, ...]] = field(default_factory=dict)


def survey(folder: Path, source: Source, keep_identity: bool = False, frames: bool = False) -> Survey:
    """Look a source over; with `frames`, the fourth axis of a file is time, and every moment becomes a case.

    Refused here: what links out of the folder, headers that make no sense or announce too much, channel counts that
    differ from the declared one, or from most cases where none is declared. Names that hold a part of a DICOM
    patient's name, birth date or (unless kept) id are replaced by hashed ones, in notes and reasons too.

    Raises:
        MaclError: frames are asked for where the layout declares that a fourth axis holds channels.
    """
    source = _with_series(source) if frames else _without_series(source)
    source = _without_links_out(folder, source)
    source = _without_identity(source, keep_identity)
    series: Mapping[str, tuple[Case, ...]] = {}
    if frames:
        source, series = take_apart(source)
    headers, broken = _headers(source.cases)
    refused = {**source.refused, **broken}
    channels = source.channels or _usual_channels(headers)
    notes = source.notes if source.channels else (*source.notes, *_assumed_channels(headers, channels))
    for case in source.cases:
        header = headers.get(case.name)
        if header and len(case.images) == 1 and header.channels != len(channels):
            refused[case.name] = _other_channels(headers.pop(case.name), len(channels))
    modality = source.modality
    told = {header.modality for header in headers.values()}
    if modality == "unknown" and len(told) == 1:
        modality = told.pop()
    cases = tuple(case for case in source.cases if case.name in headers)
    settled = replace(
        source, cases=cases, refused=dict(sorted(refused.items())), channels=channels, modality=modality, notes=notes
    )
    return Survey(settled, headers, series)


def recognise(folder: Path, readers: Iterable[Reader]) -> Reader:
    """The reader whose signs of its layout in a folder are the most specific.

    Raises:
        MaclError: no reader knows the folder, or two show equally specific signs.
    """
    signs = [(sign, reader) for reader in readers if (sign := reader.evidence(folder))]
    if not signs:
        raise MaclError(f"{folder} holds no scans in a layout that is known: check the folder or name a --reader.")
    strength = max(sign[0] for sign, _ in signs)
    best = [(sign[1], reader) for sign, reader in signs if sign[0] == strength]
    if len(best) > 1:
        found = " and ".join(f"{reader.name} ({words})" for words, reader in best)
        raise MaclError(f"{folder} looks like {found}: choose one with --reader.")
    return best[0][1]


def lone_case(path: Path) -> Case:
    """A single scan as a case, under a name that does not tell who was scanned."""
    name = safe_name(stem_of(path.absolute()))
    case = Case(name, (path,), name)
    return _without_identity(Source("", "unknown", (), {}, (case,)), keep_identity=False).cases[0]


def _with_series(source: Source) -> Source:
    return replace(source, cases=(*source.cases, *source.series), series=())


def _without_series(source: Source) -> Source:
    if not source.series:
        return source
    note = f"Passed over: {len(source.series)} whole time series; --frames makes every moment of them a case."
    return replace(source, series=(), notes=(*source.notes, note))


def _headers(cases: Iterable[Case]) -> tuple[dict[str, Header], dict[str, str]]:
    """Case name → the header of its first image, and → why it has none; that of a series is read once."""
    headers: dict[str, Header] = {}
    broken: dict[str, str] = {}
    of_series: dict[Scan, Header] = {}
    for case in cases:
        image = case.images[0]
        try:
            header = of_series.get(image) or read_header(image)
        except RefusedCaseError as error:
            broken[case.name] = str(error)
            continue
        if case.frame is not None:
            of_series[image] = header
            header = replace(header, channels=header.channels // header.moments, moments=1)
        headers[case.name] = header
    return headers, broken


def _without_links_out(folder: Path, source: Source) -> Source:
    refused = dict(source.refused)
    kept: list[Case] = []
    for case in source.cases:
        try:
            for path in (path for scan in scans_of(case) for path in files_of(scan)):
                for file in (path, *(path.iterdir() if path.is_dir() else ())):
                    inside(folder, str(file.relative_to(folder)))
            kept.append(case)
        except (MaclError, ValueError):
            refused[case.name] = "it leads out of the source's folder (a link?): copy the file instead"
    return replace(source, cases=tuple(kept), refused=refused)


def _without_identity(source: Source, keep_identity: bool) -> Source:
    if source.anonymous:
        return source
    who = {case.name: dicom.identity(case.images[0]) for case in source.cases if dicom.holds(case.images[0])}
    if not who:
        return source
    secrets = {secret for one in who.values() for secret in one.secrets}
    if not keep_identity:
        secrets |= {one.patient_id for one in who.values() if one.patient_id}
    cases = [_without_secrets(case, who.get(case.name), secrets, keep_identity) for case in source.cases]
    refused = {
        hashed("case", name) if reveals(name, secrets) else name: _scrub(reason, secrets)
        for name, reason in source.refused.items()
    }
    notes = [_scrub(note, secrets) for note in source.notes]
    if renamed := sum(old.name != new.name for old, new in zip(source.cases, cases, strict=True)):
        notes.append(f"{renamed} cases carry hashed names, because their own would tell who was scanned.")
    notes.append("DICOM patient ids are kept, as asked." if keep_identity else "DICOM patient ids are hashed.")
    cases.sort(key=lambda case: case.name)
    return replace(source, cases=tuple(cases), refused=refused, notes=tuple(notes))


def _without_secrets(case: Case, who: Identity | None, secrets: Collection[str], keep_identity: bool) -> Case:
    name, patient = case.name, case.patient
    unknown = who is not None and not who.readable
    if unknown or reveals(name, secrets):
        name = hashed("case", (who.series if who else "") or name)
    if unknown or reveals(patient, secrets):
        patient = hashed("patient", patient)
    if who and who.patient_id:
        kept = keep_identity and not reveals(who.patient_id, secrets)
        patient = who.patient_id if kept else hashed("patient", who.patient_id)
    return replace(case, name=name, patient=patient)


def _scrub(text: str, secrets: Collection[str]) -> str:
    return " ".join("…" if reveals(word, secrets) else word for word in text.split(" "))


def _usual_channels(headers: Mapping[str, Header]) -> tuple[str, ...]:
    counts = Counter(header.channels for header in headers.values())
    usual = min(counts, key=lambda count: (-counts[count], count), default=1)
    if usual == 3 and all(header.format in PICTURES for header in headers.values() if header.channels == 3):
        return "red", "green", "blue"
    return ("image",) if usual == 1 else tuple(f"channel {number}" for number in range(1, usual + 1))


def _assumed_channels(headers: Mapping[str, Header], channels: Sequence[str]) -> tuple[str, ...]:
    """What is said where volumes along a fourth axis are taken as channels though nothing declares them."""
    if len(channels) == 1 or not any(header.moments == len(channels) for header in headers.values()):
        return ()
    return (
        f"Nothing tells what the fourth axis of the files is: its {len(channels)} volumes are taken as channels. "
        "Where they are moments in time, use --frames.",
    )


def _other_channels(header: Header, meant: int) -> str:
    if header.format in (*PICTURES, "DICOM"):
        return f"it has {header.channels} channels where {meant} {'is' if meant == 1 else 'are'} meant"
    return (
        f"it holds {header.channels} volumes or channels (4D) where {meant} {'is' if meant == 1 else 'are'} meant: "
        "save one volume per file, or use --frames where they are moments in time"
    )
