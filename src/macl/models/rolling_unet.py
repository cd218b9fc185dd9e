"""Rolling-UNet: a U-Net whose deep levels see far along rows and columns by rolling channels (Liu
et al. 2024, AAAI), in 2D.

Channel c of a map is rolled by c places along one axis before a linear layer mixes the channels, so
that every place sees a line of others (OR-MLP). Two such pairs, rows then columns and columns then
rows the other way round, lie beside a depthwise convolution (Lo2):

    x ─┬─ roll ↓ ── linear, GELU ── roll → ── linear ── + x ─╮
       ├─ roll ← ── linear, GELU ── roll ↓ ── linear ── + x ─┴ norm, linear, + x ─╮
       ╰─ depthwise and 1×1 convolution, ReLU, norm ─────────────────────────────┴ linear

A roll is periodic: what leaves a map at one border enters at the other, and a map with a side below
its number of channels is rolled round more than once. The released code rolls channel by channel;
here one gather rolls them all. Three levels of convolutions are followed by two that roll; the
decoder adds the encoder's maps. The paper's S, M and L have widths of 16, 32 and 64. Two things of
the released code are left out: the dropout at the bottleneck (0.1 to 0.3), whose random numbers a
resumed run would not repeat, and a norm in every block that nothing uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.config.settings import PluginSettings
from macl.models._decoder import AddingBlock, Decoder
from macl.models.layers import (
    ChannelNorm,
    conv,
    convolutions,
    initialise_convolutions,
    initialise_linears,
    max_pool,
    norm,
)
from macl.models.network import Network


class Settings(PluginSettings):
    """Settings of Rolling-UNet."""

    width: int = Field(
        default=32,
        ge=2,
        multiple_of=2,
        description="channels of the finest level; the paper's S, M and L have 16, 32 and 64",
    )


ROWS, COLUMNS = 1, 2
"""Axes of a map with channels last, (B, h, w, C)."""


def rolled(maps: Tensor, axis: int, step: int) -> Tensor:
    """(B, h, w, C) with channel c rolled by c · step places along an axis."""
    side, channels = maps.shape[axis], maps.shape[-1]
    places = torch.arange(side, device=maps.device)[:, None]
    shifts = step * torch.arange(channels, device=maps.device)
    index = (places - shifts) % side
    shape = [1, 1, 1, channels]
    shape[axis] = side
    return maps.gather(axis, index.view(shape).expand_as(maps))


class DoubleRoll(nn.Module):
    """Rolls along one axis, mixes, rolls along the other, mixes (OR-MLP)."""

    def __init__(self, channels: int, first: tuple[int, int], second: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.mix_first, self.mix_second = (nn.Linear(channels, channels) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, h, w, C) → (B, h, w, C)."""
        mixed = F.gelu(self.mix_first(rolled(maps, *self.first)))
        return maps + self.mix_second(rolled(mixed, *self.second))


class LongAndLocal(nn.Module):
    """Two double rolls beside a depthwise convolution (Lo2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows_first = DoubleRoll(channels, (ROWS, 1), (COLUMNS, 1))
        self.columns_first = DoubleRoll(channels, (COLUMNS, -1), (ROWS, 1))
        self.norm = nn.LayerNorm(2 * channels)
        self.merge_rolls = nn.Linear(2 * channels, channels)
        self.local = nn.Sequential(
            conv(2, channels, channels, 3, padding=1, groups=channels),
            conv(2, channels, channels, 1),
            nn.ReLU(inplace=True),
            norm(2, channels),
        )
        self.merge = nn.Linear(2 * channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        x = maps.movedim(1, -1)
        both = torch.cat((self.rows_first(x), self.columns_first(x)), dim=-1)
        far = x + self.merge_rolls(self.norm(both))
        near = self.local(maps).movedim(1, -1)
        return self.merge(torch.cat((far, near), dim=-1)).movedim(-1, 1)


def embedding(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution with GELU and LayerNorm (feature incentive block)."""
    return nn.Sequential(
        conv(2, in_channels, out_channels, 3, padding=1), nn.GELU(), ChannelNorm(out_channels)
    )


def rolling_level(in_channels: int, out_channels: int) -> nn.Sequential:
    """An encoder level that rolls."""
    return nn.Sequential(
        embedding(in_channels, out_channels), LongAndLocal(out_channels), ChannelNorm(out_channels)
    )


class RollingEncoder(nn.Module):
    """Three levels of convolutions and two that roll, with max-pools between."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        before = (in_channels, *channels)
        self.levels = nn.ModuleList(
            convolutions(2, before[level], width, width)
            if level < 3
            else rolling_level(before[level], width)
            for level, width in enumerate(channels)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every level, finest first, bottleneck last."""
        features = [self.levels[0](images)]
        for level in self.levels[1:]:
            features.append(level(max_pool(features[-1], (2, 2))))
        return features


def decoder_blocks_of(channels: tuple[int, ...]) -> Iterator[AddingBlock]:
    """The decoder's blocks, deepest first: one that rolls, three of convolutions."""
    full, half, quarter, eighth, bottleneck = channels
    rolls = nn.Sequential(LongAndLocal(eighth), ChannelNorm(eighth))
    yield AddingBlock(embedding(bottleneck, eighth), rolls)
    yield AddingBlock(convolutions(2, eighth, quarter))
    yield AddingBlock(convolutions(2, quarter, quarter, half))
    yield AddingBlock(convolutions(2, half, half, full), convolutions(2, full, full, full // 2))


class RollingUNet(Network):
    """Four poolings by 2; the decoder's last map has half the finest level's channels."""

    Settings = Settings

    def __init__(
        self,
        settings: Settings,
        in_channels: int,
        *,
        dims: int = 2,
        decoder_blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.strides = ((1, 1), *[(2, 2)] * 4)
        self.channels = tuple(settings.width * 2**level for level in range(5))
        self.encoder = RollingEncoder(in_channels, self.channels)
        self.decoder = Decoder(islice(decoder_blocks_of(self.channels), decoder_blocks))
        self.apply(initialise_convolutions)
        self.apply(initialise_linears)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the maps that `decode` returns with all blocks, bottleneck first."""
        return (*self.channels[:0:-1], self.channels[0] // 2)


PLUGIN = RollingUNet
