"""Is a store or a run still as it was written? Everything in it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from macl.config.mistakes import validate
from macl.config.settings import FinetuneSettings, PretrainSettings
from macl.data.store import CASES, Store, content_sha256
from macl.data.store_index import INDEX, ArrayKind
from macl.records.runs import (
    LOG,
    RECORD,
    STATE,
    TRANSFER,
    WEIGHTS,
    RunRecord,
    identity,
    read_log,
    read_record,
    read_weights,
)
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, read_json
from macl.utils.progress import progress, say, warn


def check(path: AnyPath) -> str:
    """Read all of a store or of a run and compare it with its checksums.

    Returns:
        What was checked, in words.

    Raises:
        MaclError: it is neither, or something in it is missing, broken or changed; each such thing
            is printed.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        problems, checked = _check_store(path)
    elif (path / RECORD).is_file():
        problems, checked = _check_run(path)
    else:
        what = "is neither a finished store nor a run" if path.exists() else "does not exist"
        raise MaclError(f"{path} {what}: check the path.")
    for problem in problems:
        warn(problem)
    if problems:
        things = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
        raise MaclError(f"{things} wrong in {path}, as printed above: restore or remake what is.")
    return checked


def _check_store(path: Path) -> tuple[list[str], str]:
    store = Store.open(path)
    problems: list[str] = []
    arrays: list[tuple[str, ArrayKind]]
    arrays = [(case.name, kind) for case in store.index.cases for kind in case.arrays]
    with progress("check", len(arrays)) as advance:
        for case, kind in arrays:
            problems += _check_array(store, case, kind)
            advance(note=case)
    named = {array.file for case in store.index.cases for array in case.arrays.values()}
    found = {file.relative_to(path).as_posix() for file in (path / CASES).glob("*")}
    problems += [f"{path / file} does not belong to the store." for file in sorted(found - named)]
    return problems, f"{len(arrays)} arrays of {len(store.index.cases)} cases"


def _check_array(store: Store, case: str, kind: ArrayKind) -> Iterator[str]:
    where = f"The {kind} of the case {case!r}"
    entry = store.case(case).arrays[kind]
    try:
        array = store.read(case, kind)
    except MaclError as error:
        yield str(error)
        return
    if content_sha256(np.ascontiguousarray(array)) != entry.sha256:
        yield f"{where} has changed since it was written."
    if kind == "image" and not np.isfinite(array).all():
        yield f"{where} holds values that are not finite."
    if kind != "image" and array.max() >= len(store.index.classes):
        yield f"{where} holds {array.max()}, which is no class."


def _check_run(path: Path) -> tuple[list[str], str]:
    record = read_record(path)
    problems = [*_check_tensors(path, record), *_check_log(path, record)]
    try:
        validate(
            PretrainSettings if record.kind == "pretrain" else FinetuneSettings, record.settings
        )
        if (path / TRANSFER).is_file():
            read_json(path / TRANSFER, "what became of the initial weights")
    except MaclError as error:
        problems.append(str(error))
    return problems, f"its {'weights' if record.finished else 'state'}, record and log"


def _check_tensors(path: Path, record: RunRecord) -> Iterator[str]:
    try:
        if record.finished:
            read_weights(path, record)
        elif (path / STATE).is_file():
            saved = checkpoint.read(path / STATE)
            if saved.about.get("run", identity(path)) != identity(path):
                yield f"{path / STATE} is the state of another run, or {RECORD} has changed."
    except MaclError as error:
        yield str(error)
    if not record.finished and (path / WEIGHTS).is_file():
        say(f"{path} was stopped between its last step and its end: resume it.")


def _check_log(path: Path, record: RunRecord) -> Iterator[str]:
    steps = [line["step"] for line in read_log(path)]
    if (path / LOG).is_file() and len(steps) < (path / LOG).read_bytes().count(b"\n"):
        yield f"{path / LOG} holds broken lines."
    if steps != list(range(1, len(steps) + 1)) or (record.finished and len(steps) != record.steps):
        yield f"{path / LOG} lacks steps, or has some twice."
