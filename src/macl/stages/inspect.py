"""What a folder of scans, a store, a run or a single scan holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from macl import plugins
from macl.data.store import INDEX, Store, StoreIndex
from macl.io.geometry import orientation
from macl.io.source import Source
from macl.io.volume import is_one_scan, read_header, read_scan
from macl.preprocessing.fingerprint import (
    Examination,
    Finding,
    class_counts,
    classes_of,
    examine,
    odd_contents,
    odd_geometries,
)
from macl.preprocessing.source import Survey, recognise, survey
from macl.records.runs import RECORD, read_log, read_record
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.parallel import available_cores, workers_for
from macl.utils.progress import progress

_CASES_SHOWN = 20
_NAMES_SHOWN = 4
_CONTENTS = (0.01, 0.05, 0.1, 0.2)
_IN_ONE_ROW = ("class_voxels", "class_cases")
"""What the table tells beside the classes."""


def inspect(
    path: Path,
    reader: str | None = None,
    *,
    frames: bool = False,
    quick: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """What there is at `path`, as one JSON object; `kind` says "store", "run", "scan" or "source".

    Of a folder of scans every scan and label is read, so that `refused` and `class_voxels` are what `prepare` will find.

    Args:
        path: a folder of scans, a store, a run, or a scan (a file, or a folder of one DICOM series and nothing else).
        reader: the layout to read a folder of scans as; None: the one whose signs are the most specific.
        frames: the fourth axis of a file in a folder is time, and every moment a case, as for `prepare`.
        quick: read the headers of a folder's scans alone: then `class_voxels` and `class_cases` are None.
        workers: processes; None: one per core.

    Raises:
        MaclError: there is nothing that is known, or a scan is broken.
    """
    if not path.exists():
        raise MaclError(f"{path} does not exist: check the path.")
    if (path / INDEX).is_file():
        return _store(path)
    if (path / RECORD).is_file():
        return _run(path)
    if reader is None and is_one_scan(path):
        return _scan(path)
    if path.is_file():
        raise MaclError(f"{path} is no scan, store, run or folder of scans that macl knows: check the path.")
    return _source(path, reader, frames, quick, workers)


def render(found: Mapping[str, Any]) -> str:
    """A table of what `inspect` found."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in found.items():
        if key in _IN_ONE_ROW:
            continue
        if key == "classes" and found.get("class_voxels"):
            value = _class_rows(value, *(found[name] for name in _IN_ONE_ROW))
        elif key in ("refused", "oddities"):
            value = _listed(value)
        table.add_row(key.replace("_", " "), _words(value))
    console = Console(width=110, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _store(path: Path) -> dict[str, Any]:
    index = Store.open(path).index
    return {
        "kind": "store",
        "reader": index.reader,
        "modality": index.modality,
        "channels": list(index.channels),
        "classes": list(index.classes),
        "class_voxels": _class_voxels(index),
        "class_cases": _class_cases(index),
        "cases": len(index.cases),
        "patients": len({case.patient for case in index.cases}),
        "labelled": sum(case.labelled for case in index.cases),
        "slices": sum(case.slices for case in index.cases),
        "slices_with_less_content_than": _slices_below(index),
        "sizes": _range([case.size[1:] for case in index.cases]),
        "spacing_mm": _range([case.spacing_mm for case in index.cases if case.spacing_mm]),
        "planes": sorted({case.orientation.plane for case in index.cases}),
        "refused": [refused.model_dump() for refused in index.refused],
        "notes": list(index.notes),
        "prepared": index.prepared.model_dump(),
    }


def _source(path: Path, reader: str | None, frames: bool, quick: bool, workers: int | None) -> dict[str, Any]:
    if reader is None:
        chosen = recognise(path, plugins.readers())
    else:
        chosen = plugins.reader(reader)
    looked = survey(path, chosen.read(path), frames=frames)
    findings = None if quick else _read_all(looked.source, available_cores() if workers is None else workers)
    if findings is not None:
        looked = _without_refused(looked, findings)
        findings = [finding for finding in findings if not finding.reason]
    source = looked.source
    geometries = [header.geometry for header in looked.headers.values()]
    classes = classes_of(source, findings or ())
    voxels, cases = (None, None) if findings is None else class_counts(classes, findings)
    odd = [*odd_geometries(looked), *(odd_contents(source, findings, classes) if findings else ())]
    return {
        "kind": "source",
        "reader": source.reader,
        "recognised_by": sign[1] if (sign := chosen.evidence(path)) else None,
        "modality": source.modality,
        "channels": list(source.channels),
        "classes": list(classes.names),
        "class_voxels": voxels,
        "class_cases": cases,
        "cases": len(source.cases),
        "patients": len({case.patient for case in source.cases}),
        "labelled": sum(case.label is not None for case in source.cases),
        "formats": sorted({header.format for header in looked.headers.values()}),
        "sizes": _range([geometry.size for geometry in geometries]),
        "spacing_mm": _range([geometry.spacing for geometry in geometries if geometry.spacing_known]),
        "refused": [{"name": name, "reason": reason} for name, reason in source.refused.items()],
        "oddities": [{"what": oddity.what, "cases": list(oddity.cases)} for oddity in odd],
        "notes": [*source.notes, *classes.notes],
    }


def _read_all(source: Source, workers: int) -> list[Finding]:
    """What every case's files hold, in the order of the cases."""
    values = frozenset(source.classes)
    tasks = [Examination(case, len(source.channels), values) for case in source.cases]
    findings: dict[int, Finding] = {}
    with workers_for(len(tasks), workers) as run, progress("inspect", len(tasks)) as advance:
        for index, finding in run(examine, tasks):
            findings[index] = finding
            advance(note=finding.name)
    return [findings[index] for index in range(len(tasks))]


def _without_refused(looked: Survey, findings: Sequence[Finding]) -> Survey:
    """The survey without the cases that reading has ruled out."""
    refused = {finding.name: finding.reason for finding in findings if finding.reason}
    source = replace(
        looked.source,
        cases=tuple(case for case in looked.source.cases if case.name not in refused),
        refused=dict(sorted({**looked.source.refused, **refused}.items())),
    )
    return Survey(source, {name: header for name, header in looked.headers.items() if name not in refused})


def _run(path: Path) -> dict[str, Any]:
    record = read_record(path)
    last_line = deque(read_log(path), maxlen=1)
    names = (
        "finished", "recipe", "seed", "device", "store", "reader", "modality", "labels", "init", "steps", "seconds",
    )  # fmt: skip
    return {
        "kind": record.kind,
        **{name: getattr(record, name) for name in names},
        "classes": list(record.classes),
        "patients": len(record.patients),
        "cases": len(record.cases),
        "test_cases": len(record.test_cases),
        "settings": record.settings,
        "last_log_line": last_line[0] if last_line else None,
    }


def _scan(path: Path) -> dict[str, Any]:
    try:
        header = read_header(path)
        volume = read_scan((path,), header.channels)
    except RefusedCaseError as error:
        raise MaclError(f"{path} is not a scan that can be used: {error}.") from None
    scales = volume.rescale or ((1.0, 0.0),) * len(volume.array)
    values = [
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
        "orientation": orientation(geometry),
        "channels": len(volume.array),
        "dtype": header.dtype,
        "range": values[0] if len(values) == 1 else values,
        "notes": list(volume.notes),
    }


def _class_voxels(index: StoreIndex) -> list[int]:
    """Voxels of every class over all labelled cases."""
    counts = [case.class_voxels for case in index.cases if case.class_voxels]
    return [sum(voxels) for voxels in zip(*counts, strict=True)]


def _class_cases(index: StoreIndex) -> list[int]:
    """In how many cases every class occurs."""
    counts = [case.class_voxels for case in index.cases if case.class_voxels]
    return [sum(voxels > 0 for voxels in of_class) for of_class in zip(*counts, strict=True)]


def _slices_below(index: StoreIndex) -> dict[str, int] | None:
    """How many slices a minimum content would pass over; None where the store does not know."""
    shares = [share for case in index.cases for share in case.content]
    return {f"{least:g}": sum(share < least for share in shares) for least in _CONTENTS} if shares else None


def _range(values: list[tuple[Any, ...]]) -> list[list[Any]] | None:
    """Smallest and largest per axis, or None where there are none."""
    if not values:
        return None
    axes = list(zip(*values, strict=True))
    return [[min(axis) for axis in axes], [max(axis) for axis in axes]]


def _class_rows(classes: Sequence[str], voxels: Sequence[int], cases: Sequence[int]) -> str:
    """A line for every class."""
    width = max(map(len, classes))
    return "\n".join(
        f"{name:<{width}}  {count:>15,} voxels in {_cases(number)}"
        for name, count, number in zip(classes, voxels, cases, strict=True)
    )


def _listed(found: Sequence[Mapping[str, Any]]) -> str:
    """Refusals by name, or oddities with the first names that show them."""
    lines = [_refusal_or_oddity(one) for one in found[:_CASES_SHOWN]]
    if len(found) > _CASES_SHOWN:
        lines.append(f"and {len(found) - _CASES_SHOWN} more")
    return "\n".join([str(len(found)), *lines]) if found else "none"


def _refusal_or_oddity(one: Mapping[str, Any]) -> str:
    if "reason" in one:
        return f"{one['name']}: {one['reason']}"
    names = one["cases"]
    if not names:
        return one["what"]
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return f"{one['what']}: {_cases(len(names))} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def _cases(count: int) -> str:
    return f"{count:,} case" + ("" if count == 1 else "s")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(one, list) for one in value):
            low, high = (" × ".join(_words(number) for number in one) for one in value)
            return low if low == high else f"{low} … {high}"
        return ("\n" if any(" " in str(one) for one in value) else ", ").join(_words(one) for one in value) or "none"
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
