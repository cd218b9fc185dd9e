"""A batch of patches, as every task takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from macl.data.rng import SampleRng
from macl.distributed import collectives


@dataclass(frozen=True)
class Batch:
    """Patches on the device, normalised, cropped or zero-padded to one size.

    Attributes:
        images: (B, C, *patch) float32; a patch is (y, x) in 2D and (z, y, x) in 3D.
        centres: (B, 3) float32, each patch's centre along z, y and x as a fraction of its volume's
            extent: the mean of its voxels' numbers, counted from 1, over the number of voxels. For
            a slice along z that is (index + 1) / slices. Padding does not count.
        rng: the batch's random numbers.
        labels: (B, *patch) int64; None where no labels are read.
        labelled: (B,) bool, which patches have a label, if only some have; None: all or none.
        neighbours: (B, C, *patch), for each patch one beside it in its volume; None unless the task
            asks for them.
        progress: share of the run's steps before this one, for schedules.
        gather_negatives: whether patches are contrasted with those of all processes that train
            together, or with those of their own process alone.
    """

    images: Tensor
    centres: Tensor
    rng: SampleRng
    labels: Tensor | None = None
    labelled: Tensor | None = None
    neighbours: Tensor | None = None
    progress: float = 0.0
    gather_negatives: bool = True

    @property
    def positions(self) -> Tensor:
        """(B, 1) or (B, 3): the centres along z for slices, along z, y and x in 3D."""
        return self.centres[:, :1] if self.images.ndim == 4 else self.centres

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows (B, …) of this process's patches → the rows that they are contrasted with."""
        return collectives.all_gather(rows) if self.gather_negatives else rows

    def rows(self, chosen: slice) -> Batch:
        """The batch of some of its patches; each keeps its random numbers."""
        parts = {
            name: value[chosen]
            for name in ("images", "centres", "labels", "labelled", "neighbours")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **parts, rng=replace(self.rng, samples=self.rng.samples[chosen]))
