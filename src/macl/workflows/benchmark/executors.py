"""Several processes at one benchmark: workers on this machine, or the jobs of a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

from macl.utils.errors import MaclError
from macl.utils.parallel import available_cores, end_with_parent
from macl.utils.progress import progress, say, warn
from macl.workflows.benchmark.cells import BenchmarkFolder
from macl.workflows.benchmark.grid import BenchmarkCell, read_grid
from macl.workflows.benchmark.plan import plan

LOGS = "workers"
JOBS = "jobs"
SECONDS_BETWEEN_LOOKS = 1.0
DEFAULT_JOB_SETTINGS = {"name": "macl", "timeout_min": 24 * 60}

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True)
class WorkOrder:
    """What a process of its own is told to do.

    Attributes:
        cells: names of the cells that it shall finish.
        log: file for its messages; None: they stay where they are.
    """

    grid: Path
    out: Path
    device: str
    command: str
    cells: frozenset[str]
    log: Path | None = None


def run_workers(
    folder: BenchmarkFolder, grid: Path, count: int, after_each: Callable[[], Any]
) -> None:
    """Let `count` processes share the cells; each writes its messages to a log in `workers/`.

    Cells are locked by the process that is at them, so that no two do the same. The cell of a
    killed process is taken over by another.

    Args:
        folder: the benchmark.
        grid: its grid file.
        count: number of processes.
        after_each: called when more cells are finished.
    """
    every = frozenset(cell.name for cell in folder.plan.specifications)
    workers: list[SpawnProcess] = []
    try:
        for number in range(1, count + 1):
            log = folder.out / LOGS / f"worker{number}.log"
            log.parent.mkdir(exist_ok=True)
            order = WorkOrder(grid, folder.out, folder.device, folder.command, every, log)
            worker = get_context("spawn").Process(target=work, args=(order,), name=log.stem)
            with _environment(worker_environment(number, count, folder.device)):
                worker.start()
            workers.append(worker)
        say(f"{count} workers share the cells; their messages: {folder.out / LOGS}.")
        _watch(folder, lambda: any(worker.is_alive() for worker in workers), after_each)
    finally:
        # Only an interruption leaves workers alive; what they write, they write atomically.
        for worker in workers:
            worker.kill()
            worker.join()
    for worker in workers:
        if worker.exitcode:
            warn(f"{worker.name} ended before its time (exit code {worker.exitcode}); see its log.")


def submit_jobs(
    folder: BenchmarkFolder,
    grid: Path,
    cluster: Cluster,
    count: int | None,
    settings: Sequence[str],
    after_each: Callable[[], Any],
) -> None:
    """Run the cells as jobs of a cluster, and wait for them.

    Cells of the same pre-training are in the same job, so that jobs never wait for each other.

    Args:
        folder: the benchmark.
        grid: its grid file.
        cluster: "slurm", or "local" for processes of this machine.
        count: number of jobs; None: one for every pre-training.
        settings: "name=value", as submitit's `update_parameters` takes them.
        after_each: called when more cells are finished.

    Raises:
        MaclError: submitit is not installed, there is no such cluster here, or a setting is
            unknown.
    """
    try:
        import submitit
    except ImportError:
        raise MaclError(
            "Jobs are submitted by submitit, which is not installed: run "
            "pip install 'macl[slurm]', then the same command again."
        ) from None
    try:
        executor = submitit.AutoExecutor(folder.out / JOBS, cluster=cluster)
        executor.update_parameters(**DEFAULT_JOB_SETTINGS | _parse(settings))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise MaclError(f"The jobs cannot be submitted to {cluster}: {error}.") from None
    done = {cell.name for cell in folder.finished()}
    orders = [
        WorkOrder(grid.absolute(), folder.out.absolute(), folder.device, folder.command, names)
        for names in shares_of_jobs([*folder.plan.specifications], done, count)
    ]
    if not orders:
        return
    with executor.batch():
        jobs = [executor.submit(Job(), order) for order in orders]
    say(f"Submitted {len(jobs)} jobs to {cluster}; their messages: {folder.out / JOBS}.")
    _watch(folder, lambda: not all(job.done() for job in jobs), after_each)
    for job in jobs:
        if job.exception():
            warn(f"Job {job.job_id} ended before its time; see its log in {folder.out / JOBS}.")


class Job:
    """`work`, as submitit calls it; a job whose time is up is submitted again, and resumes."""

    def __call__(self, order: WorkOrder) -> None:
        work(order)

    def checkpoint(self, order: WorkOrder) -> Any:
        """What submitit shall submit in place of a job that was stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)


def work(order: WorkOrder) -> None:
    """Finish the cells of an order, in this process."""
    if order.log:
        end_with_parent()
        with order.log.open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    planned = plan(read_grid(order.grid))
    cells = [cell for cell in planned.specifications if cell.name in order.cells]
    BenchmarkFolder(planned, order.out, order.device, order.command).work(cells, lambda: None)


def shares_of_jobs(
    cells: Sequence[BenchmarkCell], done: set[str], count: int | None
) -> list[frozenset[str]]:
    """The names of the cells of every job; those that share a pre-training stay together.

    Args:
        cells: all cells.
        done: names of those that are finished.
        count: number of jobs, at most; None: one for every pre-training.
    """
    groups: dict[str, list[str]] = {}
    for cell in cells:
        if cell.name not in done:
            groups.setdefault(cell.pretraining, []).append(cell.name)
    jobs = min(count or len(groups), len(groups))
    members = [*groups.values()]
    return [
        frozenset(name for group in members[first::jobs] for name in group) for first in range(jobs)
    ]


def worker_environment(number: int, count: int, device: str) -> dict[str, str]:
    """A worker's share of this machine: its threads, and where there are several GPUs, one of them.

    Args:
        number: of the worker, from 1.
        count: of workers.
        device: that the user chose.
    """
    share = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, available_cores() // count))
    if device in ("auto", "cuda"):
        import torch

        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [*map(str, range(torch.cuda.device_count()))]
        if len(gpus) > 1:
            share["CUDA_VISIBLE_DEVICES"] = gpus[(number - 1) % len(gpus)]
    return share


@contextmanager
def _environment(share: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in share}
    os.environ.update(share)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _watch(
    folder: BenchmarkFolder, working: Callable[[], bool], after_each: Callable[[], Any]
) -> None:
    """Show how many cells are finished, until nobody works any more."""
    cells = folder.plan.specifications
    unfinished = [cell for cell in cells if not folder.record(cell)]
    with progress("Cells", len(cells), len(cells) - len(unfinished)) as advance:
        while True:
            # Asked first: what is finished until the end is seen below.
            more_to_come = working()
            left = [cell for cell in unfinished if not folder.record(cell)]
            if len(left) < len(unfinished):
                advance(len(unfinished) - len(left))
                unfinished = left
                after_each()
            if not more_to_come:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _parse(settings: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise MaclError(f"--job-setting takes NAME=VALUE, not {text!r}.")
        parsed[name] = int(value) if value.isdecimal() else value
    return parsed
