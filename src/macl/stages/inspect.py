"""Describe a folder of scans, a store, a run or a single scan."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from macl import plugins
from macl.data.store import Store
from macl.data.store_index import INDEX, StoreIndex
from macl.io.geometry import axis_codes
from macl.io.source import Source
from macl.io.volume import is_one_scan, read_header, read_scan
from macl.preprocessing.findings import examine_all, examine_case
from macl.preprocessing.fingerprint import (
    DatasetFingerprint,
    fingerprint_source,
    fingerprint_store,
)
from macl.preprocessing.source import recognise, scan_source
from macl.preprocessing.statements import with_statements
from macl.readers._reader import Reader
from macl.records.runs import RECORD, read_log, read_record, runs_at
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.files import AnyPath, read_json
from macl.utils.parallel import available_cores
from macl.utils.text import counted, without_control

ONLY_HEADERS = "Only headers were read: labels are not compared with their images."

_LINES_SHOWN = 20
_NAMES_SHOWN = 4
_CONTENT_LIMITS = (0.01, 0.05, 0.1, 0.2)
_SHOWN_WITH_CLASSES = ("class_voxels", "class_cases")
"""What the table shows in the row of the classes."""


def inspect(
    path: AnyPath,
    reader: str | None = None,
    *,
    frames: bool = False,
    quick: bool = False,
    patients: str | None = None,
    labels: AnyPath | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Describe what `path` holds as a JSON object of kind "store", "run", "scan" or "source".

    Reads each scan and label of a folder, so that `refused` and `class_voxels` are what `prepare`
    will find. Sizes and spacings of a source and of a store are (z, y, x) along the store's axes;
    those of a scan are (x, y, z) as in its file.

    Args:
        path: a folder of scans, a store, a run, or a scan (a file, or a folder that holds nothing
            but one DICOM series).
        reader: the layout of a folder of scans; None: the one with the strongest evidence.
        frames: the fourth axis of a file in a folder is time and each frame a case, as for
            `prepare`.
        quick: read the headers of a folder's scans alone; what needs voxels is then None.
        patients, labels: of a folder, as for `prepare`.
        workers: processes; None: one per core.

    Raises:
        MaclError: nothing there is known, or a scan is broken.
    """
    path = Path(path)
    if not path.exists():
        raise MaclError(f"{path} does not exist: check the path.")
    if (path / INDEX).is_file():
        return _describe_store(path)
    if (path / RECORD).is_file():
        return _describe_run(path)
    if models := runs_at(path):
        raise MaclError(
            f"{path} was written by macl run: inspect its store {path / 'store'} or its model "
            f"{models[0]}."
        )
    if reader is None and is_one_scan(path):
        return _describe_scan(path)
    if path.is_file():
        raise MaclError(
            f"{path} is not a scan, store, run or folder of scans that macl knows: check the path."
        )
    layout = recognise(path, plugins.readers()) if reader is None else plugins.reader(reader)
    listing = with_statements(layout.read(path), patients, Path(labels) if labels else None)
    return _describe_source(path, layout, listing, frames, quick, workers)


# ---------------------------------------------------------------- what there is


def _describe_source(
    path: Path, layout: Reader, listing: Source, frames: bool, quick: bool, workers: int | None
) -> dict[str, Any]:
    scan = scan_source(path, listing, frames=frames)
    source = scan.source
    findings = None
    if not quick:
        examine = partial(
            examine_case, channels=len(source.channels), declared=frozenset(source.classes)
        )
        workers = available_cores() if workers is None else workers
        findings = examine_all(examine, source.cases, workers, "inspect")
    fingerprint = fingerprint_source(scan, source.plane, findings)
    evidence = layout.evidence(path)
    return {
        "kind": "source",
        "reader": fingerprint.reader,
        "recognised_by": evidence[1] if evidence else None,
        **_describe_cases(fingerprint),
        "formats": sorted({case.format for case in fingerprint.cases}),
        **_describe_grids(fingerprint),
        "target_spacing_mm": _as_list(fingerprint.target_spacing_mm()),
        "intensities": _describe_intensities(fingerprint),
        **_describe_refused(fingerprint),
        "oddities": [asdict(oddity) for oddity in fingerprint.oddities],
        "notes": [*fingerprint.notes, *((ONLY_HEADERS,) if quick else ())],
    }


def _describe_store(path: Path) -> dict[str, Any]:
    index = Store.open(path).index
    fingerprint = fingerprint_store(index)
    return {
        "kind": "store",
        "reader": fingerprint.reader,
        **_describe_cases(fingerprint),
        "slices": sum(case.slices for case in index.cases),
        "slices_with_less_content_than": _slices_below(index),
        **_describe_grids(fingerprint),
        "planes": sorted({case.plane for case in fingerprint.cases}),
        **_describe_refused(fingerprint),
        "notes": list(fingerprint.notes),
        "prepared": index.prepared.model_dump(mode="json"),
    }


def _describe_cases(fingerprint: DatasetFingerprint) -> dict[str, Any]:
    return {
        "modality": fingerprint.modality,
        "channels": list(fingerprint.channels),
        "classes": list(fingerprint.classes),
        "class_voxels": fingerprint.class_voxels,
        "class_cases": fingerprint.class_cases,
        "cases": len(fingerprint.cases),
        "patients": len({case.patient for case in fingerprint.cases}),
        "labelled": sum(case.labelled for case in fingerprint.cases),
    }


def _describe_grids(fingerprint: DatasetFingerprint) -> dict[str, Any]:
    return {
        "sizes": _range([case.size for case in fingerprint.cases]),
        "spacing_mm": _range(fingerprint.spacings_mm),
    }


def _describe_refused(fingerprint: DatasetFingerprint) -> dict[str, Any]:
    refused = fingerprint.refused.items()
    return {"refused": [{"name": name, "reason": reason} for name, reason in refused]}


def _describe_intensities(fingerprint: DatasetFingerprint) -> list[dict[str, Any]] | None:
    if fingerprint.intensities is None:
        return None
    channels = zip(fingerprint.channels, fingerprint.intensities, strict=True)
    return [{"channel": name, **asdict(intensities)} for name, intensities in channels]


def _describe_run(path: Path) -> dict[str, Any]:
    record = read_record(path)
    last_line = deque(read_log(path), maxlen=1)
    summary = path / "cases.summary.json"
    names = (
        "finished", "recipe", "seed", "device", "store", "reader", "modality", "labels", "init",
        "steps", "seconds",
    )  # fmt: skip
    return {
        "kind": record.kind,
        **{name: getattr(record, name) for name in names},
        **({"scores": _describe_scores(summary)} if record.is_segmenter else {}),
        "classes": list(record.classes),
        "patients": len(record.patients),
        "cases": len(record.cases),
        "unlabelled_patients": len(record.unlabelled_patients),
        "test_cases": len(record.test_cases),
        "settings": record.settings,
        "last_log_line": last_line[0] if last_line else None,
    }


def _describe_scores(summary: Path) -> dict[str, Any] | None:
    """The means of an evaluation; None: the run has not been evaluated."""
    if not summary.is_file():
        return None
    found = read_json(summary, "an evaluation's summary")
    means = {name: measure["mean"] for name, measure in found["mean"].items()}
    return {**means, "unit": found["unit"], "cases": found["cases"], "by": found["convention"]}


def _describe_scan(path: Path) -> dict[str, Any]:
    try:
        header = read_header(path)
        volume = read_scan((path,), header.channels)
    except RefusedCaseError as error:
        raise MaclError(f"{path} is not a scan that can be used: {error}.") from None
    scales = volume.rescale or ((1.0, 0.0),) * len(volume.array)
    ranges = [
        [float(channel.min()) * slope + intercept, float(channel.max()) * slope + intercept]
        for channel, (slope, intercept) in zip(volume.array, scales, strict=True)
    ]
    geometry = volume.geometry
    return {
        "kind": "scan",
        "format": header.format,
        "modality": header.modality,
        "size": list(geometry.size),
        "spacing_mm": list(geometry.spacing) if geometry.spacing_known else None,
        "orientation": axis_codes(geometry),
        "channels": len(volume.array),
        "dtype": header.dtype,
        "range": ranges[0] if len(ranges) == 1 else ranges,
        "notes": list(volume.notes),
    }


def _slices_below(index: StoreIndex) -> dict[str, int] | None:
    """How many slices each minimum content would leave out; None: the store does not know."""
    shares = [share for case in index.cases for share in case.content]
    if not shares:
        return None
    return {f"{limit:g}": sum(share < limit for share in shares) for limit in _CONTENT_LIMITS}


def _range(values: Sequence[Iterable[Any]]) -> list[list[Any]] | None:
    """Smallest and largest of each axis; None: there are no values."""
    if not values:
        return None
    axes = list(zip(*values, strict=True))
    return [[min(axis) for axis in axes], [max(axis) for axis in axes]]


def _as_list(values: Iterable[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


# ---------------------------------------------------------------- as a table


def render(description: Mapping[str, Any]) -> str:
    """The result of `inspect` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in description.items():
        if key in _SHOWN_WITH_CLASSES:
            continue
        if key == "classes" and description.get("class_voxels"):
            value = _class_lines(value, *(description[name] for name in _SHOWN_WITH_CLASSES))
        elif key == "settings":
            value = "macl inspect --json RUN, or run.json"
        elif key == "scores" and value is None:
            value = "none yet: macl evaluate RUN/predictions STORE --out RUN/cases.csv"
        elif key == "refused":
            value = _list_lines([f"{case['name']}: {case['reason']}" for case in value])
        elif key == "oddities":
            value = _list_lines([_oddity_line(**oddity) for oddity in value])
        elif key == "target_spacing_mm" and value:
            value = " × ".join(map(_as_text, value))
        elif key == "intensities" and value:
            value = "\n".join(map(_as_text, value))
        table.add_row(_in_words(key), without_control(_as_text(value)))
    console = Console(width=80, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _class_lines(classes: Sequence[str], voxels: Sequence[int], cases: Sequence[int]) -> str:
    width = max(map(len, classes))
    return "\n".join(
        f"{name:<{width}}  {count:>15,} voxels in {counted(number, 'case')}"
        for name, count, number in zip(classes, voxels, cases, strict=True)
    )


def _list_lines(lines: Sequence[str]) -> str:
    """Their number and the first of them."""
    if not lines:
        return "none"
    more = [f"and {len(lines) - _LINES_SHOWN} more"] if len(lines) > _LINES_SHOWN else []
    return "\n".join([str(len(lines)), *lines[:_LINES_SHOWN], *more])


def _oddity_line(what: str, cases: Sequence[str]) -> str:
    if not cases:
        return what
    more = ", …" if len(cases) > _NAMES_SHOWN else ""
    return f"{what}: {counted(len(cases), 'case')} ({', '.join(cases[:_NAMES_SHOWN])}{more})"


def _in_words(key: str) -> str:
    """`percentile_0_5` → "percentile 0.5"."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", key).replace("_", " ")


def _as_text(value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            entries = ((key, entry) for key, entry in value.items() if entry is not None)
            return ", ".join(f"{_in_words(key)} {_as_text(entry)}" for key, entry in entries)
        case [[*low], [*high]]:
            smallest, largest = (" × ".join(map(_as_text, axes)) for axes in (low, high))
            return smallest if smallest == largest else f"{smallest} … {largest}"
        case []:
            return "none"
        case [*entries]:
            separator = "\n" if any(" " in str(entry) for entry in entries) else ", "
            return separator.join(map(_as_text, entries))
        case _:
            return str(value)
