"""Known limits: methods that become one another, on real networks with the same weights and the
same views."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fakes.batches import batch, centres
from fakes.networks import method
from macl.config.settings import AugmentationSettings
from macl.data.batch import Batch

TIGHT = {"rtol": 1e-9, "atol": 0}
FOLDER = os.environ.get("MACL_PARITY_DIR")
FILES = sorted(Path(FOLDER).glob("*.safetensors")) if FOLDER else []


def noise(heights: list[float]) -> Batch:
    return batch(heights, dtype=torch.float64)


def build(name: str, **settings):
    torch.manual_seed(0)
    return method(name, settings, width=4).double()


def test_pcl_with_a_vanishing_threshold_is_simclr():
    pcl = build("pcl", threshold=1e-6, released_factor=True)
    simclr = build("simclr", released_factor=True, views=AugmentationSettings())
    simclr.load_state_dict(pcl.state_dict())
    given = noise([0.1, 0.2, 0.35, 0.5, 0.7, 1.0])
    torch.testing.assert_close(pcl.step(given).loss, simclr.step(given).loss, **TIGHT)
    assert not torch.equal(build("pcl", threshold=0.2).step(given).loss, simclr.step(given).loss)


def test_gcl_is_pcl_with_partitions_as_positions():
    positions = [0.1, 0.25, 0.3, 0.5, 0.55, 0.9, 1.0]
    gcl, pcl = build("gcl"), build("pcl", threshold=0.01)
    pcl.network.encoder.load_state_dict(gcl.network.encoder.state_dict())
    pcl.projector.load_state_dict(gcl.global_projector.state_dict())
    given, parts = noise(positions), centres([0.0, 0.0, 0.25, 0.25, 0.5, 0.75, 0.75])
    torch.testing.assert_close(
        gcl.step(given).loss, pcl.step(replace(given, centres=parts)).loss, **TIGHT
    )


def test_macl_without_decoder_dense_and_regularisation_is_pcl():
    macl = build("macl", weight_dense=0, weight_regularisation=0, decoder_blocks=0)
    pcl = build("pcl", released_factor=True)
    pcl.network.load_state_dict(macl.network.state_dict())
    for projector in (macl.auxiliary_global_projector, macl.dominant_global_projector):
        projector.load_state_dict(pcl.projector.state_dict())
    given = noise([0.1, 0.15, 0.35, 0.4, 0.7, 1.0])
    torch.testing.assert_close(macl.step(given).loss, pcl.step(given).loss, **TIGHT)


@pytest.mark.skipif(not FILES, reason="set MACL_PARITY_DIR to the folder of reference files")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_released_values_of_three_methods(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sizes = {name: ast.literal_eval(value) for name, value in file.metadata().items()}
    positions, own = (
        tensors["positions"][:, None],
        {"temperature": sizes["temperature"], "released_factor": True},
    )
    z1, z2 = tensors["z"].chunk(2)
    in_parts = (tensors["partition"] / tensors["partition"].max())[:, None]
    ours = {
        "simclr": build("simclr", **own).losses(z1, z2, positions).loss,
        "pcl": build("pcl", threshold=sizes["threshold"], **own).losses(z1, z2, positions).loss,
        "gcl": build("gcl", **own).global_loss(z1, z2, in_parts),
    }
    for name, loss in ours.items():
        torch.testing.assert_close(loss, tensors[f"supcon.{name}"].squeeze(), **TIGHT)
