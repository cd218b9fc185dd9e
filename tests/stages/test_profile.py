"""What a run would cost, as a user asks for it."""

from __future__ import annotations

import json

import pytest
import torch

from fakes.toy_store import write_toy_store
from macl.cli import app
from macl.stages.profile import profile, render
from macl.utils.errors import MaclError

SMALL = ["training.size=64", "training.batch_size=2", "backbone_settings.width=4"]


def test_json_through_the_command_line(capsys):
    options = [word for setting in SMALL for word in ("--set", setting)]
    app(
        ["profile", *options, "--device", "cpu", "--steps", "1", "--patches", "20", "--json"],
        standalone_mode=False,
    )
    found = json.loads(capsys.readouterr().out)
    assert found["ms_per_patch"] == pytest.approx(found["ms_per_step"] / 2)
    assert found["patches_per_second"] == pytest.approx(2000 / found["ms_per_step"])
    assert found["epoch_seconds"] == pytest.approx(10 * found["ms_per_step"] / 1000)
    assert found["run_hours"] == pytest.approx(100 * found["epoch_seconds"] / 3600)
    assert found["peak_memory_mib"] > 0


def test_parts_add_up_and_networks_count(capsys):
    found = profile(method="macl", overrides=SMALL, device="cpu", steps=1)
    parts = {"views", "encoder", "decoder", "heads and losses", "backward", "optimiser"}
    assert set(found["share"]) == parts
    assert sum(found["share"].values()) == pytest.approx(1)
    assert all(share > 0 for share in found["share"].values())
    wider = profile(
        method="macl", overrides=[*SMALL[:-1], "backbone_settings.width=8"], device="cpu", steps=1
    )
    assert wider["parameters"] > 3 * found["parameters"]


def test_published_parameter_count():
    found = profile(
        method="macl",
        overrides=["training.size=64", "training.batch_size=2", "backbone_settings.width=32"],
        device="cpu",
        steps=1,
    )
    assert found["parameters"] == pytest.approx(8.437e6, abs=500)


def test_a_store_gives_channels_and_slices(tmp_path, capsys):
    write_toy_store(tmp_path / "toy.store", patients=3, slices=5, side=64)
    options = [word for setting in SMALL for word in ("--set", setting)]
    app(
        [
            "profile",
            *options,
            "--device",
            "cpu",
            "--steps",
            "1",
            "--store",
            str(tmp_path / "toy.store"),
            "--json",
        ],
        standalone_mode=False,
    )
    found = json.loads(capsys.readouterr().out)
    assert found["epoch_seconds"] == pytest.approx(7 * found["ms_per_step"] / 1000)


def test_volumes(tmp_path, capsys):
    """Three patches cover the height of a volume of 20 slices."""
    write_toy_store(tmp_path / "toy.store", patients=4, slices=20, side=40)
    settings = [
        "dims=3", "training.size=[8,16,16]", "training.batch_size=4", "backbone_settings.width=2",
        "method_settings.decoder_blocks=1",
    ]  # fmt: skip
    figures = profile(overrides=settings, store=tmp_path / "toy.store", device="cpu", steps=1)
    assert figures["size"] == [8, 16, 16]
    assert figures["epoch_seconds"] == pytest.approx(3 * figures["ms_per_step"] / 1000)
    assert "4 patches of 8 × 16 × 16" in render(figures)


def test_a_size_that_depends_on_the_store_wants_one():
    with pytest.raises(MaclError, match=r"training\.size is auto, but no store is named"):
        profile(overrides=["dims=3"], device="cpu", steps=1)


def test_a_compiled_step_can_be_profiled(monkeypatch, capsys):
    modes, compile_with = [], torch.compile

    def eagerly(step, mode):
        modes.append(mode)
        return compile_with(step, backend="eager")

    monkeypatch.setattr("macl.engine.compiling.torch.compile", eagerly)
    found = profile(
        method="macl", overrides=[*SMALL, "training.compile=default"], device="cpu", steps=1
    )
    assert modes == ["default"]
    assert all(share > 0 for share in found["share"].values())
