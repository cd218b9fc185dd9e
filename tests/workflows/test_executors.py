"""Several processes at one benchmark, killed and going on."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.command import macl
from fakes.toy_store import write_toy_store
from macl.stages.split import split
from macl.utils.files import lock_if_free
from macl.workflows.benchmark.executors import shares_of_jobs, worker_environment
from macl.workflows.benchmark.grid import combinations, read_grid
from macl.workflows.benchmark.plan import plan

SMALL = (
    '"training.epochs=2", "training.size=64", "training.batch_size=4", "backbone_settings.width=2"'
)
GRID = f"""
store = "toy.store"
split = "toy.json"
repeats = 2
labels = [1]
recipes = ["paper"]
conventions = ["strict"]

[[start]]
name = "scratch"

[[start]]
name = "macl"
method = "macl"
set = [{SMALL}]

[finetune]
set = [{SMALL}]
"""
PATIENCE_SECONDS = 240.0


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    write_toy_store(tmp_path / "toy.store", patients=5, slices=3)
    split(tmp_path / "toy.store", tmp_path / "toy.json", test="2", budgets="1")
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


def start(grid: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "macl", "benchmark", str(grid), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_of(pid: int) -> list[int]:
    """The spawned workers among the children of a process, in the order of their start."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rows(out: Path) -> list[dict[str, str]]:
    """The results, without times."""
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [
        {name: text for name, text in line.items() if not name.endswith("_seconds")}
        for line in lines
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks processes up in /proc")
def test_killed_workers_are_replaced_and_a_killed_benchmark_goes_on(
    grid: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "bench"
    assert macl("benchmark", grid, "--out", whole, "--device", "cpu").code == 0

    first = start(grid, out, "--workers", "2")
    wait_for(lambda: [*out.glob("cells/*/log.jsonl"), *out.glob("pretrained/*/log.jsonl")])
    workers = workers_of(first.pid)
    assert len(workers) == 2
    first.kill()
    first.communicate()
    wait_for(lambda: not any(map(alive, workers)))
    finished = [*out.glob("cells/*/cell.json")]
    assert len(finished) < 4, "killed before its end"

    second = start(grid, out, "--workers", "2")
    wait_for(lambda: len(workers_of(second.pid)) == 2)
    victim = workers_of(second.pid)[0]
    log = out / "workers" / "worker1.log"
    wait_for(lambda: log.read_text(encoding="utf-8").count("Cell ") > 1 or not alive(victim))
    os.kill(victim, signal.SIGKILL)
    _, messages = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, messages
    assert "worker1 ended before its time (exit code -9)" in messages
    assert "4 of 4 cells are finished" in messages
    assert rows(out) == rows(whole)


def test_a_cell_that_another_process_is_at_is_waited_for(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    busy = "scratch__1__paper__seed0__draw0"
    with lock_if_free(out / "locks" / f"{busy}.lock") as held:
        assert held
        (out / "grid.toml").write_text("")
        process = start(grid, out)
        others = lambda: len([*out.glob("cells/*/cell.json")]) == 3  # noqa: E731
        wait_for(others)
        time.sleep(2)
        assert process.poll() is None, "it waits"
        assert not (out / "cells" / busy).exists()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert (out / "cells" / busy / "cell.json").is_file()


def test_a_failure_is_tried_by_one_worker_alone(grid: Path, tmp_path: Path) -> None:
    (person,) = plan(read_grid(grid)).splits[0].budgets["1"]
    label = grid.with_name("toy.store") / "cases" / f"{person}.label.b2nd"
    label.rename(label.with_suffix(".hidden"))
    process = start(grid, tmp_path / "bench", "--workers", "2")
    _, messages = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    logs = [path.read_text("utf-8") for path in (tmp_path / "bench" / "workers").iterdir()]
    assert "Failed: scratch__1__paper__seed0__draw0: " in messages
    assert sum(log.count(": scratch__1__paper__seed0__draw0\n") for log in logs) == 1, logs


def test_workers_share_threads_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("macl.workflows.benchmark.executors.available_cores", lambda: 9)
    assert worker_environment(1, 4, "cpu") == {"OMP_NUM_THREADS": "2"}
    assert worker_environment(1, 20, "cpu") == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    chosen = [worker_environment(number, 3, "cuda") for number in (1, 2, 3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in chosen] == ["4", "6", "4"]


def test_jobs_share_no_pretraining(grid: Path) -> None:
    cells = [*combinations(read_grid(grid))]
    shares = shares_of_jobs(cells, set(), None)
    assert len(shares) == 4
    assert set().union(*shares) == {cell.name for cell in cells}
    two = shares_of_jobs(cells, {cells[0].name}, 2)
    assert sorted(map(len, two)) == [1, 2]
    assert cells[0].name not in set().union(*two)
    assert shares_of_jobs(cells, {cell.name for cell in cells}, 2) == []


def test_jobs_of_submitit(grid: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    out = tmp_path / "bench"
    words = ("--submit", "local", "--workers", "2", "--job-setting", "timeout_min=10")
    answer = macl("benchmark", grid, "--out", out, "--device", "cpu", *words)
    assert answer.code == 0, answer.err
    assert "Submitted 2 jobs to local" in answer.err
    assert len(rows(out)) == 4 * 3
    again = macl("benchmark", grid, "--out", out, "--device", "cpu", *words)
    assert again.code == 0
    assert "Submitted" not in again.err, "nothing is left to do"


def test_a_wrong_setting_of_a_job_is_said_before_anything_runs(grid: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    words = ("--submit", "local", "--job-setting", "time_min=10")
    answer = macl("benchmark", grid, "--out", tmp_path / "bench", "--device", "cpu", *words)
    assert answer.code == 1
    assert "cannot be submitted to local" in answer.err
    assert "time_min" in answer.err


def test_without_submitit_the_command_that_installs_it_is_named(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    answer = macl("benchmark", grid, "--out", tmp_path / "bench", "--submit", "slurm")
    assert answer.code == 1
    assert "pip install 'macl[slurm]'" in answer.err
