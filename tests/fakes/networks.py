"""Small networks and methods for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fakes.nnunet import plans
from macl.config.mistakes import validate
from macl.models._nnunet_plans import architecture_of
from macl.models.network import Network, total_stride
from macl.models.unet import UNet
from macl.plugins import find
from macl.tasks.pretraining import Method


def planned(dims: int, residual: bool = False) -> dict[str, Any]:
    """The settings of a small architecture whose deepest stages are equally wide, from a plan."""
    configuration = {2: "2d", 3: "3d_fullres"}[dims]
    stated = plans([4, 6, 6], residual=residual)
    return architecture_of(stated, configuration, Path("plans.json")).model_dump(mode="json")


def unet(
    width: int, in_channels: int = 1, blocks: int | None = None, dims: int = 2, strides: Any = None
) -> Network:
    """A U-Net with fresh weights."""
    settings = UNet.Settings(width=width, strides=strides)
    return UNet(settings, in_channels, dims=dims, decoder_blocks=blocks)


def method(name: str, settings: dict[str, Any], width: int, **network: Any) -> Method:
    """A method on a U-Net with as many decoder blocks as it trains."""
    plugin = find("methods", name)
    own = validate(plugin.Settings, settings)
    return plugin(own, unet(width, blocks=plugin.trained_decoder_blocks(own), **network))


SMALL: dict[tuple[str, int], dict[str, Any]] = {
    ("unet", 2): {"width": 4, "strides": [2, 2, 2]},
    ("unet", 3): {"width": 4, "strides": [[1, 2, 2], [2, 2, 2]]},
    ("attention_unet", 2): {"width": 4, "strides": [2, 2, 2]},
    ("attention_unet", 3): {"width": 4, "strides": [[1, 2, 2], [2, 2, 2]]},
    ("uctransnet", 2): {"width": 2, "heads": 2, "layers": 2, "positions": 3},
    ("rolling_unet", 2): {"width": 4},
    ("ukan", 2): {"width": 2},
    ("nnunet", 2): {"architecture": planned(2)},
    ("nnunet", 3): {"architecture": planned(3)},
    ("nnunet-residual", 2): {"architecture": planned(2, residual=True)},
    ("nnunet-residual", 3): {"architecture": planned(3, residual=True)},
}
"""Name and dimensions → small settings; after a dash, a variant."""


def small_network(
    name: str, dims: int, in_channels: int = 1, blocks: int | None = None, seed: int = 0
) -> Network:
    """A small network with fresh weights, none of them zero."""
    plugin = find("models", name.partition("-")[0])
    settings = validate(plugin.Settings, SMALL[name, dims])
    torch.manual_seed(seed)
    network = plugin(settings, in_channels, dims=dims, decoder_blocks=blocks)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def odd_patch(network: Network, smallest: int = 1) -> tuple[int, ...]:
    """The total stride of a network times different odd numbers from `smallest` on."""
    odd = (smallest, smallest + 2, smallest + 4)
    return tuple(of * by for of, by in zip(total_stride(network.strides), odd, strict=False))
