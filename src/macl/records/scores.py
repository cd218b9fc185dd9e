"""The table of scores, one row per case and class, and its means, as `macl evaluate` writes them and reports read them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from macl.metrics import DEFINITIONS, Convention, Outcome, dice, jaccard
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path

Unit = Literal["mm", "voxel", "pixel"]

MEASURES = ("dice", "jaccard", "hd95", "asd")


@dataclass(frozen=True)
class Row:
    """One class of one case; what is undefined is NaN, and blank in the file.

    Attributes:
        class_name: the column `class`.
        dice, jaccard: 0 … 1.
        hd95, asd: in `unit`.
        slices: of the case's scan; `paper` averages distances over them.
    """

    case: str
    class_name: str
    dice: float
    jaccard: float
    hd95: float
    asd: float
    unit: Unit
    outcome: Outcome
    truth_voxels: int
    predicted_voxels: int
    shared_voxels: int
    slices: int


_COLUMNS = {field.name: "class" if field.name == "class_name" else field.name for field in fields(Row)}
_COUNTS = ("truth_voxels", "predicted_voxels", "shared_voxels", "slices")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table as CSV, atomically."""
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS.values())
        writer.writerows([_text(value) for value in asdict(row).values()] for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read a table that `write_rows` wrote.

    Raises:
        MaclError: the file is missing or is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(line) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise MaclError(f"There is no {path}, which should be a table of scores: check the path.") from None
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise MaclError(f"{path} should be a table that `macl evaluate` wrote, but cannot be read ({error}).") from None


def _row(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {name: line[column] for name, column in _COLUMNS.items()}
    values.update({name: float(values[name] or "nan") for name in MEASURES})
    values.update({name: int(values[name]) for name in _COUNTS})
    return Row(**values)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(round(value, 6))
    return str(value)


# ---------------------------------------------------------------- means


def summarise(rows: Sequence[Row], convention: Convention) -> dict[str, Any]:
    """Means per class and over classes, as JSON.

    Every measure is {"mean", "sd", "n"}: over cases in `strict` (sd with n − 1), over slices or pooled voxels in `paper`
    (no sd). The overall mean is the mean of the classes' means; its sd is that of the cases' means over their classes.
    Distances in different units have no mean: then "unit" is "mixed".
    """
    units = sorted({row.unit for row in rows})
    if len(units) > 1:
        rows = [replace(row, hd95=math.nan, asd=math.nan) for row in rows]
    of_class = _strict_measures if convention == "strict" else _paper_measures
    classes: list[dict[str, Any]] = []
    for name in dict.fromkeys(row.class_name for row in rows):
        own = [row for row in rows if row.class_name == name]
        outcomes = {
            outcome: sum(row.outcome == outcome for row in own) for outcome in ("both_empty", "missed", "invented")
        }
        classes.append({"class": name, **of_class(own), **outcomes})
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
    defined = np.asarray([value for value in values if not np.isnan(value)])
    mean = float(defined.mean()) if defined.size else None
    return {"mean": mean, "sd": float(defined.std(ddof=1)) if defined.size > 1 else None, "n": int(defined.size)}


def _strict_measures(rows: Sequence[Row]) -> dict[str, Any]:
    return {measure: _spread([getattr(row, measure) for row in rows]) for measure in MEASURES}


def _paper_measures(rows: Sequence[Row]) -> dict[str, Any]:
    voxels = [sum(getattr(row, f"{kind}_voxels") for row in rows) for kind in ("truth", "predicted", "shared")]
    slices = sum(row.slices for row in rows)
    values = {"dice": dice(*voxels), "jaccard": jaccard(*voxels)}
    values |= {key: sum(getattr(row, key) * row.slices for row in rows) / slices for key in ("hd95", "asd")}
    return {key: {"mean": None if np.isnan(value) else value, "sd": None, "n": slices} for key, value in values.items()}


def _overall(measure: str, classes: Sequence[dict[str, Any]], rows: Sequence[Row], convention: Convention) -> dict:
    means = [one[measure]["mean"] for one in classes if one[measure]["mean"] is not None]
    mean = float(np.mean(means)) if means else None
    if convention == "paper" or mean is None:
        return {"mean": mean, "sd": None, "n": classes[0][measure]["n"] if classes else 0}
    of_cases: dict[str, list[float]] = {}
    for row in rows:
        of_cases.setdefault(row.case, []).append(getattr(row, measure))
    averaged = [_spread(values)["mean"] for values in of_cases.values()]
    return {**_spread([np.nan if value is None else value for value in averaged]), "mean": mean}


def render(summary: Mapping[str, Any]) -> str:
    """The summary as a table for people."""
    from rich.console import Console
    from rich.table import Table

    global_average_pool = summary["convention"] == "paper"
    title = f"{summary['cases']} cases, convention {summary['convention']}" + (" (Dice pooled)" if global_average_pool else "")
    table = Table(title=title, title_justify="left")
    unit = summary["unit"]
    heads = (
        "class",
        "Dice %",
        "Jaccard %",
        f"HD95 {unit}",
        f"ASD {unit}",
        "slices" if global_average_pool else "n",
        "missed",
        "invented",
        "both empty",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "class" else "right", no_wrap=True)
    for one in summary["classes"]:
        counts = (str(one[key]) for key in ("missed", "invented", "both_empty"))
        table.add_row(one["class"], *_cells(one), *counts)
    if len(summary["classes"]) > 1:
        totals = (str(sum(one[key] for one in summary["classes"])) for key in ("missed", "invented", "both_empty"))
        table.add_section()
        table.add_row("mean", *_cells(summary["mean"]), *totals)
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _cells(measures: Mapping[str, Any]) -> list[str]:
    cells = []
    for key in MEASURES:
        factor = 100 if key in ("dice", "jaccard") else 1
        mean, deviation = measures[key]["mean"], measures[key]["sd"]
        spread = "" if deviation is None else f" ± {factor * deviation:.2f}"
        cells.append("–" if mean is None else f"{factor * mean:.2f}{spread}")
    return [*cells, str(measures["dice"]["n"])]
