"""What the U-Net and its variants share: the encoder, the strides, and how the decoder is built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config.settings import PluginSettings
from macl.models._decoder import Decoder
from macl.models.layers import (
    conv,
    double_convolution,
    initialise_convolutions,
    max_pool,
    transposed_conv,
)
from macl.models.network import Network, Strides, choose_strides
from macl.utils.errors import MaclError

PAPER_STRIDES = (2, 2, 2, 2)


class Settings(PluginSettings):
    """Settings of the U-Net and its variants."""

    width: int = Field(default=32, gt=0, description="channels F of the finest level")
    strides: tuple[int | tuple[int, ...], ...] | None = Field(
        default=None,
        min_length=1,
        description="stride of each pooling, finest first: one number, or one for each axis; none: "
        "four poolings by 2 in 2D, in 3D what nnU-Net would choose for patch and spacing",
    )


class UNetEncoder(nn.Module):
    """Levels of width F, 2F, 4F, …, each followed by a max-pool, and a centre without norm."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], strides: Strides) -> None:
        super().__init__()
        self.strides = strides
        dims = len(strides[0])
        before = (in_channels, *channels[:-2])
        self.levels = nn.ModuleList(
            double_convolution(dims, wide, wider)
            for wide, wider in zip(before, channels[:-1], strict=True)
        )
        self.centre = nn.Sequential(
            conv(dims, channels[-2], channels[-1], 3, padding=1),
            nn.ReLU(inplace=True),
            conv(dims, channels[-1], channels[-1], 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every level, finest first, bottleneck last."""
        features, x = [], images
        for level, stride in zip(self.levels, self.strides[1:], strict=True):
            x = level(x)
            features.append(x)
            x = max_pool(x, stride)
        return [*features, self.centre(x)]


class UNetBlock(nn.Module):
    """Enlarges a map by a level's stride, halves the channels, and merges the encoder's map of that
    size."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.up = transposed_conv(len(stride), in_channels, out_channels, stride)
        self.convolutions = double_convolution(len(stride), 2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in, *size) and (B, out, *(size · stride)) → (B, out, *(size · stride))."""
        return self.convolutions(torch.cat((self.up(x), skip), dim=1))


class UNetFamily(Network):
    """Encoder and decoder without a head; with all its decoder blocks the output has F channels at
    full size."""

    Settings = Settings
    supported_dims = (2, 3)

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
        chosen = settings.strides or PAPER_STRIDES
        poolings = tuple(
            (stride,) * dims if isinstance(stride, int) else stride for stride in chosen
        )
        self.strides = ((1,) * dims, *poolings)
        self.channels = tuple(settings.width * 2**level for level in range(len(self.strides)))
        self.encoder = UNetEncoder(in_channels, self.channels, self.strides)
        deepest_first = range(len(poolings), 0, -1)[:decoder_blocks]
        self.decoder = Decoder(self.decoder_block(level) for level in deepest_first)
        self.apply(initialise_convolutions)

    def decoder_block(self, level: int) -> nn.Module:
        """The block that enlarges the map of a level and merges it with that of the level above."""
        return UNetBlock(self.channels[level], self.channels[level - 1], self.strides[level])

    @classmethod
    def complete(
        cls, settings: Settings, patch: Sequence[int], spacing_mm: Sequence[float] | None
    ) -> Settings:
        """Settings whose strides are chosen."""
        if settings.strides is None:
            strides = PAPER_STRIDES if len(patch) == 2 else choose_strides(patch, spacing_mm)
            return settings.model_copy(update={"strides": strides})
        if any(
            not isinstance(stride, int) and len(stride) != len(patch) for stride in settings.strides
        ):
            raise MaclError(
                f"backbone_settings.strides {settings.strides} do not fit a patch of {len(patch)} "
                "axes: give one number for each pooling, or one for each axis."
            )
        return settings
