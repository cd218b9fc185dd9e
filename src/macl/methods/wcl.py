"""WCL: weakly supervised contrastive learning (Zheng et al. 2021, arXiv 2110.04770).

SimCLR with a second head that says which patches of the batch are alike: each patch is linked to
its nearest neighbour, and the connected components are weak labels. One view's labels supervise the
other's contrast:

    t(x)  ── e ┬─ g ── z1 ╮ NT-Xent          φ ── h1 ── components ── positives for h2
    t'(x) ── e ┴─ g ── z2 ┘                  φ ── h2 ── components ── positives for h1

    L = NT-Xent(z1, z2) + ½ [contrast(h1; labels of h2) + contrast(h2; labels of h1)]

This follows the released code: both heads have three layers, the first contrasts both views, the
second one view at a time, and both terms share weight and τ. Like it, we leave out the paper's
third term, multi-crop views of nearest neighbours; we also leave out its gentler views of the first
ten epochs.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from macl.augmentation.views import STRONG_VIEWS, two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import contrastive, pairs_of_both_branches, same_component, spread
from macl.models.heads import mlp_with_batch_norm
from macl.models.layers import global_average_pool
from macl.models.network import Network
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of WCL."""

    temperature: float = Field(default=0.1, gt=0, description="τ of both contrasts")
    weight_weak: float = Field(default=1.0, ge=0, description="of the weakly supervised contrast")
    hidden: int = Field(default=4096, gt=0, description="hidden channels of both heads")
    projection: int = Field(default=256, gt=0, description="channels of both heads' outputs")
    views: AugmentationSettings = STRONG_VIEWS


class Wcl(Method):
    """An encoder with a head for single slices and one for alike slices."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_instance": Quantity("Instance loss", "NT-Xent of the two views.", "nats"),
        "loss_weak": Quantity(
            "Weakly supervised loss", "Contrast in which patches of one component attract.", "nats"
        ),
        "positives_per_anchor": Quantity(
            "Positives per anchor",
            "Other patches of an anchor's component. At 0 it stands alone.",
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        channels = (network.channels[-1], settings.hidden, settings.hidden, settings.projection)
        self.pool = global_average_pool(network.dims)
        self.instance_head = mlp_with_batch_norm(channels)
        self.weak_head = mlp_with_batch_norm(channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, *patch) → both heads' projections (B, D)."""
        features = self.pool(self.network.encode(images)[-1])
        return self.instance_head(features), self.weak_head(features)

    def losses(self, z1: Tensor, z2: Tensor, h1: Tensor, h2: Tensor) -> StepOutput:
        """NT-Xent of z1, z2 and the swapped weak contrast of h1, h2, all (B, D)."""
        anchors = torch.cat((z1, z2))
        itself = pairs_of_both_branches(torch.eye(len(z1), dtype=torch.bool, device=z1.device))
        instance = contrastive(anchors, itself, self.settings.temperature)
        alike1, alike2 = same_component(h1), same_component(h2)
        first = contrastive(h1, alike2, self.settings.temperature)
        second = contrastive(h2, alike1, self.settings.temperature)
        weak = 0.5 * (first + second)
        parts = {
            "loss_instance": instance.detach(),
            "loss_weak": weak.detach(),
            "positives_per_anchor": alike1.sum(1).float().mean() - 1.0,
            "feature_spread": spread(anchors),
        }
        return StepOutput(instance + self.settings.weight_weak * weak, parts)

    def step(self, batch: Batch) -> StepOutput:
        """Two views, two heads."""
        v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
        (z1, h1), (z2, h2) = self(v1), self(v2)
        return self.losses(*(batch.gathered(rows) for rows in (z1, z2, h1, h2)))

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln(2B − 1)."""
        return {"loss_instance": math.log(2 * batch_size - 1)}


PLUGIN = Wcl
