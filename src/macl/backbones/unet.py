"""The U-Net of the MACL paper: four poolings, two 3×3 convolutions a level (Ronneberger et al. 2015, with BatchNorm)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config import PluginSettings
from macl.heads import double_convolution, initialise_convolutions

LEVELS = 4


class Encoder(nn.Module):
    """Four levels with widths F, 2F, 4F, 8F, each followed by a max-pool, and a centre of width 16F without norm."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        before = (in_channels, *channels[:-2])
        self.levels = nn.ModuleList(map(double_convolution, before, channels[:-1]))
        self.centre = nn.Sequential(
            nn.Conv2d(channels[-2], channels[-1], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels[-1], channels[-1], 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, S, S) → five maps, (B, F, S, S) … (B, 16F, S/16, S/16)."""
        features, x = [], images
        for level in self.levels:
            x = level(x)
            features.append(x)
            x = nn.functional.max_pool2d(x, 2)
        return [*features, self.centre(x)]


class DecoderBlock(nn.Module):
    """Doubles height and width, halves the channels, and merges the encoder's map of that size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.convolutions = double_convolution(channels, channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, 2c, h, w) and (B, c, 2h, 2w) → (B, c, 2h, 2w)."""
        return self.convolutions(torch.cat((self.up(x), skip), dim=1))


class Decoder(nn.Module):
    """The deepest `blocks` decoder blocks, deepest first."""

    def __init__(self, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width) for width in channels[::-1][:blocks])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Encoder maps → (B, 16F / 2^N, S/16 · 2^N, S/16 · 2^N)."""
        x = features[-1]
        for block, skip in zip(self.blocks, features[-2::-1], strict=False):
            x = block(x, skip)
        return x


class UNet(nn.Module):
    """Encoder and decoder without a head; with all four blocks the output has F channels at full size."""

    def __init__(self, in_channels: int, width: int, decoder_blocks: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(LEVELS + 1))
        self.encoder = Encoder(in_channels, self.channels)
        self.decoder = Decoder(self.channels, decoder_blocks)
        self.apply(initialise_convolutions)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The encoder's maps, finest first, bottleneck last."""
        return self.encoder(images)

    def decode(self, features: list[Tensor]) -> Tensor:
        """The output of the decoder blocks this network has."""
        return self.decoder(features)

    def forward(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`."""
        return self.decode(self.encode(images))


class Settings(PluginSettings):
    """Settings of the U-Net."""

    width: int = Field(default=32, gt=0, description="channels F of the finest level")


class Plugin:
    """The U-Net by name."""

    name = "unet"
    Settings = Settings

    def build(self, settings: Settings, in_channels: int, decoder_blocks: int | None = None) -> UNet:
        """The U-Net with all its decoder blocks, or only the deepest `decoder_blocks`."""
        return UNet(in_channels, settings.width, LEVELS if decoder_blocks is None else decoder_blocks)


PLUGIN = Plugin()
