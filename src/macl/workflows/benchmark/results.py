"""What a benchmark found: the record of a cell, and rows for tables of cells and of runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from macl.config.mistakes import validate
from macl.config.settings import Settings
from macl.metrics import Convention
from macl.records.scores import COUNTED_OUTCOMES, MEASURES
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, read_json
from macl.utils.progress import say
from macl.utils.user_text import spreadsheet_text
from macl.workflows.benchmark.grid import SUPERVISED

CELL = "cell.json"
ALL_CLASSES = "mean"


class CellRecord(Settings):
    """What `cell.json` holds. It is written last: a cell that has it is finished."""

    format: Literal["macl-cell"] = "macl-cell"
    version: Literal[1] = 1
    start: str
    training: str = SUPERVISED
    labels: str
    recipe: str
    seed: int
    draw: int | None = None
    specification: dict[str, Any]
    store: str = Field(default="", description="name of its folder")
    split: str = Field(default="", description="as the grid names it")
    commit: str = ""
    date: str = Field(default="", description="when it was finished")
    command: str = ""
    device: str
    versions: dict[str, str]
    pretraining_seconds: float
    finetuning_seconds: float
    summaries: dict[Convention, dict[str, Any]]


def read_cell(folder: Path) -> CellRecord | None:
    """Read the record of a cell; None where the cell is not finished."""
    if not (folder / CELL).is_file():
        return None
    return validate(CellRecord, read_json(folder / CELL, "a benchmark's cell"), where=CELL)


def cell_rows(cell: CellRecord) -> list[dict[str, Any]]:
    """One row per convention and class, and one over the classes; undefined values are None."""
    rows: list[dict[str, Any]] = []
    for convention, summary in cell.summaries.items():
        classes = summary["classes"]
        totals = {name: sum(row[name] for row in classes) for name in COUNTED_OUTCOMES}
        for scores in (*classes, {"class": ALL_CLASSES, **summary["mean"], **totals}):
            rows.append(
                {
                    "start": cell.start,
                    "training": cell.training,
                    "labels": cell.labels,
                    "recipe": cell.recipe,
                    "seed": cell.seed,
                    "draw": cell.draw,
                    "convention": convention,
                    "class": scores["class"],
                    **{measure: scores[measure]["mean"] for measure in MEASURES},
                    "unit": summary["unit"],
                    "cases": summary["cases"],
                    **{name: scores[name] for name in COUNTED_OUTCOMES},
                    "pretraining_seconds": cell.pretraining_seconds,
                    "finetuning_seconds": cell.finetuning_seconds,
                    "device": cell.device,
                    "macl": cell.versions.get("macl", ""),
                    "torch": cell.versions.get("torch", ""),
                }
            )
    return rows


def run_row(cell: CellRecord) -> dict[str, Any]:
    """One row for the whole cell: what was run, and its scores over the classes."""
    strict, paper = cell.summaries.get("strict"), cell.summaries.get("paper")
    outcomes = strict["classes"] if strict else []
    return {
        "date": cell.date,
        "version": cell.versions.get("macl", ""),
        "commit": cell.commit,
        "store": cell.store,
        "split": cell.split,
        "start": cell.start,
        "training": cell.training,
        "labels": cell.labels,
        "recipe": cell.recipe,
        "seed": cell.seed,
        "draw": cell.draw,
        **{name: strict["mean"][name]["mean"] if strict else None for name in MEASURES},
        "unit": strict["unit"] if strict else None,
        "missed": sum(row["missed"] for row in outcomes) if strict else None,
        "invented": sum(row["invented"] for row in outcomes) if strict else None,
        "pooled_dice": paper["mean"]["dice"]["mean"] if paper else None,
        "minutes": round((cell.pretraining_seconds + cell.finetuning_seconds) / 60, 2),
        "device": cell.device,
        "command": cell.command,
    }


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows with the same columns as CSV, atomically; numbers in six digits, None blank.

    Args:
        path: the file.
        rows: column → value.
        columns: names for the header, where there may be no rows; None: the first row's.
    """
    if columns is None:
        columns = list(rows[0]) if rows else []
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)


def as_text(value: Any) -> str:
    """A value as tables hold it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return spreadsheet_text(value) if isinstance(value, str) else str(value)


def append_runs(path: Path, cells: Iterable[CellRecord]) -> None:
    """Add a row for each cell to a table of runs, unless it is there already.

    Raises:
        MaclError: the file holds something else.
    """
    rows = [{name: as_text(value) for name, value in run_row(cell).items()} for cell in cells]
    if not rows:
        return
    earlier: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            earlier = list(reader)
        if list(reader.fieldnames or []) != list(rows[0]):
            raise MaclError(
                f"{path} is not a table of runs of this version of macl: name another file to "
                "append to."
            )
    new = [row for row in rows if row not in earlier]
    write_csv(path, [*earlier, *new])
    say(f"Added {len(new)} of {len(rows)} runs to {path}.")
