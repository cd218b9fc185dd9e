"""Attention U-Net: a U-Net whose skip connections are weighed by what the decoder looks for (Oktay
et al. 2018, arXiv 1804.03999), in 2D and 3D.

A gate compares an encoder map x with the coarser decoder map g, and scales every position of x by a
number between 0 and 1 (eqs. 1 and 2):

    x ── strided convolution ─╮
    g ── 1×1 convolution ─────┴ + ── ReLU ── 1×1 convolution ── sigmoid ── enlarge ── · x

The comparison happens at the size of g. As in the paper, the finest skip has no gate. Around the
gates stands the U-Net of MACL's paper, whose encoder's weights fit both.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from macl.models._unet import UNetBlock, UNetFamily
from macl.models.layers import conv, resize


class AttentionGate(nn.Module):
    """Scales the positions of an encoder map by how they suit the coarser decoder map."""

    def __init__(self, skip_channels: int, gate_channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        dims, compared = len(stride), max(1, skip_channels // 2)
        self.from_skip = conv(dims, skip_channels, compared, stride, stride=stride, bias=False)
        self.from_gate = conv(dims, gate_channels, compared, 1)
        self.to_weight = conv(dims, compared, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """(B, C, *(size · stride)) and (B, G, *size) → (B, C, *(size · stride))."""
        compared = F.relu(self.from_skip(skip) + self.from_gate(gate))
        weights = self.to_weight(compared).sigmoid()
        return skip * resize(weights, skip.shape[2:])


class GatedBlock(UNetBlock):
    """A decoder block of the U-Net with a gate on its skip connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.gate = AttentionGate(out_channels, in_channels, stride)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in, *size) and (B, out, *(size · stride)) → (B, out, *(size · stride))."""
        return super().forward(x, self.gate(skip, x))


class AttentionUNet(UNetFamily):
    """The U-Net with gates on all skip connections but the finest."""

    def decoder_block(self, level: int) -> nn.Module:
        """The block that enlarges the map of a level and merges it with that of the level above."""
        if level == 1:
            return super().decoder_block(level)
        return GatedBlock(self.channels[level], self.channels[level - 1], self.strides[level])


PLUGIN = AttentionUNet
