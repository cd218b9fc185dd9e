"""`macl run`: from scans to masks and a page, as a user calls it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import macl as package
from fakes import dicom_tree, killing, nnunet
from fakes.command import macl
from fakes.run_plans import FINETUNE, PRETRAIN, tiny_plan, write_tiny_plan
from fakes.scans import anatomy, files_below, write_nifti
from macl.records.runs import read_record
from macl.records.scores import read_rows
from macl.workflows.run.plan import plan_text, read_plan

CASES = [f"toy_{number:03d}" for number in range(6)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled people and three without labels, as nnU-Net lays them out."""
    return nnunet.write(tmp_path_factory.mktemp("scans") / "Dataset001_Toy", cases=3, test=3)


@pytest.fixture(scope="module")
def whole(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels from its start to its end."""
    folder = tmp_path_factory.mktemp("whole")
    plan = write_tiny_plan(folder / "tiny.toml", scans)
    answer = macl("run", "--plan", plan, "--out", folder / "out")
    assert answer.code == 0, answer.err
    (folder / "stdout.txt").write_text(answer.out)
    return folder / "out"


def masks_of(out: Path) -> dict[str, np.ndarray]:
    return {
        path.name: np.asarray(nibabel.load(path).dataobj)  # pyright: ignore[reportAttributeAccessIssue]
        for path in sorted((out / "masks").glob("*.nii.gz"))
    }


def last_step(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def one_sentence(*words: object) -> str:
    """What `macl run` answers to a mistake."""
    answer = macl("run", *words)
    assert answer.code == 1, answer
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("macl: "), answer.err
    assert last.endswith("."), last
    assert "Traceback" not in answer.err
    return last


# ---------------------------------------------------------------- from scans to masks


def test_every_scan_gets_a_mask_on_its_own_grid(whole: Path, scans: Path) -> None:
    masks = masks_of(whole)
    assert list(masks) == [f"{case}.nii.gz" for case in CASES]
    image = nibabel.load(scans / "imagesTr" / "toy_000_0000.nii.gz")
    mask = nibabel.load(whole / "masks" / "toy_000.nii.gz")
    assert mask.shape == image.shape  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(mask.affine, image.affine)  # pyright: ignore[reportAttributeAccessIssue]
    assert {*np.unique(np.concatenate([each.ravel() for each in masks.values()]))} <= {0, 1, 2}


def test_every_labelled_person_is_tested_once_by_models_that_never_saw_them(whole: Path) -> None:
    tested: list[str] = []
    for fold in (1, 2):
        record = read_record(whole / "runs" / f"selftrained-fold{fold}")
        assert set(record.test_cases).isdisjoint(record.seen_patients)
        tested += record.test_cases
    assert sorted(tested) == CASES[:3]
    assert read_record(whole / "runs/pretraining").patients == tuple(CASES[3:])
    rows = read_rows(whole / "scores.csv")
    assert [row.case for row in rows] == [case for case in CASES[:3] for _ in range(2)]


def test_it_says_what_was_made_and_what_the_numbers_allow(whole: Path) -> None:
    said = (whole.parent / "stdout.txt").read_text()
    assert "on 3 people, each by a model that never saw them; one seed: a rough idea only" in said
    for path in (whole / "masks", whole / "report.html", whole / "plan.toml"):
        assert str(path) in said
    assert "(6 scans, 2 models averaged)" in said
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Cross-validation: every labelled person is tested" in page
    summary = json.loads((whole / "scores.summary.json").read_text())
    assert summary["cases"] == 3


def test_run_again_it_keeps_everything(whole: Path) -> None:
    kept = [*whole.glob("runs/*/weights.safetensors"), *whole.glob("**/*.nii.gz")]
    assert len(kept) == 1 + 2 + 2 + 6 + 2 * 3
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert macl("run", "--plan", whole / "plan.toml").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_killed_at_every_stage_it_ends_with_the_same_masks(
    whole: Path, scans: Path, tmp_path: Path
) -> None:
    out, stderr = tmp_path / "out", tmp_path / "stderr.txt"
    runs = out / "runs"
    plan = write_tiny_plan(tmp_path / "tiny.toml", scans)
    words = ["run", "--plan", str(plan), "--out", str(out)]
    moments: list[Callable[[], bool]] = [
        lambda: (out / "store" / ".preparing").is_dir(),
        lambda: (out / "store" / "store.json").is_file(),
        lambda: (out / "splits" / "pretraining.json").is_file(),
        lambda: last_step(runs / "pretraining") >= 3,
        lambda: (runs / "finetuned-fold1").is_dir(),
        lambda: last_step(runs / "finetuned-fold2") >= 3,
        lambda: last_step(runs / "selftrained-fold1") >= 3,
        lambda: len([*(out / "masks").glob("toy*")]) >= 2,
        lambda: (runs / "selftrained-fold1" / "cases.csv").is_file(),
        lambda: (out / "scores.csv").is_file(),
    ]
    for number, moment in enumerate(moments):
        code = killing.run(words, stderr, moment)
        assert code == killing.KILLED, (number, stderr.read_text())
    assert killing.run(words, stderr) == 0, stderr.read_text()
    ours, theirs = masks_of(out), masks_of(whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )


def begun(whole: Path, out: Path, scans: Path, **changes: object) -> Path:
    """The plan of a run of the same scans that has got as far as their store."""
    shutil.copytree(whole / "store", out / "store")
    return write_tiny_plan(out / "plan.toml", scans, **changes)


def test_killed_and_moved_it_goes_on(whole: Path, scans: Path, tmp_path: Path) -> None:
    out, moved, stderr = tmp_path / "out", tmp_path / "moved", tmp_path / "stderr.txt"
    plan = begun(whole, out, scans, folds=0, test="1")
    words = ["run", "--plan", str(plan)]
    code = killing.run(words, stderr, lambda: last_step(out / "runs/selftrained") >= 3)
    assert code == killing.KILLED
    out.rename(moved)
    words = ["selftrain", "--out", str(moved / "runs/selftrained"), "--resume"]
    assert killing.run(words, stderr) == 0, stderr.read_text()
    assert killing.run(["run", "--plan", str(moved / "plan.toml")], stderr) == 0
    record = read_record(moved / "runs/selftrained")
    assert record.store == str(moved / "store")
    assert (record.init or "").startswith(str(moved / "runs/finetuned ("))
    numbers = json.loads((moved / "report.json").read_text())
    assert [run["missing"] for run in numbers["runs"]] == [[], [], []]
    assert [run["start"] for run in numbers["runs"]] == ["macl", "macl", None]


def test_one_model_with_a_test(whole: Path, scans: Path, tmp_path: Path) -> None:
    plan = begun(whole, tmp_path / "out", scans, folds=0, test="1", selftrain=None)
    answer = macl("run", "--plan", plan)
    assert answer.code == 0, answer.err
    record = read_record(tmp_path / "out/runs/finetuned")
    assert (len(record.test_cases), len(record.patients)) == (1, 2)
    assert {*record.test_cases}.isdisjoint(record.seen_patients)
    assert "on one person whom training never saw" in answer.out


def test_one_model_without_a_test(whole: Path, scans: Path, tmp_path: Path) -> None:
    plan = begun(whole, tmp_path / "out", scans, folds=0, test="0", selftrain=None)
    answer = macl("run", "--plan", plan)
    assert answer.code == 0, answer.err
    assert read_record(tmp_path / "out/runs/finetuned").patients == tuple(CASES[:3])
    assert "There are no scores" in answer.out
    assert len(masks_of(tmp_path / "out")) == 6


def test_without_labels_it_ends_with_weights_and_a_page(tmp_path: Path) -> None:
    """With everything chosen: a few seconds buy the shortest training."""
    for number in range(3):
        write_nifti(tmp_path / f"scans/p{number}.nii.gz", anatomy(number)[0])
    result = package.run(tmp_path / "scans", tmp_path / "out", minutes=0.05, device="cpu")
    assert result is not None
    assert (result.models, result.masks, result.scores) == ((), None, ())
    assert (result.pretrained / "weights.safetensors").is_file()
    assert "pre-training run on" in result.page.read_text(encoding="utf-8")
    text = (tmp_path / "out/plan.toml").read_text(encoding="utf-8")
    assert "# Split: none; nobody has labels" in text
    plan = read_plan(tmp_path / "out/plan.toml")
    assert plan.finetune is None
    assert plan.pretrain.seconds_per_step > 0
    again = package.run(tmp_path / "scans", tmp_path / "out", minutes=0.05, device="cpu")
    assert again == result


# ---------------------------------------------------------------- the plan


def test_a_dry_run_prints_a_plan_that_can_be_followed_and_writes_nothing(tmp_path: Path) -> None:
    dicom_tree.write(tmp_path / "scans")
    before = files_below(tmp_path)
    answer = macl("run", tmp_path / "scans", "--minutes", 0.05, "--device", "cpu", "--dry-run")
    assert answer.code == 0, answer.err
    assert files_below(tmp_path) == before
    assert "in all" in answer.err
    (tmp_path / "plan.toml").write_text(answer.out, encoding="utf-8")
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.scans == tmp_path / "scans"
    assert plan.minutes == 0.05
    assert "Too little time" in answer.out


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    for number in range(4):
        image, label = anatomy(number)
        write_nifti(tmp_path / f"scans/p{number}.nii.gz", image)
        if number < 2:
            write_nifti(tmp_path / f"drawn/p{number}.nii.gz", label)
    answer = macl(
        "run", tmp_path / "scans", "--labels", tmp_path / "drawn", "--out", tmp_path / "out",
        "--minutes", 5, "--device", "cpu", "--dry-run",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "cross-validation with 2 models, which tests each of 2 labelled people once" in (
        answer.err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"folds": 1}, "give 0 for one model, or at least 2"),
        ({"finetune": None}, "selftrain needs finetune"),
        ({"pretrain": PRETRAIN.model_copy(update={"size": (8, 8, 8)})}, "give 2 sides"),
        ({"finetune": FINETUNE.model_copy(update={"steps": 0})}, "finetune.steps"),
        ({"format": "macl-grid"}, "is not a plan of this version"),
    ],
)
def test_a_mistake_in_a_plan_is_a_sentence(
    changes: dict[str, object], sentence: str, scans: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(scans).model_copy(update=changes)
    (tmp_path / "a.toml").write_text(plan_text(plan, ()))
    words = one_sentence("--plan", tmp_path / "a.toml", "--out", tmp_path / "out")
    assert sentence in words
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_answered_before_anything_is_written(scans: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ["--device", "cpu"]
    assert "does not exist" in one_sentence(tmp_path / "none", "--out", out, *options)
    (tmp_path / "empty").mkdir()
    assert "in a known layout" in one_sentence(tmp_path / "empty", "--out", out, *options)
    assert "lies within the scans" in one_sentence(scans, "--out", scans / "out", *options)
    assert "minutes" in one_sentence(scans, "--out", out, "--minutes", 0, *options)
    plan = write_tiny_plan(tmp_path / "a.toml", scans)
    assert "change them there" in one_sentence(scans, "--plan", plan, "--out", out)
    for option in (("--minutes", 5), ("--device", "cpu")):
        words = one_sentence("--plan", plan, "--out", out, *option)
        assert "The plan says minutes and device" in words
    planned = plan.read_text().split("[pretrain]")[0] + '[prepare.plan]\nname = "2d"\n'
    (tmp_path / "planned.toml").write_text(planned)
    assert "prepare.plan" in one_sentence("--plan", tmp_path / "planned.toml", "--out", out)
    assert "check the path" in one_sentence("--plan", tmp_path / "b.toml", "--out", out)
    assert not out.exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    assert "choose another --out" in one_sentence(scans, "--out", tmp_path / "thesis", *options)
    assert macl("run", scans).code == 2
    assert "For example: macl run" in " ".join(macl("run").err.replace("│", " ").split())


def test_a_folder_follows_one_plan(whole: Path, scans: Path, tmp_path: Path) -> None:
    assert "holds a run with another plan" in one_sentence(scans, "--out", whole)
    plan = write_tiny_plan(tmp_path / "a.toml", scans, folds=3)
    assert "already follows another plan" in one_sentence("--plan", plan, "--out", whole)


def test_too_few_labels_for_the_folds(whole: Path, scans: Path, tmp_path: Path) -> None:
    words = one_sentence("--plan", begun(whole, tmp_path / "out", scans, folds=5))
    assert "Only 3 people have labels that can be used" in words


def test_the_folder_of_a_run_stands_for_its_models(whole: Path, tmp_path: Path) -> None:
    scan = next((whole / "masks").glob("*.nii.gz"))
    answer = macl("predict", whole, scan, "--out", tmp_path / "masks")
    assert answer.code == 0, answer.err
    models = [path for path in (whole / "runs").iterdir() if "selftrained" in path.name]
    loaded = package.load(whole, device="cpu")
    assert len(loaded.networks) == len(models)
    page = tmp_path / "page.html"
    assert macl("report", whole, "--out", page).code == 0
    assert len(json.loads(page.with_suffix(".json").read_text())["runs"]) == len(models)
    answer = macl("inspect", whole)
    assert answer.code == 1
    assert f"was written by macl run: inspect its store {whole / 'store'}" in answer.err
