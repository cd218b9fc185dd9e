"""`macl choose`: whom to label first, and which slices."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import macl as package
from fakes.command import macl
from fakes.random_run import write_random_run
from fakes.threshold_run import write_threshold_run
from fakes.toy_store import write_toy_store
from macl.data.store import Store
from macl.io.geometry import Geometry
from macl.preprocessing.orientation import choose_orientation, to_scan
from macl.stages.choose import scanned_slice


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_toy_store(tmp_path / "my.store", patients=8, slices=5, side=32, unlabelled=6)


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Path:
    return write_random_run(tmp_path / "run", store, size=32)


def test_unlabelled_people_are_ranked(store: Store, run: Path, tmp_path: Path) -> None:
    answer = macl("choose", store.path, "--run", run, "--count", 4, "--out", tmp_path / "c.json")
    assert answer.code == 0, answer.err
    written = json.loads((tmp_path / "c.json").read_text())
    people = written["people"]
    assert [person["rank"] for person in people] == [1, 2, 3, 4]
    names = [person["person"] for person in people]
    assert len(set(names)) == 4
    assert {*names} <= {f"patient{number:03d}" for number in range(3, 9)}
    shares = [person["mean_distance"] for person in people]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    for person in people:
        (case,) = person["cases"]
        assert case["axis"] == "k"
        assert len({*case["slices"]}) == 3
        assert {*case["slices"]} <= {*range(5)}
    assert [line.split()[1] for line in answer.out.splitlines()[1:]] == names
    macl("choose", store.path, "--run", run, "--count", 4, "--out", tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["person"] for row in rows] == names
    assert rows[0]["slices"] == " ".join(map(str, people[0]["cases"][0]["slices"]))


def test_those_who_lie_apart_are_chosen_from_the_features(
    store: Store, run: Path, tmp_path: Path
) -> None:
    """By what `embed` writes of the same run."""
    features = package.embed(store.path, tmp_path / "f.npz", run=run)["case_features"]
    told_apart = (features - features.mean(axis=0))[:, features.std(axis=0) > 1e-6]
    told_apart /= told_apart.std(axis=0)
    apart = np.linalg.norm(told_apart[:, None] - told_apart, axis=2)
    (central,) = package.choose(store.path, run=run, count=1, among="labelled")
    assert central.person == f"patient{apart.mean(axis=0)[:2].argmin() + 1:03d}"
    (farthest,) = package.choose(store.path, run=run, count=1, strategy="farthest")
    assert farthest.person == f"patient{apart[:2].min(axis=0).argmax() + 1:03d}"


def test_people_of_the_test_are_not_chosen(store: Store, run: Path, tmp_path: Path) -> None:
    package.split(store.path, tmp_path / "s.json", test="1", budgets="1")
    tested = json.loads((tmp_path / "s.json").read_text())["test"]
    (chosen,) = package.choose(
        store.path, run=run, count=1, among="labelled", split=tmp_path / "s.json"
    )
    assert {chosen.person, *tested} == {"patient001", "patient002"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--count", "7"], "does not fit 6 unlabelled people"),
        (["--count", "2", "--out", "c.txt"], "ends in .json or .csv"),
    ],
)
def test_mistakes_are_one_sentence(store: Store, run: Path, words: list[str], problem: str) -> None:
    answer = macl("choose", store.path, "--run", run, *words)
    assert answer.code == 1
    assert problem in answer.err


def test_where_everybody_is_labelled_it_says_so(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "my.store", patients=2, slices=2, side=32)
    run = write_random_run(tmp_path / "run", store, size=32)
    answer = macl("choose", store.path, "--run", run, "--count", "1")
    assert answer.code == 1
    assert "--among labelled" in answer.err


def test_a_collapsed_encoder_is_refused(store: Store, tmp_path: Path) -> None:
    """The bottleneck of this run is 0 whatever it sees."""
    channels = store.index.channels
    run = write_threshold_run(tmp_path / "collapsed", channels=channels)
    answer = macl("choose", store.path, "--run", run, "--count", "2")
    assert answer.code == 1
    assert "has collapsed" in answer.err


@pytest.mark.parametrize("turned", [(1, 1, 1), (1, 1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("across", [0, 1, 2])
def test_slices_are_numbered_as_the_scan_has_them(
    store: Store, turned: tuple[int, int, int], across: int
) -> None:
    """A slice that is marked in the store is the marked one on the scan's own grid."""
    spacing = [1.0, 1.0, 1.0]
    spacing[across] = 5.0
    geometry = Geometry(
        size=(4, 5, 6), spacing=tuple(spacing), origin=(0, 0, 0),
        direction=(turned[0], 0, 0, 0, turned[1], 0, 0, 0, turned[2]), spacing_known=True,
    )  # fmt: skip
    orientation = choose_orientation(geometry)
    case = store.case("patient001").model_copy(
        update={"geometry": geometry, "orientation": orientation, "size": orientation.scanned_size}
    )
    for number in range(case.size[0]):
        marked = np.zeros(case.size, dtype=bool)
        marked[number] = True
        places = np.nonzero(to_scan(marked, orientation))
        axis = orientation.permutation[0]
        assert {*places[axis].tolist()} == {scanned_slice(case, number)}
