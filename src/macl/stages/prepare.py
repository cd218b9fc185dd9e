"""Raw scans → a store of slices. Parallel over cases, the same whatever the number of processes, resumable, atomic."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import macl
from macl import plugins
from macl.config import PrepareSettings
from macl.data.store import CASES, INDEX, Refused, Store, StoredCase, StoreIndex, write_index
from macl.io.source import Source
from macl.preprocessing.case import (
    LOCK,
    MARKERS,
    Outcome,
    Task,
    earlier_outcome,
    files_fingerprint,
    leftovers,
    prepare_case,
)
from macl.preprocessing.labels import Classes, declared_classes, found_classes, label_values
from macl.preprocessing.resampling import prepared_size
from macl.preprocessing.source import Survey, recognise, survey
from macl.readers._reader import Reader
from macl.utils.errors import MaclError, listed
from macl.utils.files import held, require_disk_space
from macl.utils.parallel import available_cores, workers_for
from macl.utils.progress import progress, say

_REFUSALS_SHOWN = 20


def prepare(
    source: Path,
    store: Path,
    *,
    reader: str | None = None,
    settings: PrepareSettings = PrepareSettings(),
    workers: int | None = None,
) -> StoreIndex:
    """Turn the scans in `source` into a store; broken cases are refused with a reason and the rest goes on.

    An interrupted run is gone on with: finished cases whose files and settings are unchanged are kept.

    Args:
        source: a folder of scans.
        store: the folder to write, outside `source`.
        reader: the layout; None: the one whose signs are the most specific.
        settings: how scans become slices.
        workers: processes; None: one per core.

    Raises:
        MaclError: no scans, no or several fitting readers, `store` holds something else or is being written by another
            run, too little disk space, or not one case could be kept (then nothing is left behind).
    """
    _require_apart(source, store)
    chosen = _reader(source, reader)
    looked = survey(source, chosen.read(source), settings.keep_identity, settings.frames)
    settings = _settled(settings, looked.source)
    fingerprint = _fingerprint(looked.source, settings)
    if finished := _finished(store, fingerprint):
        say(f"{store} is already prepared: {len(finished.cases)} cases, made of the same scans with the same settings.")
        return finished
    if sign := chosen.evidence(source):
        say(f"{source} is read as {chosen.name}: {sign[1]}.")
    count = available_cores() if workers is None else workers
    classes, unusable = _classes(looked.source, count)
    cases = [case for case in looked.source.cases if case.name not in unusable]
    refused = {**looked.source.refused, **unusable}
    tasks = [Task(case, len(looked.source.channels), classes.labels, settings, store) for case in cases]
    if tasks:
        require_disk_space(store, sum(_bytes(looked, task) for task in tasks), "The store")
    with _alone(store):
        if finished := _finished(store, fingerprint):
            say(f"{store} has been prepared by another run meanwhile: {len(finished.cases)} cases.")
            return finished
        outcomes = _run(store, tasks, count)
        refused |= {outcome.name: outcome.reason for outcome in outcomes if outcome.stored is None}
        index = _index(looked.source, settings, fingerprint, classes, outcomes, refused)
        if not index.cases:
            _remove(store)
            raise MaclError(_none_kept(source, refused))
        _finish(store, index)
    _tell(store, index)
    return index


def _require_apart(source: Path, store: Path) -> None:
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise MaclError(f"{source} {what}: name a folder of scans.")
    ours, theirs = store.resolve(), source.resolve()
    if ours == theirs or ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise MaclError(f"The store {store} and the source {source} lie within each other: choose a folder apart.")


def _reader(source: Path, name: str | None) -> Reader:
    if name is not None:
        return plugins.reader(name)
    return recognise(source, plugins.readers())


def _settled(settings: PrepareSettings, source: Source) -> PrepareSettings:
    """Settings with what the reader knows in the place of what nobody asked for."""
    if settings.window and source.modality in ("MR", "photograph"):
        raise MaclError(f"--window {settings.window} is for CT, but this is {source.modality}: leave it out.")
    plane = source.plane if settings.plane == "auto" else settings.plane
    return settings.model_copy(update={"normalisation": settings.normalisation or source.normalisation, "plane": plane})


def _fingerprint(source: Source, settings: PrepareSettings) -> str:
    parts = {
        "macl": macl.__version__,
        "reader": source.reader,
        "settings": settings.model_dump(),
        "classes": list(source.classes.items()),
        "channels": source.channels,
        "cases": [files_fingerprint(case) for case in source.cases],
        "refused": dict(source.refused),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _finished(store: Path, fingerprint: str) -> StoreIndex | None:
    """The index of a store that is already there; None where there is nothing, or an unfinished one to go on with."""
    if not store.exists():
        return None
    if not store.is_dir():
        raise MaclError(f"{store} is a file: name a folder for the store.")
    if (store / INDEX).exists():
        shutil.rmtree(store / MARKERS, ignore_errors=True)
        index = Store.open(store).index
        if index.fingerprint == fingerprint:
            return index
        raise MaclError(
            f"{store} holds a store of other scans or with other settings: choose another folder or delete this one."
        )
    if any(store.iterdir()) and not (store / MARKERS).is_dir():
        raise MaclError(f"{store} already holds something that is not a store: choose another folder.")
    return None


def _classes(source: Source, workers: int) -> tuple[Classes, Mapping[str, str]]:
    """The classes as declared, or else as found in the labels; and the cases whose labels cannot be any."""
    labelled = [case for case in source.cases if case.label]
    if source.classes:
        return declared_classes(source.classes), {}
    if not labelled:
        return Classes((), {}), {}
    values: set[int] = set()
    unusable: dict[str, str] = {}
    with workers_for(len(labelled), workers) as run, progress("labels", len(labelled)) as advance:
        for index, found in run(label_values, labelled):
            if isinstance(found, str):
                unusable[labelled[index].name] = found
            else:
                values.update(found)
            advance()
    return found_classes(values), unusable


def _bytes(looked: Survey, task: Task) -> int:
    """Of a case's arrays before they are compressed, as its header announces."""
    header = looked.headers[task.case.name]
    x, y, z = header.geometry.size
    slices, rows, columns = prepared_size(header.geometry, task.settings)
    label = (slices * rows * columns + x * y * z) if task.case.label else 0
    return (
        slices * rows * columns * task.channels * (1 if header.dtype in ("uint8", "8-bit unsigned integer") else 2)
        + label
    )


def _run(store: Path, tasks: Sequence[Task], workers: int) -> list[Outcome]:
    """The outcomes in the order of the tasks; those of an earlier, interrupted run are taken over."""
    if not tasks:
        return []
    (store / CASES).mkdir(exist_ok=True)
    outcomes = {index: done for index, task in enumerate(tasks) if (done := earlier_outcome(task))}
    if outcomes:
        say(f"{store} was begun before: {len(outcomes)} of {len(tasks)} cases are finished, going on.")
    left = [index for index in range(len(tasks)) if index not in outcomes]
    with workers_for(len(left), workers) as run, progress("prepare", len(tasks), len(outcomes)) as advance:
        for index, outcome in run(prepare_case, [tasks[index] for index in left]):
            outcomes[left[index]] = outcome
            advance(note=outcome.name)
    return [outcomes[index] for index in range(len(tasks))]


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Keep other runs off a store while this one writes it."""
    busy = f"Another `macl prepare` is writing {store}: wait until it ends, or choose another folder."
    try:
        with held(store / MARKERS / LOCK, busy):
            yield
    except OSError as error:
        raise MaclError(f"{store} cannot be written ({error.strerror}): mend that and run the command again.") from None


def _index(
    source: Source,
    settings: PrepareSettings,
    fingerprint: str,
    classes: Classes,
    outcomes: Sequence[Outcome],
    refused: Mapping[str, str],
) -> StoreIndex:
    kept = tuple(outcome.stored for outcome in outcomes if outcome.stored)
    counts = Counter(note for outcome in outcomes for note in outcome.notes)
    notes = tuple(f"{count} of {len(kept)} cases: {note}." for note, count in sorted(counts.items()))
    labelled = any(case.labelled for case in kept)
    return StoreIndex(
        reader=source.reader,
        modality=source.modality,
        channels=source.channels,
        classes=classes.names if labelled else (),
        label_values=classes.values if labelled else (),
        prepared=settings,
        cases=kept,
        refused=tuple(Refused(name=name, reason=reason) for name, reason in sorted(refused.items())),
        notes=(*source.notes, *(classes.notes if labelled else ()), *notes, *_same_images(kept)),
        macl_version=macl.__version__,
        fingerprint=fingerprint,
    )


def _same_images(cases: Iterable[StoredCase]) -> tuple[str, ...]:
    """A sentence about images that several patients share, or none."""
    holders: dict[str, list[StoredCase]] = {}
    for case in cases:
        holders.setdefault(case.arrays["image"].sha256, []).append(case)
    shared = [" = ".join(case.name for case in same) for same in holders.values() if len({c.patient for c in same}) > 1]
    if not shared:
        return ()
    return (
        f"Images that several patients share: {len(shared)} ({listed(shared)}). Where a split parts them, those "
        "outside its test are not trained on: better remove one of each.",
    )


def _finish(store: Path, index: StoreIndex) -> None:
    """From here on it is a store; what only served to go on after a kill is removed."""
    kept = {array.file for case in index.cases for array in case.arrays.values()}
    for path in leftovers(store, kept):
        path.unlink()
    write_index(store, index)
    shutil.rmtree(store / MARKERS, ignore_errors=True)


def _remove(store: Path) -> None:
    """Take back what this stage wrote."""
    for name in (MARKERS, CASES):
        shutil.rmtree(store / name, ignore_errors=True)
    if store.is_dir() and not any(store.iterdir()):
        store.rmdir()


def _none_kept(source: Path, refused: Mapping[str, str]) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(refused.items())[:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    return f"No case in {source} could be kept, so no store was written ({shown}{more})."


def _tell(store: Path, index: StoreIndex) -> None:
    for note in index.notes:
        say(f"note: {note}")
    for case in index.refused[:_REFUSALS_SHOWN]:
        say(f"refused: {case.name}: {case.reason}")
    if len(index.refused) > _REFUSALS_SHOWN:
        say(f"refused: {len(index.refused) - _REFUSALS_SHOWN} more, all listed in {store / INDEX}")
    patients = len({case.patient for case in index.cases})
    labelled = sum(case.labelled for case in index.cases)
    slices = sum(case.slices for case in index.cases)
    say(
        f"{store}: {len(index.cases)} cases of {patients} patients ({labelled} labelled, {slices} slices), "
        f"{len(index.refused)} refused; read as {index.reader}, {index.modality}."
    )
