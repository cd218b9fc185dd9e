"""The complete settings of a run: recipe and overrides, completed for a store and its network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from macl.augmentation.geometry import LARGEST_ORIENTED_DEGREES, keep_orientation
from macl.config.recipes import read_recipe, resolve, resolve_recipe
from macl.config.settings import (
    AugmentationSettings,
    FinetuneSettings,
    NetworkRunSettings,
    PretrainSettings,
    SpatialSettings,
    Stage,
)
from macl.data.store import Store
from macl.models.network import total_stride
from macl.plugins import find
from macl.tasks.networks import median_spacing_mm, plugin_settings, resolve_patch
from macl.tasks.pretraining import Method, resolve_pretraining
from macl.tasks.segmentation import resolve_finetuning
from macl.utils.errors import MaclError
from macl.utils.progress import say

F = TypeVar("F", bound=FinetuneSettings)

LARGEST_SHARE_OF_A_VOLUME = 0.6
"""Largest side that training.size = "auto" chooses for methods that contrast positions, as a share
of the median volume: patches as large as the volume would all lie at one position."""


NETWORK_SETTINGS = ("dims", "backbone", "backbone_settings")
"""Settings that fine-tuning takes over from the weights that it starts from."""


def pretrain_settings(
    recipe: str,
    overrides: Iterable[str],
    *,
    method: str | None,
    store: Store | None,
    resumed: Mapping[str, Any] | None = None,
) -> tuple[PretrainSettings, type[Method]]:
    """Complete settings of a pre-training run, and its method.

    Args:
        recipe: name or path.
        overrides: `key=value` settings over the recipe's.
        method: name of the method, over the recipe's; None: the recipe's.
        store: what to train on, for sizes and spacing; None: unknown.
        resumed: settings of the run to resume, in place of the recipe's; None: a new run.

    Raises:
        MaclError: a setting does not fit.
    """
    if method:
        find("methods", method)
    if resumed is None:
        settings = resolve_recipe(PretrainSettings, recipe, overrides, method=method)
    else:
        chosen = {**resumed, "method": method} if method else resumed
        settings = resolve(PretrainSettings, chosen, overrides)
    settings = _resolve_anatomy(settings, store)
    plugin: type[Method] = find("methods", settings.method)
    network = find("models", settings.backbone)
    own = plugin_settings(plugin, settings.method_settings, "method_settings")
    if settings.anatomy == "oriented" and hasattr(own, "views"):
        own = own.model_copy(update={"views": _oriented(own.views)})
        settings = settings.model_copy(update={"method_settings": own})
    contrasts_places = plugin.contrasts_positions and settings.dims == 3
    share = LARGEST_SHARE_OF_A_VOLUME if contrasts_places else 1.0
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
    kind: type[F] = FinetuneSettings,
    resumed: Mapping[str, Any] | None = None,
) -> F:
    """Complete settings of a fine-tuning or self-training run.

    Args:
        recipe: name or path.
        overrides: `key=value` settings over the recipe's.
        store: what to train on, for sizes and spacing.
        init: name of the weights to start from.
        init_network: their `NETWORK_SETTINGS`, which apply unless recipe or overrides name others;
            empty from scratch.
        kind: FinetuneSettings or SelftrainSettings.
        resumed: settings of the run to resume, in place of the recipe's; None: a new run.

    Raises:
        MaclError: a setting does not fit, or the weights are of other dimensions.
    """
    overrides = tuple(overrides)
    inherited: Mapping[str, Any] = {}
    if resumed is None:
        inherited = _inherited(init_network, kind.stage, recipe, overrides)
        settings = resolve_recipe(kind, recipe, overrides, inherited=inherited)
    else:
        settings = resolve(kind, resumed, overrides)
    settings = _resolve_anatomy(settings, store)
    if settings.anatomy == "oriented":
        views = settings.augmentation
        views = _oriented(views, views.spatial.mirror)
        settings = settings.model_copy(update={"augmentation": views})
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


R = TypeVar("R", bound=NetworkRunSettings)
Views = TypeVar("Views", SpatialSettings, AugmentationSettings)


def _resolve_anatomy(settings: R, store: Store | None) -> R:
    """Settings with anatomy = "auto" decided by what is known of the store's scans, and said."""
    if settings.anatomy != "auto":
        return settings
    cases = store.index.cases if store else ()
    unknown = sum(not case.geometry.orientation_known for case in cases)
    if unknown:
        say(
            f"anatomy: free, since {unknown} of {len(cases)} scans do not say how they lie: views "
            "are mirrored along all axes and turned by any angle. If all lie alike, set "
            "anatomy=oriented."
        )
    else:
        say(
            "anatomy: oriented: views are not mirrored, and turned by "
            f"{LARGEST_ORIENTED_DEGREES:.0f}° at most. Where left and right look alike, "
            "fine-tuning may mirror them (mirror_axes)."
        )
    return settings.model_copy(update={"anatomy": "free" if unknown else "oriented"})


def _oriented(views: Views, mirror: float = 0.0) -> Views:
    if isinstance(views, SpatialSettings):
        return keep_orientation(views, mirror)
    return views.model_copy(update={"spatial": keep_orientation(views.spatial, mirror)})


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
    network: Mapping[str, Any], stage: Stage, recipe: str, overrides: Iterable[str]
) -> Mapping[str, Any]:
    """The settings of another network, or its dims alone if another backbone is named."""
    named = dict(text.split("=", 1) for text in overrides if text.startswith("backbone="))
    backbone = named.get("backbone", read_recipe(stage, recipe).get("backbone"))
    if backbone is None or backbone.strip(" \"'") == network.get("backbone"):
        return network
    return {name: value for name, value in network.items() if name == "dims"}
