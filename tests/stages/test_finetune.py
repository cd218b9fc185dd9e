"""Fine-tuning as a user calls it, on a miniature store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes.command import Answer, macl
from fakes.networks import unet
from fakes.toy_store import write_toy_store
from macl.data.splits import read_split, write_split
from macl.models.unet import UNet
from macl.stages.pretrain import pretrain
from macl.stages.split import split
from macl.tasks.segmentation import load_segmenter
from macl.utils import checkpoint

SMALL = (
    "training.epochs=2", "training.batch_size=4", "training.size=32", "backbone_settings.width=4",
    "mirror_averaging=false",
)  # fmt: skip
PRETRAINED = (
    "training.epochs=1",
    "training.batch_size=8",
    "training.size=64",
    "backbone_settings.width=4",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a split, and runs pre-trained without and with the split's test person."""
    folder = tmp_path_factory.mktemp("toy")
    store = folder / "toy.store"
    write_toy_store(store, patients=5, slices=4, side=32)
    split(store, folder / "split.json", test="1", budgets="2")
    for out, name, more in (
        ("clean", str(folder / "split.json"), ()),
        ("leaked", None, ()),
        ("wide", str(folder / "split.json"), ("backbone_settings.width=8",)),
        ("encoder", str(folder / "split.json"), ("method_settings.decoder_blocks=0",)),
    ):
        pretrain(store, folder / out, split=name, overrides=(*PRETRAINED, *more), device="cpu")
    return folder


@pytest.fixture
def finetune(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call `macl finetune` on the miniature store, quickly, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(
        init: str,
        *words: str,
        settings: tuple[str, ...] = SMALL,
        labels: str = "2",
        chosen: str = "",
    ) -> Answer:
        changes = [word for setting in settings for word in ("--set", setting)]
        chosen = chosen or str(toy / "split.json")
        return macl(
            "finetune", str(toy / "toy.store"), "--init", init, "--split", chosen,
            "--labels", labels, "--device", "cpu", *changes, *words,
        )  # fmt: skip

    return call


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def outcomes(run: Path) -> dict[str, str]:
    return {
        row["name"]: row["outcome"]
        for row in json.loads((run / "transfer.json").read_text())["tensors"]
    }


def test_what_a_run_leaves(finetune, toy: Path, tmp_path: Path) -> None:
    answer = finetune(str(toy / "clean"), "--out", "run", "--seed", "2")
    assert answer.code == 0, answer.err
    assert answer.out == ""
    run = tmp_path / "run"
    files = ["log.jsonl", "run.json", "transfer.json", "weights.safetensors"]
    assert sorted(item.name for item in run.iterdir()) == files
    said, pretrained = record(run), record(toy / "clean")
    assert (said["kind"], said["finished"], said["labels"], said["recipe"]) == (
        "finetune",
        True,
        "2",
        "strong",
    )
    assert said["cases"] == sorted(read_split(toy / "split.json").budgets["2"])
    assert said["test_cases"] == list(read_split(toy / "split.json").test)
    assert said["init"].startswith(f"{toy / 'clean'} (")
    assert said["init_patients"] == pretrained["patients"]
    assert said["classes"] == ["background", "ring", "disc"]
    assert said["settings"]["anatomy"] == "oriented"
    assert said["mirror_axes"] == []
    assert said["steps"] == 4
    segmenter = load_segmenter(run, UNet, torch.device("cpu"))
    assert segmenter(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_all_labels_need_no_split_and_leave_nobody_to_test(toy: Path, tmp_path: Path) -> None:
    run = tmp_path / "final"
    changes = [word for setting in SMALL for word in ("--set", setting)]
    words = ("--init", "scratch", "--labels", "all", "--out", run, "--device", "cpu", *changes)
    answer = macl("finetune", toy / "toy.store", *words)
    assert answer.code == 0, answer.err
    said = record(run)
    assert said["cases"] == [f"patient{number:03d}" for number in range(1, 6)]
    assert (said["labels"], said["test_cases"]) == ("all", [])
    assert macl("finetune", "--out", run, "--resume").code == 0
    answer = macl("predict", run, toy / "toy.store", "--out", tmp_path / "masks")
    assert "add --cases all" in answer.err
    for command in ("finetune", "selftrain"):
        few = ("--init", "scratch", "--labels", "2", "--out", tmp_path / "other")
        answer = macl(command, toy / "toy.store", *few)
        assert answer.code != 0
        assert "--split" in answer.err


def test_the_transfer_is_reported_and_recorded(finetune, toy: Path, tmp_path: Path) -> None:
    slow = (*SMALL, "training.learning_rate=1e-12", "training.weight_decay=0")
    answer = finetune(str(toy / "clean"), "--out", "run", settings=slow)
    assert f"Weights from {toy / 'clean'}" in answer.err
    became = outcomes(tmp_path / "run")
    for name, outcome in became.items():
        handed_on = name.startswith(("encoder.", "decoder.blocks.0.", "decoder.blocks.1."))
        assert outcome == ("loaded" if handed_on else "fresh"), name
    start = checkpoint.read(toy / "clean" / "weights.safetensors").tensors
    end = checkpoint.read(tmp_path / "run" / "weights.safetensors").tensors
    for name, tensor in start.items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(end[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_scratch_starts_fresh(finetune, tmp_path: Path) -> None:
    assert finetune("scratch", "--out", "run").code == 0
    assert set(outcomes(tmp_path / "run").values()) == {"fresh"}
    assert (record(tmp_path / "run")["init"], record(tmp_path / "run")["init_patients"]) == (
        "scratch",
        [],
    )


def test_scratch_and_pretrained_differ_in_nothing_but_the_start(
    finetune, toy: Path, tmp_path: Path
) -> None:
    for out, init in (("a", "scratch"), ("b", "scratch"), ("c", str(toy / "clean"))):
        assert finetune(init, "--out", out).code == 0
    first, again, other = (
        checkpoint.read(tmp_path / out / "weights.safetensors").tensors for out in "abc"
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.equal(first["encoder.centre.0.weight"], other["encoder.centre.0.weight"])
    without = [
        {
            name: value
            for name, value in record(tmp_path / out).items()
            if "init" not in name and name not in ("seconds", "weights_sha256", "folder")
        }
        for out in "ac"
    ]
    assert without[0] == without[1]


def test_test_people_in_the_pretraining_are_refused_or_recorded(
    finetune, toy: Path, tmp_path: Path
) -> None:
    (tested,) = read_split(toy / "split.json").test
    answer = finetune(str(toy / "leaked"), "--out", "run")
    assert answer.code == 1
    assert tested in answer.err
    assert "--allow-overlap" in answer.err
    assert not (tmp_path / "run").exists()
    assert finetune(str(toy / "leaked"), "--out", "run", "--allow-overlap").code == 0
    said = record(tmp_path / "run")
    assert said["overlap_allowed"]
    assert tested in said["init_patients"]


def test_a_split_that_trains_on_test_people_is_refused_or_recorded(
    finetune, toy: Path, tmp_path: Path
) -> None:
    clean = read_split(toy / "split.json")
    leaking = clean.model_copy(update={"budgets": {"2": (*clean.test, clean.budgets["2"][0])}})
    write_split(tmp_path / "leaking.json", leaking)
    answer = finetune("scratch", "--out", "run", chosen="leaking.json")
    assert answer.code == 1
    assert "--allow-overlap" in answer.err
    assert not (tmp_path / "run").exists()
    answer = finetune("scratch", "--out", "run", "--allow-overlap", chosen="leaking.json")
    assert answer.code == 0, answer.err
    assert answer.err.count("the scores will be too good") == 1
    assert "--out run-self --allow-overlap" in answer.err
    said = record(tmp_path / "run")
    assert {*clean.test} <= {*said["cases"]}
    assert said["leaves_unlabelled"] is True


def test_a_fine_tuned_run_passes_on_whose_scans_it_saw(finetune, toy: Path, tmp_path: Path) -> None:
    assert finetune(str(toy / "leaked"), "--out", "first", "--allow-overlap").code == 0
    answer = finetune("first", "--out", "second")
    assert answer.code == 1
    assert "--allow-overlap" in answer.err


def test_another_width_is_refused(finetune, toy: Path, tmp_path: Path) -> None:
    answer = finetune(str(toy / "wide"), "--out", "run")
    assert answer.code == 1
    assert "trained with 2D unet, width 8" in answer.err
    assert not (tmp_path / "run").exists()


def test_an_encoder_alone_must_be_asked_for(finetune, toy: Path, tmp_path: Path) -> None:
    answer = finetune(str(toy / "encoder"), "--out", "run")
    assert answer.code == 1
    assert "--encoder-only" in answer.err
    assert not (tmp_path / "run").exists()
    assert finetune(str(toy / "encoder"), "--out", "run", "--encoder-only").code == 0
    loaded = {
        name.split(".")[0]
        for name, outcome in outcomes(tmp_path / "run").items()
        if outcome == "loaded"
    }
    assert loaded == {"encoder"}


@pytest.mark.parametrize(("words", "blocks"), [((), 2), (("--init-decoder-blocks", "3"), 3)])
def test_the_authors_file(finetune, tmp_path: Path, words: tuple[str, ...], blocks: int) -> None:
    state = {}
    for name, tensor in unet(4).state_dict().items():
        state[f"module.{released_name(name)}"] = tensor
    torch.save({"epoch": 100, "state_dict": state}, tmp_path / "released.pth")
    answer = finetune("released.pth", "--out", "run", *words)
    assert answer.code == 0, answer.err
    assert "does not say whose scans it was trained on" in answer.err
    loaded = [name for name, outcome in outcomes(tmp_path / "run").items() if outcome == "loaded"]
    taken = {name.split(".")[2] for name in loaded if name.startswith("decoder")}
    assert taken == {str(block) for block in range(blocks)}
    assert all(
        outcome == "loaded"
        for name, outcome in outcomes(tmp_path / "run").items()
        if name.startswith("encoder")
    )


def released_name(name: str) -> str:
    """The released program's name of one of our tensors."""
    part, kind, number, *rest = name.split(".")
    if kind == "centre":
        return ".".join(("share_encoder.center", number, *rest))
    if part == "encoder":
        layer = int(rest[0])
        return ".".join(
            (f"share_encoder.contr_{int(number) + 1}_{1 + layer // 3}", str(layer % 3), *rest[1:])
        )
    level = 4 - int(number)
    if rest[0] == "up":
        return f"online_decoder.upscale{level + 1}.{rest[1]}"
    layer = int(rest[1])
    return ".".join((f"online_decoder.expand_{level}_{1 + layer // 3}", str(layer % 3), *rest[2:]))


def test_a_weights_file_of_ours(finetune, toy: Path, tmp_path: Path) -> None:
    assert finetune(str(toy / "clean" / "weights.safetensors"), "--out", "run").code == 0
    assert "loaded" in outcomes(tmp_path / "run").values()


def test_an_unfinished_run_is_no_start(finetune, toy: Path, tmp_path: Path) -> None:
    unfinished = record(toy / "clean") | {"finished": False}
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "run.json").write_text(json.dumps(unfinished))
    answer = finetune("early", "--out", "run")
    assert answer.code == 1
    assert "is not finished" in answer.err


def test_validation_people_choose_the_weights(finetune, toy: Path, tmp_path: Path) -> None:
    drawn = read_split(toy / "split.json")
    others = sorted({f"patient{n:03d}" for n in range(1, 6)} - {*drawn.test, *drawn.budgets["2"]})
    chosen = drawn.model_copy(
        update={"validation": (others[0],), "budgets": {"3": drawn.budgets["2"]}}
    )
    write_split(tmp_path / "with.json", chosen)
    answer = finetune("scratch", "--out", "run", labels="3", chosen="with.json")
    assert answer.code == 0, answer.err
    said = record(tmp_path / "run")
    assert said["validation_cases"] == [others[0]]
    assert others[0] not in said["cases"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 <= line["validation_score"] <= 1 for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "training.epohcs=3"), "training.epohcs"),
        (("--set", "backbone_settings.widht=8"), "backbone_settings.widht"),
        (("--set", "loss=hinge"), "loss"),
        (("--recipe", "nothing"), "no finetune recipe called 'nothing'"),
        (("--labels", "3"), "no label budget '3'"),
        (("--init", "nowhere"), "does not exist"),
        (("--device", "mps"), "try --device cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_a_sentence_and_leave_nothing(
    finetune, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    if "mps" in words and torch.backends.mps.is_available():
        pytest.skip("the device is there")
    answer = finetune("scratch", "--out", "run", *words)
    assert answer.code == 1
    assert said in answer.err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_stays_as_it_is(finetune, tmp_path: Path) -> None:
    assert finetune("scratch", "--out", "run").code == 0
    before = {item: item.stat().st_mtime_ns for item in (tmp_path / "run").iterdir()}
    assert "is finished already" in finetune("scratch", "--out", "run", "--resume").err
    for words in (
        ("--resume", "--set", "training.epochs=3"),
        ("--resume", "--recipe", "paper"),
        (),
    ):
        assert finetune("scratch", "--out", "run", *words).code == 1
    assert {item: item.stat().st_mtime_ns for item in (tmp_path / "run").iterdir()} == before


def test_a_run_is_not_resumed_from_another_start(finetune, toy: Path) -> None:
    assert finetune("scratch", "--out", "run").code == 0
    answer = finetune(str(toy / "clean"), "--out", "run", "--resume")
    assert answer.code == 1
    assert "other settings (init" in answer.err


def test_a_size_that_does_not_fit_is_padded_and_said(finetune, tmp_path: Path) -> None:
    answer = finetune("scratch", "--out", "run", settings=(*SMALL, "training.size=30"))
    assert "Patches of 30 × 30 are padded to 32 × 32" in answer.err
    assert record(tmp_path / "run")["settings"]["training"]["size"] == 32


def test_the_papers_recipe(finetune, tmp_path: Path) -> None:
    assert finetune("scratch", "--out", "run", "--recipe", "paper").code == 0
    settings = record(tmp_path / "run")["settings"]
    assert (settings["loss"], settings["training"]["optimiser"]) == ("cross_entropy", "adam")
    assert settings["training"]["learning_rate_floor"] == 5e-6


def test_the_network_is_that_of_the_init(finetune, toy: Path, tmp_path: Path) -> None:
    settings = tuple(each for each in SMALL if "backbone" not in each)
    answer = finetune(str(toy / "wide"), "--out", "run", settings=settings)
    assert answer.code == 0, answer.err
    assert "2D unet, width 8" in answer.err
    assert record(tmp_path / "run")["settings"]["backbone_settings"]["width"] == 8
    assert "loaded" in outcomes(tmp_path / "run").values()
    answer = finetune("run", "--out", "again", settings=settings)
    assert answer.code == 0, answer.err
    assert {*outcomes(tmp_path / "again").values()} == {"loaded"}, "a fine-tuned run is an init too"


# ---------------------------------------------------------------- volumes

VOLUMES = ("training.epochs=2", "training.batch_size=2", "mirror_averaging=false")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of 12 slices, a split with a person for validation, and a run pre-trained on them."""
    folder = tmp_path_factory.mktemp("volumes")
    store = folder / "toy.store"
    write_toy_store(store, patients=5, slices=12, side=32)
    split(store, folder / "split.json", test="1", validation="1", budgets="3")
    overrides = (
        "training.epochs=1", "training.batch_size=4", "training.size=[8,16,16]",
        "backbone_settings.width=2", "method_settings.decoder_blocks=1",
    )  # fmt: skip
    pretrain(
        store, folder / "macl", split=str(folder / "split.json"), recipe="macl-3d",
        overrides=overrides, device="cpu",
    )  # fmt: skip
    return folder


def finetune_volumes(folder: Path, init: object, out: Path, *words: str) -> Answer:
    changes = [word for setting in VOLUMES for word in ("--set", setting)]
    return macl(
        "finetune", folder / "toy.store", "--init", init, "--split", folder / "split.json",
        "--labels", "3", "--out", out, "--device", "cpu", *changes, *words,
    )  # fmt: skip


def test_a_run_of_volumes_starts_one_of_volumes(volumes: Path, tmp_path: Path) -> None:
    size = ("--set", "training.size=[12,32,32]")
    answer = finetune_volumes(volumes, volumes / "macl", tmp_path / "run", *size)
    assert answer.code == 0, answer.err
    assert "3D unet, width 2" in answer.err
    assert "strong is a recipe for slices" in answer.err
    said, pretrained = record(tmp_path / "run"), record(volumes / "macl")
    assert said["settings"]["dims"] == 3
    network = pretrained["settings"]["backbone_settings"]
    assert said["settings"]["backbone_settings"] == network
    assert said["settings"]["foreground_share"] == 0.33
    assert said["mirror_axes"] == [], "the anatomy is oriented"
    became = outcomes(tmp_path / "run")
    assert {became[name] for name in became if name.startswith("encoder")} == {"loaded"}
    segmenter = load_segmenter(tmp_path / "run", UNet, torch.device("cpu"))
    assert segmenter(torch.zeros(1, 1, 12, 32, 32)).shape == (1, 3, 12, 32, 32)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 <= line["validation_score"] <= 1 for line in lines)


def test_the_recipe_for_volumes_takes_whole_ones(volumes: Path, tmp_path: Path) -> None:
    small = ("--recipe", "strong-3d", "--set", "backbone_settings.width=2")
    answer = finetune_volumes(volumes, "scratch", tmp_path / "run", *small)
    assert answer.code == 0, answer.err
    assert record(tmp_path / "run")["settings"]["training"]["size"] == [12, 40, 32]


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_of_other_dimensions_are_a_sentence(
    volumes: Path, toy: Path, tmp_path: Path, dims: int
) -> None:
    init = volumes / "macl" if dims == 2 else toy / "clean"
    answer = finetune_volumes(volumes, init, tmp_path / "run", "--set", f"dims={dims}")
    assert answer.code == 1
    assert f"weights of a {5 - dims}D network, but dims is {dims}: start from a" in answer.err
    assert not (tmp_path / "run").exists()
