"""Run a grid of pre-training, fine-tuning, prediction and evaluation; finished cells are kept."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macl.metrics import Convention
from macl.records import runs
from macl.stages.evaluate import evaluate
from macl.stages.finetune import SCRATCH, finetune
from macl.stages.predict import predict
from macl.stages.pretrain import pretrain
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, read_json, write_text
from macl.utils.progress import say
from macl.workflows.grid import BenchmarkCell, BenchmarkGrid, read_grid, specify
from macl.workflows.results import CELL, CellRecord, read_cell, write_results, write_summary

GRID = "grid.toml"
RESULTS = "results.csv"
SUMMARY = "results.md"


def benchmark(grid: Path, out: Path, *, device: str = "auto") -> bool:
    """Run the cells of a grid file that are not finished in `out`, and write all results.

    `out` then holds `pretrained/<start>__seed<n>` and
    `cells/<start>__<labels>__<recipe>__seed<n>` (runs, with their predictions and scores),
    `results.csv` (every cell), `results.md` (means over seeds) and the grid.

    Returns:
        Whether every cell of the grid is finished.

    Raises:
        MaclError: the grid names something that does not exist, or `out` holds something else;
            nothing has been run then.
    """
    read = read_grid(grid)
    specifications = specify(read)
    _open_folder(out, grid)
    run = _BenchmarkRun(read, out, device, specifications, hardware(device))
    command = f"macl benchmark {shlex.quote(grid.name)} --out {shlex.quote(out.name)}"
    summary = ""
    for number, cell in enumerate(specifications, start=1):
        say(f"Cell {number} of {len(specifications)}: {cell.name}")
        run.finish(cell)
        summary = run.write_results(f"{command} --device {device}")
    print(summary)
    for name, reason in run.failed.items():
        say(f"Failed: {name}: {reason}")
    finished = len(specifications) - len(run.failed)
    say(f"{finished} of {len(specifications)} cells are finished; results: {out / SUMMARY}.")
    return not run.failed


def hardware(device: str) -> str:
    """The computing hardware in words, for the results."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        return f"{platform.machine()} with MPS"
    return f"{platform.machine()} with {os.cpu_count()} cores"


def _open_folder(out: Path, grid: Path) -> None:
    is_benchmark = (out / GRID).is_file()
    if out.exists() and not is_benchmark and (not out.is_dir() or any(out.iterdir())):
        raise MaclError(
            f"--out {out} already holds something that is not a benchmark: choose another folder."
        )
    with atomic_path(out / GRID) as aside:
        shutil.copyfile(grid, aside)


@dataclass
class _BenchmarkRun:
    """A benchmark while it runs.

    Attributes:
        specifications: cell → everything its result depends on.
        failed: name of a failed cell → why.
        failed_pretraining: folder of a failed pre-training → why.
    """

    grid: BenchmarkGrid
    out: Path
    device: str
    specifications: Mapping[BenchmarkCell, dict[str, Any]]
    hardware: str
    failed: dict[str, str] = field(default_factory=dict)
    failed_pretraining: dict[str, str] = field(default_factory=dict)

    def finish(self, cell: BenchmarkCell) -> None:
        """Run, resume or keep a cell; if it fails, remember why."""
        folder = self._folder(cell)
        try:
            finished = read_cell(folder)
            if finished and finished.specification != self.specifications[cell]:
                raise MaclError(
                    f"{folder} was made with other settings: choose another --out, or remove that "
                    "folder."
                )
            if finished and {*self.grid.conventions} <= {*finished.summaries}:
                say("Finished already.")
            else:
                self._run(cell, folder)
        except Exception as error:
            self.failed[cell.name] = _reason(error)

    def write_results(self, command: str) -> str:
        """Write the results of the finished cells, and return their summary."""
        finished = []
        for cell, specification in self.specifications.items():
            record = read_cell(self._folder(cell))
            if record and record.specification == specification:
                finished.append(record)
        write_results(self.out / RESULTS, finished)
        return write_summary(self.out / SUMMARY, finished, command, self.failed)

    def _folder(self, cell: BenchmarkCell) -> Path:
        return self.out / "cells" / cell.name

    def _run(self, cell: BenchmarkCell, folder: Path) -> None:
        init, pretraining_seconds = self._start(cell)
        record = finetune(
            self.grid.store, folder, init=init, split=self.grid.split, labels=cell.labels,
            recipe=cell.recipe, overrides=(*self.grid.finetune.set, *cell.start.network),
            device=self.device,
            seed=cell.seed, resume=True,
            encoder_only=cell.start.method is not None and not _has_decoder(Path(init)),
        )  # fmt: skip
        predict([folder, self.grid.store], folder / runs.PREDICTIONS, device=self.device)
        summaries: dict[Convention, dict[str, Any]] = {}
        for convention in self.grid.conventions:
            table = folder / (runs.SCORES if convention == "strict" else f"cases.{convention}.csv")
            with redirect_stdout(sys.stderr):
                evaluate(folder / runs.PREDICTIONS, self.grid.store, table, convention=convention)
            summary = table.with_suffix(".summary.json")
            summaries[convention] = read_json(summary, "an evaluation's summary")
        done = CellRecord(
            start=cell.start.name,
            labels=cell.labels,
            recipe=cell.recipe_name,
            seed=cell.seed,
            specification=self.specifications[cell],
            device=self.hardware,
            versions=runs.versions(),
            pretraining_seconds=pretraining_seconds,
            finetuning_seconds=record.seconds,
            summaries=summaries,
        )
        write_text(folder / CELL, done.model_dump_json(indent=1) + "\n")

    def _start(self, cell: BenchmarkCell) -> tuple[str, float]:
        """The `init` of a cell, pre-trained now unless it is finished, and its training time."""
        if cell.start.method is None:
            return SCRATCH, 0.0
        if cell.pretraining in self.failed_pretraining:
            raise MaclError(self.failed_pretraining[cell.pretraining])
        folder = self.out / "pretrained" / cell.pretraining
        try:
            record = pretrain(
                self.grid.store, folder, method=cell.start.method, split=self.grid.split,
                recipe=cell.start.recipe, overrides=(*cell.start.network, *cell.start.set),
                device=self.device,
                seed=cell.seed, resume=True,
            )  # fmt: skip
        except Exception as error:
            reason = f"Its pre-training failed: {_reason(error)}"
            self.failed_pretraining[cell.pretraining] = reason
            raise MaclError(reason) from None
        return str(folder), record.seconds


def _has_decoder(pretrained: Path) -> bool:
    """Whether the method trained decoder blocks; a method that trains none must be accepted."""
    tensors = checkpoint.read(pretrained / runs.WEIGHTS).tensors
    return any(name.startswith("decoder.") for name in tensors)


def _reason(error: Exception) -> str:
    """Why something failed; for a bug, the trace is printed too."""
    if isinstance(error, MaclError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
