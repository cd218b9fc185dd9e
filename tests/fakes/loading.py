"""Loaders of cached volumes, by what is drawn from them."""

from __future__ import annotations

from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import (
    EpochSampler,
    GroupedSampler,
    MixedSampler,
    Sampler,
    find_class_voxels,
)


def make_loader(
    cache: PatchCache,
    batch_size: int,
    patch: tuple[int, ...],
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    *,
    neighbours: bool = False,
    gather_negatives: bool = True,
    foreground_share: float = 0.0,
    patients_per_position: int = 1,
    position_jitter: float = 0.0,
    unlabelled_batch_size: int = 0,
) -> Loader:
    """Patches one by one, in groups at similar positions, or labelled beside unlabelled ones."""
    volumes = cache.volumes
    sampler: Sampler
    if patients_per_position > 1:
        sampler = GroupedSampler(
            volumes, patch, batch_size, seed, patients_per_position, position_jitter
        )
    elif unlabelled_batch_size:
        sampler = MixedSampler(
            volumes,
            cache.has_label,
            patch,
            batch_size,
            unlabelled_batch_size,
            seed,
            foreground_share,
            cache.store,
        )
    else:
        voxels = find_class_voxels(cache.store, volumes) if foreground_share else None
        sampler = EpochSampler(volumes, patch, batch_size, seed, foreground_share, voxels)
    return Loader(
        cache, sampler, rank, world_size, neighbours=neighbours, gather_negatives=gather_negatives
    )
