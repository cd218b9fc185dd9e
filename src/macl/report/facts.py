"""What is known about a run, read from its folder; whatever is missing is named with the command that makes it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from macl.data.store import Store
from macl.metrics import Convention, Outcome
from macl.records.runs import CASES, PREDICTIONS, TRANSFER, RunRecord, read_log, read_record
from macl.records.scores import Row, read_rows, summarise
from macl.utils.errors import MaclError
from macl.utils.files import read_json

T = TypeVar("T")

NAMED_WEIGHTS = re.compile(r" \([0-9a-f]{12}\)$")
"""What fine-tuning adds to the path of its initial weights."""


@dataclass(frozen=True)
class Missing:
    """Something a page would show, why it is not there, and the command that would make it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Spread:
    """A mean, its standard deviation (n − 1) and what it was taken over; None where undefined."""

    mean: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Scores:
    """What `macl evaluate` found for one run.

    Attributes:
        rows: one per case and class, in the table's order.
        summary: their means, as `macl.records.scores.summarise` gives them.
    """

    rows: tuple[Row, ...]
    summary: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the table's order."""
        return tuple(one["class"] for one in self.summary["classes"])

    @property
    def convention(self) -> Convention:
        """How it was scored."""
        return self.summary["convention"]

    @property
    def unit(self) -> str:
        """The unit of the distances."""
        return self.summary["unit"]

    @property
    def cases(self) -> int:
        """How many cases were scored."""
        return self.summary["cases"]

    def spread(self, measure: str, class_name: str) -> Spread:
        """One class's measure over the cases (over slices or pooled by the paper's convention)."""
        return _spread(next(one for one in self.summary["classes"] if one["class"] == class_name)[measure])

    def mean(self, measure: str) -> Spread:
        """The mean over the classes."""
        return _spread(self.summary["mean"][measure])

    def dice_by_case(self) -> dict[str, float]:
        """Case → mean Dice over the classes for which it is defined there."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if not math.isnan(row.dice):
                found.setdefault(row.case, []).append(row.dice)
        return {case: sum(values) / len(values) for case, values in found.items()}

    def count(self, outcome: Outcome, class_name: str | None = None) -> int:
        """How many rows had this outcome."""
        return sum(row.outcome == outcome and class_name in (None, row.class_name) for row in self.rows)


@dataclass(frozen=True)
class Run:
    """Everything found in a run's folder.

    Attributes:
        path: the folder, as the user gave it.
        record: `run.json`.
        start: fine-tuning: "scratch", or the method of the pre-training it started from, or the file's name.
        log: column → (step, value) pairs in order.
        transfer: `transfer.json`, None where there is none.
        scores: None where the run has not been evaluated.
        store: None where the store it was trained on is not there any more, or is another one now.
        missing: what could not be shown.
    """

    path: Path
    record: RunRecord
    start: str
    log: Mapping[str, list[tuple[int, float]]]
    transfer: Mapping[str, Any] | None
    scores: Scores | None
    store: Store | None
    missing: tuple[Missing, ...]

    @property
    def title(self) -> str:
        """What tells this run from others: its task, start, labels and recipe."""
        if self.record.kind == "pretrain":
            return f"Pre-training with {self.record.settings.get('method', 'an unnamed method')}"
        return f"From {self.start}, {self.record.labels} labelled"

    @property
    def predictions(self) -> Path:
        """Where the run's masks of its test cases lie."""
        return self.path / PREDICTIONS


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        MaclError: it is not a run.
    """
    record = read_record(path)
    missing: list[Missing] = []
    if not record.finished:
        missing.append(
            Missing("The run is not finished: what follows is its present state.", _resume_command(path, record))
        )
    store, trouble = _open_store(record)
    if trouble:
        missing.append(trouble)
    log = read_columns(path)
    if not log:
        missing.append(Missing("There is no log yet, so no curves are drawn."))
    transfer = _if_there(path / TRANSFER, lambda file: read_json(file, "a transfer table"), missing)
    scores = _if_there(path / CASES, read_scores, missing)
    if record.kind == "finetune":
        missing += _missing_results(path, record, transfer, scores)
    return Run(path, record, _start(record), log, transfer, scores, store, tuple(missing))


def read_columns(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The log's numbers by column: (step, value) in the order of the steps."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for line in read_log(path):
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append((int(line["step"]), float(value)))
    return columns


def read_scores(table: Path) -> Scores:
    """The table that `macl evaluate` wrote, and its means: from the summary beside it, or taken again.

    Raises:
        MaclError: the table or the summary is broken, or the table has no rows.
    """
    rows = read_rows(table)
    if not rows:
        raise MaclError(f"{table} should be a table that `macl evaluate` wrote, but cannot be read (it has no rows).")
    beside = table.with_name(f"{table.stem}.summary.json")
    summary = read_json(beside, "an evaluation's summary") if beside.is_file() else {}
    if (summary.get("format"), summary.get("version")) == ("macl-summary", 1):
        return Scores(tuple(rows), summary)
    return Scores(tuple(rows), summarise(rows, "paper" if any(row.unit == "pixel" for row in rows) else "strict"))


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, as `--set` takes them."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _spread(measured: Mapping[str, Any]) -> Spread:
    return Spread(measured["mean"], measured["sd"], measured["n"])


def _if_there(file: Path, read: Callable[[Path], T], missing: list[Missing]) -> T | None:
    """What a file holds; None where there is none, or where it is broken, which is said."""
    if not file.is_file():
        return None
    try:
        return read(file)
    except MaclError as error:
        missing.append(Missing(str(error)))
        return None


def _open_store(record: RunRecord) -> tuple[Store | None, Missing | None]:
    try:
        store = Store.open(Path(record.store))
    except MaclError:
        return None, Missing(
            f"The store {record.store} is not there any more, so cases are not described and no overlays are drawn.",
            f"macl prepare SOURCE {shlex.quote(record.store)}",
        )
    if store.checksum != record.store_checksum:
        return None, Missing(
            f"The store {record.store} is not the one this run was trained on, so no overlays are drawn."
        )
    return store, None


def _start(record: RunRecord) -> str:
    if record.init in (None, "scratch"):
        return "scratch"
    path = Path(NAMED_WEIGHTS.sub("", record.init))
    try:
        return str(read_record(path).settings.get("method", path.name))
    except MaclError:
        return path.name


def _missing_results(
    path: Path, record: RunRecord, transfer: Mapping[str, Any] | None, scores: Scores | None
) -> list[Missing]:
    run, store, masks = (shlex.quote(str(name)) for name in (path, record.store, path / PREDICTIONS))
    missing = []
    if transfer is None:
        missing.append(Missing("There is no table of what was transferred (it is written when fine-tuning starts)."))
    if not (path / PREDICTIONS).is_dir():
        missing.append(Missing("The test cases have not been segmented.", f"macl predict {run} {store} --out {masks}"))
    if scores is None:
        table = shlex.quote(str(path / CASES))
        missing.append(Missing("The run has not been evaluated.", f"macl evaluate {masks} {store} --out {table}"))
    return missing


def _resume_command(path: Path, record: RunRecord) -> str:
    words = ["macl", record.kind, record.store, "--out", str(path)]
    if record.kind == "finetune":
        words += [
            "--init",
            NAMED_WEIGHTS.sub("", record.init or "scratch"),
            "--split",
            "SPLIT",
            "--labels",
            record.labels or "LABELS",
        ]
    return shlex.join([*words, "--resume"]) + "   # and the options it was started with"
