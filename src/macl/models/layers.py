"""The layers that networks and heads are built of, in two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01
"""Of every LeakyReLU in the paper's network."""

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_AVERAGE_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


Sides = int | Sequence[int]
"""One number for every axis, or one for each."""


def conv(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: Sides,
    *,
    stride: Sides = 1,
    padding: Sides = 0,
    groups: int = 1,
    bias: bool = True,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over `dims` axes."""
    sides: list[Any] = [
        each if isinstance(each, int) else tuple(each) for each in (kernel, stride, padding)
    ]
    return _CONVOLUTIONS[dims](in_channels, out_channels, *sides, groups=groups, bias=bias)


def transposed_conv(
    dims: int, in_channels: int, out_channels: int, stride: Sequence[int], *, bias: bool = True
) -> nn.Module:
    """A transposed convolution whose kernel is its stride, so that every input voxel becomes a
    block of its own."""
    sides: Any = tuple(stride)
    return _TRANSPOSED[dims](in_channels, out_channels, sides, stride=sides, bias=bias)


def norm(dims: int, channels: int, *, affine: bool = True) -> nn.Module:
    """BatchNorm over `dims` axes."""
    return _NORMS[dims](channels, affine=affine)


def instance_norm(dims: int, channels: int, *, eps: float, affine: bool) -> nn.Module:
    """InstanceNorm over `dims` axes, without running statistics."""
    return _INSTANCE_NORMS[dims](channels, eps=eps, affine=affine)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a map (B, C, *size)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, *size) → (B, C, *size)."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def max_pool(maps: Tensor, stride: Sequence[int]) -> Tensor:
    """Max-pooling with a window of `stride`: (B, C, *size) → (B, C, *(size / stride))."""
    return _MAX_POOLS[maps.ndim - 2](maps, tuple(stride))


def average_pool(maps: Tensor, stride: Sequence[int]) -> Tensor:
    """Average-pooling with a window of `stride`: (B, C, *size) → (B, C, *(size / stride))."""
    return _MEAN_POOLS[maps.ndim - 2](maps, tuple(stride))


def resize(maps: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Linear interpolation to another size: (B, C, *old) → (B, C, *size)."""
    mode = _LINEAR_MODES[maps.ndim - 2]
    return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=align_corners)


def spatial_mean(maps: Tensor) -> Tensor:
    """(B, C, *size) → (B, C), the mean over all positions."""
    return maps.mean(tuple(range(2, maps.ndim)))


def global_average_pool(dims: int) -> nn.Sequential:
    """(B, C, *size) → (B, C), the mean over all positions, as layers."""
    return nn.Sequential(_AVERAGE_POOLS[dims](1), nn.Flatten())


def initialise_convolutions(module: nn.Module) -> None:
    """Kaiming-normal weights for LeakyReLU and zero biases, as the paper's network starts; for
    `nn.Module.apply`."""
    if isinstance(module, (*_CONVOLUTIONS.values(), *_TRANSPOSED.values())):
        nn.init.kaiming_normal_(cast(Tensor, module.weight), a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(cast(Tensor, module.bias))


def initialise_linears(module: nn.Module) -> None:
    """Small normal weights and zero biases, as transformers start; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def double_convolution(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions of kernel 3 with BatchNorm and LeakyReLU: (B, in, *size) → (B, out,
    *size)."""
    return nn.Sequential(
        conv(dims, in_channels, out_channels, 3, padding=1),
        norm(dims, out_channels),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        conv(dims, out_channels, out_channels, 3, padding=1),
        norm(dims, out_channels),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
    )


def convolutions(dims: int, *channels: int) -> nn.Sequential:
    """Convolutions of kernel 3 of these widths, each with BatchNorm and ReLU: (B, first, *size) →
    (B, last, *size)."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [
            conv(dims, before, after, 3, padding=1),
            norm(dims, after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def image_channels(encoder: nn.Module) -> int:
    """How many channels the images of an encoder have: those its first convolution takes."""
    kinds = tuple(_CONVOLUTIONS.values())
    return next(
        cast(int, module.in_channels) for module in encoder.modules() if isinstance(module, kinds)
    )
