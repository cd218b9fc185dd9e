"""What a benchmark's cells came to: a table of every cell, and one of means over seeds."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from macl.config import Settings, validate
from macl.metrics import Convention
from macl.utils.files import atomic_path, read_json, write_text

CELL = "cell.json"
ALL_CLASSES = "mean"
MEASURES = ("dice", "jaccard", "hd95", "asd")


class CellRecord(Settings):
    """What `cell.json` holds; it is written last, so that a cell that has it is finished."""

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
    """The record of a finished cell; None where it is not finished."""
    if not (folder / CELL).is_file():
        return None
    return validate(CellRecord, read_json(folder / CELL, "a benchmark's cell"), where=CELL)


def rows(cell: CellRecord) -> list[dict[str, Any]]:
    """One row per convention and class, and one over the classes; what is undefined is None."""
    found: list[dict[str, Any]] = []
    for convention, summary in cell.summaries.items():
        counts = ("missed", "invented", "both_empty")
        totals = {count: sum(one[count] for one in summary["classes"]) for count in counts}
        for scores in (*summary["classes"], {"class": ALL_CLASSES, **summary["mean"], **totals}):
            found.append(
                {
                    "start": cell.start, "labels": cell.labels, "recipe": cell.recipe, "seed": cell.seed,
                    "convention": convention, "class": scores["class"],
                    **{measure: scores[measure]["mean"] for measure in MEASURES}, "unit": summary["unit"],
                    "cases": summary["cases"], **{count: scores[count] for count in counts},
                    "pretraining_seconds": cell.pretraining_seconds, "finetuning_seconds": cell.finetuning_seconds,
                    "device": cell.device, "macl": cell.versions.get("macl", ""), "torch": cell.versions.get("torch", ""),
                }
            )  # fmt: skip
    return found


def write_results(path: Path, cells: Iterable[CellRecord]) -> None:
    """Write the rows of all cells as CSV, atomically, each cell's once."""
    table = [row for cell in cells for row in rows(cell)]
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]) if table else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def write_summary(path: Path, cells: Sequence[CellRecord], command: str, failed: Mapping[str, str]) -> str:
    """Write the means over seeds as Markdown, and return them."""
    lines = ["# Benchmark", "", f"`{command}`", "", "Every value is the mean ± standard deviation over seeds.", ""]
    for name in ("device", "versions"):
        for value in dict.fromkeys(_in_words(getattr(cell, name)) for cell in cells):
            lines.append(f"- {name}: {value}")
    conventions: dict[Convention, None] = dict.fromkeys(name for cell in cells for name in cell.summaries)
    for convention in conventions:
        lines += ["", f"## Convention {convention}", "", *_table(cells, convention)]
    if failed:
        lines += ["", "## Failed", "", *(f"- {cell}: {reason}" for cell, reason in failed.items())]
    text = "\n".join(lines) + "\n"
    write_text(path, text)
    return text


def spread(values: Sequence[float | None], factor: float = 1.0) -> str:
    """ "mean ± sd" of the values that are defined (sd with n − 1), the mean alone of one, – of none."""
    defined = [factor * value for value in values if value is not None]
    if not defined:
        return "–"
    return f"{mean(defined):.2f}" + (f" ± {stdev(defined):.2f}" if len(defined) > 1 else "")


def _table(cells: Sequence[CellRecord], convention: Convention) -> list[str]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if convention in cell.summaries:
            groups[cell.labels, cell.recipe, cell.start].append(cell.summaries[convention])
    unit = ", ".join(sorted({summary["unit"] for summaries in groups.values() for summary in summaries}))
    global_average_pool = "pooled Dice %" if convention == "paper" else "Dice %"
    heads = ["labels", "recipe", "start", "seeds", global_average_pool, "Jaccard %", f"HD95 {unit}", f"ASD {unit}", "missed"]
    table = [_row(heads), _row(["---"] * 3 + ["---:"] * 6)]
    for key, summaries in groups.items():
        measured = [
            spread(
                [summary["mean"][measure]["mean"] for summary in summaries], 100.0 if measure in MEASURES[:2] else 1.0
            )
            for measure in MEASURES
        ]
        missed = spread([float(sum(one["missed"] for one in summary["classes"])) for summary in summaries])
        table.append(_row([*key, str(len(summaries)), *measured, missed]))
    return table


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_words(value: str | Mapping[str, str]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{name} {version}" for name, version in value.items())
