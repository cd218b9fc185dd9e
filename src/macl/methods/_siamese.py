"""What SimSiam and SimTriplet share: an encoder, a projector and a predictor, without negatives."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from macl.augmentation.views import STRONG_VIEWS
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.models.heads import mlp_with_batch_norm, siamese_projector
from macl.models.network import Network
from macl.tasks.pretraining import Method


class SiameseSettings(PluginSettings):
    """Settings of a projector and a predictor."""

    projection: int = Field(default=2048, gt=0, description="channels of the projector")
    hidden: int = Field(default=512, gt=0, description="hidden channels of the predictor")
    views: AugmentationSettings = STRONG_VIEWS


class Siamese(Method):
    """An encoder, a projector and a predictor."""

    def __init__(self, settings: SiameseSettings, network: Network) -> None:
        super().__init__(settings, network)
        channels = settings.projection
        self.projector = siamese_projector(network.dims, network.channels[-1], channels)
        self.predictor = mlp_with_batch_norm((channels, settings.hidden, channels))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → projections (B, D)."""
        return self.projector(self.network.encode(images)[-1])

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """The loss is least where all features are equal, so it shows nothing."""
        return {}
