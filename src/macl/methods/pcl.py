"""PCL: positional contrastive learning (Zeng et al. 2021, arXiv 2106.09157).

Slices at similar height show similar anatomy, so they are positives of each other, of whatever patients they are: those
whose positions p = (index + 1) / slices differ by less than t. All else is as in SimCLR:

    x ── t(x)  ── e ── pool, projector ── z1 ╮
      ╰─ t'(x) ── e ── pool, projector ── z2 ┴ contrast, positives |p_i − p_j| < t

Every anchor's mean over its positives, each against all other anchors, is the form of supervised contrastive learning
(Khosla et al. 2020), which the released code uses; t and τ are those of its command. Its views change geometry alone, by
mirrors, elastic deformation, rotation and scale, as here.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config import AugmentationSettings, PluginSettings
from macl.heads import global_projector
from macl.losses import contrastive, for_both_branches, positives_by_position, released_factor, spread
from macl.plugins import BackboneModule, Batch, Method, Step
from macl.views import two_views


class Settings(PluginSettings):
    """Settings of PCL."""

    threshold: float = Field(default=0.1, ge=0, description="t: slices nearer than this in position are positives")
    temperature: float = Field(default=0.1, gt=0, description="τ")
    released_factor: bool = Field(default=False, description="multiply by τ / 0.07, as the released code does")
    projection: int = Field(default=128, gt=0, description="channels of the projections")
    views: AugmentationSettings = AugmentationSettings()


class Pcl(nn.Module):
    """An encoder and a projector."""

    def __init__(self, settings: Settings, backbone: BackboneModule) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.projector = global_projector(backbone.channels[-1], backbone.channels[2], settings.projection)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) → projections (B, D)."""
        return self.projector(self.backbone.encode(images)[-1])

    def losses(self, z1: Tensor, z2: Tensor, positions: Tensor) -> Step:
        """The contrast of both views' projections (B, D) of slices at the given positions (B,)."""
        anchors = torch.cat((z1, z2))
        positives = positives_by_position(positions, self.settings.threshold)
        loss = self._factor() * contrastive(anchors, for_both_branches(positives), self.settings.temperature)
        parts = {
            "loss_contrast": loss.detach(),
            "positives_per_anchor": 2.0 * positives.sum(1).float().mean() - 1.0,
            "feature_spread": spread(anchors),
        }
        return Step(loss, parts)

    def step(self, batch: Batch) -> Step:
        """Two views, one encoder, one loss."""
        v1, v2 = two_views(batch.images, batch.draws, self.settings.views)
        return self.losses(*(batch.contrasted(rows) for rows in (self(v1), self(v2), batch.positions)))

    def uniform_loss(self, batch_size: int) -> tuple[str, float]:
        """ln(2B − 1), times the factor."""
        return "loss_contrast", self._factor() * math.log(2 * batch_size - 1)

    def handed_on(self) -> tuple[str, ...]:
        """The encoder."""
        return ("encoder.",)

    def _factor(self) -> float:
        return released_factor(self.settings.temperature, self.settings.released_factor)


PLUGIN = Method("pcl", Settings, Pcl)
