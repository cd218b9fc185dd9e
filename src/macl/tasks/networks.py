"""The network of a run: its settings filled in, and patches of a size that it can take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from macl.config import PluginSettings, validate
from macl.models.network import Network, Strides
from macl.utils.errors import MaclError
from macl.utils.progress import say


def resolve_network(
    network: type[Network],
    values: PluginSettings | Mapping[str, Any],
    patch: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
) -> tuple[PluginSettings, Strides]:
    """The network's settings as a typed object, complete for this patch, and the strides that they give.

    Args:
        network: the plug-in.
        values: what recipe and overrides say of it.
        patch: sides in voxels, two or three of them.
        spacing_mm: along the patch's axes; None: unknown, taken as equal.

    Raises:
        MaclError: a setting does not fit, or the network does not exist in as many dimensions.
    """
    dims = len(patch)
    if dims not in network.supported_dims:
        known = " and ".join(f"{count}D" for count in network.supported_dims)
        raise MaclError(
            f"The backbone {network.__name__} exists in {known} only: choose another, or another dims."
        )
    chosen = network.complete(
        plugin_settings(network, values, "backbone_settings"), patch, spacing_mm
    )
    with torch.device("meta"):
        strides = network(chosen, 1, dims=dims).strides
    return chosen, strides


def plugin_settings(plugin: Any, values: PluginSettings | Mapping[str, Any], where: str) -> Any:
    """The settings of a method or network as its typed object; MaclError names what does not fit."""
    if isinstance(values, PluginSettings):
        return values
    return validate(plugin.Settings, values, where=where)


def fitted_patch(patch: Sequence[int], multiple: Sequence[int], why: str) -> tuple[int, ...]:
    """The patch, with every side rounded up to its multiple; a change is said."""
    fitted = tuple(math.ceil(side / of) * of for side, of in zip(patch, multiple, strict=True))
    if fitted != tuple(patch):
        say(
            f"Patches of {by(patch)} are padded to {by(fitted)}: {why} takes multiples of {by(multiple)}."
        )
    return fitted


def by(sides: Sequence[int]) -> str:
    """Sides in words: "64 × 64"."""
    return " × ".join(map(str, sides))
