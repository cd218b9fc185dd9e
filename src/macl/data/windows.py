"""Which part of which volume a patch shows.

A slice is a patch of depth 1, so everything here counts voxels along z, y and x, of slices too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from macl.data.store import Store
from macl.data.store_index import StoredCase
from macl.utils.errors import MaclError


@dataclass(frozen=True)
class Windows:
    """Where some patches lie.

    Attributes:
        volumes: (B,) int64, the volumes' numbers in `Volumes.cases`.
        starts: (B, 3) int64, each patch's first voxel along z, y and x. Where a patch is larger
            than its volume it starts before it, so that the volume lies in its middle.
    """

    volumes: Tensor
    starts: Tensor

    def rows(self, chosen: slice) -> Windows:
        """The windows of some of the patches."""
        return Windows(self.volumes[chosen], self.starts[chosen])


@dataclass(frozen=True)
class Volumes:
    """The volumes that patches are drawn from, and which of their slices hold enough.

    Nothing is drawn from outside the first and the last slice that holds enough. Between them,
    slices that hold less are passed over in 2D and are part of the volume in 3D.

    Attributes:
        cases: one per volume.
        extents: (N, 3) int64, voxels along z, y and x of the whole volumes.
        origins: (N, 3) int64, the first voxel to draw from.
        sizes: (N, 3) int64, how many voxels there are to draw from.
        slice_volumes: (S,) int64, the volume of every slice that holds enough, in order.
        slice_numbers: (S,) int64, its number within its volume, from 0.
    """

    cases: tuple[StoredCase, ...]
    extents: Tensor
    origins: Tensor
    sizes: Tensor
    slice_volumes: Tensor
    slice_numbers: Tensor

    def chosen(self, numbers: Tensor) -> Volumes:
        """Some of the volumes, by their ascending numbers."""
        of_chosen = torch.isin(self.slice_volumes, numbers)
        return Volumes(
            cases=tuple(self.cases[number] for number in numbers.tolist()),
            extents=self.extents[numbers],
            origins=self.origins[numbers],
            sizes=self.sizes[numbers],
            slice_volumes=torch.searchsorted(numbers, self.slice_volumes[of_chosen]),
            slice_numbers=self.slice_numbers[of_chosen],
        )

    def samples_per_volume(self, patch: tuple[int, ...]) -> Tensor:
        """(N,) int64: samples an epoch takes from each volume.

        In 2D every slice that holds enough; in 3D as many patches as cover the volume's depth.
        """
        if len(patch) == 2:
            return torch.bincount(self.slice_volumes, minlength=len(self.cases))
        return -(-self.sizes[:, 0] // patch[0])

    def samples_per_epoch(self, patch: tuple[int, ...]) -> int:
        """Samples an epoch takes from all volumes."""
        return int(self.samples_per_volume(patch).sum())

    def random_starts(self, volumes: Tensor, patch: tuple[int, ...], positions: Tensor) -> Tensor:
        """First voxels of patches at random places, along the patch's axes.

        Args:
            volumes: (B,) int64.
            patch: its sides, `dims` of them.
            positions: (B, dims) in [0, 1), from the first place that a patch can take to the last.

        Returns:
            (B, dims) int64. A patch larger than the volume is placed around its middle.
        """
        dims = len(patch)
        spare = self.sizes[volumes, -dims:] - torch.tensor(patch)
        at_random = (positions * (spare + 1)).floor().long().minimum(spare)
        around = torch.div(spare, 2, rounding_mode="floor")
        return self.origins[volumes, -dims:] + torch.where(spare > 0, at_random, around)

    def centres(self, windows: Windows, patch: tuple[int, ...]) -> Tensor:
        """(B, 3) float32: centres of patches as fractions of their volumes' extents.

        The mean of the numbers, counted from 1, of the patch's voxels over the number of voxels
        along the axis. A patch larger than its volume has the volume's voxels alone, so that its
        centre is 0.5 (n + 1) / n.
        """
        origins, sizes = self.origins[windows.volumes], self.sizes[windows.volumes]
        first = windows.starts.maximum(origins)
        stop = (windows.starts + torch.tensor(full_shape(patch))).minimum(origins + sizes)
        middle = (first + stop + 1).double() / 2
        return (middle / self.extents[windows.volumes]).float()

    def neighbours(self, windows: Windows, patch: tuple[int, ...]) -> Windows:
        """For each patch one beside it, with the same rows and columns.

        In 2D the next slice that holds enough, before the last one the slice before. In 3D half a
        patch further along z, or half a patch back, or as far as there is room. Where there is no
        other place, the patch itself.
        """
        volumes, starts = windows.volumes, windows.starts.clone()
        if len(patch) == 2:
            number = self._slice_index(volumes, starts[:, 0])
            following = (number + 1).clamp(max=len(self.slice_numbers) - 1)
            before = (number - 1).clamp(min=0)
            is_last = (self.slice_volumes[following] != volumes) | (following == number)
            beside = torch.where(is_last, before, following)
            beside = torch.where(self.slice_volumes[beside] == volumes, beside, number)
            starts[:, 0] = self.slice_numbers[beside]
            return Windows(volumes, starts)
        half = max(patch[0] // 2, 1)
        room_before = starts[:, 0] - self.origins[volumes, 0]
        room_after = self.sizes[volumes, 0] - patch[0] - room_before
        forward = room_after.clamp(0, half)
        backward = room_before.clamp(0, half)
        goes_back = (room_after < half) & (backward > forward)
        starts[:, 0] += torch.where(goes_back, -backward, forward)
        return Windows(volumes, starts)

    def _slice_index(self, volumes: Tensor, numbers: Tensor) -> Tensor:
        """(B,) int64: places in `slice_numbers` of slices of volumes."""
        most = int(self.extents[:, 0].max())
        return torch.searchsorted(
            self.slice_volumes * most + self.slice_numbers, volumes * most + numbers
        )


def full_shape(patch: tuple[int, ...]) -> tuple[int, int, int]:
    """The sides of a patch along z, y and x; a slice has depth 1."""
    z, y, x = (1,) * (3 - len(patch)) + patch
    return z, y, x


def select_volumes(store: Store, cases: Sequence[str], minimum_content: float = 0.0) -> Volumes:
    """The volumes of some cases, with the slices that are not mostly air.

    Args:
        store: where the cases are; its index alone is read.
        cases: their names; a case without any such slice is left out.
        minimum_content: share of a slice's voxels that must not be air.

    Raises:
        MaclError: there is no such case, no slice is left, or the store does not know its slices'
            content.
    """
    kept = {name: store.slices_with_content(name, minimum_content) for name in cases}
    kept = {name: numbers for name, numbers in kept.items() if len(numbers)}
    if not kept:
        raise MaclError(
            f"No slice of {store.path} has a content of {minimum_content:g} or more: choose a "
            "smaller minimum_content."
        )
    chosen = tuple(store.case(name) for name in kept)
    extents = torch.tensor([case.size for case in chosen])
    origins, sizes = torch.zeros_like(extents), extents.clone()
    origins[:, 0] = torch.tensor([int(numbers[0]) for numbers in kept.values()])
    sizes[:, 0] = torch.tensor([int(numbers[-1]) + 1 for numbers in kept.values()]) - origins[:, 0]
    counts = torch.tensor([len(numbers) for numbers in kept.values()])
    return Volumes(
        cases=chosen,
        extents=extents,
        origins=origins,
        sizes=sizes,
        slice_volumes=torch.arange(len(chosen)).repeat_interleave(counts),
        slice_numbers=torch.from_numpy(np.concatenate(list(kept.values()))).long(),
    )
