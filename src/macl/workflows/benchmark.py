"""A grid of pre-training, fine-tuning, prediction and evaluation: cells that are finished are kept, the rest go on."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macl.metrics import Convention
from macl.records import runs
from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.pretrain import pretrain
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, read_json, write_text
from macl.utils.progress import say
from macl.workflows.grid import Cell, Grid, cells, read_grid, specify
from macl.workflows.results import CELL, CellRecord, read_cell, write_results, write_summary

GRID = "grid.toml"
RESULTS = "results.csv"
SUMMARY = "results.md"


def benchmark(grid: Path, out: Path, *, device: str = "auto") -> bool:
    """Run the cells of a grid file that are not finished in `out`, and write what all of them came to.

    `out` then holds `pretrained/<start>__seed<n>` and `cells/<start>__<labels>__<recipe>__seed<n>` (runs, with their
    predictions and scores), `results.csv` (every cell), `results.md` (means over seeds) and the grid.

    Returns:
        Whether every cell of the grid is finished.

    Raises:
        MaclError: the grid names something that is not there, or `out` holds something else; then nothing is run.
    """
    read = read_grid(grid)
    specifications = specify(read)
    _open_folder(out, grid)
    bench = _Bench(read, out, device, specifications, hardware(device))
    todo = list(cells(read))
    for number, cell in enumerate(todo, start=1):
        say(f"Cell {number} of {len(todo)}: {cell.name}")
        bench.run(cell)
        bench.write(f"macl benchmark {shlex.quote(grid.name)} --out {shlex.quote(out.name)} --device {device}")
    print(bench.summary)
    for cell, reason in bench.failed.items():
        say(f"Failed: {cell}: {reason}")
    say(f"{len(todo) - len(bench.failed)} of {len(todo)} cells are finished; their results are in {out / SUMMARY}.")
    return not bench.failed


def hardware(device: str) -> str:
    """What computes, in words."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        return f"{platform.machine()} with MPS"
    return f"{platform.machine()} with {os.cpu_count()} cores"


def _open_folder(out: Path, grid: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / GRID).is_file())):
        raise MaclError(f"--out {out} already holds something that is not a benchmark: choose another folder.")
    with atomic_path(out / GRID) as aside:
        shutil.copyfile(grid, aside)


@dataclass
class _Bench:
    """A benchmark as it runs: what failed so far, and why."""

    grid: Grid
    out: Path
    device: str
    specifications: dict[str, dict[str, Any]]
    hardware: str
    failed: dict[str, str] = field(default_factory=dict)
    failed_pretraining: dict[str, str] = field(default_factory=dict)
    summary: str = ""

    def run(self, cell: Cell) -> None:
        """Run a cell, go on with it, or keep it; where it fails, remember why."""
        folder = self.out / "cells" / cell.name
        try:
            finished = read_cell(folder)
            if finished and finished.specification != self.specifications[cell.name]:
                raise MaclError(f"{folder} was made with other settings: choose another --out, or remove that folder.")
            if finished and {*self.grid.conventions} <= {*finished.summaries}:
                say("Finished already.")
            else:
                self._run(cell, folder)
        except Exception as error:
            self.failed[cell.name] = _sentence(error)

    def _run(self, cell: Cell, folder: Path) -> None:
        init, pretraining_seconds = self._start(cell)
        record = finetune(
            self.grid.store, folder, init=init, split=self.grid.split, labels=cell.labels, recipe=cell.recipe,
            overrides=self.grid.finetune.set, device=self.device, seed=cell.seed, resume=True,
            encoder_only=cell.start.method is not None and not _hands_on_decoder(Path(init)),
        )  # fmt: skip
        predict([folder, self.grid.store], folder / runs.PREDICTIONS, device=self.device)
        summaries: dict[Convention, dict[str, Any]] = {}
        for convention in self.grid.conventions:
            table = folder / (runs.CASES if convention == "strict" else f"cases.{convention}.csv")
            with redirect_stdout(sys.stderr):
                evaluate(folder / runs.PREDICTIONS, self.grid.store, table, convention=convention)
            summaries[convention] = read_json(table.with_suffix(".summary.json"), "an evaluation's summary")
        done = CellRecord(
            start=cell.start.name, labels=cell.labels, recipe=cell.recipe_name, seed=cell.seed,
            specification=self.specifications[cell.name], device=self.hardware, versions=runs.versions(),
            pretraining_seconds=pretraining_seconds, finetuning_seconds=record.seconds, summaries=summaries,
        )  # fmt: skip
        write_text(folder / CELL, done.model_dump_json(indent=1) + "\n")

    def _start(self, cell: Cell) -> tuple[str, float]:
        """Where the cell's fine-tuning starts, pre-trained now unless it was before, and the seconds that took."""
        if cell.start.method is None:
            return "scratch", 0.0
        if cell.pretraining in self.failed_pretraining:
            raise MaclError(self.failed_pretraining[cell.pretraining])
        folder = self.out / "pretrained" / cell.pretraining
        try:
            record = pretrain(
                self.grid.store, folder, method=cell.start.method, split=self.grid.split, recipe=cell.start.recipe,
                overrides=cell.start.set, device=self.device, seed=cell.seed, resume=True,
            )  # fmt: skip
        except Exception as error:
            self.failed_pretraining[cell.pretraining] = f"Its pre-training failed: {_sentence(error)}"
            raise MaclError(self.failed_pretraining[cell.pretraining]) from None
        return str(folder), record.seconds

    def write(self, command: str) -> None:
        """Write the results of the grid's finished cells."""
        finished = [*self._finished()]
        write_results(self.out / RESULTS, finished)
        self.summary = write_summary(self.out / SUMMARY, finished, command, self.failed)

    def _finished(self) -> Iterator[CellRecord]:
        for cell in cells(self.grid):
            record = read_cell(self.out / "cells" / cell.name)
            if record and record.specification == self.specifications[cell.name]:
                yield record


def _hands_on_decoder(pretrained: Path) -> bool:
    """Whether the method trained decoder blocks; where it trains none, that its weights hold none is no mistake."""
    return any(name.startswith("decoder.") for name in checkpoint.read(pretrained / runs.WEIGHTS).tensors)


def _sentence(error: Exception) -> str:
    """Why something failed; of what is no user's mistake, with the trace on stderr."""
    if isinstance(error, MaclError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
