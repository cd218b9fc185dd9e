"""Run a grid of pre-training, fine-tuning, prediction and evaluation; finished cells are kept."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, atomic_path, refuse_links
from macl.utils.progress import say, warn
from macl.workflows.benchmark.cells import BenchmarkFolder
from macl.workflows.benchmark.executors import Cluster, run_workers, submit_jobs
from macl.workflows.benchmark.grid import read_grid
from macl.workflows.benchmark.plan import plan
from macl.workflows.benchmark.results import CellRecord, append_runs
from macl.workflows.benchmark.tables import SUMMARY, write_tables
from macl.workflows.benchmark.wording import too_few_people

GRID = "grid.toml"


class BenchmarkKeywords(TypedDict, total=False):
    """The fields of `BenchmarkOptions`, as keyword arguments."""

    device: str
    workers: int | None
    submit: Cluster | None
    job_settings: Sequence[str]
    append_to: AnyPath | None


@dataclass(frozen=True)
class BenchmarkOptions:
    """How a benchmark is run.

    Attributes:
        device: to run on.
        workers: processes that share the cells; with `submit`, jobs (None: one for every
            pre-training).
        submit: run the cells as jobs of a SLURM cluster, or of this machine ("local").
        job_settings: "name=value", as submitit takes them.
        append_to: a table to which the finished runs are added, one row each; those that are there
            already are not added twice.
    """

    device: str = "auto"
    workers: int | None = None
    submit: Cluster | None = None
    job_settings: Sequence[str] = ()
    append_to: AnyPath | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark has found so far.

    Attributes:
        cells: how many the grid has.
        finished: the record of every finished cell, by name.
        failed: why a cell failed, by name.
        summary: the tables, as Markdown.
    """

    cells: int
    finished: Mapping[str, CellRecord]
    failed: Mapping[str, str]
    summary: str

    @property
    def complete(self) -> bool:
        """Whether every cell of the grid is finished."""
        return len(self.finished) == self.cells and not self.failed


def benchmark(grid: AnyPath, out: AnyPath, **options: Unpack[BenchmarkKeywords]) -> BenchmarkResult:
    """Run the cells of a grid file that are not finished in `out`, and write all results.

    `out` then holds `pretrained/<start>__seed<n>` and
    `cells/<start>__<labels>__<recipe>__seed<n>` (runs, with their predictions and scores), the
    tables that `write_tables` writes, and the grid. The same command may run several times at once.

    Args:
        grid: the grid file.
        out: the folder of the results.
        options: see `BenchmarkOptions`.

    Returns:
        What the finished cells say, and which failed.

    Raises:
        MaclError: the grid names something that does not exist, or `out` holds something else;
            nothing has been run then.
    """
    grid, out = Path(grid), Path(out)
    chosen = BenchmarkOptions(**options)
    planned = plan(read_grid(grid))
    if warning := too_few_people(planned):
        warn(warning)
    _open_folder(out, grid)
    command = f"macl benchmark {shlex.quote(grid.name)} --out {shlex.quote(out.name)}"
    folder = BenchmarkFolder(planned, out, chosen.device, f"{command} --device {chosen.device}")
    folder.prepare()

    def after_each() -> str:
        return write_tables(folder)

    if chosen.submit:
        submit_jobs(folder, grid, chosen.submit, chosen.workers, chosen.job_settings, after_each)
    elif (chosen.workers or 1) > 1:
        run_workers(folder, grid, chosen.workers or 1, after_each)
    else:
        folder.work(planned.specifications, after_each)
    summary = write_tables(folder)
    failed, finished = folder.failed(), folder.finished()
    for name, reason in failed.items():
        warn(f"Failed: {name}: {reason}")
    if chosen.append_to:
        append_runs(Path(chosen.append_to), finished.values())
    cells = len(planned.specifications)
    say(f"{len(finished)} of {cells} cells are finished; results: {out / SUMMARY}.")
    if len(finished) + len(failed) < cells:
        say("The rest was interrupted: run the same command again to resume.")
    named = {cell.name: record for cell, record in finished.items()}
    return BenchmarkResult(cells, named, failed, summary)


def _open_folder(out: Path, grid: Path) -> None:
    is_benchmark = (out / GRID).is_file()
    if out.exists() and not is_benchmark and (not out.is_dir() or any(out.iterdir())):
        raise MaclError(
            f"--out {out} already holds something that is not a benchmark: choose another folder."
        )
    for folder in (out, out / "cells", out / "pretrained"):
        refuse_links(folder)
    with atomic_path(out / GRID) as aside:
        shutil.copyfile(grid, aside)
