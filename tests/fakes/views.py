"""Images, random numbers and geometries for tests of views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from macl.config.settings import SpatialSettings
from macl.data.rng import SampleRng

STILL: dict[str, Any] = {
    "mirror": 0.0, "deform": 1.0, "rotation_degrees": 0.0, "tilt_degrees": 0.0, "scale": (1.0, 1.0),
    "elastic_alpha": (0.0, 0.0),
}  # fmt: skip


def geometry(**changes: Any) -> SpatialSettings:
    """Nothing is moved, except for the changes."""
    return SpatialSettings(**(STILL | changes))


def rng(count: int, seed: int = 0, step: int = 0) -> SampleRng:
    """The random numbers of a batch."""
    return SampleRng(seed, step, torch.arange(count))


def images(count: int = 2, *patch: int, channels: int = 2) -> Tensor:
    """Noise, (B, C, *patch)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, *(patch or (24, 16)), generator=generator)


def fixed(use: str, value: float | list[float], count: int = 1) -> SampleRng:
    """Draws of which one use always yields one value, where a range would hit it by chance only."""

    class Fixed(SampleRng):
        def uniform(
            self, name: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
        ) -> Tensor:
            drawn = super().uniform(name, shape, low, high)
            return torch.tensor(value).expand(drawn.shape) if name == use else drawn

    return Fixed(0, 0, torch.arange(count))
