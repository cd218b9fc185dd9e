"""The contract of a network: a U-shape without its head, in two or three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from macl.config.settings import PluginSettings

Strides = tuple[tuple[int, ...], ...]
"""Per encoder level, finest first, its stride along each spatial axis against the level above; the
first is all ones."""


class Network(nn.Module):
    """An encoder and a decoder whose blocks can be used from the deepest up.

    A network is built as `Network(settings, in_channels, dims=…, decoder_blocks=…)`: `dims` is 2 or
    3, and `decoder_blocks` says how many of the deepest decoder blocks it has, None meaning all of
    them.

    Attributes:
        Settings: its settings.
        supported_dims: the dimensions it exists in.
        smallest_bottleneck: how many voxels its bottleneck must have.
        dims: 2 or 3.
        channels: of every encoder level, finest first; the last is the bottleneck. They need not
            double from level to level.
        strides: of every encoder level against the level above it, per axis.
        encoder, decoder: its two halves; their tensors are what transfer copies. The encoder is
            called as `encode` is.
    """

    Settings: ClassVar[type[PluginSettings]]
    supported_dims: ClassVar[tuple[int, ...]] = (2,)
    smallest_bottleneck: ClassVar[int] = 1

    dims: int
    channels: tuple[int, ...]
    strides: Strides
    encoder: nn.Module
    decoder: nn.Module

    @classmethod
    def complete(
        cls, settings: Any, patch: Sequence[int], spacing_mm: Sequence[float] | None
    ) -> Any:
        """Its settings with whatever they leave open chosen for a patch (voxels) and its spacing
        (None: unknown)."""
        return settings

    @classmethod
    def deep_supervision(cls, settings: Any) -> bool:
        """Whether fine-tuning supervises the decoder's coarser maps too, unless set otherwise."""
        return False

    def encode(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every encoder level, finest first, bottleneck last."""
        return self.encoder(images)

    def decode(self, features: list[Tensor], blocks: int | None = None) -> list[Tensor]:
        """Encoder maps → bottleneck, then the output of each of the deepest `blocks` decoder blocks
        (all it has)."""
        return self.decoder(features, blocks)

    def forward(self, images: Tensor) -> Tensor:
        """The last map of `decode(encode(images))`."""
        return self.decode(self.encode(images))[-1]

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the maps that `decode` returns with all blocks, bottleneck first; the last
        map has the size of the image."""
        return self.channels[::-1]

    @property
    def hidden_channels(self) -> int:
        """Hidden width of projectors that scale with the network: its middle level, 4F in the
        paper's U-Net."""
        return self.channels[len(self.channels) // 2]


def total_stride(strides: Strides) -> tuple[int, ...]:
    """How many voxels of the image one voxel of the bottleneck spans, per axis: its sides must be
    multiples of this."""
    return tuple(map(math.prod, zip(*strides, strict=True)))


def decoder_stride(strides: Strides, blocks: int) -> tuple[int, ...]:
    """How much the deepest `blocks` decoder blocks enlarge the bottleneck, per axis."""
    deepest: Sequence[tuple[int, ...]] = strides[len(strides) - blocks :]
    return (
        tuple(math.prod(axis) for axis in zip(*deepest, strict=True))
        if blocks
        else (1,) * len(strides[0])
    )


SMALLEST_SIDE = 4
"""A bottleneck's side that pooling does not go below (nnU-Net's)."""
MOST_POOLINGS = 5


def choose_strides(
    patch: Sequence[int], spacing_mm: Sequence[float] | None
) -> tuple[tuple[int, ...], ...]:
    """The poolings that nnU-Net would choose for a patch: halve the finest axes until sides fall
    below 8.

    An axis is halved while its side is at least 8 and its spacing less than twice the finest one's;
    at most five times.

    Args:
        patch: sides in voxels.
        spacing_mm: along the same axes; None: taken as equal.
    """
    sides, spacing = list(patch), list(spacing_mm or (1.0,) * len(patch))
    counts, strides = [0] * len(patch), []
    while True:
        large = [axis for axis, side in enumerate(sides) if side >= 2 * SMALLEST_SIDE]
        finest = min((spacing[axis] for axis in large), default=0.0)
        halved = [
            axis for axis in large if spacing[axis] < 2 * finest and counts[axis] < MOST_POOLINGS
        ]
        if not halved or (len(halved) == 1 and sides[halved[0]] < 3 * SMALLEST_SIDE):
            return tuple(strides)
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(patch))))
        for axis in halved:
            sides[axis], spacing[axis] = math.ceil(sides[axis] / 2), spacing[axis] * 2
            counts[axis] += 1
