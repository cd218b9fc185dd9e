"""Methods on every network: gradients reach all that fine-tuning takes over, a killed run ends as
if it had not been, and fine-tuning says what became of every tensor."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.batches import batch
from fakes.networks import SMALL, small_network
from fakes.toy_store import write_toy_store
from macl.config.mistakes import validate
from macl.engine import trainer as training
from macl.plugins import find
from macl.stages.finetune import finetune
from macl.stages.pretrain import pretrain
from macl.stages.split import split
from macl.tasks.pretraining import Method, transferable_tensors
from macl.utils import checkpoint
from macl.utils.errors import MaclError

METHODS: dict[str, dict[str, Any]] = {
    "macl": {"decoder_blocks": 1},
    "simclr": {},
    "masked": {"covered": 0.5, "block": 4},
}
"""One that trains a part of the decoder, one the encoder alone, one everything."""
SAVED_AT = 2
RUNS = list(itertools.product(METHODS, SMALL))


def name_of(run: tuple[str, tuple[str, int]]) -> str:
    method, (network, dims) = run
    return f"{method}-{network}-{dims}d"


def method_on(name: str, dims: int, method: str, channels: int = 1, **settings: Any) -> Method:
    plugin = find("methods", method)
    own = validate(plugin.Settings, METHODS[method] | settings)
    blocks = plugin.trained_decoder_blocks(own)
    # With some seeds, every unit of a projector of six channels is silent.
    return plugin(own, small_network(name, dims, channels, blocks, seed=1))


def patch_of(task: Method) -> tuple[int, ...]:
    """Sides that the method can take: its smallest ones, two of them twice as long."""
    first, second, *others = task.patch_multiple(task.settings, task.network.strides)
    return (2 * first, 2 * second, *others)


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_gradients_reach_all_that_fine_tuning_takes_over(run: tuple[str, tuple[str, int]]) -> None:
    method, (name, dims) = run
    channels = {2: 3, 3: 4}[dims]
    task = method_on(name, dims, method, channels)
    task.step(batch(4, side=patch_of(task), dims=dims, channels=channels)).loss.backward()
    reached = transferable_tensors(task, dict(task.named_parameters()))
    halves = {"encoder"} if method == "simclr" else {"encoder", "decoder"}
    assert {each.split(".")[0] for each in reached} == halves
    for each, parameter in reached.items():
        assert parameter.grad is not None, each
        assert parameter.grad.isfinite().all(), each
        assert parameter.grad.any() or parameter.ndim == 1, each


@pytest.mark.parametrize(("name", "dims"), SMALL, ids=lambda value: f"{value}")
def test_macl_trains_a_decoder_of_any_depth(name: str, dims: int) -> None:
    depth = len(small_network(name, dims).strides) - 1
    for blocks in range(depth):
        task = method_on(name, dims, "macl", decoder_blocks=blocks)
        output = task.step(batch(2, side=patch_of(task), dims=dims))
        assert output.loss.isfinite(), blocks
        assert output.logged["loss_dense"] > 0, blocks


# ---------------------------------------------------------------- whole runs


@dataclass(frozen=True)
class Trained:
    """A finished run, and beside it a copy as a kill would leave it."""

    method: str
    network: str
    dims: int
    store: Path
    folder: Path

    @property
    def overrides(self) -> list[str]:
        task = method_on(self.network, self.dims, self.method)
        sides = patch_of(task)
        own, chosen = METHODS[self.method], SMALL[self.network, self.dims]
        settings = {
            "dims": self.dims,
            "backbone": self.network.partition("-")[0],
            **{f"backbone_settings.{key}": value for key, value in chosen.items()},
            **{f"method_settings.{key}": value for key, value in own.items()},
            "training.size": list(sides),
            "training.epochs": 2,
            "training.batch_size": 6,
            "training.warmup_share": 0,
            "training.checkpoint_every_steps": SAVED_AT,
            "patients_per_position": 1,
        }
        return [f"{key}={as_toml(value)}" for key, value in settings.items()]

    def pretrain(self, run: str, **options: Any) -> None:
        pretrain(
            self.store,
            self.folder / run,
            method=self.method,
            overrides=self.overrides,
            device="cpu",
            **options,
        )


def as_toml(value: Any) -> str:
    """As a value of TOML; groups as inline tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("networks")
    for dims, slices in ((2, 2), (3, 12)):
        write_toy_store(folder / f"{dims}d.store", patients=6, slices=slices, side=32)
        split(folder / f"{dims}d.store", folder / f"{dims}d.json", test="1", budgets="2")
    return {dims: folder / f"{dims}d.store" for dims in (2, 3)}


@pytest.fixture(scope="module", params=RUNS, ids=name_of)
def trained(request, stores, tmp_path_factory) -> Trained:
    method, (network, dims) = request.param
    run = Trained(method, network, dims, stores[dims], tmp_path_factory.mktemp("run"))
    save = training._TrainingState.save

    def save_and_copy(state, path: Path) -> None:
        save(state, path)
        if state.step == SAVED_AT:
            shutil.copytree(path.parent, run.folder / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._TrainingState, "save", save_and_copy)
        run.pretrain("whole")
    return run


def test_a_killed_run_ends_as_if_it_had_not_been(trained: Trained) -> None:
    trained.pretrain("killed", resume=True)
    whole, resumed = (
        checkpoint.read(trained.folder / run / "weights.safetensors").tensors
        for run in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_fine_tuning_loads_what_was_trained_and_says_so(trained: Trained) -> None:
    """The network comes from the weights; only the trained part of the decoder is loaded."""
    run = trained.folder / "finetuned"
    record = finetune(
        trained.store,
        run,
        init=str(trained.folder / "whole"),
        split=str(trained.store.with_suffix(".json")),
        labels="2",
        encoder_only=trained.method == "simclr",
        allow_overlap=True,
        overrides=[
            f"training.size={list(patch_of(method_on(trained.network, trained.dims, 'simclr')))}",
            "training.epochs=1",
            "training.batch_size=2",
            "mirror_averaging=false",
        ],
        device="cpu",
    )
    assert record.finished
    source = checkpoint.read(trained.folder / "whole" / "weights.safetensors").tensors
    about = json.loads((run / "transfer.json").read_text())
    outcome = {row["name"]: row["outcome"] for row in about["tensors"]}
    assert {name for name, what in outcome.items() if what == "loaded"} == set(source)
    assert {what for name, what in outcome.items() if name not in source} == {"fresh"}
    assert about["unused"] == []
    finetuned = checkpoint.read(run / "weights.safetensors").tensors
    assert finetuned.keys() == outcome.keys()
    assert ("deep_heads.0.weight" in finetuned) == trained.network.startswith("nnunet")


def test_a_bottleneck_too_small_to_normalise_is_an_error(stores, tmp_path: Path) -> None:
    run = Trained("macl", "nnunet", 2, stores[2], tmp_path)
    with pytest.raises(MaclError, match=r"4 × 4 voxels.*keeps 1 × 1.*double training\.size"):
        pretrain(
            run.store,
            tmp_path / "run",
            overrides=[*run.overrides, "training.size=8"],
            device="cpu",
        )
    assert not (tmp_path / "run").exists()
