"""SimCLR: a simple framework for contrastive learning (Chen et al. 2020, arXiv 2002.05709).

Two augmentations of a slice are positives of each other, the 2B − 2 others of the batch negatives (NT-Xent, eq. 1):

    x ── t(x)  ── e ── pool, projector ── z1 ╮
      ╰─ t'(x) ── e ── pool, projector ── z2 ┴ NT-Xent

Followed are the paper's loss and its two-layer projector; the projector is MACL's, so that their comparison is one of losses:
its widths are, and it has no BatchNorm, which the released code has after both layers. The views pass through the encoder
apart. Scans have no colour: its part is played by brightness, contrast and gamma.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config import AugmentationSettings, PluginSettings
from macl.heads import global_projector
from macl.losses import contrastive, for_both_branches, released_factor, spread
from macl.plugins import BackboneModule, Batch, Method, Step
from macl.views import STRONG_VIEWS, two_views


class Settings(PluginSettings):
    """Settings of SimCLR; the temperature is the paper's best for ImageNet."""

    temperature: float = Field(default=0.1, gt=0, description="τ")
    released_factor: bool = Field(default=False, description="multiply by τ / 0.07, as MACL's release does for all")
    projection: int = Field(default=128, gt=0, description="channels of the projections")
    views: AugmentationSettings = STRONG_VIEWS


class SimClr(nn.Module):
    """An encoder and a projector."""

    def __init__(self, settings: Settings, backbone: BackboneModule) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.projector = global_projector(backbone.channels[-1], backbone.channels[2], settings.projection)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) → projections (B, D)."""
        return self.projector(self.backbone.encode(images)[-1])

    def losses(self, z1: Tensor, z2: Tensor) -> Step:
        """NT-Xent over both views' projections (B, D)."""
        anchors = torch.cat((z1, z2))
        positives = for_both_branches(torch.eye(len(z1), dtype=torch.bool, device=z1.device))
        loss = self._factor() * contrastive(anchors, positives, self.settings.temperature)
        return Step(loss, {"loss_contrast": loss.detach(), "feature_spread": spread(anchors)})

    def step(self, batch: Batch) -> Step:
        """Two views, one encoder, one loss."""
        v1, v2 = two_views(batch.images, batch.draws, self.settings.views)
        return self.losses(batch.contrasted(self(v1)), batch.contrasted(self(v2)))

    def uniform_loss(self, batch_size: int) -> tuple[str, float]:
        """ln(2B − 1), times the factor."""
        return "loss_contrast", self._factor() * math.log(2 * batch_size - 1)

    def handed_on(self) -> tuple[str, ...]:
        """The encoder."""
        return ("encoder.",)

    def _factor(self) -> float:
        return released_factor(self.settings.temperature, self.settings.released_factor)


PLUGIN = Method("simclr", Settings, SimClr)
