"""The complete settings of a run: recipe and overrides, completed for a store and its network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from macl.config import FinetuneSettings, PretrainSettings, read_recipe, resolve_recipe
from macl.data.store import Store
from macl.models.network import total_stride
from macl.plugins import find
from macl.tasks.networks import median_spacing_mm, plugin_settings, resolve_patch
from macl.tasks.pretraining import Method, resolve_pretraining
from macl.tasks.segmentation import resolve_finetuning
from macl.utils.errors import MaclError
from macl.utils.progress import say

LARGEST_SHARE_OF_A_VOLUME = 0.6
"""Largest side that training.size = "auto" chooses for methods that contrast positions, as a share
of the median volume: patches as large as the volume would all lie at one position."""


NETWORK_SETTINGS = ("dims", "backbone", "backbone_settings")
"""Settings that fine-tuning takes over from the weights that it starts from."""


def pretrain_settings(
    recipe: str, overrides: Iterable[str], *, method: str | None, store: Store | None
) -> tuple[PretrainSettings, type[Method]]:
    """Complete settings of a pre-training run, and its method.

    Args:
        recipe: name or path.
        overrides: `key=value` settings over the recipe's.
        method: name of the method, over the recipe's; None: the recipe's.
        store: what to train on, for sizes and spacing; None: unknown.

    Raises:
        MaclError: a setting does not fit.
    """
    if method:
        find("methods", method)
    settings = resolve_recipe(PretrainSettings, recipe, overrides, method=method)
    plugin: type[Method] = find("methods", settings.method)
    network = find("models", settings.backbone)
    own = plugin_settings(plugin, settings.method_settings, "method_settings")
    share = LARGEST_SHARE_OF_A_VOLUME if plugin.contrasts_positions else 1.0
    multiple = partial(plugin.patch_multiple, own)
    settings = resolve_patch(settings, network, store, multiple, share)
    if not plugin.contrasts_positions:
        settings = settings.model_copy(update={"patients_per_position": 1})
    spacing_mm = median_spacing_mm(store, settings.dims) if store else None
    return resolve_pretraining(settings, plugin, network, spacing_mm), plugin


def finetune_settings(
    recipe: str,
    overrides: Iterable[str],
    *,
    store: Store,
    init: str,
    init_network: Mapping[str, Any],
) -> FinetuneSettings:
    """Complete settings of a fine-tuning run.

    Args:
        recipe: name or path.
        overrides: `key=value` settings over the recipe's.
        store: what to train on, for sizes and spacing.
        init: name of the weights to start from.
        init_network: their `NETWORK_SETTINGS`, which apply unless recipe or overrides name others;
            empty from scratch.

    Raises:
        MaclError: a setting does not fit, or the weights are of other dimensions.
    """
    overrides = tuple(overrides)
    inherited = _inherited(init_network, recipe, overrides)
    settings = resolve_recipe(FinetuneSettings, recipe, overrides, inherited=inherited)
    dims, own = settings.dims, init_network.get("dims", settings.dims)
    if dims != own:
        raise MaclError(
            f"{init} holds weights of a {own}D network, but dims is {dims}: start from a {dims}D "
            f"run or from scratch, or add --set dims={own}."
        )
    network = find("models", settings.backbone)
    settings = resolve_patch(settings, network, store, total_stride)
    settings = resolve_finetuning(settings, network, median_spacing_mm(store, dims))
    resolved = settings.model_dump(mode="json")
    if "backbone" in inherited and all(resolved[name] == inherited[name] for name in inherited):
        say(f"The network is that of {init}: {describe_network(inherited)}.")
    return settings


def describe_network(settings: Mapping[str, Any]) -> str:
    """`NETWORK_SETTINGS` in words: "2D unet, width 32, …"."""
    own = settings.get("backbone_settings", {})
    named = {**own, **(own.get("architecture") or {})}
    parts = (
        f"{name} {value}"
        for name, value in named.items()
        if value is not None and not isinstance(value, Mapping)
    )
    return ", ".join((f"{settings['dims']}D {settings['backbone']}", *parts))


def _inherited(
    network: Mapping[str, Any], recipe: str, overrides: Iterable[str]
) -> Mapping[str, Any]:
    """The settings of another network, or its dims alone if another backbone is named."""
    named = dict(text.split("=", 1) for text in overrides if text.startswith("backbone="))
    backbone = named.get("backbone", read_recipe("finetune", recipe).get("backbone"))
    if backbone is None or backbone.strip(" \"'") == network.get("backbone"):
        return network
    return {name: value for name, value in network.items() if name == "dims"}
