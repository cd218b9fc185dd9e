"""Results of a benchmark: a table of all cells, and one of means over seeds."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from macl.config import Settings, validate
from macl.metrics import Convention
from macl.records.scores import COUNTED_OUTCOMES, MEASURES, OVERLAPS
from macl.utils.files import atomic_path, read_json, write_text
from macl.utils.text import printable
from macl.utils.user_text import spreadsheet_text

CELL = "cell.json"
ALL_CLASSES = "mean"


class CellRecord(Settings):
    """What `cell.json` holds. It is written last: a cell that has it is finished."""

    format: Literal["macl-cell"] = "macl-cell"
    version: Literal[1] = 1
    start: str
    labels: str
    recipe: str
    seed: int
    specification: dict[str, Any]
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
                    "labels": cell.labels,
                    "recipe": cell.recipe,
                    "seed": cell.seed,
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


def write_results(path: Path, cells: Iterable[CellRecord]) -> None:
    """Write the rows of all cells as CSV, atomically."""
    rows = [row for cell in cells for row in cell_rows(cell)]
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {
                name: spreadsheet_text(value) if isinstance(value, str) else value
                for name, value in row.items()
            }
            for row in rows
        )


def write_summary(
    path: Path, cells: Sequence[CellRecord], command: str, failed: Mapping[str, str]
) -> str:
    """Write the means over seeds as Markdown, and return the text.

    Args:
        command: what made the results, for the reader.
        failed: cell → why it failed.
    """
    lines = [
        "# Benchmark", "", f"`{command}`", "",
        "Every value is the mean ± standard deviation over seeds. Minutes are the mean training",
        "time, pre-training included.", "",
    ]  # fmt: skip
    devices = dict.fromkeys(cell.device for cell in cells)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in cell.versions.items()) for cell in cells
    )
    lines += [f"- device: {device}" for device in devices]
    lines += [f"- versions: {texts}" for texts in versions]
    conventions: dict[Convention, None] = dict.fromkeys(
        name for cell in cells for name in cell.summaries
    )
    for convention in conventions:
        lines += ["", f"## Convention {convention}", "", *_table(cells, convention)]
    if failed:
        lines += ["", "## Failed", "", *(f"- {cell}: {reason}" for cell, reason in failed.items())]
    text = "\n".join(lines) + "\n"
    write_text(path, text)
    return text


def mean_and_deviation(values: Sequence[float | None], factor: float = 1.0) -> str:
    """ "mean ± sd" of the defined values times `factor`; one value has no sd, none is "–"."""
    defined = [factor * value for value in values if value is not None]
    if not defined:
        return "–"
    return f"{mean(defined):.2f}" + (f" ± {stdev(defined):.2f}" if len(defined) > 1 else "")


def _table(cells: Sequence[CellRecord], convention: Convention) -> list[str]:
    groups: dict[tuple[str, str, str], list[CellRecord]] = defaultdict(list)
    for cell in cells:
        if convention in cell.summaries:
            groups[cell.labels, cell.recipe, cell.start].append(cell)
    units = {cell.summaries[convention]["unit"] for group in groups.values() for cell in group}
    unit = ", ".join(sorted(units))
    heads = [
        "labels", "recipe", "start", "seeds",
        "pooled Dice %" if convention == "paper" else "Dice %", "Jaccard %",
        f"HD95 {unit}", f"ASD {unit}", "missed", "minutes",
    ]  # fmt: skip
    table = [_table_row(heads), _table_row(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    for names, group in groups.items():
        summaries = [cell.summaries[convention] for cell in group]
        measures = [
            mean_and_deviation(
                [summary["mean"][measure]["mean"] for summary in summaries],
                100.0 if measure in OVERLAPS else 1.0,
            )
            for measure in MEASURES
        ]
        missed = [float(sum(row["missed"] for row in summary["classes"])) for summary in summaries]
        minutes = [(cell.pretraining_seconds + cell.finetuning_seconds) / 60 for cell in group]
        numbers = [*measures, mean_and_deviation(missed), f"{mean(minutes):.1f}"]
        table.append(_table_row([*names, str(len(group)), *numbers]))
    return table


def _table_row(cells: Iterable[str]) -> str:
    escaped = (printable(cell).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
