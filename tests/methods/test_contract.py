"""What every method found in the folder promises: it trains, resumes exactly, does not collapse, and hands on its weights."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from statistics import mean, variance

import pytest
import torch

from fakes.networks import method as method_on_unet
from fakes.networks import unet
from fakes.toy_store import write_toy_store
from macl.engine import trainer as training
from macl.models.transfer import transplant
from macl.plugins import names
from macl.stages.pretrain import pretrain
from macl.tasks.segmentation import Segmenter
from macl.utils import checkpoint

SEEDS = range(int(os.environ.get("MACL_TEST_SEEDS", "1")))
"""Of the weights, the order and the views; the tests hold for more of them than a gate has time for."""
EPOCHS, SAVED_AT, WIDTH = 33, 80, 4  # 99 steps; the copy is taken in the middle of an epoch
HEADS = {"hidden": 64, "projection": 32}
# Heads, queues and blocks in proportion to the toy's network and its 36 slices, and every stage of a run within it.
SMALL = {
    "byol": HEADS,
    "desd": {**HEADS, "prototypes": 32},
    "dira": {"queue": 24, "momentum": 0.9, "discriminator_width": 4, "adversary_from": 0.3},
    "gcl": {"encoder_share": 0.7},
    "masked": {"covered": 0.5, "block": 4},
    "moco": {"queue": 24, "momentum": 0.9},
    "simsiam": HEADS,
    "simtriplet": HEADS,
    "swav": {**HEADS, "prototypes": 32, "queue": 24, "small_crops": 1},
    "wcl": HEADS,
}
# Gentle views and three times the recipes' rate, so that a hundred steps of a narrow network show whether it learns.
VIEWS = {
    "rotation_degrees": 10,
    "scale": [0.9, 1.1],
    "elastic_alpha": [0, 0],
    "interpolation": "bilinear",
}
WHERE = {"macl": "views", "dira": "spatial"}
RATES = {
    "macl": 0.01,
    "simsiam": 0.05,
    "simtriplet": 0.05,
}  # SGD: the release's, and the recipes' own


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "toy.store"
    write_toy_store(folder, patients=6, slices=6, side=40)
    return folder


def overrides(method: str) -> list[str]:
    """Over the method's own recipe: its optimiser, without warm-up."""
    training = {
        "epochs": EPOCHS, "batch_size": 12, "size": 32, "warmup_epochs": 0, "learning_rate": RATES.get(method, 3e-3),
        "checkpoint_every_steps": SAVED_AT,
    }  # fmt: skip
    views = {f"{WHERE.get(method, 'views.spatial')}.{name}": value for name, value in VIEWS.items()}
    own = {**SMALL.get(method, {}), **views}
    settings = [f"training.{key}={json.dumps(value)}" for key, value in training.items()]
    settings += [f"method_settings.{key}={json.dumps(value)}" for key, value in own.items()]
    return [*settings, f"backbone_settings.width={WIDTH}"]


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "patches_per_second"}
        for line in lines
    ]


@pytest.fixture(
    scope="module",
    params=itertools.product(names("methods"), SEEDS),
    ids=lambda both: f"{both[0]}-{both[1]}",
)
def trained(request, store, tmp_path_factory):
    """A method, a seed, and the folder of its run and of a copy of it as a kill would leave it after step 80."""
    method, seed = request.param
    folder = tmp_path_factory.mktemp(method)
    save = training._TrainingState.save

    def save_and_copy(state, path: Path) -> None:
        save(state, path)
        if state.step == SAVED_AT:
            shutil.copytree(path.parent, folder / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._TrainingState, "save", save_and_copy)
        pretrain(
            store,
            folder / "whole",
            method=method,
            overrides=overrides(method),
            device="cpu",
            seed=seed,
        )
    return method, seed, folder


def quarters(values: list[float]) -> tuple[list[float], list[float]]:
    """The first and the last."""
    return values[: len(values) // 4], values[-(len(values) // 4) :]


def test_the_names_are_those_of_the_comparison():
    expected = "byol dira desd gcl macl masked moco pcl simclr simsiam simtriplet swav wcl"
    assert {*expected.split()} <= {*names("methods")}


def test_its_main_loss_falls(trained):
    """The first part that a method names, by more than three standard errors, over the steps in which it took part."""
    log = read_log(trained[2] / "whole")
    part = next(name for name in log[0] if name.startswith("loss_"))
    early, late = quarters([line[part] for line in log if line[part] != 0])
    error = math.sqrt(variance(early) / len(early) + variance(late) / len(late))
    assert mean(early) - mean(late) > 3 * error


def test_its_features_do_not_collapse(trained):
    early, late = quarters([line["feature_spread"] for line in read_log(trained[2] / "whole")])
    assert mean(late) > 0.25 * mean(early)


def test_a_killed_run_ends_as_if_it_had_not_been(trained, store):
    method, seed, folder = trained
    pretrain(
        store,
        folder / "killed",
        method=method,
        overrides=overrides(method),
        device="cpu",
        seed=seed,
        resume=True,
    )
    assert read_log(folder / "killed") == read_log(folder / "whole")
    whole, resumed = (
        checkpoint.read(folder / run / "weights.safetensors").tensors for run in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def build(name: str, seed: int):
    torch.manual_seed(seed)
    task = method_on_unet(name, SMALL.get(name, {}), WIDTH)
    return task, len(task.network.decoder.blocks)


def test_its_weights_go_where_they_belong_in_a_segmenter(trained):
    method, seed, folder = trained
    source = checkpoint.read(folder / "whole" / "weights.safetensors").tensors
    task, blocks = build(method, seed)
    segmenter = Segmenter(unet(WIDTH), classes=3)
    transfer = transplant("run", source, segmenter.named_state())
    outcome = {row.name: row.outcome for row in transfer.tensors}
    transferable = ["encoder."]
    if "decoder." in task.transferable_prefixes:
        transferable += [f"decoder.blocks.{block}." for block in range(blocks)]
    for name, what in outcome.items():
        assert what == ("loaded" if name.startswith(tuple(transferable)) else "fresh"), name
    assert transfer.unused == ()
    state = segmenter.named_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.items())


def test_all_that_it_transfers_was_trained(trained):
    method, seed, folder = trained
    source = checkpoint.read(folder / "whole" / "weights.safetensors").tensors
    fresh = build(method, seed)[0].network.state_dict()
    weights = {name: tensor for name, tensor in source.items() if tensor.ndim == 4}
    assert weights
    assert not [name for name, tensor in weights.items() if torch.equal(tensor, fresh[name])]
