"""The whole path on synthetic subjects: prepare → split → pretrain → finetune → predict → evaluate → report.

Nothing but the public stages is used, as anyone could: what the demo does, a few commands do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.prepare import prepare
from macl.stages.pretrain import pretrain
from macl.stages.report import report
from macl.stages.split import split
from macl.utils.errors import MaclError
from macl.utils.files import read_json, write_json
from macl.utils.progress import progress, say
from macl.workflows.subjects import Grid, write_subjects

MARK = "demo.json"
PAGE = "report.html"
SEED = 0
WIDTH = 8
"""Channels of the network's finest level: a quarter of the usual, for a laptop's sake."""

SYNTHETIC = (
    "These subjects are synthetic: every one is the same brain template (MNI152), randomly bent, with a contrast, a bias field "
    "and noise of its own. They are much more alike than people are: nothing here carries over to a clinic."
)
ONE_SEED = "One seed and {tests} synthetic test subjects: whichever start comes out ahead here, another seed may turn it round."


@dataclass(frozen=True)
class Scale:
    """How large the demo is."""

    subjects: int = 12
    test: int = 4
    budgets: tuple[int, ...] = (1, 2)
    grid: Grid = field(default_factory=Grid)
    pretraining_side: int = 128
    finetuning_side: int = 112
    pretraining_epochs: int = 12
    finetuning_epochs: int = 60


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: where it starts, and how many labelled subjects it has."""

    start: str
    labels: int

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.start}-{self.labels}"


def demo(out: Path, scale: Scale = Scale()) -> Path:
    """Compare MACL with a start from scratch, with one and two labelled synthetic subjects; finished parts are kept.

    `out` then holds the scans, the store, the runs, `overlays/*.png`, `report.html` and `report.json`; a table is printed.

    Returns:
        The page.

    Raises:
        MaclError: nilearn is not installed, or `out` holds something else.
    """
    _open_folder(out, scale)
    scans, store, chosen = out / "scans" / "Dataset001_Synthetic", out / "store", str(out / "split.json")
    cells = [Cell(start, labels) for labels in scale.budgets for start in ("scratch", "macl")]
    runs = {cell: out / "runs" / cell.name for cell in cells}
    pretrained = out / "runs" / "macl-pretraining"
    _step(1, f"make {scale.subjects} synthetic subjects")
    say(SYNTHETIC)
    with progress("subjects", scale.subjects) as advance:
        write_subjects(scans, scale.subjects, scale.grid, SEED, advance)
    _step(2, "prepare")
    prepare(scans, store)
    _step(3, "split")
    budgets = ",".join(map(str, scale.budgets))
    split(store, Path(chosen), test=str(scale.test), budgets=budgets, seed=SEED)
    _step(4, "pre-train (no labels)")
    overrides = _overrides(scale.pretraining_side, scale.pretraining_epochs, batch_size=16)
    pretrain(store, pretrained, method="macl", split=chosen, overrides=overrides, seed=SEED, resume=True)
    _step(5, f"fine-tune {len(cells)} segmenters")
    overrides = _overrides(scale.finetuning_side, scale.finetuning_epochs, batch_size=8)
    for cell, run in runs.items():
        say(f"From {cell.start}, {cell.labels} labelled:")
        init, labels = "scratch" if cell.start == "scratch" else str(pretrained), str(cell.labels)
        finetune(store, run, init=init, split=chosen, labels=labels, overrides=overrides, seed=SEED, resume=True)
    _step(6, "predict the test subjects")
    for run in runs.values():
        predict([run, store], run / "predictions")
    _step(7, "evaluate")
    for run in runs.values():
        with redirect_stdout(sys.stderr):
            evaluate(run / "predictions", store, run / "cases.csv")
    _step(8, "report")
    page = report([*runs.values(), pretrained], out / PAGE, notes=[SYNTHETIC], overlays=out / "overlays")
    print(_table({cell: read_json(run / "cases.summary.json", "a summary") for cell, run in runs.items()}))
    print(ONE_SEED.format(tests=scale.test), SYNTHETIC, f"The page: {page}", sep="\n")
    return page


def _open_folder(out: Path, scale: Scale) -> None:
    """Start a folder, or go on with a demo of the same scale."""
    made = json.loads(json.dumps({"format": "macl-demo", **asdict(scale)}))
    if (out / MARK).is_file() and read_json(out / MARK, "a demo's mark") == made:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MaclError(f"--out {out} already holds something that is not this demo: choose another folder.")
    write_json(out / MARK, made)


def _overrides(side: int, epochs: int, batch_size: int) -> tuple[str, ...]:
    return (
        f"backbone_settings.width={WIDTH}", f"training.size={side}", f"training.epochs={epochs}",
        f"training.batch_size={batch_size}",
    )  # fmt: skip


def _step(number: int, what: str) -> None:
    say(f"\n{number}/8 {what}")


def _table(summaries: Mapping[Cell, Mapping[str, Any]]) -> str:
    """Dice in % by class, start and number of labelled subjects."""
    names = [one["class"] for one in next(iter(summaries.values()))["classes"]]
    lines = [_line("Dice %, mean", "labelled", *names, "mean")]
    for cell, summary in summaries.items():
        means = [*(one["dice"]["mean"] for one in summary["classes"]), summary["mean"]["dice"]["mean"]]
        cells = ["–" if mean is None else f"{100 * mean:.1f}" for mean in means]
        lines.append(_line(f"from {cell.start}", str(cell.labels), *cells))
    return "\n".join(lines)


def _line(first: str, *cells: str) -> str:
    return f"{first:<14}" + "".join(f"{cell:>14}" for cell in cells)
