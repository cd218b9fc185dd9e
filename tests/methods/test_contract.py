"""What every method promises in 2D and 3D: it trains, resumes exactly, does not collapse, and its
weights reach a segmenter."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

import pytest
import torch

from fakes.networks import method as method_on_unet
from fakes.networks import unet
from fakes.toy_store import write_toy_store
from macl.engine import trainer as training
from macl.models.transfer import transplant
from macl.plugins import names
from macl.stages.pretrain import pretrain
from macl.tasks.pretraining import Method
from macl.tasks.segmentation import Segmenter
from macl.utils import checkpoint

SEEDS = range(int(os.environ.get("MACL_TEST_SEEDS", "1")))
"""Of the weights, the order and the views; more than the gate has time for must hold too."""
WIDTH = 4
HEADS = {"hidden": 64, "projection": 32}


@dataclass(frozen=True)
class Size:
    """A run in some dimensions; 99 steps each, and a copy of the run in the middle of an epoch."""

    epochs: int
    saved_at: int
    patch: int
    strides: tuple[int, ...]
    depths: dict[str, int]
    """Decoder blocks of the methods that take them as a setting."""


SIZES = {
    2: Size(epochs=33, saved_at=80, patch=32, strides=(2, 2, 2, 2), depths={}),
    3: Size(epochs=33, saved_at=80, patch=16, strides=(2, 2), depths={"macl": 1, "gcl": 1}),
}
# Heads, queues and blocks in proportion to the toy's network and its 36 patches; every stage of a
# method falls within its run.
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
# Gentle views and three times the recipes' rate, so that a hundred steps of a narrow network show
# whether it learns.
VIEWS = {
    "rotation_degrees": 10,
    "scale": [0.9, 1.1],
    "elastic_alpha": [0, 0],
    "interpolation": "bilinear",
}
WHERE = {"macl": "views", "dira": "views"}
# With SGD: the release's, and the recipes' own. DESD needs a larger one, and GCL in volumes a
# smaller one, to fall by more than its noise after the first steps.
RATES = {"macl": 0.01, "simsiam": 0.05, "simtriplet": 0.05, "desd": 0.01}
RATES_IN_VOLUMES = RATES | {"gcl": 1e-3}


def write_store(folder: Path, dims: int) -> Path:
    """36 slices of six patients, or six volumes that hold six patches each along their height."""
    if dims == 2:
        write_toy_store(folder, patients=6, slices=6, side=40)
    else:
        write_toy_store(folder, patients=6, slices=90, side=28)
    return folder


def own_settings(method: str, dims: int) -> dict[str, Any]:
    depth = SIZES[dims].depths.get(method)
    return SMALL.get(method, {}) | ({} if depth is None else {"decoder_blocks": depth})


def overrides(method: str, dims: int) -> list[str]:
    """Over the method's own recipe: its optimiser, without warm-up."""
    size = SIZES[dims]
    training = {
        "epochs": size.epochs,
        "batch_size": 12,
        "size": size.patch,
        "warmup_share": 0,
        "learning_rate": {2: RATES, 3: RATES_IN_VOLUMES}[dims].get(method, 3e-3),
        "checkpoint_every_steps": size.saved_at,
    }
    views = {f"{WHERE.get(method, 'views.spatial')}.{name}": value for name, value in VIEWS.items()}
    own = {**own_settings(method, dims), **views}
    settings = [f"training.{key}={json.dumps(value)}" for key, value in training.items()]
    settings += [f"method_settings.{key}={json.dumps(value)}" for key, value in own.items()]
    network = [f"backbone_settings.width={WIDTH}", f"backbone_settings.strides={[*size.strides]}"]
    return [f"dims={dims}", *settings, *network]


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "patches_per_second"}
        for line in lines
    ]


@dataclass(frozen=True)
class Trained:
    """A finished run, and beside it a copy as a kill would leave it."""

    method: str
    dims: int
    seed: int
    store: Path
    folder: Path

    @property
    def log(self) -> list[dict[str, float]]:
        return read_log(self.folder / "whole")

    def pretrain(self, run: str, **options: Any) -> None:
        pretrain(
            self.store,
            self.folder / run,
            method=self.method,
            overrides=overrides(self.method, self.dims),
            device="cpu",
            seed=self.seed,
            **options,
        )

    def weights(self, run: str) -> Mapping[str, torch.Tensor]:
        return checkpoint.read(self.folder / run / "weights.safetensors").tensors


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("contract")
    return {dims: write_store(folder / f"toy{dims}.store", dims) for dims in SIZES}


@pytest.fixture(
    scope="module",
    params=itertools.product(names("methods"), SIZES, SEEDS),
    ids=lambda run: f"{run[0]}-{run[1]}d-{run[2]}",
)
def trained(request, stores, tmp_path_factory) -> Trained:
    method, dims, seed = request.param
    run = Trained(method, dims, seed, stores[dims], tmp_path_factory.mktemp(method))
    save = training._TrainingState.save

    def save_and_copy(state, path: Path) -> None:
        save(state, path)
        if state.step == SIZES[dims].saved_at:
            shutil.copytree(path.parent, run.folder / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._TrainingState, "save", save_and_copy)
        run.pretrain("whole")
    return run


def quarters(values: list[float]) -> tuple[list[float], list[float]]:
    """The first and the last."""
    return values[: len(values) // 4], values[-(len(values) // 4) :]


def test_the_names_are_those_of_the_comparison():
    expected = "byol dira desd gcl macl masked moco pcl simclr simsiam simtriplet swav wcl"
    assert {*expected.split()} <= {*names("methods")}


def test_its_main_loss_falls(trained: Trained):
    """The first loss that is logged falls by more than three standard errors while it counts, from
    its first eighth (some are down before a quarter is over) to its last quarter."""
    part = next(name for name in trained.log[0] if name.startswith("loss_"))
    counting = [line[part] for line in trained.log if line[part] != 0]
    early, late = counting[: len(counting) // 8], quarters(counting)[1]
    error = math.sqrt(variance(early) / len(early) + variance(late) / len(late))
    assert mean(early) - mean(late) > 3 * error


def test_its_features_do_not_collapse(trained: Trained):
    early, late = quarters([line["feature_spread"] for line in trained.log])
    assert mean(late) > 0.25 * mean(early)


def test_a_killed_run_ends_as_if_it_had_not_been(trained: Trained):
    trained.pretrain("killed", resume=True)
    assert read_log(trained.folder / "killed") == trained.log
    whole, resumed = trained.weights("whole"), trained.weights("killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def build(trained: Trained) -> Method:
    """The method as it started."""
    torch.manual_seed(trained.seed)
    own, size = own_settings(trained.method, trained.dims), SIZES[trained.dims]
    return method_on_unet(trained.method, own, WIDTH, dims=trained.dims, strides=size.strides)


def test_its_weights_go_where_they_belong_in_a_segmenter(trained: Trained):
    source, task = trained.weights("whole"), build(trained)
    strides = SIZES[trained.dims].strides
    segmenter = Segmenter(unet(WIDTH, dims=trained.dims, strides=strides), classes=3)
    transfer = transplant("run", source, segmenter.named_state())
    outcome = {row.name: row.outcome for row in transfer.tensors}
    transferable = ["encoder."]
    if "decoder." in task.transferable_prefixes:
        blocks = range(len(task.network.decoder.blocks))
        transferable += [f"decoder.blocks.{block}." for block in blocks]
    for name, what in outcome.items():
        assert what == ("loaded" if name.startswith(tuple(transferable)) else "fresh"), name
    assert transfer.unused == ()
    state = segmenter.named_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.items())


def test_all_that_it_transfers_was_trained(trained: Trained):
    fresh = build(trained).network.state_dict()
    weights = {n: t for n, t in trained.weights("whole").items() if t.ndim == trained.dims + 2}
    assert weights
    assert not [name for name, tensor in weights.items() if torch.equal(tensor, fresh[name])]
