"""Patches of a run's training cases, before and after the run's augmentation."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from macl.augmentation.views import view
from macl.config.mistakes import validate
from macl.config.settings import AugmentationSettings, PretrainSettings, SpatialSettings
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import EpochSampler, find_class_voxels
from macl.data.store import Store
from macl.pages.overlays import FILL_OPACITY, colour_of, grey
from macl.records.runs import RunRecord
from macl.tasks.segmentation import augment, segmenter_settings
from macl.utils.progress import quietly

PATCHES = 4


@dataclass(frozen=True)
class AugmentedPatch:
    """The middle slice of a patch as JPEG files, its true structures filled."""

    before: bytes
    after: bytes


def augmented_patches(store: Store, record: RunRecord) -> tuple[AugmentedPatch, ...]:
    """Some patches of the first training cases, under views such as the run draws.

    None for methods of pre-training without a setting `views`.

    Raises:
        MaclError: the store cannot be read, or the settings are of another version.
    """
    if record.is_segmenter:
        settings = segmenter_settings(record)
        batch = _batch(store, record, settings.patch, labelled=True)
        images, labels = augment(batch, settings.augmentation, record.mirror_axes)
        assert batch.labels is not None
        return _drawn(batch.images, batch.labels, images, labels)
    views = record.settings.get("method_settings", {}).get("views")
    if views is None:
        return ()
    kind = AugmentationSettings if "spatial" in views else SpatialSettings
    chosen = validate(kind, views)
    if isinstance(chosen, SpatialSettings):
        chosen = AugmentationSettings(spatial=chosen)
    patch = validate(PretrainSettings, record.settings).patch
    batch = _batch(store, record, patch, labelled=False)
    nothing = torch.zeros_like(batch.images[:, 0])
    return _drawn(batch.images, nothing, view(batch.images, batch.rng, chosen), nothing)


def _batch(store: Store, record: RunRecord, patch: tuple[int, ...], labelled: bool) -> Batch:
    cases = record.cases[:PATCHES]
    with quietly():
        cache = PatchCache(store, cases, labelled, torch.device("cpu"), residence="disk")
        count = min(PATCHES, cache.volumes.samples_per_epoch(patch))
        voxels = find_class_voxels(store, cache.volumes) if labelled else None
        sampler = EpochSampler(
            cache.volumes, patch, count, record.seed, 1.0 if labelled else 0.0, voxels
        )
        return next(Loader(cache, sampler).between(0, 1))


def _drawn(
    images: Tensor, labels: Tensor, new_images: Tensor, new_labels: Tensor
) -> tuple[AugmentedPatch, ...]:
    """Draw the middle slice of the first channel; both versions share one scale of grey."""
    patches = []
    for number in range(len(images)):
        scaled = grey(np.stack([_middle(part[number, 0]) for part in (images, new_images)]))
        masks = (_middle(part[number]).astype(np.uint8) for part in (labels, new_labels))
        before, after = (_jpeg(*pair) for pair in zip(scaled, masks, strict=True))
        patches.append(AugmentedPatch(before, after))
    return tuple(patches)


def _middle(array: Tensor) -> np.ndarray:
    """The middle slice of (z, y, x), or (y, x) itself."""
    return (array[len(array) // 2] if array.ndim == 3 else array).numpy()


def _jpeg(image: np.ndarray, labels: np.ndarray) -> bytes:
    """(rows, columns) in [0, 1] and labels 0…K, one pixel a voxel."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    picture = np.repeat(image[..., None], 3, axis=2)
    for label in np.unique(labels[labels > 0]):
        inside = labels == label
        colour = np.array(to_rgb(colour_of(int(label))))
        picture[inside] += FILL_OPACITY * (colour - picture[inside])
    file = io.BytesIO()
    Image.fromarray((255 * picture).astype(np.uint8)).save(file, "jpeg", quality=90, subsampling=0)
    return file.getvalue()
