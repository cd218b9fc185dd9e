"""A run on disk: what `run.json` says, where its files lie, and the guard of its folder.

A run's folder holds `run.json` (this record), `log.jsonl` (one line a step), `weights.safetensors`, while it goes on
`state.safetensors` (everything an exact resume needs), for fine-tuning `transfer.json`, and, once the later stages were
pointed there, `predictions/`, `cases.csv` and `report.html`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import macl
from macl.config import PrepareSettings, Settings, validate
from macl.data.store import Store
from macl.utils.errors import MaclError, listed
from macl.utils.files import ASIDE, clear_unfinished, read_json, write_text

RECORD = "run.json"
LOG = "log.jsonl"
WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
TRANSFER = "transfer.json"
PREDICTIONS = "predictions"
CASES = "cases.csv"

Kind = Literal["pretrain", "finetune"]


class RunRecord(Settings):
    """What `run.json` holds."""

    format: Literal["macl-run"] = "macl-run"
    version: Literal[1] = 1
    kind: Kind
    finished: bool = False
    settings: dict[str, Any] = Field(description="resolved PretrainSettings or FinetuneSettings")
    recipe: str = ""
    seed: int
    device: str
    versions: dict[str, str]
    store: str = Field(description="the store's folder, as the user gave it")
    store_checksum: str
    reader: str
    modality: str
    prepared: PrepareSettings
    channels: tuple[str, ...]
    classes: tuple[str, ...] = ()
    label_values: tuple[int, ...] = ()
    split: dict[str, Any] | None = Field(default=None, description="the split file's contents")
    labels: str | None = Field(default=None, description="the label budget's name")
    people: tuple[str, ...] = Field(default=(), description="groups of the split whose scans were trained on")
    patients: tuple[str, ...] = Field(default=(), description="patients whose scans were trained on")
    cases: tuple[str, ...] = Field(default=(), description="cases that were trained on")
    validation_cases: tuple[str, ...] = ()
    test_cases: tuple[str, ...] = Field(
        default=(), description="cases of the split's test people; nothing here saw them"
    )
    init: str | None = Field(default=None, description="fine-tuning: 'scratch', or the run or file it started from")
    init_patients: tuple[str, ...] = Field(default=(), description="patients seen in the pre-training it started from")
    overlap_allowed: bool = False
    mirror_axes: tuple[Literal["row", "column"], ...] = ()
    steps: int = 0
    seconds: float = Field(default=0.0, description="spent in the loop, over all resumptions")


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    return {
        "python": platform.python_version(),
        "macl": macl.__version__,
        **{name: version(name) for name in ("torch", "lightning-fabric", "numpy", "blosc2")},
    }


def about_store(store: Store, folder: Path) -> dict[str, Any]:
    """What a record says of the store it was trained on, as fields of `RunRecord`."""
    index = store.index
    return {
        "store": str(folder), "store_checksum": store.checksum, "reader": index.reader, "modality": index.modality,
        "prepared": index.prepared, "channels": index.channels, "classes": index.classes,
        "label_values": index.label_values,
    }  # fmt: skip


def patients_of(store: Store, cases: Iterable[str]) -> tuple[str, ...]:
    """The patients of some cases, sorted."""
    return tuple(sorted({store.case(name).patient for name in cases}))


def read_record(run: Path) -> RunRecord:
    """The record of the run in a folder.

    Raises:
        MaclError: there is no run there, or it was written by another version.
    """
    if not (run / RECORD).is_file():
        what = "is not a run" if run.exists() else "does not exist"
        raise MaclError(f"{run} {what}: name a folder that `macl pretrain` or `macl finetune` has written.")
    raw = read_json(run / RECORD, "a run's record")
    if raw.get("format") != "macl-run" or raw.get("version") != 1:
        raise MaclError(f"{run / RECORD} is not a record of this version of macl: train again.")
    return validate(RunRecord, raw, where=RECORD)


def write_record(run: Path, record: RunRecord) -> None:
    """Write `run.json` atomically."""
    write_text(run / RECORD, record.model_dump_json(indent=1) + "\n")


def open_run(run: Path, record: RunRecord, resume: bool) -> RunRecord:
    """Start a run in a folder, or go on with the one that is there.

    Returns:
        The record to go on with: `record`, or the earlier run's own where it is resumed.

    Raises:
        MaclError: the folder holds something else, a run that is not to be resumed, or one with other settings.
    """
    if not run.exists() or (run.is_dir() and all(item.name.startswith(ASIDE) for item in run.iterdir())):
        run.mkdir(parents=True, exist_ok=True)
        clear_unfinished(run)
        write_record(run, record)
        return record
    if not (run / RECORD).is_file():
        raise MaclError(f"--out {run} already holds something that is not a run: choose another folder.")
    earlier = read_record(run)
    if not resume:
        raise MaclError(f"--out {run} already holds a run: add --resume to go on with it, or choose another folder.")
    free = {"finished", "device", "versions", "store", "steps", "seconds"}
    before, now = earlier.model_dump(exclude=free), record.model_dump(exclude=free)
    changed = sorted(_leaves(before).items() ^ _leaves(now).items())
    if changed:
        names = listed(sorted({name for name, _ in changed}))
        raise MaclError(
            f"The run in {run} was started with other settings ({names}): "
            "resume with the same ones, or choose another --out."
        )
    clear_unfinished(run)
    return earlier


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: v for name, part in value.items() for k, v in _leaves(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): json.dumps(value)}


def read_log(run: Path) -> Iterator[dict[str, Any]]:
    """The log's lines in order; a last line cut off by a kill is passed over."""
    if not (run / LOG).is_file():
        return
    with (run / LOG).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
