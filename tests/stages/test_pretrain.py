"""Pre-training as a user calls it, on a miniature store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes.command import Answer, macl
from fakes.networks import unet
from fakes.toy_store import write_toy_store
from macl.stages.split import split
from macl.utils import checkpoint

SMALL = (
    "training.epochs=2",
    "training.batch_size=8",
    "training.size=64",
    "backbone_settings.width=4",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_store(folder / "toy.store", patients=5, slices=4, side=40, unlabelled=1)
    split(folder / "toy.store", folder / "split.json", test="1", budgets="2")
    return folder


@pytest.fixture
def pretrain(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call `macl pretrain` on the miniature store, quickly, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, settings: tuple[str, ...] = SMALL) -> Answer:
        chosen = [word for setting in settings for word in ("--set", setting)]
        return macl("pretrain", str(toy / "toy.store"), "--device", "cpu", *chosen, *words)

    return call


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_what_a_run_leaves(pretrain, toy: Path, tmp_path: Path) -> None:
    answer = pretrain("--out", "run", "--seed", "3")
    assert answer.code == 0, answer.err
    assert answer.out == ""
    run = tmp_path / "run"
    assert sorted(item.name for item in run.iterdir()) == [
        "log.jsonl",
        "run.json",
        "weights.safetensors",
    ]
    said = record(run)
    assert (said["kind"], said["finished"], said["seed"], said["device"], said["steps"]) == (
        "pretrain",
        True,
        3,
        "cpu",
        4,
    )
    assert said["settings"]["method"] == said["recipe"] == "macl"
    assert said["settings"]["backbone_settings"] == {"width": 4, "strides": [2, 2, 2, 2]}
    assert said["settings"]["method_settings"]["threshold"] == 0.1, (
        "the method's own settings are resolved"
    )
    assert len(said["cases"]) == len(said["patients"]) == 5, "slices without labels count"
    assert said["versions"]["torch"] == torch.__version__
    assert said["seconds"] > 0
    assert len((run / "log.jsonl").read_text().splitlines()) == 4

    saved = checkpoint.read(run / "weights.safetensors")
    whole = unet(4, blocks=2).state_dict()
    assert {name: tensor.shape for name, tensor in saved.tensors.items()} == {
        k: v.shape for k, v in whole.items()
    }
    assert saved.about["decoder_blocks"] == 2
    assert saved.about["backbone_settings"] == {"width": 4, "strides": [2, 2, 2, 2]}
    assert saved.about["dims"] == 2
    assert said["quantities"]["loss_dense"]["label"] == "Dense loss"


def test_the_seed_decides(pretrain, tmp_path: Path) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert pretrain("--out", out, "--seed", seed).code == 0
    first, again, other = ((tmp_path / out / "weights.safetensors").read_bytes() for out in "abc")
    assert first == again
    assert first != other


def test_test_people_are_left_out(pretrain, toy: Path, tmp_path: Path) -> None:
    assert pretrain("--out", "run", "--split", str(toy / "split.json")).code == 0
    said = record(tmp_path / "run")
    (tested,) = said["split"]["test"]
    assert said["test_cases"] == [tested]
    assert tested not in said["patients"]
    assert len(said["patients"]) == 4
    assert not said["overlap_allowed"]
    assert pretrain("--out", "all", "--split", str(toy / "split.json"), "--allow-overlap").code == 0
    said = record(tmp_path / "all")
    assert tested in said["patients"]
    assert said["overlap_allowed"]


def test_a_size_that_does_not_fit_is_padded_and_said(pretrain, tmp_path: Path) -> None:
    answer = pretrain(
        "--out",
        "run",
        settings=(*SMALL[:2], "training.size=50", SMALL[3], "method_settings.decoder_blocks=1"),
    )
    assert answer.code == 0
    assert (
        "Patches of 50 × 50 are padded to 64 × 64: macl takes multiples of 32 × 32." in answer.err
    )
    assert record(tmp_path / "run")["settings"]["training"]["size"] == 64


def test_a_finished_run_stays_as_it_is(pretrain, tmp_path: Path) -> None:
    assert pretrain("--out", "run").code == 0
    before = {
        item: (item.read_bytes(), item.stat().st_mtime_ns) for item in (tmp_path / "run").iterdir()
    }
    answer = pretrain("--out", "run", "--resume")
    assert answer.code == 0
    assert "is finished already" in answer.err
    again = pretrain("--out", "run")
    assert again.code == 1
    assert "add --resume" in again.err
    assert {
        item: (item.read_bytes(), item.stat().st_mtime_ns) for item in (tmp_path / "run").iterdir()
    } == before


def test_a_run_is_not_resumed_with_other_settings(pretrain, tmp_path: Path) -> None:
    assert pretrain("--out", "run").code == 0
    for words, named in (
        (("--seed", "1"), "seed"),
        (("--set", "training.learning_rate=0.3"), "settings.training.learning_rate"),
        (("--set", "method_settings.threshold=0.2"), "settings.method_settings.threshold"),
        (("--set", "backbone_settings.width=8"), "settings.backbone_settings.width"),
    ):
        answer = pretrain("--out", "run", "--resume", *words)
        assert answer.code == 1
        assert f"other settings ({named})" in answer.err


def test_resuming_begins_what_has_not_begun(pretrain, tmp_path: Path) -> None:
    assert pretrain("--out", "run", "--resume").code == 0
    assert record(tmp_path / "run")["finished"]


def test_a_write_that_was_killed_at_the_start_is_no_hindrance(pretrain, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".writing-1-run.json").write_text("{")
    assert pretrain("--out", "run").code == 0
    assert not (tmp_path / "run" / ".writing-1-run.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "mcal"), "did you mean 'macl'"),
        (("--recipe", "nothing"), "no pretrain recipe called 'nothing'"),
        (("--set", "training.epohcs=3"), "training.epohcs"),
        (("--set", "training.epochs=many"), "training.epochs"),
        (("--set", "training"), "--set takes key=value"),
        (("--set", "training.epochs.more=1"), "'epochs' is a value"),
        (("--set", "method_settings.decoder_blocks=5"), "method_settings.decoder_blocks"),
        (("--set", "backbone_settings.widht=8"), "backbone_settings.widht"),
        (("--set", "backbone=unett"), "did you mean 'unet'"),
        (("--device", "mps"), "try --device cpu"),
        (("--split", "nothing.json"), "nothing.json"),
        (("--set", "training.size=[8,8,8]"), "training.size has 3 sides, but dims is 2"),
        (("--set", "dims=4"), "dims: input should be 2 or 3"),
        (("--set", "patients_per_position=3"), "cannot show 3 patients at every position"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_a_sentence_and_leave_nothing(
    pretrain, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    if "mps" in words and torch.backends.mps.is_available():
        pytest.skip("the device is there")
    answer = pretrain("--out", "run", *words)
    assert answer.code == 1
    assert said in answer.err
    assert answer.err.strip().splitlines()[-1].startswith("macl: ")
    assert not (tmp_path / "run").exists()


def test_a_negative_seed_is_wrong_usage(pretrain, tmp_path: Path) -> None:
    assert pretrain("--out", "run", "--seed", "-1").code == 2
    assert not (tmp_path / "run").exists()


def test_something_else_in_the_folder_is_left_alone(pretrain, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("…")
    for words in ((), ("--resume",)):
        answer = pretrain("--out", "run", *words)
        assert answer.code == 1
        assert "something that is not a run" in answer.err
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_slices_without_volumes_are_said(tmp_path: Path) -> None:
    write_toy_store(tmp_path / "photographs.store", patients=4, slices=1, side=64)
    words = [word for setting in (*SMALL, "training.batch_size=4") for word in ("--set", setting)]
    answer = macl(
        "pretrain",
        tmp_path / "photographs.store",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *words,
    )
    assert answer.code == 0
    assert "Every case has a single slice" in answer.err
    assert record(tmp_path / "run")["steps"] == 2


# ---------------------------------------------------------------- volumes

VOLUMES = (
    "training.epochs=2", "training.batch_size=4", "backbone_settings.width=2",
    "method_settings.decoder_blocks=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of 24 slices of about 40 × 40."""
    folder = tmp_path_factory.mktemp("volumes") / "toy.store"
    write_toy_store(folder, patients=4, slices=24, side=40)
    return folder


def pretrain_volumes(store: Path, out: Path, *words: str, settings: tuple[str, ...] = VOLUMES):
    chosen = [word for setting in settings for word in ("--set", setting)]
    return macl("pretrain", store, "--out", out, "--device", "cpu", *chosen, *words)


def test_one_setting_makes_volumes_of_slices(volumes: Path, tmp_path: Path) -> None:
    changes = ("--set", "dims=3", "--set", "training.size=[8,16,16]")
    answer = pretrain_volumes(volumes, tmp_path / "run", *changes)
    assert answer.code == 0, answer.err
    assert "macl is a recipe for slices" in answer.err
    said = record(tmp_path / "run")
    assert said["recipe"] == "macl"
    assert (said["settings"]["dims"], said["settings"]["training"]["size"]) == (3, [8, 16, 16])
    assert said["settings"]["patients_per_position"] == 4
    # Slices are 5 mm apart and pixels 1 mm, so that slices are not pooled.
    assert said["settings"]["backbone_settings"]["strides"] == [[1, 2, 2], [1, 2, 2]]
    assert said["steps"] == 2 * (4 * 3 // 4), "three patches cover the height of a volume"
    saved = checkpoint.read(tmp_path / "run" / "weights.safetensors")
    assert saved.about["dims"] == 3
    assert saved.tensors["encoder.levels.0.0.weight"].shape == (2, 1, 3, 3, 3)
    assert all(line["positives_per_anchor"] > 1 for line in log(tmp_path / "run"))


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_recipe_for_volumes_chooses_patches_within_them(volumes: Path, tmp_path: Path) -> None:
    answer = pretrain_volumes(volumes, tmp_path / "run", "--recipe", "macl-3d")
    assert answer.code == 0, answer.err
    assert "chosen from the sizes of the cases" in answer.err
    depth, rows, columns = record(tmp_path / "run")["settings"]["training"]["size"]
    assert 8 < depth < 24
    assert 16 <= rows < 44
    assert 16 <= columns < 44
    assert "nothing to contrast" not in answer.err


def test_patches_that_cover_every_volume_are_said(volumes: Path, tmp_path: Path) -> None:
    covering = ("--set", "dims=3", "--set", "training.size=[24,48,48]")
    answer = pretrain_volumes(volumes, tmp_path / "run", *covering, settings=VOLUMES[:3])
    assert answer.code == 0, answer.err
    assert "there is nothing to contrast: choose smaller sides" in answer.err


def test_groups_that_do_not_fit_the_batch_leave_nothing(volumes: Path, tmp_path: Path) -> None:
    uneven = ("--set", "dims=3", "--set", "training.batch_size=6")
    answer = pretrain_volumes(volumes, tmp_path / "run", *uneven)
    assert answer.code == 1
    assert "cannot show 4 patients at every position" in answer.err
    assert not (tmp_path / "run").exists()
