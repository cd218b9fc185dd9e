"""The released program's own numbers, in float64: outputs, losses and gradients to 1e-9 relative.

Reads every `*.safetensors` in the folder `$MACL_PARITY_DIR`; sizes, threshold, temperature and λ's
come from each file's metadata.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fakes.networks import unet
from macl.losses import contrastive, pairs_of_both_branches, positives_by_position
from macl.methods.macl import Macl, Settings
from macl.models.conversion.macl_release import from_authors_names

FOLDER = os.environ.get("MACL_PARITY_DIR")
FILES = sorted(Path(FOLDER).glob("*.safetensors")) if FOLDER else []
HEADS = {
    "target_pixel_projector": "auxiliary_pixel_projector",
    "target_instance_projector": "auxiliary_global_projector",
    "online_instance_projector": "dominant_global_projector",
}
OUTPUTS = {
    "bottleneck": "bottlenecks",
    "dense": "dense",
    "global": "projections",
}

pytestmark = pytest.mark.skipif(
    not FILES, reason="set MACL_PARITY_DIR to the folder of reference files"
)


def assert_equal(ours: torch.Tensor, reference: torch.Tensor, what: str) -> None:
    scale = reference.abs().max()
    error = (ours - reference).abs().max() / scale
    assert error < 1e-9, f"{what}: relative error {error:.2e}"


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def reference(request):
    with safe_open(request.param, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, {name: ast.literal_eval(value) for name, value in file.metadata().items()}


def build(tensors, sizes) -> Macl:
    blocks = round(-torch.log2(torch.tensor(sizes["scale"])).item())
    weights = sizes["lambdas"]
    settings = Settings(
        decoder_blocks=blocks,
        threshold=sizes["threshold"],
        temperature=sizes["temperature"],
        weight_global=weights[0],
        weight_dense=weights[1],
        weight_regularisation=weights[2],
        projection=round(sizes["classes"] * sizes["scale"]),
    )
    network = unet(sizes["filters"], tensors["i1"].shape[1], blocks)
    method = Macl(settings, network).double()
    released = {
        k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")
    }
    state = {
        f"network.{name}": tensor for name, tensor in from_authors_names(released, blocks).items()
    }
    for name, tensor in released.items():
        head, _, rest = name.partition(".")
        if head in HEADS:
            state[f"{HEADS[head]}.{rest}"] = tensor
    method.load_state_dict(state)
    return method


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_losses_and_gradients(reference, mode):
    tensors, sizes = reference
    method = build(tensors, sizes).train(mode == "train")
    outputs = method(*(tensors[view] for view in ("i1", "i2", "v1", "v2")))
    step = method.losses(outputs, tensors["positions"][:, None])
    step.loss.backward()
    for key, level in OUTPUTS.items():
        pair = getattr(outputs, level)
        assert_equal(pair.auxiliary, tensors[f"{mode}.aux_{key}"], f"auxiliary {key}")
        assert_equal(pair.dominant, tensors[f"{mode}.dom_{key}"], f"dominant {key}")
    for key, part in {
        "loss_global": "loss_global",
        "loss_dense": "loss_dense",
        "loss_er": "loss_regularisation",
    }.items():
        assert_equal(step.logged[part], tensors[f"{mode}.{key}"], key)
    assert_equal(step.loss.detach(), tensors[f"{mode}.loss_total"], "loss_total")
    first = method.network.encoder.levels[0][0].weight.grad
    assert_equal(first, tensors[f"{mode}.grad_first_conv"], "gradient of the first convolution")
    up = method.network.decoder.blocks[1].up.weight.grad
    assert_equal(up, tensors[f"{mode}.grad_upscale4"], "gradient of the second upsampling")


def test_supervised_contrastive_forms(reference):
    tensors, sizes = reference
    half = len(tensors["z"]) // 2
    positives = {
        "simclr": torch.eye(half, dtype=torch.bool),
        "gcl": tensors["partition"][:, None] == tensors["partition"][None, :],
        "pcl": positives_by_position(tensors["positions"][:, None], sizes["threshold"]),
    }
    factor = sizes["temperature"] / 0.07
    for name, pairs in positives.items():
        ours = factor * contrastive(
            tensors["z"], pairs_of_both_branches(pairs), sizes["temperature"]
        )
        assert_equal(ours, tensors[f"supcon.{name}"], name)
