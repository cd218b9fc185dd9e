"""What every method found in the folder promises: it trains, resumes exactly, does not collapse, and hands on its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fakes.toy_store import write_toy_store
from macl import checkpoint, training
from macl.config import validate
from macl.plugins import find, names
from macl.segmentation import Segmenter
from macl.stages.pretrain import pretrain
from macl.transfer import transplant

STEPS, SAVED_AT, WIDTH = 40, 32, 4
HEADS = {"hidden": 64, "projection": 32}
MOMENTUM = {"queue": 32, "momentum": 0.9}
# Heads and queues in proportion to the toy's network and its 36 slices, and every stage of a run within 40 steps.
SMALL = {
    "byol": HEADS,
    "desd": {**HEADS, "prototypes": 64},
    "dira": {**MOMENTUM, "discriminator_width": 4, "restoration_from": 0.1, "adversary_from": 0.3},
    "gcl": {"encoder_share": 0.7},
    "masked": {"block": 8},
    "moco": MOMENTUM,
    "simsiam": HEADS,
    "simtriplet": HEADS,
    "swav": {**HEADS, "prototypes": 32, "queue": 16, "small_crops": 1},
    "wcl": HEADS,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "toy.store"
    write_toy_store(folder, patients=6, slices=6, side=64)
    return folder


def overrides(method: str) -> list[str]:
    """Over the method's own recipe: its optimiser and rates, without warm-up."""
    training = {"epochs": 10, "batch_size": 8, "size": 64, "warmup_epochs": 0, "checkpoint_every_steps": SAVED_AT}
    if method == "macl":
        training["learning_rate"] = 0.01  # the release's; 0.1 is for larger batches
    settings = [f"training.{key}={json.dumps(value)}" for key, value in training.items()]
    own = [f"method_settings.{key}={json.dumps(value)}" for key, value in SMALL.get(method, {}).items()]
    return [*settings, *own, f"backbone_settings.width={WIDTH}"]


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "slices_per_second"} for line in lines]


@pytest.fixture(scope="module", params=names("methods"))
def trained(request, store, tmp_path_factory):
    """A method, its run, and a copy of the run as a kill would leave it after step 32."""
    folder = tmp_path_factory.mktemp(request.param)
    save = training._State.save

    def save_and_copy(state, path: Path) -> None:
        save(state, path)
        if state.step == SAVED_AT:
            shutil.copytree(path.parent, folder / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._State, "save", save_and_copy)
        pretrain(store, folder / "whole", method=request.param, overrides=overrides(request.param), device="cpu")
    return request.param, folder


def main_loss(run: Path) -> list[float]:
    """The values of the first part that a method names, in the steps in which it took part."""
    parts = [name for name in read_log(run)[0] if name.startswith("loss_")]
    return [line[parts[0]] for line in read_log(run) if line[parts[0]] != 0]


def test_the_names_are_those_of_the_comparison():
    expected = "byol dira desd gcl macl masked moco pcl simclr simsiam simtriplet swav wcl"
    assert {*expected.split()} <= {*names("methods")}


def test_its_main_loss_falls(trained):
    values = main_loss(trained[1] / "whole")
    quarter = len(values) // 4
    early, late = values[quarter : 2 * quarter], values[-quarter:]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_its_features_do_not_collapse(trained):
    spreads = [line["feature_spread"] for line in read_log(trained[1] / "whole")]
    assert sum(spreads[-8:]) / 8 > 0.07


def test_a_killed_run_ends_as_if_it_had_not_been(trained, store):
    method, folder = trained
    pretrain(store, folder / "killed", method=method, overrides=overrides(method), device="cpu", resume=True)
    assert read_log(folder / "killed") == read_log(folder / "whole")
    whole, resumed = (checkpoint.read(folder / run / "weights.safetensors").tensors for run in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def build(method: str):
    plugin = find("methods", method)
    settings = validate(plugin.Settings, SMALL.get(method, {}))
    unet = find("backbones", "unet")
    blocks = plugin.decoder_blocks(settings)
    torch.manual_seed(0)
    return plugin.build(settings, unet.build(unet.Settings(width=WIDTH), 1, blocks)), blocks


def test_its_weights_go_where_they_belong_in_a_segmenter(trained):
    method, folder = trained
    source = checkpoint.read(folder / "whole" / "weights.safetensors").tensors
    task, blocks = build(method)
    unet = find("backbones", "unet")
    segmenter = Segmenter(unet.build(unet.Settings(width=WIDTH), 1), classes=3)
    transfer = transplant("run", source, segmenter.named_state())
    outcome = {row.name: row.outcome for row in transfer.tensors}
    handed_on = ["encoder."]
    if "decoder." in task.handed_on():
        handed_on += [f"decoder.blocks.{block}." for block in range(blocks)]
    for name, what in outcome.items():
        assert what == ("loaded" if name.startswith(tuple(handed_on)) else "fresh"), name
    assert transfer.unused == ()
    state = segmenter.named_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.items())


def test_all_that_it_hands_on_was_trained(trained):
    method, folder = trained
    source = checkpoint.read(folder / "whole" / "weights.safetensors").tensors
    fresh = build(method)[0].backbone.state_dict()
    weights = {name: tensor for name, tensor in source.items() if tensor.ndim == 4}
    assert weights
    assert not [name for name, tensor in weights.items() if torch.equal(tensor, fresh[name])]
