"""Random batches of slices or volumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from macl.data.batch import Batch
from macl.data.rng import SampleRng


def centres(heights: Sequence[float]) -> torch.Tensor:
    """(B, 3) centres at these heights, in the middle of the other axes."""
    z = torch.as_tensor(heights, dtype=torch.float32)
    middle = torch.full_like(z, 0.5)
    return torch.stack((z, middle, middle), dim=1)


def batch(
    heights: Sequence[float] | int = 4,
    *,
    side: int | tuple[int, ...] = 32,
    dims: int = 2,
    channels: int = 1,
    step: int = 3,
    progress: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Patches of noise with neighbours, at these heights or at so many evenly spaced ones."""
    if isinstance(heights, int):
        heights = torch.linspace(0.1, 1.0, heights).tolist()
    patch = (side,) * dims if isinstance(side, int) else side
    random = torch.Generator().manual_seed(1)
    shape = (len(heights), channels, *patch)
    images, neighbours = (torch.randn(shape, generator=random, dtype=dtype) for _ in range(2))
    rng = SampleRng(seed=5, step=step, samples=torch.arange(len(heights)))
    return Batch(images, centres(heights), rng, neighbours=neighbours, progress=progress)
