"""What stands on a backbone while pre-training: projectors."""

from __future__ import annotations

from torch import nn


def global_projector(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    """Average-pool and a two-layer perceptron: (B, in, h, w) → (B, out)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(in_channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_channels, out_channels),
    )


def pixel_projector(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3×3 convolutions with BatchNorm and LeakyReLU: (B, in, h, w) → (B, out, h, w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.01, inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.01, inplace=True),
    )
