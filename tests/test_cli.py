"""The command line as a user calls it: exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fakes import nnunet
from fakes.index import hearts
from macl import __version__, cli
from macl.cli import entry
from macl.cli.app import EXAMPLES

STAGES = [
    "demo",
    "run",
    "inspect",
    "prepare",
    "split",
    "pretrain",
    "embed",
    "choose",
    "finetune",
    "selftrain",
    "predict",
    "evaluate",
    "export",
    "profile",
    "benchmark",
    "report",
    "settings",
]


FINETUNE = ["finetune", "acdc.store", "--out"]


class Answer:
    """Exit code and streams of one call."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def macl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Call the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["macl", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        streams = capsys.readouterr()
        return Answer(code, streams.out, streams.err)

    return call


def test_help_lists_the_path_in_order(macl) -> None:
    answer = macl("--help")
    places = [answer.out.index(f" {stage} ") for stage in STAGES]
    assert answer.code == 0
    assert places == sorted(places)


def test_the_version_is_printed(macl) -> None:
    answer = macl("--version")
    assert answer.code == 0
    assert re.fullmatch(
        re.escape(f"macl {__version__}") + r"( \(commit [0-9a-f]+(-dirty)?\))?\n", answer.out
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself(macl, stage: str) -> None:
    answer = macl(stage, "-h")
    assert answer.code == 0
    assert f"Usage: macl {stage}" in answer.out
    assert f"Example: {EXAMPLES[stage]}" in answer.out
    assert macl(stage, "--help").out == answer.out


@pytest.mark.parametrize("words", [["split"], ["split", "a.store"], ["report"]])
def test_a_missing_argument_is_answered_with_an_example(macl, words: list[str]) -> None:
    assert EXAMPLES[words[0]] in " ".join(macl(*words).err.replace("│", " ").split())


@pytest.mark.parametrize("quiet", [["--quiet", "split"], ["split", "--quiet"]], ids=" ".join)
def test_quiet_prints_results_and_warnings_alone(macl, tmp_path: Path, quiet: list[str]) -> None:
    hearts(tmp_path / "acdc.store", patients=100)
    words = ["acdc.store", "--out", "a.json", "--budgets", "8"]
    assert "Wrote a.json" in macl("split", *words).err
    (tmp_path / "a.json").unlink()
    answer = macl(*quiet, *words)
    assert (answer.code, answer.err) == (0, "")
    assert (tmp_path / "a.json").is_file()
    assert "does not exist" in macl(*quiet, "none.store", "--out", "b.json").err


@pytest.mark.parametrize(
    "words",
    [
        ["segment"],
        ["split"],
        ["split", "a.store"],
        ["split", "a.store", "--out", "a.json", "--seed", "many"],
        ["finetune", "a.store", "--out", "run"],
        ["evaluate", "a", "b", "--out", "c.csv", "--convention", "kind"],
        ["pretrain", "a.store", "--out", "run", "--device", "tpu"],
        ["prepare", "a", "b", "--plane", "oblique"],
        ["report", "--theme", "dark"],
    ],
)
def test_wrong_usage_exits_2(macl, words: list[str]) -> None:
    answer = macl(*words)
    assert answer.code == 2
    assert "Usage: macl" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "nowhere"],
        ["prepare", "nowhere", "a.store"],
        ["prepare", "empty", "a.store"],
        ["prepare", "empty", "a.store", "--reader", "acdd"],
        ["split", "nowhere", "--out", "a.json"],
        ["split", "empty", "--out", "a.json"],
        ["split", "acdc.store", "--out", "a.json", "--test", "100"],
        ["split", "acdc.store", "--out", "acdc.store"],
        ["split", "acdc.store", "--out", "a.json", "--test", "20%", "--folds", "5"],
        ["pretrain", "nowhere", "--out", "run"],
        ["pretrain", "acdc.store", "--out", "run", "--method", "mcal"],
        ["pretrain", "acdc.store", "--out", "run", "--recipe", "defualt"],
        ["pretrain", "acdc.store", "--out", "run", "--set", "training.epohcs=3"],
        ["pretrain", "acdc.store", "--out", "run", "--set", "epochs"],
        ["pretrain", "acdc.store", "--out", "run", "--split", "paper/adcd"],
        ["pretrain", "acdc.store", "--out", "full"],
        [*FINETUNE, "run", "--init", "nowhere", "--split", "paper/acdc", "--labels", "8"],
        [*FINETUNE, "run", "--init", "scratch", "--split", "paper/acdc", "--labels", "9"],
        [*FINETUNE, "run", "--init", "scratch", "--split", "none.json", "--labels", "8"],
        [*FINETUNE, "full", "--init", "scratch", "--split", "paper/acdc", "--labels", "8"],
        ["predict", "nowhere", "--out", "masks"],
        ["predict", "empty", "scan.nii.gz", "--out", "masks"],
        ["evaluate", "nowhere", "acdc.store", "--out", "a.csv"],
        ["evaluate", "empty", "nowhere", "--out", "a.csv"],
        ["benchmark", "nowhere.toml", "--out", "bench"],
        ["profile", "--method", "mcal"],
        ["report", "nowhere", "--out", "a.html"],
    ],
    ids=" ".join,
)
def test_a_mistake_exits_1_with_one_sentence_and_nothing_written(
    macl, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("a thesis")
    hearts(tmp_path / "acdc.store", patients=100)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    answer = macl(*words)
    lines = answer.err.strip().splitlines()
    assert answer.code == 1, answer.err
    assert lines[-1].startswith("macl: ")
    assert lines[-1].endswith((".", "?"))
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_the_shell_can_complete_commands(macl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MACL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "macl pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert {"prepare", "pretrain", "predict"} <= {*macl().out.split()}


def test_a_command_says_which_comes_next(macl, tmp_path: Path) -> None:
    hearts(tmp_path / "a b.store", patients=10)
    said = macl("split", "a b.store", "--out", "a.json", "--budgets", "2").err
    assert said.endswith("Next: macl pretrain 'a b.store' --split a.json --out runs/macl\n")


def test_an_interruption_says_how_to_continue(macl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "app", interrupt)
    answer = macl("pretrain")
    assert answer.code == 130
    assert "macl: interrupted. Run the same command again to continue." in answer.err
    for words in (["--out", "run"], ["--out=run"]):
        Path("run").mkdir(exist_ok=True)
        Path("run/run.json").touch()
        assert "To continue: macl pretrain --out run --resume" in macl("pretrain", *words).err


def test_every_command_with_a_result_has_it_as_json() -> None:
    commands = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    without = [
        name
        for name, command in commands.items()
        if all("--json" not in parameter.opts for parameter in command.params)
    ]
    assert without == ["demo"]


def test_along_the_path_stdout_is_json_alone(macl, tmp_path: Path) -> None:
    shutil.copytree(nnunet.write(tmp_path / "Dataset001_Toy", cases=4, test=1), "scans")
    small = [
        "--set", "training.steps=2", "--set", "training.size=16", "--set", "training.batch_size=2",
        "--set", "backbone_settings.width=4", "--device", "cpu",
    ]  # fmt: skip

    def found(*words: str) -> dict[str, Any]:
        answer = macl(*words, "--json")
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    assert found("inspect", "scans")["kind"] == "source"
    prepared = found("prepare", "scans", "my.store", "--workers", "1")
    assert len(prepared["cases"]) == 5
    assert prepared["refused"] == []
    splits = found("split", "my.store", "--out", "my.json", "--test", "1", "--budgets", "2")
    assert len(splits["splits"]["my.json"]["test"]) == 1
    data = ["my.store", "--split", "my.json"]
    assert found("pretrain", *data, "--out", "pre", *small)["steps"] == 2
    tuned = found("finetune", *data, "--labels", "2", "--init", "pre", "--out", "run", *small)
    assert tuned["run"] == "run"
    assert tuned["test_cases"] == splits["splits"]["my.json"]["test"]
    features = found("embed", "my.store", "--run", "pre", "--out", "features.npz")
    assert features["arrays"]["case_features"][0] == 5
    chosen = found("choose", "my.store", "--run", "pre", "--count", "1")
    assert [person["rank"] for person in chosen["people"]] == [1]
    (mask,) = found("predict", "run", "my.store", "--out", "masks")["masks"]
    assert Path(mask).is_file()
    scores = found("evaluate", "masks", "my.store", "--out", "cases.csv")
    assert scores["cases"] == 1
    assert scores["classes"] == json.loads(Path("cases.summary.json").read_text())["classes"]
    assert Path(found("report", "run")["numbers"]).is_file()
    assert all(
        Path(file).is_file()
        for file in found("export", "run", "--to", "torch", "--out", "a.st")["files"]
    )
    assert found("check", "run")["path"] == "run"
    assert "unet" in found("settings")["networks"]


def test_a_mistake_prints_no_json(macl) -> None:
    answer = macl("check", "nowhere", "--json")
    assert (answer.code, answer.out) == (1, "")


def test_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "macl", "split", str(tmp_path / "a.store"), "--out", "a.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("macl: ")
    assert "does not exist" in done.stderr
