"""Volumes → batches on the device, which depend on nothing but (seed, step, sample)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from macl.data.batch import Batch
from macl.data.patch_cache import FetchedVoxels, PatchCache
from macl.data.rng import SampleRng
from macl.data.sampling import Sampler
from macl.data.windows import full_shape
from macl.distributed.collectives import require_even_shards
from macl.utils.progress import say, warn
from macl.utils.text import format_size


@dataclass(frozen=True)
class _FetchedBatch:
    """One rank's part of a step's batch, before it is cut from the voxels.

    Attributes:
        samples: (B,) int64, the samples' numbers, on the device.
        centres: (B, 3), on the device; see `Batch`.
        voxels: of the patches, on the device.
        neighbours: likewise of their neighbours; None unless the task asks for them.
    """

    samples: Tensor
    centres: Tensor
    voxels: FetchedVoxels
    neighbours: FetchedVoxels | None


class Loader:
    """An endless sequence of batches of patches.

    Args:
        cache: the volumes.
        sampler: says which windows a batch shows, of the same volumes.
        rank: this process; it takes every `world_size`-th patch of a batch, from `rank` on.
        world_size: number of processes.
        neighbours: whether every patch comes with one beside it in its volume.
        gather_negatives: whether patches are contrasted with those of all ranks.

    Attributes:
        patch: sides in voxels, (y, x) for slices or (z, y, x) for parts of volumes.
        batch_size: patches in a batch, over all ranks.
        steps_per_epoch: batches in an epoch.
        contrasted: number of patches among which each is contrasted.

    Raises:
        MaclError: the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        cache: PatchCache,
        sampler: Sampler,
        rank: int = 0,
        world_size: int = 1,
        *,
        neighbours: bool = False,
        gather_negatives: bool = True,
    ) -> None:
        self.cache, self.sampler = cache, sampler
        self.rank, self.world_size = rank, world_size
        self.with_neighbours, self.gather_negatives = neighbours, gather_negatives
        self.patch, self.batch_size = sampler.patch, sampler.batch_size
        self.steps_per_epoch = sampler.steps_per_epoch
        samples = cache.volumes.samples_per_epoch(self.patch)
        require_even_shards(self.batch_size, max(samples, self.batch_size), world_size)
        self.contrasted = self.batch_size if gather_negatives else self.batch_size // world_size
        self._announce(samples)

    def _announce(self, samples: int) -> None:
        own = "in memory" if self.cache.device.type == "cpu" else "in the GPU's memory"
        where = {"device": own, "host": "in host memory", "disk": "on disk"}
        cases, volumetric = len(self.cache.volumes.cases), len(self.patch) == 3
        what = f"{cases} volumes" if volumetric else f"{samples} slices of {cases} cases"
        mebibytes = self.cache.total_bytes / 2**20
        say(f"{what} ({mebibytes:.0f} MiB) are kept {where[self.cache.residence]}.")
        if volumetric:
            say(f"An epoch takes {samples} patches of {format_size(self.patch)} voxels from them.")
        wanted = self.sampler.wanted_batch_size
        if self.batch_size < wanted:
            held = f"all {samples}" if self.batch_size == samples else f"{self.batch_size}"
            warn(
                f"There are fewer {'patches' if volumetric else 'slices'} than a batch of "
                f"{wanted}: every batch holds {held}."
            )

    @property
    def all_patches_cover_their_volume(self) -> bool:
        """Whether no volume is larger than the 3D patch, so that all patches have one position."""
        sides = torch.tensor(full_shape(self.patch))
        return len(self.patch) == 3 and bool((self.cache.volumes.sizes <= sides).all())

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop` − 1, where `stop` is the run's number of steps.

        Voxels that are not on the device are fetched one step ahead.
        """
        if self.cache.residence == "device":
            for step in range(start, stop):
                yield self._make(step, self._fetch(step), step / stop)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._fetch, start)
            for step in range(start, stop):
                fetched = waiting.result()
                if step + 1 < stop:
                    waiting = ahead.submit(self._fetch, step + 1)
                yield self._make(step, fetched, step / stop)

    def _fetch(self, step: int) -> _FetchedBatch:
        shard = slice(self.rank, None, self.world_size)
        samples, windows = self.sampler.draw(step)
        samples, windows = self.cache.send(samples[shard].contiguous()), windows.rows(shard)
        centres = self.cache.send(self.cache.volumes.centres(windows, self.patch))
        neighbours = None
        if self.with_neighbours:
            beside = self.cache.volumes.neighbours(windows, self.patch)
            neighbours = self.cache.fetch(beside, self.patch)
        voxels = self.cache.fetch(windows, self.patch)
        return _FetchedBatch(samples, centres, voxels, neighbours)

    def _make(self, step: int, fetched: _FetchedBatch, progress: float) -> Batch:
        step_number = torch.full((), step, device=self.cache.device)
        images, labels, labelled = self.cache.cut(fetched.voxels, self.patch)
        neighbours = None
        if fetched.neighbours is not None:
            neighbours, _, _ = self.cache.cut(fetched.neighbours, self.patch)
        return Batch(
            images=images,
            centres=fetched.centres,
            rng=SampleRng(self.sampler.seed, step_number, fetched.samples),
            labels=labels,
            labelled=labelled,
            neighbours=neighbours,
            progress=progress,
            gather_negatives=self.gather_negatives,
        )
