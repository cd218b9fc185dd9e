"""Raw scans → a store. Resumes an unfinished store; any number of workers writes the same one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import macl
from macl import plugins
from macl.config.mistakes import validate
from macl.config.settings import PrepareSettings
from macl.data.store import CASES, Store
from macl.data.store_index import INDEX, Refused, StoredCase, StoreIndex, write_index
from macl.io.deidentification import Pseudonyms
from macl.io.source import Source
from macl.preprocessing.case import (
    LOCK,
    MARKERS,
    CaseJob,
    PreparedCase,
    files_fingerprint,
    finished_earlier,
    prepare_case,
    unreferenced_arrays,
)
from macl.preprocessing.findings import TOO_LARGE, classes_of, examine_all, examine_label
from macl.preprocessing.fingerprint import fingerprint_source
from macl.preprocessing.labels import Classes
from macl.preprocessing.planned import planned_size
from macl.preprocessing.plans import read_scan_plan
from macl.preprocessing.resampling import is_feasible, prepared_size
from macl.preprocessing.source import SourceScan, recognise, scan_source
from macl.preprocessing.statements import with_statements
from macl.utils.errors import MaclError, listed
from macl.utils.files import AnyPath, file_lock, refuse_links, require_disk_space
from macl.utils.parallel import available_cores, workers_for
from macl.utils.progress import progress, say, warn
from macl.utils.text import counted

_REFUSALS_SHOWN = 20


def prepare(
    source: AnyPath,
    store: AnyPath,
    *,
    reader: str | None = None,
    settings: PrepareSettings = PrepareSettings(),
    patients: str | None = None,
    labels: AnyPath | None = None,
    workers: int | None = None,
    plans: AnyPath | None = None,
    configuration: str = "3d_fullres",
    **changes: Any,
) -> StoreIndex:
    """Turn the scans in `source` into a store, leaving out broken cases with a reason.

    Resumes an interrupted run: keeps finished cases whose files and settings are unchanged.

    Args:
        source: a folder of scans.
        store: the folder to write, outside `source`.
        reader: the layout; None: the one with the strongest evidence.
        settings: how scans are oriented, resampled and normalised.
        patients, labels: who was scanned and where labels are, if the layout does not say; see
            `macl.preprocessing.statements`.
        workers: processes; None: one per core.
        plans: an `nnUNetPlans.json` that says how scans are prepared, in place of what `settings`
            says of that; None: there is none.
        configuration: of the plans.
        changes: settings by their names, such as spacing_mm=1.25, over `settings`.

    Raises:
        MaclError: no scans; no reader fits, or several do; `store` holds something else or is being
            written by another run; too little disk space; settings that do not fit the scans; or
            not one case could be kept (then nothing is left behind).
    """
    source, store = Path(source), Path(store)
    settings = validate(PrepareSettings, {**settings.model_dump(), **changes})
    _require_apart(source, store)
    workers = available_cores() if workers is None else workers
    layout = recognise(source, plugins.readers()) if reader is None else plugins.reader(reader)
    listing = with_statements(layout.read(source), patients, Path(labels) if labels else None)
    pseudonyms = Pseudonyms(store)
    scan = scan_source(
        source, listing, settings.keep_identity, settings.frames, pseudonyms, shared=True
    )
    if plans is not None:
        plan = read_scan_plan(Path(plans), configuration, scan.source.channels)
        settings = validate(PrepareSettings, {**settings.model_dump(), "plan": plan})
    settings = _resolve(settings, scan)
    checksum = _checksum(scan.source, settings)
    if finished := _finished(store, checksum):
        say(
            f"{store} is already prepared: {len(finished.cases)} cases, made of the same scans "
            "with the same settings."
        )
        return finished
    if evidence := layout.evidence(source):
        say(f"{source} is read as {layout.name} ({evidence[1]}).")
    classes, scan = _read_classes(scan, workers)
    jobs = [
        CaseJob(case, len(scan.source.channels), classes.labels, settings, store)
        for case in scan.source.cases
    ]
    if jobs:
        require_disk_space(store, _uncompressed_bytes(scan, settings), "The store")
    with _exclusive(store):
        if finished := _finished(store, checksum):
            say(f"{store} was prepared by another run meanwhile: {len(finished.cases)} cases.")
            return finished
        pseudonyms.save()
        prepared = _prepare_all(store, jobs, workers)
        scan = scan.without({case.name: case.reason for case in prepared if case.stored is None})
        index = _index(scan.source, settings, checksum, classes, prepared)
        if not index.cases:
            _remove(store)
            pseudonyms.discard()
            raise MaclError(_none_kept(source, scan.source.refused))
        _finish(store, index)
    _report(store, index, labels)
    return index


# ---------------------------------------------------------------- before the first case


def _require_apart(source: Path, store: Path) -> None:
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise MaclError(f"{source} {what}: name a folder of scans.")
    ours, theirs = store.resolve(), source.resolve()
    if ours == theirs or ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise MaclError(
            f"The store {store} and the source {source} lie within each other: choose a folder "
            "outside."
        )


def _resolve(settings: PrepareSettings, scan: SourceScan) -> PrepareSettings:
    """Fill in what the reader knows and nobody has asked for, and the numbers of a median."""
    source = scan.source
    if settings.plan:
        say(f"The scans are prepared as {settings.plan}.")
        return settings.model_copy(update={"normalisation": "planned"})
    if settings.window and source.modality in ("MR", "photograph"):
        raise MaclError(
            f"--window {settings.window} is for CT, but this is {source.modality}: leave it out."
        )
    plane = source.plane if settings.plane == "auto" else settings.plane
    spacing_mm = settings.spacing_mm
    if spacing_mm == "median":
        spacing_mm = fingerprint_source(scan, plane).target_spacing_mm()
        if spacing_mm is None:
            raise MaclError(
                "--spacing-mm median takes the spacing from the scans, but no file here gives one: "
                "leave it out."
            )
        say(f"Median spacing: {' × '.join(f'{mm:.4g}' for mm in spacing_mm)} mm (z, y, x).")
    resolved = {
        "normalisation": settings.normalisation or source.normalisation,
        "plane": plane,
        "spacing_mm": spacing_mm,
    }
    return settings.model_copy(update=resolved)


def _checksum(source: Source, settings: PrepareSettings) -> str:
    """A hash of the settings and of the source's files."""
    depends_on = {
        "macl": macl.__version__,
        "reader": source.reader,
        "settings": settings.model_dump(),
        "classes": list(source.classes.items()),
        "channels": source.channels,
        "cases": [files_fingerprint(case) for case in source.cases],
        "refused": dict(source.refused),
    }
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def _finished(store: Path, checksum: str) -> StoreIndex | None:
    """The index of a finished store; None: there is nothing yet, or an unfinished store."""
    if not store.exists():
        return None
    if not store.is_dir():
        raise MaclError(f"{store} is a file: name a folder for the store.")
    refuse_links(store, (MARKERS, CASES, INDEX))
    if (store / INDEX).exists():
        shutil.rmtree(store / MARKERS, ignore_errors=True)
        index = Store.open(store).index
        if index.fingerprint == checksum:
            return index
        if index.macl_version != macl.__version__:
            raise MaclError(
                f"{store} was prepared by macl {index.macl_version}, and this is "
                f"{macl.__version__}: use it as it is, or choose another folder to prepare again."
            )
        raise MaclError(
            f"{store} holds a store of other scans or with other settings: choose another folder "
            "or delete this one."
        )
    if any(store.iterdir()) and not (store / MARKERS).is_dir():
        raise MaclError(
            f"{store} already holds something that is not a store: choose another folder."
        )
    return None


def _read_classes(scan: SourceScan, workers: int) -> tuple[Classes, SourceScan]:
    """The classes; undeclared ones from the labels, without the cases whose label is unusable."""
    labelled = [case for case in scan.source.cases if case.label]
    if scan.source.classes or not labelled:
        return classes_of(scan.source, ()), scan
    findings = examine_all(examine_label, labelled, workers, "labels")
    unusable = {finding.name: finding.reason for finding in findings if finding.reason}
    return classes_of(scan.source, findings), scan.without(unusable)


def _uncompressed_bytes(scan: SourceScan, settings: PrepareSettings) -> int:
    """Bytes of all arrays before compression, as headers announce them."""
    channels = len(scan.source.channels)
    total = 0
    for case in fingerprint_source(scan, settings.plane).cases:
        header = scan.headers[case.name]
        if settings.plan:
            size = planned_size(header.geometry, settings.plan)
            voxel_bytes = 4
        else:
            size = prepared_size(case.size, case.spacing_mm, settings.spacing_mm)
            one_byte = header.dtype in ("uint8", "8-bit unsigned integer")
            voxel_bytes = 1 if one_byte else 2
        if not is_feasible(size):  # preparing it will say so
            continue
        voxels = prod(size)
        label_and_truth = voxels + prod(case.size) if case.labelled else 0
        total += voxels * channels * voxel_bytes + label_and_truth
    return total


# ---------------------------------------------------------------- the cases


@contextmanager
def _exclusive(store: Path) -> Iterator[None]:
    """Keep other runs from writing the same store."""
    busy = (
        f"Another `macl prepare` is writing {store}: wait until it ends, or choose another folder."
    )
    try:
        with file_lock(store / MARKERS / LOCK, busy):
            yield
    except OSError as error:
        raise MaclError(
            f"{store} cannot be written ({error.strerror}): correct that and run the command again."
        ) from None


def _prepare_all(store: Path, jobs: Sequence[CaseJob], workers: int) -> list[PreparedCase]:
    """Prepare the cases that an interrupted run has not finished; all cases, in their order."""
    if not jobs:
        return []
    (store / CASES).mkdir(exist_ok=True)
    finished = {index: case for index, job in enumerate(jobs) if (case := finished_earlier(job))}
    if finished:
        say(f"Resuming {store}: {len(finished)} of {len(jobs)} cases are finished.")
    left = [index for index in range(len(jobs)) if index not in finished]
    total, done = len(jobs), len(finished)
    with workers_for(len(left), workers) as run, progress("prepare", total, done) as advance:
        for index, prepared in run(prepare_case, [jobs[index] for index in left]):
            finished[left[index]] = prepared
            advance(note=prepared.name)
    too_large = [index for index in left if finished[index].reason == TOO_LARGE]
    if too_large and workers > 1:
        say(f"Out of memory in {counted(len(too_large), 'case')}: once more, one after another.")
        finished |= {index: prepare_case(jobs[index]) for index in too_large}
    return [finished[index] for index in range(len(jobs))]


# ---------------------------------------------------------------- the index


def _index(
    source: Source,
    settings: PrepareSettings,
    checksum: str,
    classes: Classes,
    prepared: Sequence[PreparedCase],
) -> StoreIndex:
    cases = tuple(case.stored for case in prepared if case.stored)
    counts = Counter(note for case in prepared for note in case.notes)
    notes = [f"{count} of {len(cases)} cases: {note}." for note, count in sorted(counts.items())]
    labelled = any(case.labelled for case in cases)
    return StoreIndex(
        reader=source.reader,
        modality=source.modality,
        channels=source.channels,
        classes=classes.names if labelled else (),
        label_values=classes.values if labelled else (),
        prepared=settings,
        cases=cases,
        refused=tuple(Refused(name=name, reason=why) for name, why in source.refused.items()),
        notes=(
            *source.notes,
            *(classes.notes if labelled else ()),
            *notes,
            *_shared_images_note(cases),
        ),
        macl_version=macl.__version__,
        fingerprint=checksum,
    )


def _shared_images_note(cases: Iterable[StoredCase]) -> tuple[str, ...]:
    """A note about images that occur under several patients, if there are any."""
    by_image: dict[str, list[StoredCase]] = {}
    for case in cases:
        by_image.setdefault(case.arrays["image"].sha256, []).append(case)
    shared = [
        " = ".join(case.name for case in same)
        for same in by_image.values()
        if len({case.patient for case in same}) > 1
    ]
    if not shared:
        return ()
    return (
        f"Images that several patients share: {len(shared)} ({listed(shared)}). If a split parts "
        "them, those outside its test set are not trained on: better remove one of each.",
    )


def _finish(store: Path, index: StoreIndex) -> None:
    """Write the index, which makes the folder a store; remove what only a resume needs."""
    kept = {array.file for case in index.cases for array in case.arrays.values()}
    for path in unreferenced_arrays(store, kept):
        path.unlink()
    write_index(store, index)
    shutil.rmtree(store / MARKERS, ignore_errors=True)


def _remove(store: Path) -> None:
    """Remove what this stage wrote."""
    for path in unreferenced_arrays(store, set()):
        path.unlink()
    shutil.rmtree(store / MARKERS, ignore_errors=True)
    for folder in (store / CASES, store):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _none_kept(source: Path, refused: Mapping[str, str]) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in [*refused.items()][:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    return f"No case in {source} could be kept, so no store was written ({shown}{more})."


def _report(store: Path, index: StoreIndex, labels: AnyPath | None) -> None:
    for note in index.notes:
        warn(f"note: {note}")
    for case in index.refused[:_REFUSALS_SHOWN]:
        warn(f"refused: {case.name}: {case.reason}")
    if len(index.refused) > _REFUSALS_SHOWN:
        more = len(index.refused) - _REFUSALS_SHOWN
        warn(f"refused: {more} more, all listed in {store / INDEX}")
    patients = len({case.patient for case in index.cases})
    labelled = sum(case.labelled for case in index.cases)
    if labels is not None and not labelled:
        warn(f"None of the labels in {labels} could be used: see what is refused above.")
    slices = sum(case.slices for case in index.cases)
    say(
        f"{store}: {counted(len(index.cases), 'case')} of {counted(patients, 'patient')} "
        f"({labelled} labelled, {counted(slices, 'slice')}), {len(index.refused)} refused; read as "
        f"{index.reader}, {index.modality}."
    )
