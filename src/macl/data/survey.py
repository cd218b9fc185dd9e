"""A source looked over before its scans are read: headers, channels, links, and names that would tell who was scanned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from macl.data import dicom
from macl.data.identity import Identity, hashed, reveals
from macl.data.volumes import Header, read_header
from macl.errors import MaclError, RefusedCaseError
from macl.files import inside
from macl.plugins import Case, Reader, Source


@dataclass(frozen=True)
class Survey:
    """What a source holds, so far as headers tell.

    Attributes:
        source: names, patients, channels and modality settled; only cases that may be read are left.
        headers: case name → the header of its first image.
    """

    source: Source
    headers: Mapping[str, Header]


def survey(folder: Path, source: Source, keep_identity: bool = False) -> Survey:
    """Look a source over.

    Refused here: what links out of the folder, headers that make no sense or announce too much, channel counts that
    differ from the declared one, or from most cases where none is declared. Names that hold a part of a DICOM
    patient's name, birth date or (unless kept) id are replaced by hashed ones, in notes and reasons too.
    """
    source = _without_links_out(folder, source)
    source = _without_identity(source, keep_identity)
    refused = dict(source.refused)
    headers: dict[str, Header] = {}
    for case in source.cases:
        try:
            headers[case.name] = read_header(case.images[0])
        except RefusedCaseError as error:
            refused[case.name] = str(error)
    channels = source.channels or _usual_channels(headers)
    for case in source.cases:
        header = headers.get(case.name)
        if header and len(case.images) == 1 and header.channels != len(channels):
            refused[case.name] = _other_channels(headers.pop(case.name), len(channels))
    modality = source.modality
    told = {header.modality for header in headers.values()}
    if modality == "unknown" and len(told) == 1:
        modality = told.pop()
    cases = tuple(case for case in source.cases if case.name in headers)
    settled = replace(source, cases=cases, refused=dict(sorted(refused.items())), channels=channels, modality=modality)
    return Survey(settled, headers)


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


def _without_links_out(folder: Path, source: Source) -> Source:
    refused = dict(source.refused)
    kept: list[Case] = []
    for case in source.cases:
        try:
            for path in (*case.images, *([case.label] if case.label else [])):
                for file in (path, *(path.iterdir() if path.is_dir() else ())):
                    inside(folder, str(file.relative_to(folder)))
            kept.append(case)
        except (MaclError, ValueError):
            refused[case.name] = "it leads out of the source's folder (a link?): copy the file instead"
    return replace(source, cases=tuple(kept), refused=refused)


def _without_identity(source: Source, keep_identity: bool) -> Source:
    identities = {case.name: _identity(case) for case in source.cases}
    found = [who for who in identities.values() if isinstance(who, Identity)]
    if all(who is None for who in identities.values()):
        return source
    secrets = {secret for who in found for secret in who.secrets}
    secrets |= set() if keep_identity else {who.patient_id for who in found if who.patient_id}
    new_names = {case.name: _safe_name(case, identities[case.name], secrets) for case in source.cases}
    cases = [
        replace(
            case, name=new_names[case.name], patient=_safe_patient(case, identities[case.name], secrets, keep_identity)
        )
        for case in source.cases
    ]
    refused = {
        (hashed("case", name) if reveals(name, secrets) else name): _scrub(reason, secrets)
        for name, reason in source.refused.items()
    }
    notes = tuple(_scrub(note, secrets) for note in source.notes)
    if hidden := sum(old != new for old, new in new_names.items()):
        notes += (f"{hidden} cases carry hashed names, because their own would tell who was scanned.",)
    if not keep_identity:
        notes += ("DICOM patient ids are hashed.",)
    return replace(source, cases=tuple(sorted(cases, key=lambda case: case.name)), refused=refused, notes=notes)


def _identity(case: Case) -> Identity | str | None:
    """Who a DICOM case shows; "nobody" where its headers cannot be read; None where the case is no DICOM."""
    image = case.images[0]
    if not (dicom.is_series(image) or dicom.is_dicom(image)):
        return None
    return dicom.identity(image) or "nobody"


def _safe_name(case: Case, who: Identity | str | None, secrets: Iterable[str]) -> str:
    if isinstance(who, str):
        return hashed("case", case.name)
    if reveals(case.name, secrets):
        return hashed("case", (who.series if who else "") or case.name)
    return case.name


def _safe_patient(case: Case, who: Identity | str | None, secrets: Iterable[str], keep_identity: bool) -> str:
    if isinstance(who, Identity) and who.patient_id:
        return (
            who.patient_id
            if keep_identity and not reveals(who.patient_id, secrets)
            else hashed("patient", who.patient_id)
        )
    if isinstance(who, str) or reveals(case.patient, secrets):
        return hashed("patient", case.patient)
    return case.patient


def _scrub(text: str, secrets: Iterable[str]) -> str:
    secrets = tuple(secrets)
    return " ".join("…" if reveals(word, secrets) else word for word in text.split(" "))


def _usual_channels(headers: Mapping[str, Header]) -> tuple[str, ...]:
    counts = Counter(header.channels for header in headers.values())
    usual = min(counts, key=lambda count: (-counts[count], count), default=1)
    if usual == 3 and all(header.format == "PNG" for header in headers.values() if header.channels == 3):
        return "red", "green", "blue"
    return ("image",) if usual == 1 else tuple(f"channel {number}" for number in range(1, usual + 1))


def _other_channels(header: Header, meant: int) -> str:
    if header.format in ("PNG", "DICOM"):
        return f"it has {header.channels} channels where {meant} {'is' if meant == 1 else 'are'} meant"
    return (
        f"it holds {header.channels} volumes or channels (4D) where {meant} {'is' if meant == 1 else 'are'} meant: "
        "save one volume per file"
    )
