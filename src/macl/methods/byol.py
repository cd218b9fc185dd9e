"""BYOL: bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733).

An online network predicts the projection that a slowly moving target network makes of another view.
There are no negatives; the predictor and the slow target together keep the features apart:

    t(x)  ── e ── projector ── predictor ── q ╮
    t'(x) ── e' ─ projector' ────────────── z'┴ 2 − 2·cos (eq. 2), and once more with views swapped

The target moves by ξ ← τ·ξ + (1 − τ)·θ, with τ rising along a cosine from 0.996 to 1 over the run.
0.996 is the released code's start for 1,000 epochs; it uses 0.99 for 100 and 300. Head widths are
the released ones. We move the target at the start of a step rather than at the end of the one
before, which amounts to the same.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.views import STRONG_VIEWS, two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import negative_cosine, spread
from macl.models.heads import (
    mlp_with_batch_norm,
    momentum_copy,
    rising_momentum,
    update_momentum_copy,
)
from macl.models.layers import global_average_pool
from macl.models.network import Network
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of BYOL."""

    momentum: float = Field(default=0.996, ge=0, le=1, description="τ at the start; 1 at the end")
    hidden: int = Field(
        default=4096, gt=0, description="hidden channels of projector and predictor"
    )
    projection: int = Field(default=256, gt=0, description="channels of projections")
    predictor: bool = Field(default=True, description="false: an ablation that collapses")
    views: AugmentationSettings = STRONG_VIEWS


class Byol(Method):
    """An encoder, a projector and a predictor; the first two with a momentum copy."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_prediction": Quantity(
            "Prediction loss",
            "2 − 2·cos between each prediction and the target of the other view; both views added.",
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        hidden, channels = settings.hidden, settings.projection
        self.projector = nn.Sequential(
            *global_average_pool(network.dims),
            *mlp_with_batch_norm((network.channels[-1], hidden, channels)),
        )
        self.predictor = (
            mlp_with_batch_norm((channels, hidden, channels))
            if settings.predictor
            else nn.Identity()
        )
        self.target_encoder = momentum_copy(network.encoder)
        self.target_projector = momentum_copy(self.projector)

    def project(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → the online network's projections (B, D)."""
        return self.projector(self.network.encode(images)[-1])

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → the target network's projections (B, D)."""
        return self.target_projector(self.target_encoder(images)[-1])

    def step(self, batch: Batch) -> StepOutput:
        """Move the target, then predict each view's target from the other view."""
        momentum = rising_momentum(self.settings.momentum, batch.progress)
        update_momentum_copy(self.target_encoder, self.network.encoder, momentum)
        update_momentum_copy(self.target_projector, self.projector, momentum)
        v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
        z1, z2 = self.project(v1), self.project(v2)
        first = 2.0 + 2.0 * negative_cosine(self.predictor(z1), self.target(v2))
        second = 2.0 + 2.0 * negative_cosine(self.predictor(z2), self.target(v1))
        loss = first + second
        return StepOutput(
            loss, {"loss_prediction": loss.detach(), "feature_spread": spread(torch.cat((z1, z2)))}
        )

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """The loss is least where all features are equal, so it shows nothing."""
        return {}


PLUGIN = Byol
