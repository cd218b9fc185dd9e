"""What a benchmark says of its methods, through the command line, on cells with known scores."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from fakes.command import macl
from fakes.finished_benchmark import DiceOf, write_finished_cells
from fakes.toy_store import write_toy_store
from macl.metrics import MaskOutcome
from macl.stages.split import split
from macl.statistics import bootstrap_interval
from macl.workflows.benchmark.cells import BenchmarkFolder
from macl.workflows.benchmark.grid import BenchmarkCell, read_grid
from macl.workflows.benchmark.plan import plan
from macl.workflows.benchmark.tables import write_tables

GRID = """
store = "toy.store"
split = "toy.json"
repeats = 4
labels = [1, 2]
recipes = ["paper"]
conventions = ["strict"]

[[start]]
name = "scratch"

[[start]]
name = "good_one"
method = "pcl"

[[start]]
name = "same"
method = "macl"
"""
PEOPLE, REPEATS = 12, 4
GAINS = np.random.default_rng(0).normal(0.03, 0.01, (PEOPLE, REPEATS))
NOISE = np.random.default_rng(1).normal(0.0, 0.01, (PEOPLE, REPEATS))


def dice(cell: BenchmarkCell, case: str, class_name: str) -> float:
    """With two people labelled `good_one` is ahead by GAINS; all else differs by NOISE alone."""
    person = int(case.removeprefix("patient")) % PEOPLE
    base = (
        0.6 + 0.01 * person + (0.1 if class_name == "disc" else 0.0) + 0.05 * (cell.labels == "2")
    )
    if cell.start.name == "good_one" and cell.labels == "2":
        return base + GAINS[person, cell.seed]
    if cell.start.name == "same":
        return base + NOISE[person, cell.seed]
    return base


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    write_toy_store(tmp_path / "toy.store", patients=PEOPLE + 4, slices=1)
    split(tmp_path / "toy.store", tmp_path / "toy.json", test=str(PEOPLE), budgets="1,2")
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


def run(grid: Path, dice_of: DiceOf = dice, *words: object) -> Path:
    """Call `macl benchmark` on cells with such scores; nothing is trained."""
    out = grid.with_name("bench")
    if not out.exists():
        write_finished_cells(grid, out, dice_of)
    answer = macl("benchmark", grid, "--out", out, "--device", "cpu", *words)
    assert answer.code == 0, answer.err
    assert "Failed" not in answer.err
    return out


def table(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def comparisons(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["start"], row["labels"]): row for row in table(out / "comparisons.csv")}


def test_methods_are_compared_with_scratch_over_people(grid: Path) -> None:
    out = run(grid)
    found = comparisons(out)
    assert set(found) == {(s, n) for s in ("good_one", "same") for n in "12"}
    better = found["good_one", "2"]
    people = sorted(range(1, PEOPLE + 5), key=lambda n: f"patient{n:03d}")
    test = {row["case"] for row in table(out / "cells/scratch__1__paper__seed0__draw0/cases.csv")}
    of_people = np.array(
        [100 * GAINS[n % PEOPLE].mean() for n in people if f"patient{n:03d}" in test]
    )
    assert float(better["dice_points"]) == pytest.approx(of_people.mean(), abs=1e-3)
    low, high = bootstrap_interval(of_people)
    assert float(better["low"]) == pytest.approx(low, abs=1e-3)
    assert float(better["high"]) == pytest.approx(high, abs=1e-3)
    p = stats.wilcoxon(np.round(of_people, 9)).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    assert float(better["p"]) == pytest.approx(p, rel=1e-4)
    p_values = sorted(float(row["p"]) for row in found.values())
    assert float(better["p_holm"]) == pytest.approx(4 * p_values[0], rel=1e-4)
    assert better["conclusion"] == "ahead"
    assert (better["people"], better["people_ahead"], better["repeats_ahead"]) == ("12", "12", "4")
    assert re.fullmatch(
        r"ahead by 3\.\d points, 95 % interval 2\.\d to 3\.\d, p = 0\.002 after Holm, 12 people, "
        "4 repeats, ahead in 4",
        better["sentence"],
    )
    assert found["same", "1"]["conclusion"] == "no conclusion"
    equal = found["good_one", "1"]
    assert (float(equal["dice_points"]), equal["p"]) == (0, "1")


def test_a_method_behind_is_said_to_be_behind(grid: Path) -> None:
    grid.write_text(GRID.replace("[[start]]", '[reference]\nstart = "good_one"\n[[start]]', 1))
    row = comparisons(run(grid))["scratch", "2"]
    assert row["conclusion"] == "behind"
    assert row["sentence"].startswith("behind by 3.")
    assert float(row["dice_points"]) < 0


def test_a_start_is_compared_with_scratch_of_its_own_network(grid: Path) -> None:
    network = 'network = ["backbone=attention_unet", "backbone_settings.width=4"]\n'
    other = f'[[start]]\nname = "other_scratch"\n{network}'
    text = GRID.replace('method = "macl"', f'method = "macl"\n{network}')
    grid.write_text(text + other)
    rows = [row for row in table(run(grid) / "comparisons.csv") if row["labels"] == "2"]
    assert {(row["start"], row["reference_start"]) for row in rows} == {
        ("good_one", "scratch"),
        ("same", "other_scratch"),
    }


def test_a_gain_of_some_repeats_alone_is_said_to_be_open(grid: Path) -> None:
    def lucky(cell: BenchmarkCell, case: str, class_name: str) -> float:
        return dice(cell, case, class_name) + 0.2 * (cell.start.name == "same" and cell.draw == 2)

    row = comparisons(run(grid, lucky))["same", "1"]
    assert row["conclusion"] == "ahead", "for other people, with these draws"
    assert "other seeds or other labelled people may reverse it" in row["sentence"]
    assert float(row["low"]) > 0 >= float(row["low_over_repeats_too"])


def test_few_people_allow_no_conclusion(tmp_path: Path) -> None:
    write_toy_store(tmp_path / "toy.store", patients=8, slices=1)
    split(tmp_path / "toy.store", tmp_path / "toy.json", test="5", budgets="1,2")
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID)
    write_finished_cells(grid, tmp_path / "bench", dice)
    answer = macl("benchmark", grid, "--out", tmp_path / "bench", "--device", "cpu")
    assert "with 5 test people and 4 comparisons, no p can fall below 0.05" in answer.err
    assert "Let the split test 8 people or more." in answer.err
    row = comparisons(tmp_path / "bench")["good_one", "2"]
    assert row["conclusion"] == "no conclusion"
    assert row["sentence"].endswith(
        "too few people for any conclusion among 4 comparisons: 8 are needed"
    )


def test_an_unfinished_benchmark_says_so(grid: Path) -> None:
    out = grid.with_name("bench")
    write_finished_cells(grid, out, dice)
    planned = plan(read_grid(grid))
    for cell in planned.specifications:
        if cell.seed > 0:
            (out / "cells" / cell.name / "cell.json").unlink()
    write_tables(BenchmarkFolder(planned, out, "cpu", "macl benchmark"))
    for name in ("results.md", "results.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "6 of 24 cells are finished." in text
        assert "corrected for the 4 comparisons so far" in text
        assert "Every value is of one repeat." in text
        for fact in ("store: toy.store", "split: toy", "test people: 12", "device: an abacus"):
            assert fact in text
        assert "over people and repeats." not in text


def test_methods_with_equal_labels_are_neighbours(grid: Path) -> None:
    lines = (run(grid) / "results.md").read_text(encoding="utf-8").splitlines()
    means = [line.split(" | ")[:3] for line in lines if re.match(r"\| \d \| paper \|", line)][:6]
    starts = ("scratch", "good_one", "same")
    assert means == [[f"| {labels}", "paper", start] for labels in "12" for start in starts]


def test_tables_without_rows_have_a_header(grid: Path) -> None:
    grid.write_text(GRID.split('[[start]]\nname = "good_one"')[0])
    out = run(grid)
    assert (out / "comparisons.csv").read_text().startswith("labels,start,training,recipe,")
    assert (out / "ranks.csv").read_text().startswith("labels,start,training,recipe,mean_rank")


def test_what_is_not_found_is_counted(grid: Path) -> None:
    def missing(cell: BenchmarkCell, case: str, class_name: str) -> float | MaskOutcome:
        lost = cell.start.name == "same" and cell.seed == 0 and class_name == "disc"
        return "missed" if lost else dice(cell, case, class_name)

    row = comparisons(run(grid, missing))["same", "1"]
    assert (float(row["missed"]), float(row["reference_missed"])) == (PEOPLE / REPEATS, 0)
    assert (float(row["invented"]), float(row["reference_invented"])) == (0, 0)


def test_a_structure_invented_in_healthy_people_counts_against_a_method(grid: Path) -> None:
    """`good_one` is better in patients, and finds what is not there in the healthy."""

    def healthy(cell: BenchmarkCell, case: str, class_name: str) -> float | MaskOutcome:
        if int(case.removeprefix("patient")) % 2:
            return dice(cell, case, class_name)
        return "invented" if cell.start.name == "good_one" else "both_empty"

    out = run(grid, healthy)
    found = comparisons(out)
    worse = found["good_one", "2"]
    assert (worse["people"], worse["conclusion"]) == (str(PEOPLE), "no conclusion")
    healthy_people = sum(
        int(row["person"].removeprefix("patient")) % 2 == 0
        for row in table(out / "people.csv")
        if (row["start"], row["labels"], row["seed"]) == ("same", "2", "0")
    )
    assert float(worse["invented"]) == 2 * healthy_people > 0
    assert float(worse["reference_invented"]) == 0
    assert float(worse["dice_points"]) < -100 * healthy_people / PEOPLE + 5
    assert "| invented |" in (out / "results.md").read_text(encoding="utf-8")


def test_recipes_are_compared_where_the_reference_names_one(grid: Path) -> None:
    text = GRID.replace('["paper"]', '["paper", "strong"]')
    grid.write_text(text.replace("[[start]]", '[reference]\nrecipe = "paper"\n[[start]]', 1))

    def by_recipe(cell: BenchmarkCell, case: str, class_name: str) -> float:
        return dice(cell, case, class_name) + 0.1 * (cell.recipe == "strong")

    out = run(grid, by_recipe)
    rows = [row for row in table(out / "comparisons.csv") if row["labels"] == "1"]
    assert {(row["start"], row["recipe"]) for row in rows} == {
        (start, recipe)
        for start in ("scratch", "good_one", "same")
        for recipe in ("paper", "strong")
    } - {("scratch", "paper")}
    strong = next(row for row in rows if (row["start"], row["recipe"]) == ("scratch", "strong"))
    assert float(strong["dice_points"]) == pytest.approx(10)
    assert "scratch, strong against scratch, paper" in (out / "results.md").read_text("utf-8")


def test_ranks_and_curves(grid: Path) -> None:
    out = run(grid)
    ranks = [row for row in table(out / "ranks.csv") if row["labels"] == "2"]
    assert ranks[0]["start"] == "good_one"
    assert float(ranks[0]["mean_rank"]) == 1
    assert sum(float(row["mean_rank"]) for row in ranks) == pytest.approx(6)
    curves = {(row["start"], row["labelled_people"]): row for row in table(out / "curves.csv")}
    scratch = [float(curves["scratch", n]["dice_percent"]) for n in "12"]
    assert scratch[1] - scratch[0] == pytest.approx(5, abs=1e-3)
    assert float(curves["scratch", "1"]["low"]) < scratch[0] < float(curves["scratch", "1"]["high"])


def test_the_dice_of_every_person_is_written_for_other_statistics(grid: Path) -> None:
    out = run(grid)
    rows = [row for row in table(out / "people.csv") if row["labels"] == "2"]
    named = [(row["start"], row["seed"], row["draw"], row["person"]) for row in rows]
    assert len({*named}) == len(named) == 3 * REPEATS * PEOPLE
    for curve in table(out / "curves.csv"):
        if curve["labels"] == "2":
            own = [float(row["dice_percent"]) for row in rows if row["start"] == curve["start"]]
            assert fmean(own) == pytest.approx(float(curve["dice_percent"]), abs=1e-3)


def test_the_summary_and_the_latex_tables_say_the_same(grid: Path) -> None:
    out = run(grid)
    summary = (out / "results.md").read_text(encoding="utf-8")
    row = comparisons(out)["good_one", "2"]
    assert f"- 2 labelled: good_one against scratch: {row['sentence']}." in summary
    assert "each with its own seed and its own draw of the labelled people" in summary
    assert "| 2 | paper | good_one | scratch | ahead | +3." in summary
    latex = (out / "results.tex").read_text(encoding="utf-8")
    assert re.search(
        r"2 & good\\_one & scratch & \+3\.\d \(\+\d\.\d to \+\d\.\d\) & [\d.]+ & 12 & 4 of 4", latex
    )
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert not re.search(r"(?<!\\)[%&_#](?! )", latex.split("booktabs}.")[1])


def test_figures_and_the_page(grid: Path) -> None:
    out = run(grid)
    assert {path.name for path in (out / "figures").iterdir()} == {
        "curves.svg", "ranks__1.svg", "ranks__2.svg",
    }  # fmt: skip
    curves = ElementTree.parse(out / "figures" / "curves.svg").getroot()
    assert curves.tag.endswith("svg")
    titles = [each.text or "" for each in curves.iter() if each.tag.endswith("title")]
    row = next(row for row in table(out / "curves.csv") if row["start"] == "good_one")
    assert any(
        text.startswith(f"good_one, 1 labelled: {float(row['dice_percent']):.1f} %")
        for text in titles
    )
    page = (out / "results.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert comparisons(out)["good_one", "2"]["sentence"] in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "it loads nothing"


def test_runs_are_appended_once(grid: Path, tmp_path: Path) -> None:
    collected = tmp_path / "collected.csv"
    run(grid, dice, "--append-to", collected)
    first = collected.read_text(encoding="utf-8")
    rows = table(collected)
    assert len(rows) == 3 * 2 * REPEATS
    assert {(row["seed"], row["draw"]) for row in rows} == {(str(n), str(n)) for n in range(4)}
    assert rows[0] | {"dice": ""} == {
        "date": "2026-11-27", "version": "0", "commit": "", "store": "toy.store", "split": "toy",
        "start": "scratch", "training": "supervised", "labels": "1", "recipe": "paper",
        "seed": "0", "draw": "0", "dice": "", "jaccard": rows[0]["jaccard"], "hd95": "1",
        "asd": "0.5", "unit": "mm", "missed": "0", "invented": "0", "pooled_dice": "",
        "minutes": "1.5", "device": "an abacus",
        "command": "macl benchmark grid.toml --out bench",
    }  # fmt: skip
    run(grid, dice, "--append-to", collected)
    assert collected.read_text(encoding="utf-8") == first
    other = tmp_path / "toy.json"
    answer = macl("benchmark", grid, "--out", grid.with_name("bench"), "--append-to", other)
    assert answer.code == 1
    assert "is not a table of runs" in answer.err
