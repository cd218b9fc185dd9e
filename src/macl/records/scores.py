"""The table of scores, one row per case and class, and the means over it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from macl.metrics import DEFINITIONS, Convention, MaskOutcome, dice, jaccard
from macl.records.runs import SCORES, RunRecord
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path
from macl.utils.text import counted, printable
from macl.utils.user_text import from_spreadsheet, spreadsheet_text

Unit = Literal["mm", "voxel", "pixel"]

OVERLAPS = ("dice", "jaccard")
"""Measures from 0 to 1, shown in per cent."""

MEASURES = (*OVERLAPS, "hd95", "asd")

COUNTED_OUTCOMES: tuple[MaskOutcome, ...] = ("missed", "invented", "both_empty")
"""Outcomes that a summary counts, in the order in which tables show them."""


@dataclass(frozen=True)
class ScoreRow:
    """One class of one case. An undefined measure is NaN, and blank in the file.

    Attributes:
        class_name: the column `class` of the file.
        dice, jaccard: from 0 to 1.
        hd95, asd: in `unit`.
        slices: number of slices of the case's scan; `paper` averages distances over them.
    """

    case: str
    class_name: str
    dice: float
    jaccard: float
    hd95: float
    asd: float
    unit: Unit
    outcome: MaskOutcome
    truth_voxels: int
    predicted_voxels: int
    shared_voxels: int
    slices: int


_COLUMNS = {
    field.name: "class" if field.name == "class_name" else field.name for field in fields(ScoreRow)
}
_COUNTS = ("truth_voxels", "predicted_voxels", "shared_voxels", "slices")


def write_rows(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write a table as CSV, atomically."""
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS.values())
        writer.writerows([_text(value) for value in asdict(row).values()] for row in rows)


def read_rows(path: Path) -> list[ScoreRow]:
    """Read a table that `write_rows` wrote.

    Raises:
        MaclError: the file is missing, or is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [_row(line) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise MaclError(
            f"There is no {path}, which should be a table of scores: check the path."
        ) from None
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise not_a_table(path, error) from None


def convention_of(rows: Iterable[ScoreRow]) -> Convention:
    """The convention by which rows were scored: distances of `paper` alone are in pixels."""
    return "paper" if any(row.unit == "pixel" for row in rows) else "strict"


def read_test_rows(run: Path, record: RunRecord) -> tuple[list[ScoreRow], list[str]]:
    """The table of scores in a run's folder, without the cases that the run was trained on.

    Returns:
        The other rows, and the cases that are left out.

    Raises:
        MaclError: the table is missing or broken, or has no other rows.
    """
    rows = read_rows(run / SCORES)
    if not rows:
        raise not_a_table(run / SCORES, "it has no rows")
    trained = {*record.cases, *record.unlabelled_cases}
    kept = [row for row in rows if row.case not in trained]
    if not kept:
        raise MaclError(
            f"{run / SCORES} scores only scans that the run was trained on, which says nothing of "
            "other scans: evaluate masks of its test cases."
        )
    return kept, sorted({row.case for row in rows} & trained)


def not_a_table(path: Path, reason: object) -> MaclError:
    """The error for a file that should be a table of scores, but is not."""
    return MaclError(
        f"{path} should be a table that `macl evaluate` wrote, but cannot be read ({reason}): "
        "evaluate again."
    )


def _row(line: dict[str, str]) -> ScoreRow:
    values: dict[str, Any] = {name: line[column] for name, column in _COLUMNS.items()}
    values.update({name: float(values[name] or "nan") for name in MEASURES})
    values.update({name: int(values[name]) for name in _COUNTS})
    values.update({name: from_spreadsheet(values[name]) for name in ("case", "class_name")})
    return ScoreRow(**values)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(round(value, 6))
    return spreadsheet_text(value) if isinstance(value, str) else str(value)


# ---------------------------------------------------------------- means


def summarise(rows: Sequence[ScoreRow], convention: Convention) -> dict[str, Any]:
    """Means per class and over the classes, as JSON.

    Every measure is {"mean", "sd", "n"}. In `strict` it is taken over cases, with the standard
    deviation of a sample (n − 1). In `paper` it is taken over slices or pooled voxels and has no
    deviation. The overall mean is the mean of the classes' means; its deviation is that of the
    cases' means over their classes. Distances in different units have no mean: "unit" is then
    "mixed".
    """
    units = sorted({row.unit for row in rows})
    if len(units) > 1:
        rows = [replace(row, hd95=math.nan, asd=math.nan) for row in rows]
    of_class = _strict_measures if convention == "strict" else _paper_measures
    classes: list[dict[str, Any]] = []
    for name in dict.fromkeys(row.class_name for row in rows):
        own = [row for row in rows if row.class_name == name]
        counts = {
            outcome: sum(row.outcome == outcome for row in own) for outcome in COUNTED_OUTCOMES
        }
        classes.append({"class": name, **of_class(own), **counts})
    return {
        "format": "macl-summary",
        "version": 1,
        "convention": convention,
        "unit": units[0] if len(units) == 1 else "mixed",
        "cases": len({row.case for row in rows}),
        "classes": classes,
        "mean": {measure: _overall(measure, classes, rows, convention) for measure in MEASURES},
        "definitions": dict(DEFINITIONS[convention]),
    }


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    defined = np.asarray([value for value in values if not math.isnan(value)])
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "n": int(defined.size),
    }


def _strict_measures(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    return {measure: _spread([getattr(row, measure) for row in rows]) for measure in MEASURES}


def _paper_measures(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    truth, predicted, shared = (
        sum(getattr(row, f"{mask}_voxels") for row in rows)
        for mask in ("truth", "predicted", "shared")
    )
    slices = sum(row.slices for row in rows)
    values = {
        "dice": dice(truth, predicted, shared),
        "jaccard": jaccard(truth, predicted, shared),
        "hd95": sum(row.hd95 * row.slices for row in rows) / slices,
        "asd": sum(row.asd * row.slices for row in rows) / slices,
    }
    return {
        measure: {"mean": None if math.isnan(value) else value, "sd": None, "n": slices}
        for measure, value in values.items()
    }


def _overall(
    measure: str,
    classes: Sequence[dict[str, Any]],
    rows: Sequence[ScoreRow],
    convention: Convention,
) -> dict[str, Any]:
    means = [row[measure]["mean"] for row in classes if row[measure]["mean"] is not None]
    mean = float(np.mean(means)) if means else None
    if convention == "paper" or mean is None:
        return {"mean": mean, "sd": None, "n": classes[0][measure]["n"] if classes else 0}
    by_case: dict[str, list[float]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(getattr(row, measure))
    case_means = [_spread(values)["mean"] for values in by_case.values()]
    return {
        **_spread([math.nan if value is None else value for value in case_means]),
        "mean": mean,
    }


def render(summary: Mapping[str, Any]) -> str:
    """The summary as a table for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    pooled, unit = summary["convention"] == "paper", summary["unit"]
    title = f"{counted(summary['cases'], 'case')}, convention {summary['convention']}"
    table = Table(
        title=title + (" (Dice pooled)" if pooled else ""),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    shown = [
        outcome
        for outcome in COUNTED_OUTCOMES
        if outcome != "both_empty" or any(row[outcome] for row in summary["classes"])
    ]
    distances = (f"HD95 {unit}", f"ASD {unit}")
    for head in (
        "class", "Dice %", "Jaccard %", *distances, "slices" if pooled else "n",
        *(name.replace("_", " ") for name in shown),
    ):  # fmt: skip
        table.add_column(head, justify="left" if head == "class" else "right", no_wrap=True)
    for row in summary["classes"]:
        table.add_row(printable(row["class"]), *_cells(row), *(str(row[name]) for name in shown))
    if len(summary["classes"]) > 1:
        totals = (sum(row[name] for row in summary["classes"]) for name in shown)
        table.add_section()
        table.add_row("mean", *_cells(summary["mean"]), *map(str, totals))
    console = Console(width=140, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _cells(measures: Mapping[str, Any]) -> list[str]:
    cells = []
    for key in MEASURES:
        factor = 100 if key in OVERLAPS else 1
        mean, deviation = measures[key]["mean"], measures[key]["sd"]
        digits = 1 if key in OVERLAPS else 2
        spread = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
        cells.append("–" if mean is None else f"{factor * mean:.{digits}f}{spread}")
    return [*cells, str(measures["dice"]["n"])]
