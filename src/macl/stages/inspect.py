"""What a folder of scans, a store, a run or a single scan holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macl import plugins
from macl.data.grids import orientation
from macl.data.runs import RECORD, read_log, read_record
from macl.data.store import INDEX, Store, StoreIndex
from macl.data.survey import recognise, survey
from macl.data.volumes import is_one_scan, read_header, read_scan
from macl.errors import MaclError, RefusedCaseError

_REFUSALS_SHOWN = 20


def inspect(path: Path, reader: str | None = None) -> dict[str, Any]:
    """What there is at `path`, as one JSON object; `kind` says "store", "run", "scan" or "source".

    Args:
        path: a folder of scans, a store, a run, or a scan (a file, or a folder of one DICOM series and nothing else).
        reader: the layout to read a folder of scans as; None: the one whose signs are the most specific.

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
    return _source(path, reader)


def render(found: Mapping[str, Any]) -> str:
    """A table of what `inspect` found."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in found.items():
        if key == "refused":
            table.add_row(key, _refusals(value))
        else:
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
        "cases": len(index.cases),
        "patients": len({case.patient for case in index.cases}),
        "labelled": sum(case.labelled for case in index.cases),
        "slices": sum(case.slices for case in index.cases),
        "sizes": _range([case.size for case in index.cases]),
        "spacing_mm": _range([case.spacing_mm for case in index.cases if case.spacing_mm]),
        "planes": sorted({case.slicing.plane for case in index.cases}),
        "refused": [refused.model_dump() for refused in index.refused],
        "notes": list(index.notes),
        "prepared": index.prepared.model_dump(),
    }


def _source(path: Path, reader: str | None) -> dict[str, Any]:
    if reader is None:
        chosen = recognise(path, [plugins.find("readers", name) for name in plugins.names("readers")])
    else:
        chosen = plugins.find("readers", reader)
    looked = survey(path, chosen.read(path))
    source = looked.source
    geometries = [header.geometry for header in looked.headers.values()]
    return {
        "kind": "source",
        "reader": source.reader,
        "recognised_by": sign[1] if (sign := chosen.evidence(path)) else None,
        "modality": source.modality,
        "channels": list(source.channels),
        "classes": list(dict.fromkeys(source.classes.values())),
        "cases": len(source.cases),
        "patients": len({case.patient for case in source.cases}),
        "labelled": sum(case.label is not None for case in source.cases),
        "formats": sorted({header.format for header in looked.headers.values()}),
        "sizes": _range([geometry.size for geometry in geometries]),
        "spacing_mm": _range([geometry.spacing for geometry in geometries if geometry.spacing_known]),
        "refused": [{"name": name, "reason": reason} for name, reason in source.refused.items()],
        "notes": list(source.notes),
    }


def _run(path: Path) -> dict[str, Any]:
    record = read_record(path)
    last_line = deque(read_log(path), maxlen=1)
    names = (
        "finished",
        "recipe",
        "seed",
        "device",
        "store",
        "reader",
        "modality",
        "labels",
        "init",
        "steps",
        "seconds",
    )
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


def _range(values: list[tuple[Any, ...]]) -> list[list[Any]] | None:
    """Smallest and largest per axis, or None where there are none."""
    if not values:
        return None
    axes = list(zip(*values, strict=True))
    return [[min(axis) for axis in axes], [max(axis) for axis in axes]]


def _refusals(refused: list[dict[str, str]]) -> str:
    if not refused:
        return "none"
    lines = [f"{case['name']}: {case['reason']}" for case in refused[:_REFUSALS_SHOWN]]
    if len(refused) > _REFUSALS_SHOWN:
        lines.append(f"and {len(refused) - _REFUSALS_SHOWN} more")
    return "\n".join([str(len(refused)), *lines])


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
