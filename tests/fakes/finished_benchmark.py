"""A benchmark whose cells are finished already, with scores that a test chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from macl.metrics import MaskOutcome
from macl.records.scores import ScoreRow, summarise, write_rows
from macl.utils.files import write_text
from macl.workflows.benchmark.grid import BenchmarkCell, read_grid
from macl.workflows.benchmark.plan import plan
from macl.workflows.benchmark.results import CellRecord

DiceOf = Callable[[BenchmarkCell, str, str], float | MaskOutcome]
"""(cell, case, class) → Dice, or why it is 0 or undefined."""


def write_finished_cells(grid: Path, out: Path, dice_of: DiceOf) -> None:
    """Write `cell.json` and the strict scores of all cells of a grid, as if they had been run."""
    planned = plan(read_grid(grid))
    for cell, specification in planned.specifications.items():
        test = planned.splits[cell.draw].test
        cases = [case for case, person in planned.groups.items() if person in test]
        rows = [
            _row(case, name, dice_of(cell, case, name))
            for case in cases
            for name in ("ring", "disc")
        ]
        folder = out / "cells" / cell.name
        folder.mkdir(parents=True)
        write_rows(folder / "cases.csv", rows)
        record = CellRecord(
            start=cell.start.name,
            training=cell.training.name,
            labels=cell.labels,
            recipe=cell.recipe_name,
            seed=cell.seed,
            draw=cell.draw,
            specification=dict(specification),
            store="toy.store",
            split="toy",
            device="an abacus",
            versions={"macl": "0"},
            date="2026-11-27",
            command="macl benchmark grid.toml --out bench",
            pretraining_seconds=30.0,
            finetuning_seconds=60.0,
            summaries={"strict": summarise(rows, "strict")},
        )
        write_text(folder / "cell.json", record.model_dump_json())
    write_text(out / "grid.toml", "")


def _row(case: str, class_name: str, scored: float | MaskOutcome) -> ScoreRow:
    outcome = scored if isinstance(scored, str) else "scored"
    dice = float({"missed": 0.0, "invented": 0.0, "both_empty": math.nan}.get(outcome, scored))
    return ScoreRow(
        case=case, class_name=class_name, dice=dice, jaccard=dice / (2 - dice), hd95=1.0, asd=0.5,
        unit="mm", outcome=outcome, truth_voxels=10, predicted_voxels=10, shared_voxels=5, slices=3,
    )  # fmt: skip
