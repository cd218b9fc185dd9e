"""UCTransNet: a U-Net whose skip connections attend to each other's channels (Wang et al. 2022,
arXiv 2109.04335), in 2D.

The encoder's maps are cut into equally many tokens each, and transformer layers mix their channels:
every level's channels attend to the channels of all levels (CCT). The decoder takes the result in
place of the plain skip connections, and scales its channels by what its own map shows (CCA):

    e1 … e4 ── tokens + positions ── L × [channel attention, perceptron] ── enlarge ── + e1 … e4
    d ── enlarge ──┬─ mean ─╮
    e' ── mean ────┴────────┴ sigmoid ── · e' ── concatenate ── two convolutions

The attention is part of the decoder: with N decoder blocks it reads all levels and yields the N
deepest. It attends over channels, so the number of tokens is free; position embeddings are learned
on a grid and interpolated to the tokens at hand. Widths, four heads, four layers and patches of
16, 8, 4 and 2 are those of the released code. Its dropout (0.1) is left out, whose random numbers a
resumed run would not repeat. Its deepest level has the width of the level above.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.config.settings import PluginSettings
from macl.models.layers import (
    conv,
    convolutions,
    initialise_convolutions,
    max_pool,
    norm,
    resize,
    spatial_mean,
)
from macl.models.network import Network

POOLINGS = 4
EXPANSION = 4
"""Hidden width of a perceptron against its input."""


class Settings(PluginSettings):
    """Settings of UCTransNet; the defaults are the paper's."""

    width: int = Field(default=64, gt=0, description="channels of the finest level")
    heads: int = Field(default=4, gt=0, description="heads of the channel attention")
    layers: int = Field(default=4, gt=0, description="layers of the channel transformer")
    positions: int = Field(
        default=14,
        gt=0,
        description="side of the grid of position embeddings; the paper's patch of 224 has 14 "
        "tokens a side",
    )


class UCTransEncoder(nn.Module):
    """One convolution, then levels of a max-pool and two convolutions."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        deeper = (convolutions(2, before, after, after) for before, after in pairwise(channels))
        self.levels = nn.ModuleList([convolutions(2, in_channels, channels[0]), *deeper])

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every level, finest first, bottleneck last."""
        features = [self.levels[0](images)]
        for level in self.levels[1:]:
            features.append(level(max_pool(features[-1], (2, 2))))
        return features


class Tokens(nn.Module):
    """Cuts a map into patches of a side, one token each, and adds where they lie."""

    def __init__(self, channels: int, side: int, positions: int) -> None:
        super().__init__()
        self.patches = conv(2, channels, channels, side, stride=side)
        self.positions = nn.Parameter(torch.zeros(channels, positions, positions))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h · side, w · side) → (B, h · w, C)."""
        patches = self.patches(maps)
        return (patches + resize(self.positions[None], patches.shape[2:])).flatten(2).mT


class ChannelAttention(nn.Module):
    """A transformer layer in which the channels of `count` levels attend to those of all levels."""

    def __init__(self, channels: tuple[int, ...], count: int, heads: int) -> None:
        super().__init__()
        self.heads, everything, own = heads, sum(channels), channels[:count]
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in own)
        self.norm_of_all = nn.LayerNorm(everything, eps=1e-6)
        self.queries = nn.ModuleList(nn.Linear(width, heads * width, bias=False) for width in own)
        self.key = nn.Linear(everything, heads * everything, bias=False)
        self.value = nn.Linear(everything, heads * everything, bias=False)
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for width in own)
        self.perceptrons = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width, eps=1e-6),
                nn.Linear(width, EXPANSION * width),
                nn.GELU(),
                nn.Linear(EXPANSION * width, width),
            )
            for width in own
        )

    def forward(self, tokens: list[Tensor], count: int) -> list[Tensor]:
        """(B, T, C) of every level, deepest first → the same of the deepest `count` levels."""
        everything = self.norm_of_all(torch.cat(tokens, dim=-1))
        keys, values = self._heads(self.key(everything)), self._heads(self.value(everything))
        mixed = []
        for level, own in enumerate(tokens[:count]):
            queries = self._heads(self.queries[level](self.norms[level](own)))
            scores = queries.mT @ keys / math.sqrt(everything.shape[-1])  # (B, heads, C, all C)
            context = F.instance_norm(scores).softmax(-1) @ values.mT
            own = own + self.out[level](context.mean(1).mT)
            mixed.append(own + self.perceptrons[level](own))
        return mixed

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, T, heads · C) → (B, heads, T, C)."""
        return tokens.unflatten(-1, (self.heads, -1)).movedim(2, 1)


class SkipAttention(nn.Module):
    """The channel transformer (CCT) on the encoder's maps, for the deepest `count` of them.

    Levels are numbered from the deepest, so that a transformer for fewer levels has tensors of the
    same names; what only shallower levels need of its last layer is left out.
    """

    def __init__(self, channels: tuple[int, ...], count: int, settings: Settings) -> None:
        super().__init__()
        self.sides = [2 ** (number + 1) for number in range(len(channels))]
        self.tokens = nn.ModuleList(
            Tokens(width, side, settings.positions)
            for width, side in zip(channels, self.sides, strict=True)
        )
        counts = [len(channels)] * (settings.layers - 1) + [count]
        self.layers = nn.ModuleList(
            ChannelAttention(channels, each, settings.heads) for each in counts
        )
        own = channels[:count]
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in own)
        self.enlarged = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=side),
                conv(2, width, width, 1),
                norm(2, width),
                nn.ReLU(inplace=True),
            )
            for width, side in zip(own, self.sides, strict=False)
        )

    def forward(self, maps: list[Tensor], count: int) -> list[Tensor]:
        """Encoder maps, deepest first, without bottleneck → the deepest `count`, mixed."""
        size = [side // self.sides[0] for side in maps[0].shape[2:]]
        tokens = [cut(each) for cut, each in zip(self.tokens, maps, strict=True)]
        for layer in self.layers[:-1]:
            tokens = layer(tokens, len(tokens))
        tokens = self.layers[-1](tokens, count)
        return [
            maps[level] + self.enlarged[level](self.norms[level](own).mT.unflatten(-1, size))
            for level, own in enumerate(tokens)
        ]


class UCTransBlock(nn.Module):
    """Enlarges a map, scales the channels of the skip connection (CCA), and merges them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.from_skip = nn.Linear(in_channels, in_channels)
        self.from_map = nn.Linear(in_channels, in_channels)
        self.convolutions = convolutions(2, 2 * in_channels, out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in, *size) and (B, in, *(2 · size)) → (B, out, *(2 · size))."""
        scores = self.from_skip(spatial_mean(skip)) + self.from_map(spatial_mean(x))
        scaled = F.relu(skip * (scores / 2).sigmoid()[..., None, None])
        return self.convolutions(torch.cat((scaled, F.interpolate(x, scale_factor=2)), dim=1))


class UCTransDecoder(nn.Module):
    """The channel transformer and the deepest `count` decoder blocks."""

    def __init__(self, settings: Settings, channels: tuple[int, ...], count: int) -> None:
        super().__init__()
        skips = channels[-2::-1]
        if count:
            self.attention = SkipAttention(skips, count, settings)
        blocks = zip(skips, (*skips[1:], skips[-1]), strict=True)
        self.blocks = nn.ModuleList(UCTransBlock(*widths) for widths in list(blocks)[:count])

    def forward(self, features: list[Tensor], blocks: int | None = None) -> list[Tensor]:
        """Encoder maps, finest first → bottleneck and the output of each block."""
        maps, used = [features[-1]], self.blocks[:blocks]
        skips = self.attention(features[-2::-1], len(used)) if len(used) else []
        for block, skip in zip(used, skips, strict=True):
            maps.append(block(maps[-1], skip))
        return maps


class UCTransNet(Network):
    """Four poolings by 2; the two deepest levels are equally wide."""

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
        self.strides = ((1, 1), *[(2, 2)] * POOLINGS)
        widths = [settings.width * 2**level for level in range(POOLINGS)]
        self.channels = (*widths, widths[-1])
        self.encoder = UCTransEncoder(in_channels, self.channels)
        count = POOLINGS if decoder_blocks is None else decoder_blocks
        self.decoder = UCTransDecoder(settings, self.channels, count)
        self.apply(initialise_convolutions)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the maps that `decode` returns with all blocks, bottleneck first."""
        return (self.channels[-1], *self.channels[-3::-1], self.channels[0])


PLUGIN = UCTransNet
