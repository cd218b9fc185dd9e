"""Self-training as a user calls it, on miniature stores of slices and volumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes.command import Answer, macl
from fakes.toy_store import write_toy_store
from macl.data.splits import read_split, write_split
from macl.data.store import Store
from macl.engine import trainer
from macl.models.unet import UNet
from macl.stages.split import split
from macl.tasks.segmentation import load_segmenter
from macl.utils import checkpoint

SLICES = (
    "training.epochs=4", "training.batch_size=4", "training.size=32", "backbone_settings.width=4",
    "mirror_averaging=false",
)  # fmt: skip
VOLUMES = (
    "dims=3", "training.epochs=3", "training.batch_size=2", "training.size=16",
    "backbone_settings.width=4", "mirror_averaging=false",
)  # fmt: skip
SETTINGS = {2: SLICES, 3: VOLUMES}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores in which the last person has no labels, a split, and a fine-tuned run."""
    folder = tmp_path_factory.mktemp("toy")
    for dims, slices in {2: 4, 3: 16}.items():
        store = folder / f"{dims}d.store"
        write_toy_store(store, patients=6, slices=slices, side=32, unlabelled=1)
        split(store, folder / f"{dims}d.json", test="1", validation="1", budgets="2")
    answer = call(folder, "finetune", 2, "--out", str(folder / "tuned"))
    assert answer.code == 0, answer.err
    return folder


def call(
    folder: Path, stage: str, dims: int, *words: str, init: str = "scratch", chosen: str = ""
) -> Answer:
    changes = [word for setting in SETTINGS[dims] for word in ("--set", setting)]
    chosen = chosen or str(folder / f"{dims}d.json")
    return macl(
        stage, str(folder / f"{dims}d.store"), "--init", init, "--split", chosen,
        "--labels", "2", "--device", "cpu", *changes, *words,
    )  # fmt: skip


@pytest.fixture
def selftrain(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call `macl selftrain` on a miniature store, quickly, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, dims: int = 2, **options: str) -> Answer:
        return call(toy, "selftrain", dims, *words, **options)

    return run


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize("dims", [2, 3])
def test_what_a_run_leaves(selftrain, toy: Path, tmp_path: Path, dims: int) -> None:
    answer = selftrain("--out", "run", "--seed", "1", dims=dims)
    assert answer.code == 0, answer.err
    assert "the teacher starts untrained" in answer.err
    assert answer.out == ""
    run = tmp_path / "run"
    files = ["log.jsonl", "run.json", "transfer.json", "weights.safetensors"]
    assert sorted(item.name for item in run.iterdir()) == files
    said, people = record(run), read_split(toy / f"{dims}d.json")
    assert (said["kind"], said["finished"], said["recipe"]) == ("selftrain", True, "mean-teacher")
    assert said["cases"] == sorted(people.budgets["2"])
    everyone = {case.patient for case in Store.open(toy / f"{dims}d.store").index.cases}
    left = everyone - {*people.budgets["2"], *people.test, *people.validation}
    assert {*said["unlabelled_patients"]} == left == {*said["unlabelled_cases"]}
    assert "patient006" in left, "who has no labels in the store"
    assert f"unlabelled: {len(left)} cases of {len(left)} patients" in answer.err
    patch = (32,) * 2 if dims == 2 else (16,) * 3
    segmenter = load_segmenter(run, UNet, torch.device("cpu"))
    assert segmenter(torch.zeros(1, 1, *patch)).shape == (1, 3, *patch)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) == said["steps"]
    for name in ("loss_unlabelled", "agreement", "confident_1", "proportion_2"):
        assert name in lines[-1]
        assert name in said["quantities"]


def test_the_run_keeps_the_teacher(selftrain, tmp_path: Path) -> None:
    """With a decay of nearly 1 and weights of its own to start from, it stays where it began."""
    assert selftrain("--out", "first").code == 0
    slow = ("--set", "teacher_decay=0.9999999")
    answer = selftrain("--out", "second", *slow, init="first")
    assert answer.code == 0, answer.err
    before, after = (
        checkpoint.read(tmp_path / name / "weights.safetensors").tensors
        for name in ("first", "second")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dims", "words"),
    [(2, ()), (3, ()), (2, ("--teacher", "TUNED"))],
    ids=["mean-2d", "mean-3d", "fixed-2d"],
)
def test_stopped_and_resumed_is_bit_for_bit_the_same(
    selftrain,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dims: int,
    words: tuple[str, ...],
) -> None:
    class Stopped(BaseException):
        pass

    save = trainer._TrainingState.save

    def save_and_stop(state: trainer._TrainingState, path: Path) -> None:
        save(state, path)
        raise Stopped

    more = [str(toy / "tuned") if word == "TUNED" else word for word in words]
    more += ["--set", "training.steps=6", "--set", "training.checkpoint_every_steps=3"]
    assert selftrain("--out", "whole", *more, dims=dims).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(trainer._TrainingState, "save", save_and_stop)
        with pytest.raises(Stopped):
            selftrain("--out", "stopped", *more, dims=dims)
    answer = macl("selftrain", "--out", "stopped", "--resume", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert "Resuming after step 3." in answer.err
    whole, stopped = (
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_from_a_fine_tuned_run_with_its_head(selftrain, toy: Path, tmp_path: Path) -> None:
    answer = selftrain("--out", "run", init=str(toy / "tuned"))
    assert answer.code == 0, answer.err
    assert "starts untrained" not in answer.err
    rows = json.loads((tmp_path / "run" / "transfer.json").read_text())["tensors"]
    assert {row["name"]: row["outcome"] for row in rows}["head.weight"] == "loaded"
    said = record(tmp_path / "run")
    assert said["init"].startswith(str(toy / "tuned"))
    assert said["init_patients"] == record(toy / "tuned")["patients"]


def rewrite_record(run: Path, **changes: object) -> None:
    said = record(run)
    (run / "run.json").write_text(json.dumps(said | changes))


def test_a_head_of_other_classes_is_not_taken(selftrain, toy: Path, tmp_path: Path) -> None:
    """Two classes that are called in another order have weights of equal shapes."""
    shutil.copytree(toy / "tuned", tmp_path / "other")
    weights = checkpoint.read(tmp_path / "other" / "weights.safetensors")
    background, *others = weights.about["classes"]
    about = {**weights.about, "classes": [background, *reversed(others)]}
    checkpoint.write(tmp_path / "other.safetensors", weights.tensors, about)
    answer = selftrain("--out", "run", init="other.safetensors")
    assert answer.code == 0, answer.err
    assert "The head starts fresh" in answer.err
    assert "the teacher starts untrained" in answer.err
    rows = json.loads((tmp_path / "run" / "transfer.json").read_text())["tensors"]
    assert {row["name"]: row["outcome"] for row in rows}["head.weight"] == "fresh"


def test_a_teacher_of_scans_prepared_in_another_way_is_refused(
    selftrain, toy: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy / "tuned", tmp_path / "other")
    prepared = record(tmp_path / "other")["prepared"]
    rewrite_record(tmp_path / "other", prepared={**prepared, "spacing_mm": [1.0, 0.25, 0.25]})
    answer = selftrain("--out", "student", "--teacher", "other")
    assert answer.code == 1
    assert "prepared in another way (spacing_mm" in answer.err
    assert not Path("student").exists()


def test_a_finished_run_labels_the_others(selftrain, toy: Path, tmp_path: Path) -> None:
    answer = selftrain("--out", "student", "--teacher", str(toy / "tuned"))
    assert answer.code == 0, answer.err
    said = record(tmp_path / "student")
    assert said["recipe"] == "noisy-student"
    assert said["teacher"].startswith(f"{toy / 'tuned'} (")
    assert selftrain("--out", "again", "--teacher", "student").code == 0


def test_masks_scores_and_a_page_as_of_any_segmenter(selftrain, toy: Path, tmp_path: Path) -> None:
    assert selftrain("--out", "run").code == 0
    store = toy / "2d.store"
    answer = macl("predict", "run", store, "--out", "run/predictions", "--device", "cpu")
    assert answer.code == 0, answer.err
    (test,) = read_split(toy / "2d.json").test
    assert [item.name for item in Path("run/predictions").glob("*.nii.gz")] == [f"{test}.nii.gz"]
    answer = macl("evaluate", "run/predictions", store, "--out", "run/cases.csv")
    assert answer.code == 0, answer.err
    answer = macl("report", "run", toy / "tuned", "--out", "page.html")
    assert answer.code == 0, answer.err
    page = Path("page.html").read_text()
    assert "Self-training" in page
    assert "2 labelled + 3 unlabelled" in page
    numbers = json.loads(Path("page.json").read_text())
    assert numbers["runs"][0]["cases"]["unlabelled"] == 3
    described = json.loads(macl("inspect", "run", "--json").out)
    assert described["unlabelled_patients"] == 3
    known = macl("predict", "run", store, "--out", "all", "--cases", "all", "--device", "cpu")
    assert "were trained on 4 of these cases" in known.err


def test_test_people_are_refused_from_whatever_they_come(
    selftrain, toy: Path, tmp_path: Path
) -> None:
    """A run that saw someone without labels leaks them as one that saw labels does."""
    assert selftrain("--out", "seen").code == 0
    seen = record(tmp_path / "seen")
    chosen = read_split(toy / "2d.json")
    taught = next(name for name in seen["unlabelled_patients"] if name != "patient006")
    write_split(tmp_path / "other.json", chosen.model_copy(update={"test": (taught,)}))
    for words in ({"init": "seen"}, {"teacher": "seen"}):
        option = [word for name, run in words.items() for word in (f"--{name}", run)]
        answer = macl(
            "selftrain", toy / "2d.store", "--split", "other.json", "--labels", "2",
            "--device", "cpu", "--out", "run", *(() if "init" in words else ("--init", "scratch")),
            *option, *(word for setting in SLICES for word in ("--set", setting)),
        )  # fmt: skip
        assert answer.code == 1
        assert f"1 test people ({taught}) were in the training data of seen" in answer.err
        assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--teacher", "nowhere"), "nowhere does not exist"),
        (("--set", "training.ema_decay=0.9"), "set teacher_decay"),
        (("--set", "confidence=1.5"), "confidence"),
        (("--recipe", "strong"), "There is no selftrain recipe called 'strong'"),
        (("--labels", "9"), "no label budget '9'"),
    ],
)
def test_mistakes_leave_no_folder(selftrain, words: tuple[str, ...], said: str) -> None:
    answer = selftrain("--out", "run", *words)
    assert answer.code == 1
    assert said in answer.err
    assert answer.err.count("macl: ") == 1
    assert not Path("run").exists()


def test_someone_must_be_left_without_labels(selftrain, toy: Path, tmp_path: Path) -> None:
    chosen = read_split(toy / "2d.json")
    people = [f"patient{number:03d}" for number in range(1, 6)]
    budget = tuple(name for name in people if name not in (*chosen.test, *chosen.validation))
    store = tmp_path / "labelled.store"
    write_toy_store(store, patients=5, slices=2, side=32)
    write_split(tmp_path / "all.json", chosen.model_copy(update={"budgets": {"4": budget}}))
    answer = macl(
        "selftrain", store, "--init", "scratch", "--split", "all.json", "--labels", "4",
        "--out", "run",
    )  # fmt: skip
    assert answer.code == 1
    assert "leaves no unlabelled scans beside the budget 4" in answer.err


@pytest.mark.parametrize(("labels", "named"), [("2", True), ("3", False)])
def test_fine_tuning_names_it_where_scans_are_left_without_labels(
    tmp_path: Path, labels: str, named: bool
) -> None:
    store, chosen = tmp_path / "toy.store", tmp_path / "split.json"
    write_toy_store(store, patients=4, slices=2, side=32)
    split(store, chosen, test="1", budgets="2,3")
    changes = [word for setting in SLICES for word in ("--set", setting)]
    answer = macl(
        "finetune", store, "--init", "scratch", "--split", chosen, "--labels", labels,
        "--out", tmp_path / "run", "--device", "cpu", *changes,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert ("macl selftrain" in answer.err) is named
    assert record(tmp_path / "run")["leaves_unlabelled"] is named


def test_a_page_of_a_run_names_the_command_that_goes_on(selftrain, toy: Path) -> None:
    assert selftrain("--out", "run").code == 0
    unfinished = record(Path("run")) | {"finished": False}
    Path("run/run.json").write_text(json.dumps(unfinished))
    answer = macl("predict", "run", toy / "2d.store", "--out", "masks", "--device", "cpu")
    assert answer.code == 1
    assert "macl selftrain --out run --resume" in answer.err
