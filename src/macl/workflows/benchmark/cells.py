"""The cells of a benchmark: run, resumed or kept, by one process or by several at once."""

from __future__ import annotations

import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

from macl.data.splits import write_split
from macl.metrics import Convention
from macl.records import runs
from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.pretrain import pretrain
from macl.stages.selftrain import selftrain
from macl.tasks.initial_weights import SCRATCH
from macl.utils import checkpoint
from macl.utils.commit import commit_of_macl
from macl.utils.errors import MaclError
from macl.utils.failures import explain
from macl.utils.files import lock_if_free, read_json, write_text
from macl.utils.progress import say
from macl.workflows.benchmark.grid import BenchmarkCell
from macl.workflows.benchmark.plan import BenchmarkPlan
from macl.workflows.benchmark.results import CELL, CellRecord, read_cell

CELLS = "cells"
PRETRAINED = "pretrained"
LOCKS = "locks"
FAILURES = "failures"
SPLITS = "splits"
SECONDS_BETWEEN_LOOKS = 1.0
TRAINING_STAGES = {"finetune": finetune, "selftrain": selftrain}


class CellStart(NamedTuple):
    """What a cell starts from, and how long that took to train."""

    init: str
    pretraining_seconds: float = 0.0
    finetuning_seconds: float = 0.0


@dataclass(frozen=True)
class BenchmarkFolder:
    """The folder of a benchmark, in which any number of processes may work at a time.

    Attributes:
        plan: what is to be run.
        out: the folder.
        device: to run on.
        command: what the user called, for the records.
    """

    plan: BenchmarkPlan
    out: Path
    device: str
    command: str

    def folder(self, cell: BenchmarkCell) -> Path:
        """The folder of a cell, which is a run."""
        return self.out / CELLS / cell.name

    def split(self, draw: int | None) -> str:
        """The split of a draw: a file, or the name in the grid."""
        return self.plan.grid.split if draw is None else str(self._drawn_split(draw))

    def prepare(self) -> None:
        """Write the drawn splits, and forget earlier failures."""
        for draw, split in self.plan.splits.items():
            if draw is not None:
                write_split(self._drawn_split(draw), split)
        shutil.rmtree(self.out / FAILURES, ignore_errors=True)

    def work(self, cells: Iterable[BenchmarkCell], after_each: Callable[[], Any]) -> None:
        """Finish these cells; one that another process is at is waited for.

        `after_each` is called after each that was not finished before.

        What fails is written down, and not tried again until `prepare`.
        """
        numbers = {cell: number for number, cell in enumerate(self.plan.specifications, start=1)}
        waiting = list(cells)
        while waiting:
            busy = []
            for cell in waiting:
                outcome = self._finish(cell, numbers[cell])
                if outcome == "busy":
                    busy.append(cell)
                elif outcome == "done":
                    after_each()
            if len(busy) == len(waiting):
                time.sleep(SECONDS_BETWEEN_LOOKS)
            waiting = busy

    def finished(self) -> dict[BenchmarkCell, CellRecord]:
        """The records of the finished cells, in the plan's order."""
        found = {cell: self.record(cell) for cell in self.plan.specifications}
        return {cell: record for cell, record in found.items() if record}

    def record(self, cell: BenchmarkCell) -> CellRecord | None:
        """The record of a cell; None where it is not finished as the plan specifies it."""
        record = read_cell(self.folder(cell))
        specified = record and record.specification == self.plan.specifications[cell]
        return record if specified else None

    def failed(self) -> dict[str, str]:
        """Name of a failed cell → why it failed."""
        files = {cell.name: self._failure(CELLS, cell.name) for cell in self.plan.specifications}
        return {
            name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()
        }

    def _drawn_split(self, draw: int) -> Path:
        return self.out / SPLITS / f"draw{draw}.json"

    def _failure(self, kind: str, name: str) -> Path:
        return self.out / FAILURES / kind / f"{name}.txt"

    def _finish(self, cell: BenchmarkCell, number: int) -> Literal["done", "kept", "busy"]:
        """Run, resume or keep a cell, unless another process is busy with it."""
        if self._failure(CELLS, cell.name).is_file():
            return "kept"
        with lock_if_free(self.out / LOCKS / f"{cell.name}.lock") as held:
            if not held:
                return "busy"
            say(f"Cell {number} of {len(self.plan.specifications)}: {cell.name}")
            try:
                return self._finish_alone(cell)
            except Exception as error:
                write_text(self._failure(CELLS, cell.name), _reason(error))
        return "done"

    def _finish_alone(self, cell: BenchmarkCell) -> Literal["done", "kept", "busy"]:
        folder = self.folder(cell)
        finished = self._finished_as_planned(cell)
        if finished and {*self.plan.grid.conventions} <= {*finished.summaries}:
            say("Finished already.")
            return "kept"
        start = self._start(cell)
        if start is None:
            say("What it starts from is under way in another process.")
            return "busy"
        self._run(cell, folder, start)
        return "done"

    def _finished_as_planned(self, cell: BenchmarkCell) -> CellRecord | None:
        """The record of a cell; None where it is not finished.

        Raises:
            MaclError: it was made with other settings than the plan's.
        """
        folder = self.folder(cell)
        finished = read_cell(folder)
        if finished and finished.specification != self.plan.specifications[cell]:
            raise MaclError(
                f"{folder} was made with other settings: choose another --out, or remove that "
                "folder."
            )
        return finished

    def _run(self, cell: BenchmarkCell, folder: Path, start: CellStart) -> None:
        grid = self.plan.grid
        train = TRAINING_STAGES[cell.training.stage]
        record = train(
            grid.store, folder, init=start.init, split=self.split(cell.draw), labels=cell.labels,
            recipe=cell.training.recipe or cell.recipe,
            overrides=(*grid.finetune.set, *cell.training.set, *cell.start.network),
            device=self.device, seed=cell.seed, resume=True,
            encoder_only=cell.start.method is not None and not has_decoder(Path(start.init)),
        )  # fmt: skip
        predict([folder, grid.store], folder / runs.PREDICTIONS, device=self.device)
        summaries: dict[Convention, dict[str, Any]] = {}
        for convention in grid.conventions:
            table = folder / (runs.SCORES if convention == "strict" else f"cases.{convention}.csv")
            evaluate(folder / runs.PREDICTIONS, grid.store, table, convention=convention)
            summary = table.with_suffix(".summary.json")
            summaries[convention] = read_json(summary, "an evaluation's summary")
        done = CellRecord(
            start=cell.start.name,
            training=cell.training.name,
            labels=cell.labels,
            recipe=cell.recipe_name,
            seed=cell.seed,
            draw=cell.draw,
            specification=dict(self.plan.specifications[cell]),
            store=grid.store.name,
            split=grid.split_name,
            device=hardware(self.device),
            versions=runs.versions(),
            commit=commit_of_macl(),
            date=date.today().isoformat(),
            command=self.command,
            pretraining_seconds=start.pretraining_seconds,
            finetuning_seconds=start.finetuning_seconds + record.seconds,
            summaries=summaries,
        )
        write_text(folder / CELL, done.model_dump_json(indent=1) + "\n")

    def _start(self, cell: BenchmarkCell) -> CellStart | None:
        """What a cell starts from; None where another process is at it."""
        preceding = self.plan.preceding(cell)
        if preceding is None:
            return self._pretrained(cell)
        if self._failure(CELLS, preceding.name).is_file():
            raise MaclError(f"It continues {preceding.name}, which failed.")
        record, folder = self._finished_as_planned(preceding), self.folder(preceding)
        if record is None:
            return None
        return CellStart(str(folder), record.pretraining_seconds, record.finetuning_seconds)

    def _pretrained(self, cell: BenchmarkCell) -> CellStart | None:
        """The start of a cell, pre-trained now unless it is finished."""
        if cell.start.method is None:
            return CellStart(SCRATCH)
        failure = self._failure(PRETRAINED, cell.pretraining)
        folder = self.out / PRETRAINED / cell.pretraining
        with lock_if_free(self.out / LOCKS / f"pretrained__{cell.pretraining}.lock") as held:
            if not held:
                return None
            if failure.is_file():
                raise MaclError(failure.read_text(encoding="utf-8"))
            try:
                record = pretrain(
                    self.plan.grid.store, folder, method=cell.start.method,
                    split=self.plan.grid.split, recipe=cell.start.recipe,
                    overrides=(*cell.start.network, *cell.start.set),
                    device=self.device, seed=cell.seed, resume=True,
                )  # fmt: skip
            except Exception as error:
                reason = f"Its pre-training failed: {_reason(error)}"
                write_text(failure, reason)
                raise MaclError(reason) from None
        return CellStart(str(folder), record.seconds)


def hardware(device: str) -> str:
    """The computing hardware in words, for the results."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        return f"{platform.machine()} with MPS"
    return f"{platform.machine()} with {os.cpu_count()} cores"


def has_decoder(pretrained: Path) -> bool:
    """Whether a pre-training run trained decoder blocks; a method that trains none is accepted."""
    tensors = checkpoint.read(pretrained / runs.WEIGHTS).tensors
    return any(name.startswith("decoder.") for name in tensors)


def _reason(error: Exception) -> str:
    """Why something failed; for a bug, the traceback is printed too."""
    sentence = explain(error)
    if sentence is None:
        traceback.print_exception(error)
    return sentence or f"{type(error).__name__}: {error}"
