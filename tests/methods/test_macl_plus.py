"""MACL's recipe against collapse: L_g, L_d and L_ER all learn, and the bottleneck lives."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

from fakes.toy_store import write_toy_store
from macl.losses import standardise
from macl.records.runs import read_record
from macl.stages.pretrain import pretrain

STEPS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plus") / "toy.store"
    write_toy_store(folder, patients=6, slices=6, side=40)
    return folder


def run(store: Path, out: Path, *changes: str) -> dict[str, tuple[float, float]]:
    """Every logged value's mean over the first and the last ten steps."""
    size = (
        f"training.steps={STEPS}", "training.batch_size=12", "training.size=32",
        "training.learning_rate=3e-3", "backbone_settings.width=4",
    )  # fmt: skip
    pretrain(store, out, recipe="macl-plus", overrides=(*size, *changes), device="cpu")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    names = [name for name in log[0] if name not in ("step", "epoch")]
    return {
        name: (fmean(line[name] for line in log[:10]), fmean(line[name] for line in log[-10:]))
        for name in names
        if name in log[-1]
    }


def test_all_three_losses_learn(store: Path, tmp_path: Path) -> None:
    values, record = run(store, tmp_path / "run"), read_record(tmp_path / "run")
    for name in ("loss_global", "loss_dense"):
        assert values[name][1] < 0.9 * record.uniform_losses[name]
    assert record.at_uniform == ()
    before, after = values["loss_regularisation"]
    assert after < 0.7 * before
    before, after = values["bottleneck_size"]
    assert after > 0.5 * before, "L_ER does not fall by silencing the bottleneck"


def test_without_standardising_the_bottleneck_dies(store: Path, tmp_path: Path) -> None:
    values = run(
        store, tmp_path / "run", "method_settings.standardised_regularisation=false"
    )  # fmt: skip
    before, after = values["bottleneck_size"]
    assert after < 0.35 * before


def test_projectors_drawn_apart_start_far_above_uniform(store: Path, tmp_path: Path) -> None:
    """A shared last layer starts the two branches where they can be compared."""
    together = run(store, tmp_path / "together", "training.steps=10")
    apart = run(
        store, tmp_path / "apart", "training.steps=10", "method_settings.shared_projection=false"
    )
    uniform = read_record(tmp_path / "apart").uniform_losses["loss_global"]
    assert together["loss_global"][0] < 1.3 * uniform < 2 * uniform < apart["loss_global"][0]


def test_standardised_maps_do_not_depend_on_scale_or_offset() -> None:
    maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    standard = standardise(maps)
    assert standard.mean((0, 2, 3)).abs().max() < 1e-9
    assert standard.var((0, 2, 3), correction=0) == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(standardise(100 * maps + 7), standard, atol=1e-4)
    dead = torch.zeros(2, 1, 3, 3, requires_grad=True)
    standardise(dead).square().sum().backward()
    assert dead.grad is not None
    assert torch.isfinite(dead.grad).all()
