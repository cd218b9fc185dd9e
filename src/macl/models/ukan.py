"""U-KAN: a U-Net whose deep levels are Kolmogorov-Arnold layers (Li et al. 2024, arXiv 2406.02918),
in 2D.

In a KAN layer every pair of input and output channels has a curve of its own, a SiLU plus a cubic
spline, where a linear layer has a number (Liu et al. 2024, arXiv 2404.19756):

    y_o = Σ_i a_oi · SiLU(x_i) + s_oi · Σ_k c_oik · B_k(x_i)

Three levels of convolutions are followed by two of tokens, with three KAN layers and as many
depthwise convolutions each; the decoder adds the encoder's maps. The splines cover [−1, 1] with
five pieces and fade out at ±2.2, as in the released code: larger values, which norms and ReLUs let
through, see the SiLU alone. The widths 16, 32, 128, 160 and 256 are those of the paper's network of
6.36 M parameters. The first skip connection leaves after the first pooling; the map before it is
the finest level here, which the decoder does not read. The released code's first convolution takes
three channels whatever it is told; ours takes the image's. Its switch that replaces the KAN layers
by linear ones never reaches its blocks; there is none here. Spline coefficients start as small
normal numbers, where the released code fits them to noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise

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
    norm,
    resize,
)
from macl.models.network import Network

WIDTHS = (1, 1, 2, 8, 10, 16)
"""Of every level, in widths of the finest."""
PIECES = 5
SPLINES = PIECES + 3


class Settings(PluginSettings):
    """Settings of U-KAN."""

    width: int = Field(
        default=16,
        gt=0,
        description="channels of the finest level; the deepest have 8, 10 and 16 times as many",
    )


def cubic_splines(x: Tensor) -> Tensor:
    """The values at x of the cubic B-splines on [−1, 1]: (…) → (…, 8)."""
    piece = 2.0 / PIECES
    centres = torch.linspace(-1.0 - piece, 1.0 + piece, SPLINES, device=x.device)
    away = (x.float()[..., None] - centres).abs() / piece
    return (F.relu(2.0 - away) ** 3 - 4.0 * F.relu(1.0 - away) ** 3) / 6.0


class KanLayer(nn.Module):
    """A curve for every pair of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(channels, channels))
        self.scale = nn.Parameter(torch.empty(channels, channels))
        self.coefficients = nn.Parameter(torch.empty(channels, channels, SPLINES))
        nn.init.kaiming_uniform_(self.base, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.scale, a=math.sqrt(5))
        nn.init.normal_(self.coefficients, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        weights = (self.coefficients * self.scale[..., None]).flatten(1)
        splines = F.linear(cubic_splines(tokens).flatten(-2), weights)
        return F.linear(F.silu(tokens), self.base) + splines


class KanBlock(nn.Module):
    """Three KAN layers, each with a depthwise convolution, around which the map passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.kans = nn.ModuleList(KanLayer(channels) for _ in range(3))
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                conv(2, channels, channels, 3, padding=1, groups=channels),
                norm(2, channels),
                nn.ReLU(inplace=True),
            )
            for _ in range(3)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        x = self.norm(maps)
        for kan, convolution in zip(self.kans, self.convolutions, strict=True):
            x = convolution(kan(x.movedim(1, -1)).movedim(-1, 1))
        return maps + x


def kan_level(in_channels: int, out_channels: int) -> nn.Sequential:
    """An encoder level of tokens, at half the side of the map it is given."""
    return nn.Sequential(
        conv(2, in_channels, out_channels, 3, stride=2, padding=1),
        ChannelNorm(out_channels),
        KanBlock(out_channels),
        ChannelNorm(out_channels),
    )


class UKanEncoder(nn.Module):
    """Convolutions and max-pools down to an eighth of the side, then two levels of tokens."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        full, half, quarter, eighth, *deep = channels
        self.levels = nn.ModuleList(
            [
                convolutions(2, in_channels, full, half),
                nn.MaxPool2d(2),
                nn.Sequential(convolutions(2, half, quarter, quarter), nn.MaxPool2d(2)),
                nn.Sequential(convolutions(2, quarter, eighth, eighth), nn.MaxPool2d(2)),
                *(kan_level(*widths) for widths in pairwise((eighth, *deep))),
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every level, finest first, bottleneck last."""
        features = []
        for level in self.levels:
            images = level(images)
            features.append(images)
        return features


class EnlargingBlock(nn.Module):
    """The decoder's last block, which takes no map of the encoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = convolutions(2, channels, channels, channels)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """(B, C, *size) → (B, C, *larger), the size of the finer map."""
        return resize(self.narrow(x), finer.shape[2:])


def ukan_blocks(channels: tuple[int, ...]) -> Iterator[nn.Module]:
    """The decoder's blocks, deepest first: two of tokens, three of convolutions."""
    for before, after in pairwise(channels[:2:-1]):
        tokens = nn.Sequential(KanBlock(after), ChannelNorm(after))
        yield AddingBlock(convolutions(2, before, before, after), tokens)
    for before, after in pairwise(channels[3:0:-1]):
        yield AddingBlock(convolutions(2, before, before, after))
    yield EnlargingBlock(channels[0])


class UKan(Network):
    """Five halvings; the last decoder block enlarges without a skip connection."""

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
        self.channels = tuple(settings.width * times for times in WIDTHS)
        self.strides = ((1, 1), *[(2, 2)] * (len(WIDTHS) - 1))
        self.encoder = UKanEncoder(in_channels, self.channels)
        self.decoder = Decoder(islice(ukan_blocks(self.channels), decoder_blocks))
        self.apply(initialise_convolutions)


PLUGIN = UKan
