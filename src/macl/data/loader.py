"""Slices → batches already on the device, in an order and with crops that depend on nothing but (seed, step, sample)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from macl.data.batch import Batch
from macl.data.patch_cache import PatchCache, Pixels
from macl.data.rng import SampleRng
from macl.distributed.collectives import require_even_shards
from macl.utils.progress import say


class Loader:
    """An endless, seeded order over a bank's slices, cut into batches.

    Every epoch is a new permutation; what is left over after the last whole batch is passed over, other slices each
    epoch. A bank smaller than the batch gives batches of all its slices.

    Args:
        bank: the slices.
        batch_size: slices a batch, over all ranks.
        patch: sides in voxels.
        seed: the run's seed.
        rank, ranks: this process takes every `ranks`-th slice of a batch, from `rank` on.
        neighbours: whether a neighbour of every slice comes along.
        gather_negatives: whether slices are contrasted with those of all ranks.

    Attributes:
        batch_size: slices a batch, no more than there are.
        steps_per_epoch: batches an epoch.
        contrasted: slices among which one is contrasted.

    Raises:
        MaclError: the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        bank: PatchCache,
        batch_size: int,
        patch: tuple[int, ...],
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        neighbours: bool = False,
        gather_negatives: bool = True,
    ) -> None:
        self.bank, self.patch, self.seed, self.rank, self.ranks = bank, patch, seed, rank, ranks
        self.with_neighbours, self.gather_negatives = neighbours, gather_negatives
        self.batch_size = min(batch_size, len(bank))
        require_even_shards(batch_size, len(bank), ranks)
        self.contrasted = self.batch_size if gather_negatives else self.batch_size // ranks
        self.steps_per_epoch = len(bank) // self.batch_size
        self._ordered_epoch, self._order = 0, self.order(0)
        where = {"device": "in the device's memory", "host": "in host memory", "disk": "on disk"}[bank.residence]
        say(f"{len(bank)} slices of {len(bank.cases)} cases ({bank.total_bytes / 2**20:.0f} MiB) are kept {where}.")
        if self.batch_size < batch_size:
            say(f"There are fewer slices than a batch of {batch_size}: every batch holds all {len(bank)}.")

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.bank))

    def numbers(self, step: int) -> np.ndarray:
        """The slices of this rank's share of a step's batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._ordered_epoch != epoch:
            self._ordered_epoch, self._order = epoch, self.order(epoch)
        whole = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return np.ascontiguousarray(whole[self.rank :: self.ranks])

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop` − 1, `stop` being the run's number of steps; pixels that are not on the device are fetched one step ahead."""
        if self.bank.residence == "device":
            for step in range(start, stop):
                yield self.make(step, self._fetch(step), step / stop)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self._fetch, start)
            for step in range(start, stop):
                fetched = waiting.result()
                if step + 1 < stop:
                    waiting = ahead.submit(self._fetch, step + 1)
                yield self.make(step, fetched, step / stop)

    def _fetch(self, step: int) -> list[tuple[np.ndarray, Pixels]]:
        """Numbers and pixels of a step's slices and, where they come along, of their neighbours."""
        numbers = self.numbers(step)
        groups = [numbers, self.bank.neighbours(numbers)] if self.with_neighbours else [numbers]
        return [(group, self.bank.fetch(group)) for group in groups]

    def make(self, step: int, fetched: list[tuple[np.ndarray, Pixels]], done: float) -> Batch:
        """The batch of a step from what was fetched for it."""
        samples = [torch.from_numpy(numbers).to(self.bank.device, non_blocking=True) for numbers, _ in fetched]
        rng = SampleRng(self.seed, torch.full((), step, device=self.bank.device), samples[0])
        batch, *others = (
            self.bank.gather(pixels, rng, self.patch[0], numbers)
            for numbers, (_, pixels) in zip(samples, fetched, strict=True)
        )
        neighbours = others[0].images if others else None
        return replace(batch, progress=done, neighbours=neighbours, gather_negatives=self.gather_negatives)
