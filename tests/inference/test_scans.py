"""Scans on their way to the segmenter, which are read ahead of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from fakes.threshold_run import write_threshold_run
from macl.inference.scans import ScanToSegment, read_ahead, require_same_channels
from macl.records.runs import read_record
from macl.utils.errors import MaclError


def scan(name: str, time_point: Any) -> ScanToSegment:
    def geometry() -> Any:
        pytest.fail("not asked for")

    return ScanToSegment(name, ".nii.gz", geometry, lambda: name, (time_point,))


def test_the_next_scan_is_read_while_this_one_is_segmented_and_no_further() -> None:
    begun = {name: threading.Event() for name in "abc"}

    def time_point(name: str) -> Any:
        return lambda: begun[name].set() or name

    pairs = read_ahead([scan(name, time_point(name)) for name in "abc"])
    first, reading = next(pairs)
    assert (first.name, reading.result()) == ("a", ["a"])
    assert begun["b"].wait(5)
    assert not begun["c"].is_set()
    assert [(rest.name, read.result()) for rest, read in pairs] == [("b", ["b"]), ("c", ["c"])]


def test_a_scan_that_cannot_be_read_raises_in_its_turn() -> None:
    def broken() -> Any:
        raise MaclError("torn")

    (_, good), (_, bad), (_, last) = read_ahead(
        [scan("a", lambda: 1), scan("b", broken), scan("c", lambda: 3)]
    )
    assert good.result() == [1]
    with pytest.raises(MaclError, match="torn"):
        bad.result()
    assert last.result() == [3]


def test_no_scans() -> None:
    assert list(read_ahead([])) == []


def test_channels_in_another_order_are_refused(tmp_path: Path) -> None:
    record = read_record(write_threshold_run(tmp_path / "run", channels=("FLAIR", "T1")))
    require_same_channels(tmp_path, ("flair", "t1"), record)
    with pytest.raises(MaclError, match=r"another order \(T1, FLAIR in .*, FLAIR, T1 in the run's"):
        require_same_channels(tmp_path, ("T1", "FLAIR"), record)


def test_channels_of_other_names_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(write_threshold_run(tmp_path / "run", channels=("FLAIR", "T1")))
    require_same_channels(tmp_path, ("channel 1", "channel 2"), record)
    assert capsys.readouterr().err == ""
    require_same_channels(tmp_path, ("T2", "T1"), record)
    assert "the channels have other names (T2, T1 in" in capsys.readouterr().err
