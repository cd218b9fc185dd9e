"""The network of a run: its settings completed, and a patch size that it can take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from macl.config.mistakes import validate
from macl.config.settings import NetworkRunSettings, PluginSettings, Stage
from macl.data.store import Store
from macl.models.network import Network, Strides, total_stride
from macl.utils.errors import MaclError
from macl.utils.progress import say, warn
from macl.utils.text import format_size

R = TypeVar("R", bound=NetworkRunSettings)

PATCH_VOXELS: dict[Stage, dict[int, int]] = {
    "pretrain": {2: 256 * 256, 3: 64 * 64 * 64},
    "finetune": {2: 512 * 512, 3: 64 * 128 * 128},
    "selftrain": {2: 512 * 512, 3: 64 * 128 * 128},
}
"""Largest patch that training.size = "auto" chooses, by stage and dimensions. Batches for
pre-training hold more patches, and every patch is seen more than once."""


def resolve_network(
    network: type[Network],
    values: PluginSettings | Mapping[str, Any],
    patch: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
) -> tuple[PluginSettings, Strides]:
    """The network's settings as a typed object, completed for a patch, and the resulting strides.

    Args:
        network: the plug-in.
        values: its settings in recipe and overrides.
        patch: sides in voxels, two or three of them.
        spacing_mm: along the axes of the patch; None: unknown, taken as equal.

    Raises:
        MaclError: a setting does not fit, or the network does not exist in as many dimensions.
    """
    dims = len(patch)
    if dims not in network.supported_dims:
        known = " and ".join(f"{count}D" for count in network.supported_dims)
        raise MaclError(
            f"The backbone {network.__name__} exists in {known} only: choose another backbone, or "
            "other dims."
        )
    chosen = network.complete(
        plugin_settings(network, values, "backbone_settings"), patch, spacing_mm
    )
    with torch.device("meta"):
        strides = network(chosen, 1, dims=dims).strides
    return chosen, strides


def plugin_settings(plugin: Any, values: PluginSettings | Mapping[str, Any], where: str) -> Any:
    """The settings of a method or network as its typed object.

    Raises:
        MaclError: names what does not fit, under the prefix `where`.
    """
    if isinstance(values, PluginSettings):
        return values
    return validate(plugin.Settings, values, where=where)


def fitted_patch(patch: Sequence[int], multiple: Sequence[int], why: str) -> tuple[int, ...]:
    """The patch with every side rounded up to its multiple; a change is printed."""
    fitted = tuple(math.ceil(side / of) * of for side, of in zip(patch, multiple, strict=True))
    if fitted != tuple(patch):
        say(
            f"Patches of {format_size(patch)} are padded to {format_size(fitted)}: {why} takes "
            f"multiples of {format_size(multiple)}."
        )
    return fitted


def require_bottleneck(network: type[Network], images: Sequence[int], strides: Strides) -> None:
    """Check that the bottleneck of the smallest images is as large as the network needs.

    Args:
        network: the plug-in.
        images: sides of the smallest images that it is shown, in voxels.
        strides: the network's.

    Raises:
        MaclError: it is smaller.
    """
    span = total_stride(strides)
    sides = [side // of for side, of in zip(images, span, strict=True)]
    if math.prod(sides) < network.smallest_bottleneck:
        raise MaclError(
            f"{network.__name__} would see images of {format_size(images)} voxels, of which its "
            f"bottleneck keeps {format_size(sides)}, but it needs {network.smallest_bottleneck} "
            "voxels to normalise: double training.size, or, for macl, lower "
            "method_settings.decoder_blocks."
        )


# ---------------------------------------------------------------- from the store


def median_spacing_mm(store: Store, dims: int) -> tuple[float, ...] | None:
    """Median spacing of the cases along the axes of a patch; None if any spacing is unknown.

    None for slices too: their networks pool every axis alike.
    """
    spacings = [case.spacing_mm for case in store.index.cases]
    if dims == 2 or None in spacings:
        return None
    return tuple(np.median(np.array(spacings), axis=0).tolist())


def resolve_patch(
    settings: R,
    network: type[Network],
    store: Store | None,
    multiple: Callable[[Strides], tuple[int, ...]],
    largest_share: float = 1.0,
) -> R:
    """Settings with training.size = "auto" replaced by a patch for the cases of a store.

    The patch is a cube in millimetres, as large as `PATCH_VOXELS` allows, cut to the median size of
    the cases. Sides that span a whole case are rounded up to what the network takes, others to the
    nearest.

    Args:
        settings: of the run; returned as they are if they give a size.
        network: the plug-in that the settings name.
        store: the cases; None: there are none.
        multiple: what the sides must be multiples of, given the network's strides.
        largest_share: of the median size that a side may span.

    Raises:
        MaclError: the size is "auto" but there is no store.
    """
    if settings.training.size != "auto":
        if store is not None:
            _warn_of_padding(settings, network, store, multiple)
        return settings
    if store is None:
        raise MaclError("training.size is auto, but no store is named: add --set training.size=….")
    patch = _patch_for(settings, network, store, multiple, largest_share)
    say(f"training.size: {format_size(patch)} voxels, chosen from the sizes of the cases.")
    return settings.with_patch(patch)


def _patch_for(
    settings: NetworkRunSettings,
    network: type[Network],
    store: Store,
    multiple: Callable[[Strides], tuple[int, ...]],
    largest_share: float,
) -> tuple[int, ...]:
    dims = settings.dims
    sizes = np.median([case.size for case in store.index.cases], axis=0)[-dims:]
    spacing_mm = median_spacing_mm(store, dims)
    limits = np.maximum(1.0, largest_share * sizes)
    edges = _largest_cube(limits, spacing_mm, PATCH_VOXELS[settings.stage][dims])
    patch = tuple(max(1, round(edge)) for edge in edges)
    _, strides = resolve_network(network, settings.backbone_settings, patch, spacing_mm)
    sides = []
    for side, size, of in zip(patch, sizes, multiple(strides), strict=True):
        count = math.ceil(side / of) if side >= size else max(1, round(side / of))
        sides.append(count * of)
    return tuple(sides)


def _warn_of_padding(
    settings: NetworkRunSettings,
    network: type[Network],
    store: Store,
    multiple: Callable[[Strides], tuple[int, ...]],
) -> None:
    """Warn where every patch is mostly padding, although the network takes smaller ones."""
    patch = settings.patch
    sizes = np.array([case.size[-len(patch) :] for case in store.index.cases])
    if (np.minimum(sizes, patch) / patch).prod(axis=1).max() > 0.5:
        return
    smaller = _patch_for(settings, network, store, multiple, 1.0)
    if math.prod(smaller) < math.prod(patch):
        warn(
            f"Patches of {format_size(patch)} voxels are mostly padding here: "
            f"--set training.size=auto would take {format_size(smaller)}."
        )


def _largest_cube(
    limits: np.ndarray, spacing_mm: Sequence[float] | None, voxels: int
) -> Sequence[float]:
    """Sides in voxels of the largest cube in millimetres, cut to limits, of at most `voxels`."""
    spacing = np.array(spacing_mm or (1.0,) * len(limits))
    low, high = 0.0, float((limits * spacing).max())
    for _ in range(50):
        edge = (low + high) / 2
        fits = np.minimum(limits, edge / spacing).prod() <= voxels
        low, high = (edge, high) if fits else (low, edge)
    return np.minimum(limits, high / spacing).tolist()


def require_values_to_normalise(batch_size: int, patch: tuple[int, ...], strides: Strides) -> None:
    """Check before the first step that the deepest normalisation sees more than one value.

    Raises:
        MaclError: the batch is a single patch, which the network pools to a single place.
    """
    places = math.prod(
        side // stride for side, stride in zip(patch, total_stride(strides), strict=True)
    )
    if batch_size * places < 2:
        raise MaclError(
            f"A batch of one patch of {format_size(patch)} leaves the network's deepest level a "
            "single value to normalise: raise training.batch_size or training.size with --set, or "
            "add scans."
        )
