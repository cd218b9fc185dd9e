"""The paper's ablations of MACL, each a setting: what is computed, what learns, what shapes
meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes.batches import batch as noise
from fakes.networks import method
from fakes.toy_store import write_toy_store
from macl import cli
from macl.config.settings import IntensitySettings
from macl.data.batch import Batch
from macl.plugins import find
from macl.utils import checkpoint
from macl.workflows.benchmark.grid import Start, read_grid

ROOT = Path(__file__).parents[2]
GRID = read_grid(ROOT / "benchmarks" / "ablations.toml")


def batch(side: int = 64, count: int = 3) -> Batch:
    return noise(count, side=side)


def build(**settings):
    torch.manual_seed(0)
    return method("macl", settings, width=2)


def learning(task) -> set[str]:
    """Parts of the task that a step gives a gradient."""
    names = [name for name, parameter in task.named_parameters() if parameter.grad is not None]
    return {".".join(name.split(".")[: 2 if name.startswith("network") else 1]) for name in names}


def passes(task, given: Batch) -> int:
    """How often a step runs the shared encoder."""
    count = 0

    def hook(*_) -> None:
        nonlocal count
        count += 1

    handle = task.network.encoder.register_forward_hook(hook)
    task.step(given)
    handle.remove()
    return count


def test_what_weighs_nothing_is_not_computed():
    given = batch()
    assert passes(build(), given) == 4
    assert passes(build(weight_dense=0, weight_regularisation=0), given) == 2
    assert passes(build(weight_global=0), given) == 2
    without = build(weight_dense=0).step(given).logged
    whole = build().step(given).logged
    assert without["loss_dense"] == 0
    assert without["loss_regularisation"] == whole["loss_regularisation"]
    assert without["loss_global"] == whole["loss_global"]


def test_an_encoder_that_follows_learns_nothing_by_itself():
    task = build(encoders="ema", encoder_momentum=0.9)
    task.step(batch()).loss.backward()
    assert "auxiliary_encoder" not in learning(task)
    name, weight = next(iter(task.auxiliary_encoder.named_parameters()))
    before = weight.clone()
    source = dict(task.network.encoder.named_parameters())[name]
    with torch.no_grad():
        source.add_(1.0)
    task.step(batch())
    torch.testing.assert_close(weight, 0.9 * before + 0.1 * source)


def test_independent_encoders_both_learn():
    task = build(encoders="independent")
    task.step(batch()).loss.backward()
    assert {"auxiliary_encoder", "network.encoder"} <= learning(task)


def test_symmetric_branches_meet_at_the_same_size():
    task = build(symmetric=True)
    outputs = task(*(batch().images for _ in range(4)))
    assert outputs.bottlenecks.auxiliary.shape == outputs.bottlenecks.dominant.shape
    torch.testing.assert_close(outputs.dense.auxiliary, outputs.dense.dominant)
    assert torch.isfinite(task.step(batch()).loss)


def test_two_stages():
    task = build(encoder_share=0.5)
    first = task.step(batch())
    assert first.logged["loss_dense"] == 0
    assert first.logged["loss_global"] > 0
    first.loss.backward()
    assert "network.encoder" in learning(task)
    task.zero_grad(set_to_none=True)
    encoder = {name: tensor.clone() for name, tensor in task.network.encoder.state_dict().items()}
    second = task.step(replace(batch(), progress=0.5))
    assert second.logged["loss_global"] == 0
    assert second.logged["loss_dense"] > 0
    second.loss.backward()
    assert learning(task) == {"network.decoder", "auxiliary_pixel_projector"}
    assert all(
        torch.equal(encoder[name], tensor)
        for name, tensor in task.network.encoder.state_dict().items()
    )


def test_augmentation_in_the_invariance_group_changes_its_losses_alone():
    changed = IntensitySettings(brightness=1, contrast=1)
    plain, augmented = (
        build(invariance=own).step(batch()).logged for own in (IntensitySettings(), changed)
    )
    assert plain["loss_global"] == augmented["loss_global"]
    assert plain["loss_regularisation"] != augmented["loss_regularisation"]
    assert plain["loss_dense"] != augmented["loss_dense"]


# ---------------------------------------------------------------- the grid of all of them


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "toy.store"
    write_toy_store(folder, patients=2, slices=2, side=32)
    return folder


def given(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize("start", GRID.start, ids=lambda start: start.name)
def test_each_runs_from_the_command_line(start: Start, store, tmp_path, monkeypatch):
    tiny = (
        "training.epochs=2",
        "training.batch_size=2",
        "training.size=64",
        "backbone_settings.width=2",
    )
    words = [
        "pretrain",
        str(store),
        "--out",
        str(tmp_path / "run"),
        "--method",
        start.method,
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["macl", *words, *given((*start.set, *tiny))])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code in (0, None)
    weights = checkpoint.read(tmp_path / "run" / "weights.safetensors")
    default = find("methods", "macl").Settings().model_dump(mode="json")
    differing = {
        name for name, value in weights.about["method_settings"].items() if value != default[name]
    }
    assert differing == {setting.split("=")[0].split(".")[1] for setting in start.set}


def test_each_is_explained():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    blocks = {f"method_settings.decoder_blocks={number}" for number in (1, 3, 4)}  # "and so on"
    for start in GRID.start:
        assert {*start.set} <= blocks or " ".join(given(start.set)) in page, start.name
