"""MoCo v2: momentum contrast (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv
2003.04297).

A query must find its key, which a slowly moving encoder made from another view, in a long queue of
earlier keys (eq. 1). The key encoder moves by θ_k ← m·θ_k + (1 − m)·θ_q (eq. 2):

    t(x)  ── e ── projector ── q ╮
    t'(x) ── e' ─ projector' ─ k ┴ contrast with the queue, then k joins the queue

Temperature and blur are version 2's, and so is the projector but for its BatchNorm; K, m and τ come
from the released command. Its shuffled BatchNorm is left out: queries and their own keys are
normalised over the same batch. The key encoder moves at the start of a step, as in the released
code.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.views import STRONG_VIEWS, two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import contrastive_with_queue, spread
from macl.models.heads import Queue, mlp_with_batch_norm, momentum_copy, update_momentum_copy
from macl.models.layers import global_average_pool
from macl.models.network import Network
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of MoCo v2."""

    queue: int = Field(
        default=65536, gt=0, description="K, keys remembered; best well below the number of patches"
    )
    momentum: float = Field(default=0.999, ge=0, le=1, description="m")
    temperature: float = Field(default=0.2, gt=0, description="τ")
    projection: int = Field(default=128, gt=0, description="channels of queries and keys")
    views: AugmentationSettings = STRONG_VIEWS


class Moco(Method):
    """An encoder and a projector, both with a momentum copy, and a queue."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_contrast": Quantity(
            "Contrastive loss", "InfoNCE of queries against their keys and the queue.", "nats"
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        bottleneck = network.channels[-1]
        self.projector = nn.Sequential(
            *global_average_pool(network.dims),
            *mlp_with_batch_norm((bottleneck, bottleneck, settings.projection)),
        )
        self.key_encoder = momentum_copy(network.encoder)
        self.key_projector = momentum_copy(self.projector)
        self.queue = Queue(settings.queue, settings.projection)

    def queries(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → (B, D)."""
        return self.projector(self.network.encode(images)[-1])

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → (B, D), unit vectors."""
        return nn.functional.normalize(
            self.key_projector(self.key_encoder(images)[-1]).float(), dim=1
        )

    def step(self, batch: Batch) -> StepOutput:
        """Move the key encoder, contrast, and queue the keys."""
        update_momentum_copy(self.key_encoder, self.network.encoder, self.settings.momentum)
        update_momentum_copy(self.key_projector, self.projector, self.settings.momentum)
        v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
        queries, keys = self.queries(v1), self.keys(v2)
        # The loss keeps what it read for its gradient, so the queue it read must not change under
        # it.
        loss = contrastive_with_queue(
            queries, keys, self.queue.keys.clone(), self.settings.temperature
        )
        self.queue.push(keys)
        return StepOutput(loss, {"loss_contrast": loss.detach(), "feature_spread": spread(queries)})

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln(K + 1)."""
        return {"loss_contrast": math.log(self.settings.queue + 1)}


PLUGIN = Moco
