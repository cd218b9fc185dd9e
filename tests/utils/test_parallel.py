"""Work in several processes: the same results, and a killed worker is a sentence."""

from __future__ import annotations

import os
from multiprocessing import active_children
from pathlib import Path

import pytest

from fakes.working import sleep_and_touch
from macl.utils.errors import MaclError
from macl.utils.parallel import workers_for


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_with_their_index(workers: int) -> None:
    with workers_for(3, workers) as run:
        assert dict(run(abs, [-1, 2, -3])) == {0: 1, 1: 2, 2: 3}


def test_a_killed_worker_is_a_sentence() -> None:
    with pytest.raises(MaclError, match="A worker process was killed"), workers_for(2, 2) as run:
        list(run(os._exit, [1, 1]))


def test_an_interruption_does_not_wait_for_the_workers(tmp_path: Path) -> None:
    tasks = [(0.0, str(tmp_path / "first")), (20.0, str(tmp_path / "second"))]

    def interrupted() -> None:
        with workers_for(2, 2) as run:
            next(run(sleep_and_touch, tasks))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert not active_children()
