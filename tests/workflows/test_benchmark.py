from __future__ import annotations

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest

from fakes.finished_benchmark import write_finished_cells
from fakes.toy_store import write_toy_store
from macl import cli
from macl.data.store import Store
from macl.records.runs import read_record
from macl.stages.report import report
from macl.stages.split import split
from macl.utils.errors import MaclError
from macl.workflows.benchmark import cells as workflow
from macl.workflows.benchmark.cells import BenchmarkFolder
from macl.workflows.benchmark.command import benchmark
from macl.workflows.benchmark.grid import combinations, read_grid
from macl.workflows.benchmark.plan import plan
from macl.workflows.benchmark.results import cell_rows, read_cell
from macl.workflows.benchmark.tables import mean_and_deviation

SMALL = (
    '"training.epochs=1", "training.size=64", "training.batch_size=4", "backbone_settings.width=2"'
)
GRID = f"""
store = "toy.store"
split = "toy.json"
seeds = [0]
labels = [1, "2"]
recipes = ["paper"]

[[start]]
name = "scratch"

[[start]]
name = "macl"
method = "macl"
set = [{SMALL}]

[finetune]
set = [{SMALL}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    write_toy_store(tmp_path / "toy.store", patients=5, slices=3)
    split(tmp_path / "toy.store", tmp_path / "toy.json", test="2", budgets="1,2")
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


def edit(grid: Path, old: str, new: str) -> None:
    assert old in grid.read_text(encoding="utf-8")
    grid.write_text(grid.read_text(encoding="utf-8").replace(old, new))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hide_an_array_of_the_larger_budget(grid: Path) -> Path:
    """Make fine-tuning with two patients, and nothing else, impossible."""
    from macl.data.splits import read_split

    budgets = read_split(grid.with_name("toy.json")).budgets
    (patient,) = set(budgets["2"]) - set(budgets["1"])
    path = grid.with_name("toy.store") / "cases" / f"{patient}.label.b2nd"
    return path.rename(path.with_suffix(".hidden"))


# ---------------------------------------------------------------- the grid


def test_cells_run_seed_by_seed(grid: Path) -> None:
    edit(grid, "seeds = [0]", "seeds = [3, 0]")
    assert [cell.name for cell in combinations(read_grid(grid))] == [
        f"{start}__{labels}__paper__seed{seed}"
        for seed in (3, 0)
        for start in ("scratch", "macl")
        for labels in (1, 2)
    ]


@pytest.mark.parametrize(
    ("repeats", "suffixes"),
    [
        ("repeats = 2", ["seed0__draw0", "seed1__draw1"]),
        ("draws = [4]", ["seed4__draw4"]),
        ("seeds = [0, 0]\ndraws = [1, 2]", ["seed0__draw1", "seed0__draw2"]),
    ],
)
def test_a_repeat_is_a_seed_and_a_draw(grid: Path, repeats: str, suffixes: list[str]) -> None:
    edit(grid, "seeds = [0]", repeats)
    names = [cell.name for cell in combinations(read_grid(grid)) if cell.start.name == "macl"]
    assert names == [f"macl__{labels}__paper__{suffix}" for suffix in suffixes for labels in "12"]


def test_cells_of_two_trainings_differ_by_their_settings(grid: Path) -> None:
    edit(
        grid,
        "[finetune]",
        '[[training]]\n[[training]]\nname = "longer"\nset = ["training.epochs=3"]\n[finetune]',
    )
    epochs = {
        cell.name: of["finetuning"]["training"]["epochs"]
        for cell, of in plan(read_grid(grid)).specifications.items()
    }
    assert epochs["scratch__1__paper__seed0"] == 1
    assert epochs["scratch__longer__1__paper__seed0"] == 3


def test_a_grid_self_trains(grid: Path, tmp_path: Path) -> None:
    own = '[[training]]\nname = "self"\nstage = "selftrain"\n'
    edit(grid, "[finetune]", f"{own}[finetune]")
    with pytest.raises(MaclError, match="needs a recipe of its own"):
        read_grid(grid)
    edit(grid, own, f'{own}recipe = "mine.toml"\n')
    edit(grid, 'labels = [1, "2"]', "labels = [1]")
    (tmp_path / "mine.toml").write_text("teacher_decay = 0.5\n")
    specified = plan(read_grid(grid)).specifications
    assert {of["finetuning"]["teacher_decay"] for of in specified.values()} == {0.5}
    assert benchmark(grid, tmp_path / "bench", device="cpu").complete
    record = read_record(tmp_path / "bench/cells/macl__self__1__paper__seed0")
    assert record.kind == "selftrain"
    assert {row["training"] for row in table(tmp_path / "bench")} == {"self"}


def test_draws_train_on_other_people_and_test_on_the_same(grid: Path, tmp_path: Path) -> None:
    edit(grid, "seeds = [0]", "draws = [0, 1, 2]")
    edit(grid, 'labels = [1, "2"]', "labels = [1]")
    edit(grid, f'[[start]]\nname = "macl"\nmethod = "macl"\nset = [{SMALL}]\n', "")
    out = tmp_path / "bench"
    assert benchmark(grid, out, device="cpu").complete
    records = [read_record(folder) for folder in sorted((out / "cells").iterdir())]
    assert len({record.test_cases for record in records}) == 1
    assert len({record.people for record in records}) > 1
    assert [record.seed for record in records] == [0, 1, 2]
    before = contents(out)
    assert benchmark(grid, out, device="cpu").complete
    assert contents(out) == before


def test_paths_are_relative_to_the_grid(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text("[training]\nepochs = 3\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    edit(grid, 'recipes = ["paper"]', 'recipes = ["paper", "mine.toml"]')
    read = read_grid(Path("..") / "grid.toml")
    assert Store.open(read.store).path.samefile(tmp_path / "toy.store")
    names = [cell.name for cell in combinations(read)]
    assert names[1] == "scratch__1__mine__seed0"
    settings = {cell.name: of for cell, of in plan(read).specifications.items()}[names[1]][
        "finetuning"
    ]
    assert settings["training"]["epochs"] == 1, "set wins over the recipe"


def test_percentages_make_folders_of_their_own(grid: Path) -> None:
    edit(grid, '[1, "2"]', '[10, "10%"]')
    names = [cell.name for cell in combinations(read_grid(grid))]
    assert names[:2] == ["scratch__10__paper__seed0", "scratch__10percent__paper__seed0"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "macl"', 'name = "scratch"', "two starts are called 'scratch'"),
        ("[finetune]", "[[training]]\n[[training]]\n[finetune]", "two trainings are called"),
        ('[1, "2"]', '[1, "1"]', "two label budgets are called '1'"),
        ("seeds = [0]", "seeds = [0, 0]", "are there twice: scratch__1__paper__seed0"),
        ('name = "macl"', 'name = "my macl"', r"'my macl' may hold letters, digits"),
        ('[1, "2"]', '"1,2"', r"labels: should be a list such as \[2, 4\]"),
        ('name = "macl"', 'name = "../macl"', r"start\.1\.name"),
        ('method = "macl"', "", "belong to a method"),
        ('method = "macl"', 'method = "mcal"', "did you mean 'macl'"),
        ('[1, "2"]', "[1, 3]", "no label budget '3'; it has 1, 2"),
        ('["paper"]', '["papr"]', "no finetune recipe called 'papr'"),
        ("seeds", "sedes", "there is no grid.toml.sedes; did you mean 'seeds'"),
        ("seeds = [0]", "seeds = []", "seeds"),
        ("seeds = [0]", "seeds = [0]\nrepeats = 2", "repeats stands for seeds and draws"),
        ("seeds = [0]", "seeds = [0]\ndraws = [1, 2]", "there are 2 draws and 1 seeds"),
        ("[finetune]", '[reference]\nstart = "mcal"\n[finetune]', "has scratch, macl"),
        ("[finetune]", '[[training]]\nstage = "tune"\n[finetune]', r"training\.0\.stage"),
        ("[finetune]", '[[training]]\nafter = "tune"\n[finetune]', "does not list before it"),
        ('"toy.json"', '"paper/acdc"', "names 10, 14,"),
        ('"toy.store"', '"tyo.store"', "does not exist"),
        ('"training.size=64"', '"training.sise=64"', r"training\.sise"),
        (SMALL, '"method_settings.temprature=1"', "temprature"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(
    grid: Path, old: str, new: str, sentence: str
) -> None:
    edit(grid, old, new)
    with pytest.raises(MaclError, match=sentence):
        benchmark(grid, grid.with_name("bench"))
    assert not grid.with_name("bench").exists()


def test_a_folder_that_holds_something_else_is_left_alone(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(MaclError, match="not a benchmark"):
        benchmark(grid, tmp_path / "toy.store")
    assert not (tmp_path / "toy.store" / "grid.toml").exists()


# ---------------------------------------------------------------- slices and volumes


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A grid with pre-training and recipes in 2D and in 3D, on volumes that hold several crops."""
    write_toy_store(tmp_path / "toy.store", patients=5, slices=20, side=32)
    split(tmp_path / "toy.store", tmp_path / "toy.json", test="2", budgets="1")
    (tmp_path / "volumes.toml").write_text("dims = 3\n[training]\nbatch_size = 2\n")
    (tmp_path / "slices.toml").write_text("[training]\nbatch_size = 2\n")
    sizes = '"training.epochs=1", "training.size=16", "backbone_settings.width=2"'
    (tmp_path / "grid.toml").write_text(f"""
store = "toy.store"
split = "toy.json"
labels = [1]
recipes = ["slices.toml", "volumes.toml"]
conventions = ["strict"]

[[start]]
name = "scratch"

[[start]]
name = "macl-2d"
method = "macl"
set = [{sizes}]

[[start]]
name = "macl-3d"
method = "macl"
recipe = "macl-3d"
set = [{sizes}, "training.batch_size=8", "patients_per_position=2"]

[finetune]
set = [{sizes}]
""")
    return tmp_path / "grid.toml"


def test_weights_start_recipes_of_their_own_dimensions(both: Path) -> None:
    specified = plan(read_grid(both)).specifications
    assert [cell.name for cell in specified] == [
        "scratch__1__slices__seed0",
        "scratch__1__volumes__seed0",
        "macl-2d__1__slices__seed0",
        "macl-3d__1__volumes__seed0",
    ]
    assert [of["finetuning"]["dims"] for of in specified.values()] == [2, 3, 2, 3]
    strides = specified[list(specified)[3]]["pretraining"]["backbone_settings"]["strides"]
    assert specified[list(specified)[3]]["finetuning"]["backbone_settings"]["strides"] == strides


def test_starts_with_different_networks_are_warned_of(
    both: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan(read_grid(both))
    assert "Warning" not in capfd.readouterr().err
    edit(
        both,
        '"patients_per_position=2"',
        '"patients_per_position=2", "backbone_settings.strides=[2, 2, 2]"',
    )
    plan(read_grid(both))
    assert "the starts of the recipe volumes.toml have different networks" in capfd.readouterr().err


def test_a_start_that_no_recipe_takes_is_said_before_anything_runs(both: Path) -> None:
    edit(both, 'recipes = ["slices.toml", "volumes.toml"]', 'recipes = ["slices.toml"]')
    with pytest.raises(MaclError, match=r"'macl-3d' is pre-trained in 3D, but .* \"dims=3\""):
        benchmark(both, both.with_name("bench"))
    assert not both.with_name("bench").exists()


def test_slices_and_volumes_stand_in_one_table(both: Path) -> None:
    out = both.with_name("bench")
    assert benchmark(both, out, device="cpu").complete
    means = {(row["start"], row["recipe"]) for row in table(out) if row["class"] == "mean"}
    assert means == {
        ("scratch", "slices"),
        ("scratch", "volumes"),
        ("macl-2d", "slices"),
        ("macl-3d", "volumes"),
    }
    page = report(sorted((out / "cells").iterdir()), out / "report.html")
    text = re.sub(r"<[^>]+>|\s+", " ", page.read_text(encoding="utf-8"))
    assert "16 × 16 × 16 3D" in re.sub(r"\s+", " ", text)
    assert "From macl, 1 labelled, 3D" in text


# ---------------------------------------------------------------- running it


def test_every_cell_is_run_scored_and_tabled_once(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    assert benchmark(grid, out, device="cpu").complete
    assert "Cell 4 of 4: macl__2__paper__seed0" in capsys.readouterr().err
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "comparisons.csv", "curves.csv", "grid.toml", "people.csv", "ranks.csv", "results.csv",
        "results.html", "results.md", "results.tex", "runs.csv",
    }  # fmt: skip
    found = [(row["start"], row["labels"], row["convention"], row["class"]) for row in table(out)]
    assert len(found) == len(set(found)) == 4 * 2 * 3
    assert ("macl", "2", "paper", "mean") in found
    assert all(0 <= float(row["dice"]) <= 1 for row in table(out))
    assert sorted(path.name for path in (out / "pretrained").iterdir()) == ["macl__seed0"]
    cell = out / "cells" / "macl__1__paper__seed0"
    assert len(list((cell / "predictions").glob("*.nii.gz"))) == 2
    assert (cell / "cases.paper.csv").is_file()

    before = contents(out)
    assert benchmark(grid, out, device="cpu").complete
    assert contents(out) == before, "finished cells are kept as they are"

    edit(grid, "seeds = [0]", "seeds = [0, 1]")
    result = benchmark(grid, out, device="cpu")
    assert result.complete
    after = contents(out)
    changed = {str(path) for path in [*out.iterdir(), *(out / "figures").iterdir()]}
    assert {
        name: content for name, content in before.items() if name not in changed
    }.items() <= after.items()
    assert len(table(out)) == 2 * len(found)
    summary = (out / "results.md").read_text(encoding="utf-8")
    assert "| 1 | paper | scratch | 2 |" in summary
    assert result.summary == summary


def test_a_method_without_a_decoder_is_no_mistake(grid: Path, tmp_path: Path) -> None:
    edit(grid, 'name = "macl"\nmethod = "macl"', 'name = "simclr"\nmethod = "simclr"')
    edit(grid, 'labels = [1, "2"]', "labels = [1]")
    assert benchmark(grid, tmp_path / "out", device="cpu").complete
    transfer = json.loads(
        (tmp_path / "out/cells/simclr__1__paper__seed0/transfer.json").read_text(encoding="utf-8")
    )
    outcomes = {row["name"].split(".")[0]: set() for row in transfer["tensors"]}
    for row in transfer["tensors"]:
        outcomes[row["name"].split(".")[0]].add(row["outcome"])
    assert outcomes == {"encoder": {"loaded"}, "decoder": {"fresh"}, "head": {"fresh"}}


def test_a_killed_benchmark_goes_on(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "bench"
    assert benchmark(grid, whole, device="cpu").complete
    predict, calls = workflow.predict, []

    def killed(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(workflow, "predict", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark(grid, out, device="cpu")
    monkeypatch.undo()
    assert len(table(out)) == 2 * 6
    first = contents(out / "cells" / "scratch__1__paper__seed0")
    assert benchmark(grid, out, device="cpu").complete
    assert contents(out / "cells" / "scratch__1__paper__seed0") == first
    times = {"pretraining_seconds", "finetuning_seconds"}
    for row, expected in zip(table(out), table(whole), strict=True):
        kept = row.keys() - times
        assert {key: row[key] for key in kept} == {key: expected[key] for key in kept}


def test_a_failed_cell_is_reported_and_the_rest_goes_on(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = hide_an_array_of_the_larger_budget(grid)
    monkeypatch.setattr(
        sys,
        "argv",
        ["macl", "benchmark", str(grid), "--out", str(tmp_path / "bench"), "--device", "cpu"],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    streams = capsys.readouterr()
    assert "Failed: scratch__2__paper__seed0: " in streams.err
    assert "2 of 4 cells are finished" in streams.err
    assert "Traceback" not in streams.err
    assert {(row["start"], row["labels"]) for row in table(tmp_path / "bench")} == {
        ("scratch", "1"),
        ("macl", "1"),
    }
    assert "- macl__2__paper__seed0: " in (tmp_path / "bench" / "results.md").read_text(
        encoding="utf-8"
    )

    hidden.rename(hidden.with_suffix(".b2nd"))
    assert benchmark(grid, tmp_path / "bench", device="cpu").complete, (
        "once the cause is mended, the same command finishes it"
    )
    assert "Failed" not in (tmp_path / "bench" / "results.md").read_text(encoding="utf-8")


def test_pretraining_that_fails_is_tried_once(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*_: object, **__: object) -> None:
        calls.append(1)
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(workflow, "pretrain", broken)
    assert not benchmark(grid, tmp_path / "bench", device="cpu").complete
    assert len(calls) == 1
    summary = (tmp_path / "bench" / "results.md").read_text(encoding="utf-8")
    assert summary.count("Its pre-training failed: RuntimeError: the device fell off") == 2


def test_a_cell_does_not_continue_one_of_other_settings(grid: Path, tmp_path: Path) -> None:
    trainings = (
        '[[training]]\nname = "tuned"\n[[training]]\nname = "longer"\nstage = "selftrain"\n'
        'recipe = "mean-teacher"\nafter = "tuned"\n'
    )
    edit(grid, "[finetune]", f"{trainings}[finetune]")
    out = tmp_path / "bench"
    write_finished_cells(grid, out, lambda *_: 0.5)
    planned = plan(read_grid(grid))
    folder = BenchmarkFolder(planned, out, "cpu", "macl benchmark")
    cell = next(cell for cell in planned.specifications if cell.training.name == "longer")
    start = folder._start(cell)
    assert start
    assert Path(start.init).name == planned.preceding(cell).name
    file = Path(start.init) / "cell.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"specification": {**said["specification"], "seed": 99}}))
    with pytest.raises(MaclError, match="was made with other settings"):
        folder._start(cell)


def test_a_cell_is_not_mixed_with_one_of_other_settings(grid: Path, tmp_path: Path) -> None:
    edit(grid, 'labels = [1, "2"]', "labels = [1]")
    edit(grid, '[[start]]\nname = "macl"', '[[start]]\nname = "also-macl"')
    out = tmp_path / "bench"
    assert benchmark(grid, out, device="cpu").complete
    before = contents(out / "cells")
    edit(grid, "[finetune]\nset = [", '[finetune]\nset = ["training.learning_rate=0.1", ')
    assert not benchmark(grid, out, device="cpu").complete
    assert contents(out / "cells") == before
    assert "was made with other settings" in (out / "results.md").read_text(encoding="utf-8")
    assert table(out) == []


def test_a_convention_added_later_is_scored_without_training_again(
    grid: Path, tmp_path: Path
) -> None:
    edit(grid, "seeds = [0]", 'seeds = [0]\nconventions = ["strict"]')
    out = tmp_path / "bench"
    assert benchmark(grid, out, device="cpu").complete
    assert {row["convention"] for row in table(out)} == {"strict"}
    weights = {path: path.read_bytes() for path in out.rglob("weights.safetensors")}
    edit(grid, '["strict"]', '["strict", "paper"]')
    assert benchmark(grid, out, device="cpu").complete
    assert {row["convention"] for row in table(out)} == {"strict", "paper"}
    assert {path: path.read_bytes() for path in weights} == weights


# ---------------------------------------------------------------- the tables


def test_means_over_seeds() -> None:
    assert mean_and_deviation([0.8, 0.9], 100) == "85.00 ± 7.07"
    assert mean_and_deviation([0.8, None], 100) == "80.00"
    assert mean_and_deviation([None]) == "–"


def test_backbones_are_compared_when_every_start_names_its_own(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ukan = 'network = ["backbone=ukan", "backbone_settings.width=1"]'
    edit(grid, 'labels = [1, "2"]', "labels = [1]")
    edit(grid, ', "backbone_settings.width=2"', "")
    edit(
        grid,
        'name = "scratch"',
        'name = "scratch"\nnetwork = ["backbone_settings.width=2"]\n\n'
        f'[[start]]\nname = "scratch-ukan"\n{ukan}',
    )
    edit(grid, 'method = "macl"', f'method = "macl"\n{ukan}')
    assert benchmark(grid, tmp_path / "bench", device="cpu").complete
    assert "different networks" not in capsys.readouterr().err
    for start, backbone in (("scratch", "unet"), ("scratch-ukan", "ukan"), ("macl", "ukan")):
        record = read_record(tmp_path / "bench" / "cells" / f"{start}__1__paper__seed0")
        assert record.settings["backbone"] == backbone
    assert read_record(tmp_path / "bench" / "pretrained" / "macl__seed0").settings[
        "backbone_settings"
    ] == {"width": 1}


def test_a_starts_network_names_the_backbone_alone(grid: Path) -> None:
    edit(grid, 'name = "scratch"', 'name = "scratch"\nnetwork = ["training.epochs=3"]')
    with pytest.raises(MaclError, match=r"training\.epochs=3 is no setting of the backbone"):
        read_grid(grid)


def test_rows_of_a_cell_agree_with_its_summary(grid: Path, tmp_path: Path) -> None:
    assert benchmark(grid, tmp_path / "bench", device="cpu").complete
    cell = read_cell(tmp_path / "bench" / "cells" / "scratch__1__paper__seed0")
    assert cell is not None
    mean = next(
        row for row in cell_rows(cell) if (row["convention"], row["class"]) == ("strict", "mean")
    )
    assert mean["dice"] == cell.summaries["strict"]["mean"]["dice"]["mean"]
    assert mean["missed"] == sum(row["missed"] for row in cell.summaries["strict"]["classes"])


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "benchmarks").glob("*.toml")),
    ids=lambda path: path.stem,
)
def test_the_grids_of_the_project_name_what_is_there(path: Path) -> None:
    from macl.config.recipes import read_recipe, resolve
    from macl.config.settings import FinetuneSettings, SelftrainSettings
    from macl.data.splits import read_split

    grid = read_grid(path)
    assert set(grid.labels) <= set(read_split(grid.split).budgets)
    for training in grid.training:
        kind = SelftrainSettings if training.stage == "selftrain" else FinetuneSettings
        own = training.recipe or grid.recipes[0]
        changes = (*grid.finetune.set, *training.set)
        resolve(kind, read_recipe(kind.stage, own), changes)
    for recipe in grid.recipes:
        resolve(FinetuneSettings, read_recipe("finetune", recipe), grid.finetune.set)
    for start in grid.start:
        resolve(FinetuneSettings, read_recipe("finetune", grid.recipes[0]), start.network)
    axes = (grid.start, grid.labels, grid.recipes, grid.training, grid.seeds_and_draws)
    assert len(list(combinations(grid))) == math.prod(map(len, axes))
