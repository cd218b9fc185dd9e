"""Small networks and methods for tests."""

from __future__ import annotations

from typing import Any

from macl.config import validate
from macl.models.network import Network
from macl.models.unet import UNet
from macl.plugins import find
from macl.tasks.pretraining import Method


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
