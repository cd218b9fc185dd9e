"""Which windows a step's batch shows: every draw is a pure function of (seed, step, sample)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from macl.data.rng import SampleRng
from macl.data.store import READING_THREADS, Store
from macl.data.windows import Volumes, Windows
from macl.utils.errors import MaclError

AXES = ("slice", "row", "column")
VOXELS_PER_CLASS = 1000


class Sampler(Protocol):
    """Says which windows each batch of a run shows.

    Attributes:
        patch: sides in voxels, (y, x) for slices or (z, y, x) for parts of volumes.
        seed: the run's seed.
        wanted_batch_size: samples in a batch, where there are enough.
        batch_size: samples in a batch, over all processes.
        steps_per_epoch: batches in an epoch.
    """

    patch: tuple[int, ...]
    seed: int
    wanted_batch_size: int
    batch_size: int
    steps_per_epoch: int

    def draw(self, step: int) -> tuple[Tensor, Windows]:
        """The numbers (B,) of a step's samples, each once in it, and their windows."""
        ...


# ---------------------------------------------------------------- voxels of the classes


@dataclass(frozen=True)
class ClassVoxels:
    """Voxels of the classes that every volume shows, at most 1,000 per class and volume.

    Attributes:
        voxels: (V, 3) int64, z, y and x, those of a class of a volume in a row. The last row is
            nobody's: volumes without a class draw it, and nothing is done with it.
        firsts: (N, K) int64, where the voxels of a volume's first, second, … class begin.
        counts: (N, K) int64, how many there are; 0 from the last class that it shows on.
        classes: (N,) int64, how many classes a volume shows, background apart.
    """

    voxels: Tensor
    firsts: Tensor
    counts: Tensor
    classes: Tensor

    def draw(self, rng: SampleRng, volumes: Tensor) -> Tensor:
        """(B, 3) int64: of each volume a voxel of a class, every class as likely."""
        number = _scaled(rng.uniform("foreground/class"), self.classes[volumes])
        place = _scaled(rng.uniform("foreground/voxel"), self.counts[volumes, number])
        return self.voxels[self.firsts[volumes, number] + place]


def find_class_voxels(store: Store, volumes: Volumes) -> ClassVoxels:
    """Read every label once and note where its classes are, in the slices that hold enough."""

    def read(number: int) -> list[np.ndarray]:
        case = volumes.cases[number]
        slices = volumes.slice_numbers[volumes.slice_volumes == number].numpy()
        if not case.labelled:
            return []
        window = (slice(int(slices[0]), int(slices[-1]) + 1), None, None)
        label = store.read(case.name, "label", window)[slices - slices[0]]
        places = np.flatnonzero(label)
        values = label.ravel()[places]
        voxels_of_classes = []
        for value in np.unique(values):
            of_class = places[values == value]
            if len(of_class) > VOXELS_PER_CLASS:
                random = np.random.default_rng([number, int(value)])
                of_class = random.choice(of_class, VOXELS_PER_CLASS, replace=False)
            voxels = np.stack(np.unravel_index(of_class, label.shape), axis=1)
            voxels[:, 0] = slices[voxels[:, 0]]
            voxels_of_classes.append(voxels)
        return voxels_of_classes

    with ThreadPoolExecutor(READING_THREADS) as readers:
        of_volumes = list(readers.map(read, range(len(volumes.cases))))
    classes = [len(of_volume) for of_volume in of_volumes]
    counts = torch.zeros(len(of_volumes), max(1, *classes), dtype=torch.int64)
    for number, of_volume in enumerate(of_volumes):
        counts[number, : len(of_volume)] = torch.tensor([len(voxels) for voxels in of_volume])
    stops = counts.flatten().cumsum(0).reshape(counts.shape)
    rows = [
        *(voxels for of_volume in of_volumes for voxels in of_volume),
        np.zeros((1, 3), np.int64),
    ]
    return ClassVoxels(
        voxels=torch.from_numpy(np.concatenate(rows)).long(),
        firsts=stops - counts,
        counts=counts,
        classes=torch.tensor(classes),
    )


# ---------------------------------------------------------------- one by one


class EpochSampler:
    """Draws patches apart from each other, from every volume in its turn.

    In 2D an epoch shows every slice once, in 3D as many patches of each volume as cover its depth.
    Every epoch has an order of its own; what is left over after the last whole batch is passed
    over. With fewer samples than a batch holds, every batch holds them all.

    Args:
        volumes: what to draw from.
        patch: its sides in voxels, (y, x) or (z, y, x).
        batch_size: samples in a batch.
        seed: the run's seed.
        foreground_share: share of the batch, rounded, that must show a class.
        class_voxels: where the classes are; None with a share of 0.
        fill: show every sample in an epoch as often as it takes to fill a batch, instead.
    """

    def __init__(
        self,
        volumes: Volumes,
        patch: tuple[int, ...],
        batch_size: int,
        seed: int,
        foreground_share: float = 0.0,
        class_voxels: ClassVoxels | None = None,
        *,
        fill: bool = False,
    ) -> None:
        self.volumes, self.patch, self.seed = volumes, patch, seed
        self.wanted_batch_size = batch_size
        counts = volumes.samples_per_volume(patch)
        repeats = -(-batch_size // int(counts.sum())) if fill else 1
        self.sample_volumes = torch.arange(len(counts)).repeat_interleave(counts).repeat(repeats)
        self.batch_size = min(batch_size, len(self.sample_volumes))
        self.steps_per_epoch = len(self.sample_volumes) // self.batch_size
        self.class_voxels = class_voxels
        # The last places, so that ranks, which take turns, share them evenly.
        random_patches = self.batch_size - round(self.batch_size * foreground_share)
        self.shows_class = torch.arange(self.batch_size) >= random_patches
        self._ordered_epoch, self._order = 0, self.order(0)

    def order(self, epoch: int) -> np.ndarray:
        """The order of an epoch's samples."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.sample_volumes))

    def samples(self, step: int) -> Tensor:
        """(B,) int64: the numbers of a batch's samples within the epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._ordered_epoch != epoch:
            self._ordered_epoch, self._order = epoch, self.order(epoch)
        start = place * self.batch_size
        return torch.from_numpy(self._order[start : start + self.batch_size].copy())

    def draw(self, step: int) -> tuple[Tensor, Windows]:
        """The samples (B,) of a step and their windows."""
        samples = self.samples(step)
        rng = SampleRng(self.seed, step, samples)
        volumes, dims = self.sample_volumes[samples], len(self.patch)
        positions = _axis_draws(rng.within("crop"), dims)
        starts = torch.empty(len(samples), 3, dtype=torch.int64)
        starts[:, -dims:] = self.volumes.random_starts(volumes, self.patch, positions)
        if dims == 2:
            starts[:, 0] = self.volumes.slice_numbers[samples % len(self.volumes.slice_numbers)]
        if self.class_voxels is not None:
            shows_class = self.shows_class & (self.class_voxels.classes[volumes] > 0)
            at_class = self._starts_at_class(self.class_voxels, rng, volumes, starts, positions)
            starts = torch.where(shows_class[:, None], at_class, starts)
        return samples, Windows(volumes, starts)

    def _starts_at_class(
        self,
        class_voxels: ClassVoxels,
        rng: SampleRng,
        volumes: Tensor,
        starts: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """(B, 3): `starts` moved so that each patch contains a voxel of a class."""
        dims, sides = len(self.patch), torch.tensor(self.patch)
        voxels = class_voxels.draw(rng, volumes)
        moved = starts.clone()
        moved[:, 0] = voxels[:, 0]
        within = voxels[:, -dims:]
        origins, sizes = self.volumes.origins[volumes, -dims:], self.volumes.sizes[volumes, -dims:]
        first = (within - sides + 1).maximum(origins)
        last = within.minimum(origins + sizes - sides)
        at_random = first + _scaled(positions, last - first + 1)
        moved[:, -dims:] = torch.where(sizes > sides, at_random, starts[:, -dims:])
        return moved


# ---------------------------------------------------------------- with and without labels


class MixedSampler:
    """Draws labelled patches and, behind them in the batch, unlabelled ones.

    Both are drawn as by an `EpochSampler`, and repeat as often as the run needs; an epoch is one of
    the labelled patches.

    Args:
        volumes: what to draw from.
        has_label: (N,) bool, which of the volumes are labelled.
        patch: its sides in voxels, (y, x) or (z, y, x).
        batch_size: labelled patches in a batch.
        unlabelled_batch_size: unlabelled patches in a batch.
        seed: the run's seed.
        foreground_share: share of the labelled patches, rounded, that must show a class.
        store: where the labels are.
    """

    def __init__(
        self,
        volumes: Volumes,
        has_label: Tensor,
        patch: tuple[int, ...],
        batch_size: int,
        unlabelled_batch_size: int,
        seed: int,
        foreground_share: float,
        store: Store,
    ) -> None:
        self.patch, self.seed = patch, seed
        self.numbers = [mask.nonzero()[:, 0] for mask in (has_label, ~has_label)]
        labelled, unlabelled = (volumes.chosen(numbers) for numbers in self.numbers)
        voxels = find_class_voxels(store, labelled) if foreground_share else None
        self.samplers = (
            EpochSampler(labelled, patch, batch_size, seed, foreground_share, voxels, fill=True),
            EpochSampler(unlabelled, patch, unlabelled_batch_size, seed, fill=True),
        )
        self.batch_size = self.wanted_batch_size = batch_size + unlabelled_batch_size
        self.steps_per_epoch = self.samplers[0].steps_per_epoch

    def draw(self, step: int) -> tuple[Tensor, Windows]:
        """The samples (B,) of a step and their windows; no two samples have the same number."""
        drawn = [sampler.draw(step) for sampler in self.samplers]
        (first, _), (second, _) = drawn
        windows = [
            Windows(numbers[own.volumes], own.starts)
            for numbers, (_, own) in zip(self.numbers, drawn, strict=True)
        ]
        return torch.cat((first, second + len(self.samplers[0].sample_volumes))), Windows(
            torch.cat([each.volumes for each in windows]),
            torch.cat([each.starts for each in windows]),
        )


# ---------------------------------------------------------------- by position


class GroupedSampler:
    """Draws groups of patches at similar positions, each of another patient.

    Positions are the centres of patches as fractions of the volume, along every axis of volumes,
    along z alone of slices. A group's position is drawn uniformly from those that all its volumes
    allow. Its patches lie at most `jitter` from it on each axis, or at the nearest place where a
    volume's voxels are coarser. With fewer patients than a group holds, patients repeat.

    Args:
        volumes: what to draw from.
        patch: its sides in voxels, (y, x) or (z, y, x).
        batch_size: patches in a batch.
        seed: the run's seed.
        patients_per_position: patches in a group.
        jitter: as a fraction of the volume.

    Raises:
        MaclError: a batch cannot be made of whole groups.
    """

    def __init__(
        self,
        volumes: Volumes,
        patch: tuple[int, ...],
        batch_size: int,
        seed: int,
        patients_per_position: int,
        jitter: float,
    ) -> None:
        if batch_size % patients_per_position:
            nearest = max(round(batch_size / patients_per_position), 1) * patients_per_position
            raise MaclError(
                f"A batch of {batch_size} patches cannot show {patients_per_position} patients at "
                f"every position: add --set training.batch_size={nearest}, or choose "
                "patients_per_position so that it divides the batch."
            )
        self.volumes, self.patch, self.seed, self.jitter = volumes, patch, seed, jitter
        self.wanted_batch_size = batch_size
        self.group_size = patients_per_position
        samples = volumes.samples_per_epoch(patch)
        groups = min(batch_size, samples) // patients_per_position
        self.batch_size = max(groups, 1) * patients_per_position
        self.steps_per_epoch = max(samples // self.batch_size, 1)
        names = [case.patient for case in volumes.cases]
        patients = {name: number for number, name in enumerate(dict.fromkeys(names))}
        of_volume = torch.tensor([patients[name] for name in names])
        self.by_patient = of_volume.argsort(stable=True)
        self.counts = torch.bincount(of_volume)
        self.firsts = self.counts.cumsum(0) - self.counts
        # Ascending over all slices: centres are at most 1.
        heights = (volumes.slice_numbers + 1).double() / volumes.extents[volumes.slice_volumes, 0]
        self.slice_keys = 2 * volumes.slice_volumes + heights

    def draw(self, step: int) -> tuple[Tensor, Windows]:
        """The places (B,) in the batch, which number its samples, and their windows."""
        samples = torch.arange(self.batch_size)
        rng = SampleRng(self.seed, step, samples).within("group")
        volumes = self._volumes(step, rng)
        dims = len(self.patch)
        starts = torch.empty(len(samples), 3, dtype=torch.int64)
        if dims == 2:
            positions = _axis_draws(rng.within("crop"), dims)
            starts[:, 1:] = self.volumes.random_starts(volumes, self.patch, positions)
            centres = self._group_centres(step, *self._slice_range(volumes))
            starts[:, 0] = self._nearby_slices(volumes, centres[:, 0], rng.uniform("slice"))
        else:
            centres = self._group_centres(step, *self._centre_range(volumes))
            starts = self._nearby_starts(volumes, centres, _axis_draws(rng, dims))
        return samples, Windows(volumes, starts)

    def _volumes(self, step: int, rng: SampleRng) -> Tensor:
        """(B,) volumes, one of each patient; patients come in random order, again and again."""
        order = SampleRng(self.seed, step, torch.arange(len(self.counts))).uniform("group/patient")
        patients = order.argsort(stable=True)[rng.samples % len(self.counts)]
        case = _scaled(rng.uniform("case"), self.counts[patients])
        return self.by_patient[self.firsts[patients] + case]

    def _slice_range(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1) float64 each: the heights of the first and the last slice that hold enough."""
        first = torch.searchsorted(self.volumes.slice_volumes, volumes)
        last = torch.searchsorted(self.volumes.slice_volumes, volumes, right=True) - 1
        low, high = (self.slice_keys[index] - 2 * volumes for index in (first, last))
        return low[:, None], high[:, None]

    def _centre_range(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3) float64 each: the lowest and the highest centres that patches can have."""
        low, high = (
            self.volumes.centres(Windows(volumes, starts), self.patch).double()
            for starts in self._start_range(volumes)
        )
        return low, high

    def _start_range(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3) int64 each: the first and the last place where patches can start."""
        first, last = (
            self.volumes.random_starts(volumes, self.patch, torch.full((len(volumes), 3), end))
            for end in (0.0, 1.0)
        )
        return first, last

    def _group_centres(self, step: int, lowest: Tensor, highest: Tensor) -> Tensor:
        """(B, axes) float64: the position of each patch's group."""
        low = lowest.unflatten(0, (-1, self.group_size)).amax(1)
        high = highest.unflatten(0, (-1, self.group_size)).amin(1)
        groups = SampleRng(self.seed, step, torch.arange(len(low))).within("group/position")
        axes = [groups.uniform(axis) for axis in AXES[: low.shape[1]]]
        # Where volumes have no centre in common, the middle between them.
        apart = low > high
        inside = low + torch.stack(axes, dim=1).double() * (high - low)
        centres = torch.where(apart, (low + high) / 2, inside)
        return centres.repeat_interleave(self.group_size, dim=0)

    def _nearby_starts(self, volumes: Tensor, centres: Tensor, unit: Tensor) -> Tensor:
        """(B, 3) int64: where patches start whose centres lie within the jitter, or nearest."""
        lowest, highest = self._start_range(volumes)
        extents = self.volumes.extents[volumes]
        middle = (torch.tensor(self.patch) + 1) / 2
        first = ((centres - self.jitter) * extents - middle).ceil().long().maximum(lowest)
        last = ((centres + self.jitter) * extents - middle).floor().long().minimum(highest)
        nearest = (centres * extents - middle).round().long().maximum(lowest).minimum(highest)
        return torch.where(first <= last, first + _scaled(unit, last - first + 1), nearest)

    def _nearby_slices(self, volumes: Tensor, centres: Tensor, unit: Tensor) -> Tensor:
        """(B,) int64: slices that hold enough within the jitter, or the nearest."""
        key, keys = 2 * volumes + centres, self.slice_keys
        first = torch.searchsorted(keys, key - self.jitter)
        last = torch.searchsorted(keys, key + self.jitter, right=True) - 1
        above = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        below = (above - 1).clamp(min=0)
        nearest = torch.where((keys[above] - key).abs() < (keys[below] - key).abs(), above, below)
        index = torch.where(first <= last, first + _scaled(unit, last - first + 1), nearest)
        return self.volumes.slice_numbers[index]


# ---------------------------------------------------------------- draws


def _axis_draws(rng: SampleRng, dims: int) -> Tensor:
    """(B, dims) in [0, 1), a draw per axis of the patch."""
    return torch.stack([rng.uniform(axis) for axis in AXES[-dims:]], dim=1)


def _scaled(unit: Tensor, count: Tensor) -> Tensor:
    """Draws in [0, 1) → int64 in 0 … count − 1; 0 where the count is 0."""
    return (unit.double() * count).floor().long().minimum((count - 1).clamp(min=0))
