"""Random regions of patches, as masks: blocks to hide, boxes to paste."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from macl.augmentation.geometry import AXES
from macl.data.rng import SampleRng


def random_blocks(rng: SampleRng, patch: Sequence[int], block: int, share: float) -> Tensor:
    """Choose a share of the blocks of a patch at random, as many in every patch of the batch.

    Args:
        rng: the batch's random numbers.
        patch: sides of the patch in voxels.
        block: side of a block in voxels; blocks at the far ends are cut off where it does not fit.
        share: of the blocks, rounded to whole blocks.

    Returns:
        (B, 1, *patch) bool, true inside the chosen blocks.
    """
    counts = [math.ceil(side / block) for side in patch]
    rank = rng.uniform("blocks", (math.prod(counts),)).argsort(1).argsort(1)
    chosen = (rank < round(share * math.prod(counts))).reshape(-1, 1, *counts)
    for axis in range(2, chosen.ndim):
        chosen = chosen.repeat_interleave(block, axis)
    return chosen[..., *(slice(side) for side in patch)]


def random_box(rng: SampleRng, patch: Sequence[int], shares: tuple[float, float]) -> Tensor:
    """(B, *patch) bool, true in a box somewhere in each patch (CutMix).

    Args:
        rng: the batch's random numbers.
        patch: sides of the patch in voxels.
        shares: the least and the largest share of a side of the patch that a side of the box has.
    """
    inside = torch.ones((), dtype=torch.bool, device=rng.samples.device)
    for number, (axis, side) in enumerate(zip(AXES[-len(patch) :], patch, strict=True)):
        length = rng.uniform(f"box/{axis}/length", (), *shares)
        start = rng.uniform(f"box/{axis}/start") * (1.0 - length)
        place = (torch.arange(side, device=rng.samples.device) + 0.5) / side
        along = (place >= start[:, None]) & (place < (start + length)[:, None])
        shape = [side if other == number else 1 for other in range(len(patch))]
        inside = inside & along.reshape(-1, *shape)
    return inside
