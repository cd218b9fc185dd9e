"""SimSiam: simple siamese representation learning (Chen & He 2021, arXiv 2011.10566).

One encoder, two views; each view's prediction is drawn to the other's projection, through which no gradient flows. That
stop-gradient alone keeps the features from becoming equal:

    t(x)  ── e ── projector ── z1 ── predictor ── p1 ╮
    t'(x) ── e ── projector ── z2 (stop-gradient) ── ┴ −cos (eq. 1), and once more with the views exchanged (eq. 4)

Followed is the paper, and the released code, which has its widths: the projector's last BatchNorm has no scale and shift.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config import AugmentationSettings, PluginSettings
from macl.heads import normed_perceptron, normed_projector
from macl.losses import negative_cosine, spread
from macl.plugins import BackboneModule, Batch, Method, Step
from macl.views import STRONG_VIEWS, two_views


class Settings(PluginSettings):
    """Settings of SimSiam."""

    projection: int = Field(default=2048, gt=0, description="channels of the projector")
    hidden: int = Field(default=512, gt=0, description="hidden channels of the predictor")
    stop_gradient: bool = Field(default=True, description="false: an ablation that collapses")
    views: AugmentationSettings = STRONG_VIEWS


class SimSiam(nn.Module):
    """An encoder, a projector and a predictor."""

    def __init__(self, settings: Settings, backbone: BackboneModule) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.projector = normed_projector(backbone.channels[-1], settings.projection)
        self.predictor = normed_perceptron((settings.projection, settings.hidden, settings.projection))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) → projections (B, D)."""
        return self.projector(self.backbone.encode(images)[-1])

    def losses(self, z1: Tensor, z2: Tensor) -> Step:
        """Half of each direction's negative cosine, for projections (B, D)."""
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.settings.stop_gradient else (z1, z2)
        loss = 0.5 * negative_cosine(p1, t2) + 0.5 * negative_cosine(p2, t1)
        # The spread of predictions: BatchNorm keeps the projections of a small batch apart even where all else has collapsed.
        return Step(loss, {"loss_similarity": loss.detach(), "feature_spread": spread(torch.cat((p1, p2)))})

    def step(self, batch: Batch) -> Step:
        """Two views, one encoder."""
        v1, v2 = two_views(batch.images, batch.draws, self.settings.views)
        return self.losses(self(v1), self(v2))

    def uniform_loss(self, batch_size: int) -> None:
        """The loss is least where all features are equal, so it shows nothing."""
        return None

    def handed_on(self) -> tuple[str, ...]:
        """The encoder."""
        return ("encoder.",)


PLUGIN = Method("simsiam", Settings, SimSiam)
