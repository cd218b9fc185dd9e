"""What SimCLR and PCL share: two views, one encoder, one contrast. They differ in who is a positive
of whom."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from macl.augmentation.views import two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import contrastive, pairs_of_both_branches, released_factor, spread
from macl.models.heads import global_projector
from macl.models.network import Network
from macl.tasks.pretraining import FEATURE_SPREAD, POSITIVES_PER_ANCHOR, Method


class ContrastSettings(PluginSettings):
    """Settings of a contrast between two views."""

    temperature: float = Field(default=0.1, gt=0, description="τ")
    released_factor: bool = Field(
        default=False, description="multiply by τ / 0.07, as the released code does"
    )
    projection: int = Field(default=128, gt=0, description="channels of the projections")
    views: AugmentationSettings = AugmentationSettings()


class TwoViewContrast(Method):
    """An encoder and a projector, contrasted between two views of every patch."""

    quantities = {
        "loss_contrast": Quantity(
            "Contrastive loss", "Each projection against its positives.", "nats"
        ),
        "positives_per_anchor": POSITIVES_PER_ANCHOR,
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: ContrastSettings, network: Network) -> None:
        super().__init__(settings, network)
        channels = network.channels[-1], network.hidden_channels, settings.projection
        self.projector = global_projector(network.dims, *channels)
        self.factor = released_factor(settings.temperature, settings.released_factor)

    @abstractmethod
    def positives(self, positions: Tensor) -> Tensor:
        """(B, B) bool: which patches at these positions (B, axes) attract; every patch attracts
        itself."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → projections (B, D)."""
        return self.projector(self.network.encode(images)[-1])

    def losses(self, z1: Tensor, z2: Tensor, positions: Tensor) -> StepOutput:
        """The contrast of both views' projections (B, D) of patches at the given positions (B,
        axes)."""
        anchors, positives = torch.cat((z1, z2)), self.positives(positions)
        contrast = contrastive(
            anchors, pairs_of_both_branches(positives), self.settings.temperature
        )
        loss = self.factor * contrast
        logged = {
            "loss_contrast": loss.detach(),
            "positives_per_anchor": 2.0 * positives.sum(1).float().mean() - 1.0,
            "feature_spread": spread(anchors),
        }
        return StepOutput(loss, logged)

    def step(self, batch: Batch) -> StepOutput:
        """Two views, one encoder, one loss."""
        v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
        gathered = (batch.gathered(rows) for rows in (self(v1), self(v2), batch.positions))
        return self.losses(*gathered)

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln(2B − 1), times the factor."""
        return {"loss_contrast": self.factor * math.log(2 * batch_size - 1)}
