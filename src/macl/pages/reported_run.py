"""A run as the report sees it: what its folder holds, and the commands that make the rest."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from macl.data.store import Store
from macl.metrics import Convention, MaskOutcome
from macl.records.runs import (
    PREDICTIONS,
    SCORES,
    TRANSFER,
    WEIGHTS_DIGEST,
    RunRecord,
    read_log,
    read_record,
)
from macl.records.scores import ScoreRow, convention_of, read_test_rows, summarise
from macl.utils.errors import MaclError, listed
from macl.utils.files import read_json
from macl.utils.text import format_size

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """Something the page cannot show: why, and the command that makes it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Spread:
    """A mean, its standard deviation (n − 1) and the number of values; None where undefined."""

    mean: float | None
    deviation: float | None
    n: int


@dataclass(frozen=True)
class RunScores:
    """What `macl evaluate` measured for one run.

    Attributes:
        rows: one per case and class, in the table's order.
        summary: their means, as `macl.records.scores.summarise` returns them.
    """

    rows: tuple[ScoreRow, ...]
    summary: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the table's order."""
        return tuple(row["class"] for row in self.summary["classes"])

    @property
    def convention(self) -> Convention:
        """The convention by which the masks were scored."""
        return self.summary["convention"]

    @property
    def unit(self) -> str:
        """The unit of the distances."""
        return self.summary["unit"]

    @property
    def cases(self) -> int:
        """Number of scored cases."""
        return self.summary["cases"]

    def spread(self, measure: str, class_name: str) -> Spread:
        """One class's measure over the cases (paper convention: over slices, or pooled)."""
        classes = self.summary["classes"]
        return _spread(next(row for row in classes if row["class"] == class_name)[measure])

    def mean(self, measure: str) -> Spread:
        """The mean over the classes."""
        return _spread(self.summary["mean"][measure])

    def dice_by_case(self) -> dict[str, float]:
        """Case → mean Dice over the classes for which the case has one."""
        values: dict[str, list[float]] = {}
        for row in self.rows:
            if not math.isnan(row.dice):
                values.setdefault(row.case, []).append(row.dice)
        return {case: sum(dice) / len(dice) for case, dice in values.items()}

    def of_lowest(self, most: int) -> tuple[ScoreRow, ...]:
        """The rows of the `most` cases with the lowest mean Dice, in the table's order."""
        means = self.dice_by_case()
        cases = dict.fromkeys(row.case for row in self.rows)
        kept = {*sorted(cases, key=lambda case: means.get(case, 1.0))[:most]}
        return tuple(row for row in self.rows if row.case in kept)

    def count(self, outcome: MaskOutcome, class_name: str | None = None) -> int:
        """Number of cases with this outcome, of one class or of all."""
        return sum(
            row.outcome == outcome and class_name in (None, row.class_name) for row in self.rows
        )


@dataclass(frozen=True)
class ReportedRun:
    """The contents of a run's folder.

    Attributes:
        path: the folder, as the user gave it.
        record: `run.json`.
        start: fine-tuning: "scratch", the method of the pre-training it started from, or the name
            of the weights file.
        log: column → (step, value) pairs in order.
        transfer: `transfer.json`; None where there is none.
        scores: None where the run has not been evaluated.
        store: the store it was trained on; None where that is gone or has changed.
        missing: what the page cannot show.
    """

    path: Path
    record: RunRecord
    start: str
    log: Mapping[str, list[tuple[int, float]]]
    transfer: Mapping[str, Any] | None
    scores: RunScores | None
    store: Store | None
    missing: tuple[Missing, ...]

    @property
    def dims(self) -> int:
        """2 for a run on slices, 3 for one on volumes."""
        return self.record.settings.get("dims", 2)

    @property
    def patch(self) -> str:
        """The sides of a patch, such as "40 × 56 × 40"; empty where the record has none."""
        size = self.record.settings.get("training", {}).get("size")
        if size is None:
            return ""
        return format_size([size] * self.dims if isinstance(size, int) else size)

    @property
    def backbone(self) -> str:
        """The network in words, such as "unet of width 32"."""
        settings = self.record.settings
        width = (settings.get("backbone_settings") or {}).get("width")
        return settings.get("backbone", "") + (f" of width {width}" if width else "")

    @property
    def network(self) -> str:
        """The backbone and its settings, to compare runs."""
        settings = self.record.settings
        return json.dumps([settings.get("backbone"), settings.get("backbone_settings")])

    @property
    def predictions(self) -> Path:
        """The folder of the run's masks of its test cases."""
        return self.path / PREDICTIONS

    def mask(self, case: str) -> Path:
        """The file of the run's mask of a test case."""
        return self.predictions / f"{case}.nii.gz"


def read_run(path: Path) -> ReportedRun:
    """Read a run's folder.

    Raises:
        MaclError: it is not a run.
    """
    record = read_record(path)
    missing: list[Missing] = []
    if not record.finished:
        sentence = "The run is not finished: this is its present state."
        missing.append(Missing(sentence, _resume_command(path, record)))
    store, problem = _open_store(record)
    if problem:
        missing.append(problem)
    log = read_columns(path)
    if not log:
        missing.append(Missing("There is no log yet, so no curves are drawn."))
    transfer = _read_optional(path / TRANSFER, _read_transfer, missing)
    scores = _read_optional(
        path / SCORES, lambda _: _read_test_scores(path, record, missing), missing
    )
    if record.is_segmenter:
        missing += _missing_results(path, record, transfer, scores)
    return ReportedRun(path, record, _start(record), log, transfer, scores, store, tuple(missing))


def read_columns(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The log's finite numbers by column: (step, value) in the order of the steps."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for line in read_log(path):
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append((int(line["step"]), float(value)))
    return columns


def _read_test_scores(path: Path, record: RunRecord, missing: list[Missing]) -> RunScores:
    """The scores of a run's cases, without those that it was trained on, which are noted.

    The means come from the summary beside the table, if it is of these cases.
    """
    rows, trained = read_test_rows(path, record)
    beside = (path / SCORES).with_suffix(".summary.json")
    summary = read_json(beside, "an evaluation's summary") if beside.is_file() else {}
    known = (summary.get("format"), summary.get("version"), summary.get("cases"))
    if known != ("macl-summary", 1, len({row.case for row in rows})):
        summary = summarise(rows, convention_of(rows))
    if trained:
        sentence = f"The run was trained on {listed(trained)}, whose scores are left out."
        missing.append(Missing(sentence))
    return RunScores(tuple(rows), summary)


def joined(scores: Sequence[RunScores]) -> RunScores:
    """The scores of runs that test different cases by one convention, as those of one run."""
    if len(scores) == 1:
        return scores[0]
    rows = tuple(row for own in scores for row in own.rows)
    return RunScores(rows, summarise(rows, scores[0].convention))


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


def _read_transfer(file: Path) -> dict[str, Any]:
    return read_json(file, "a transfer table")


def _read_optional(file: Path, read: Callable[[Path], T], missing: list[Missing]) -> T | None:
    """The contents of a file; None where there is none, or where it is broken, which is noted."""
    if not file.is_file():
        return None
    try:
        return read(file)
    except MaclError as error:
        missing.append(Missing(str(error)))
        return None


def _open_store(record: RunRecord) -> tuple[Store | None, Missing | None]:
    path = Path(record.store)
    no_pictures = "cases are not described and no overlays are drawn"
    try:
        store = Store.open(path)
    except MaclError as error:
        if path.exists():
            return None, Missing(f"{error} Until then {no_pictures}.")
        sentence = f"The store {path} is not there any more, so {no_pictures}."
        return None, Missing(sentence, f"macl prepare SOURCE {shlex.quote(record.store)}")
    if store.checksum != record.store_checksum:
        sentence = f"The store {path} is not the one this run was trained on, so {no_pictures}."
        return None, Missing(sentence)
    return store, None


def _start(record: RunRecord) -> str:
    if record.init in (None, "scratch"):
        return "scratch"
    path = Path(WEIGHTS_DIGEST.sub("", record.init))
    try:
        earlier = read_record(path)
    except MaclError:
        return path.name
    if earlier.is_segmenter:
        return _start(earlier)
    return str(earlier.settings.get("method", path.name))


def _missing_results(
    path: Path,
    record: RunRecord,
    transfer: Mapping[str, Any] | None,
    scores: RunScores | None,
) -> list[Missing]:
    run, store = shlex.quote(str(path)), shlex.quote(record.store)
    masks, table = shlex.quote(str(path / PREDICTIONS)), shlex.quote(str(path / SCORES))
    missing = []
    if transfer is None:
        missing.append(
            Missing("There is no transfer table yet: it is written when training starts.")
        )
    if record.split is not None and not record.test_cases and scores is None:
        sentence = "Its split tests nobody: a final model, whose scores are those of its like."
        return [*missing, Missing(sentence)]
    if not (path / PREDICTIONS).is_dir():
        sentence = "The test cases have not been segmented."
        missing.append(Missing(sentence, f"macl predict {run} {store} --out {masks}"))
    if scores is None:
        sentence = "The run has not been evaluated."
        missing.append(Missing(sentence, f"macl evaluate {masks} {store} --out {table}"))
    return missing


def _resume_command(path: Path, record: RunRecord) -> str:
    words = ["macl", record.kind, record.store, "--out", str(path)]
    if record.is_segmenter:
        init = WEIGHTS_DIGEST.sub("", record.init or "scratch")
        words += ["--init", init, "--split", "SPLIT", "--labels", record.labels or "LABELS"]
    return shlex.join([*words, "--resume"]) + "   # and the options it was started with"
