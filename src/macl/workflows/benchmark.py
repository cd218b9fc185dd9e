"""Run a grid of pre-training, fine-tuning, prediction and evaluation; finished cells are kept."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from macl.utils.errors import MaclError
from macl.utils.files import atomic_path
from macl.utils.progress import say
from macl.workflows.cells import BenchmarkFolder
from macl.workflows.grid import plan, read_grid
from macl.workflows.results import append_runs
from macl.workflows.tables import SUMMARY, write_tables

GRID = "grid.toml"


def benchmark(
    grid: Path, out: Path, *, device: str = "auto", append_to: Path | None = None
) -> bool:
    """Run the cells of a grid file that are not finished in `out`, and write all results.

    `out` then holds `pretrained/<start>__seed<n>` and
    `cells/<start>__<labels>__<recipe>__seed<n>` (runs, with their predictions and scores), the
    tables that `write_tables` writes, and the grid.

    Args:
        grid: the grid file.
        out: the folder of the results.
        device: to run on.
        append_to: a table to which the finished runs are added, one row each; those that are there
            already are not added twice.

    Returns:
        Whether every cell of the grid is finished.

    Raises:
        MaclError: the grid names something that does not exist, or `out` holds something else;
            nothing has been run then.
    """
    planned = plan(read_grid(grid))
    _open_folder(out, grid)
    command = f"macl benchmark {shlex.quote(grid.name)} --out {shlex.quote(out.name)}"
    folder = BenchmarkFolder(planned, out, device, f"{command} --device {device}")
    folder.prepare()
    folder.work(planned.specifications, lambda: write_tables(folder))
    print(write_tables(folder))
    failed, finished = folder.failed(), folder.finished()
    for name, reason in failed.items():
        say(f"Failed: {name}: {reason}")
    if append_to:
        append_runs(append_to, finished.values())
    cells = len(planned.specifications)
    say(f"{len(finished)} of {cells} cells are finished; results: {out / SUMMARY}.")
    return len(finished) == cells and not failed


def _open_folder(out: Path, grid: Path) -> None:
    is_benchmark = (out / GRID).is_file()
    if out.exists() and not is_benchmark and (not out.is_dir() or any(out.iterdir())):
        raise MaclError(
            f"--out {out} already holds something that is not a benchmark: choose another folder."
        )
    with atomic_path(out / GRID) as aside:
        shutil.copyfile(grid, aside)
