"""SwAV: contrasting cluster assignments between views (Caron et al. 2020, arXiv 2006.09882).

Projections are compared with K prototypes. Sinkhorn's iterations turn one view's scores into a code
that uses all prototypes equally, and the other views, small crops among them, must predict that
code (eqs. 1, 2):

    t(x)  ── e ── projector ── z1 ── prototypes ── scores ── Sinkhorn ── q1 ╮
    t'(x) ── e ── projector ── z2 ── prototypes ── scores ── softmax ──────┴ −q1 · log p2, in turn

A batch too small to share K prototypes evenly makes its codes together with a queue of earlier
projections, as the paper does from some share of the run on, once the queue is full. K, τ, ε, the
rounds, the number and size of crops, the queue and its start (epoch 15 of 200) come from the
released command for batches of 256, as does freezing the prototypes at first (one epoch).
Prototypes are normalised where they are used instead of being overwritten before each step. Small
crops show a window at the scan's own resolution.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.views import STRONG_VIEWS, small_view, small_window, two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.distributed import collectives
from macl.engine.task import Quantity, StepOutput
from macl.losses import cross_entropy_with_codes, sinkhorn, spread
from macl.models.heads import Prototypes, Queue, mlp_with_batch_norm
from macl.models.layers import global_average_pool
from macl.models.network import Network, Strides, total_stride
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of SwAV."""

    prototypes: int = Field(default=3000, gt=1, description="K")
    temperature: float = Field(default=0.1, gt=0, description="τ of predictions")
    sharpness: float = Field(default=0.05, gt=0, description="ε of the codes")
    rounds: int = Field(default=3, gt=0, description="iterations of Sinkhorn")
    small_crops: int = Field(
        default=6, ge=0, description="views of a patch besides the two whole ones"
    )
    small_share: float = Field(
        default=0.43, gt=0, le=1, description="side of a small crop; the paper's 96 of 224"
    )
    queue: int = Field(
        default=3840, ge=0, description="earlier projections of each view that codes are made with"
    )
    queue_from: float = Field(
        default=0.075,
        ge=0,
        le=1,
        description="share of the run without queue, which must be full, too",
    )
    frozen_until: float = Field(
        default=0.005, ge=0, le=1, description="share of the run with prototypes standing still"
    )
    hidden: int = Field(default=2048, gt=0, description="hidden channels of the projector")
    projection: int = Field(default=128, gt=0, description="channels of projections")
    views: AugmentationSettings = STRONG_VIEWS


class Swav(Method):
    """An encoder, a projector, prototypes and a queue for each of the two views."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_swapped": Quantity(
            "Swapped prediction", "Cross-entropy of each view with the code of the other.", "nats"
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        layers = mlp_with_batch_norm((network.channels[-1], settings.hidden, settings.projection))
        self.projector = nn.Sequential(*global_average_pool(network.dims), *layers)
        self.prototypes = Prototypes(settings.projection, settings.prototypes)
        count = 2 if settings.queue else 0
        self.queues = nn.ModuleList(
            Queue(settings.queue, settings.projection, filled=False) for _ in range(count)
        )

    @classmethod
    def smallest_image(
        cls, settings: Settings, patch: tuple[int, ...], strides: Strides
    ) -> tuple[int, ...]:
        """A small crop."""
        if not settings.small_crops:
            return patch
        return small_window(patch, settings.small_share, total_stride(strides))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → projections (B, D)."""
        return self.projector(self.network.encode(images)[-1])

    @torch.no_grad()
    def codes(self, number: int, projections: Tensor, with_queue: bool) -> Tensor:
        """(B, D) projections of the view with this number → (B, K) codes, made with those of all
        processes.

        The projections join the view's queue, which counts once it is full.
        """
        everyone = collectives.all_gather(projections)
        codes = self._shared_out(everyone)
        if self.queues:
            queue = self.queues[number]
            assert isinstance(queue, Queue)
            if with_queue:
                among = torch.cat((queue.keys, everyone.to(queue.keys.dtype)))
                together = self._shared_out(among)[-len(everyone) :]
                codes = torch.where(queue.is_full, together, codes.to(together.dtype))
            queue.push(F.normalize(projections.float(), dim=1))
        return collectives.local_shard(codes)

    def _shared_out(self, projections: Tensor) -> Tensor:
        """(B, D) projections → (B, K) codes that use all prototypes equally."""
        return sinkhorn(self.prototypes(projections), self.settings.sharpness, self.settings.rounds)

    def swapped(self, scores: list[Tensor], codes: list[Tensor]) -> Tensor:
        """Mean over the codes' views of the mean over all other views of predicting that code."""
        losses = [
            cross_entropy_with_codes(score, code, self.settings.temperature)
            for number, code in enumerate(codes)
            for other, score in enumerate(scores)
            if other != number
        ]
        return torch.stack(losses).mean()

    def step(self, batch: Batch) -> StepOutput:
        """Two views and small crops, their scores, two codes."""
        settings, multiple = self.settings, total_stride(self.network.strides)
        large = two_views(batch.images, batch.rng, settings.views)
        small = [
            small_view(
                batch.images,
                batch.rng.within(f"s{number}"),
                settings.views,
                settings.small_share,
                multiple,
            )
            for number in range(settings.small_crops)
        ]
        projections = [self(images) for images in (*large, *small)]
        learning = batch.progress >= settings.frozen_until
        scores = [self.prototypes(z, learning) for z in projections]
        with_queue = batch.progress >= settings.queue_from
        codes = [
            self.codes(number, z.detach(), with_queue) for number, z in enumerate(projections[:2])
        ]
        loss = self.swapped(scores, codes)
        return StepOutput(
            loss,
            {"loss_swapped": loss.detach(), "feature_spread": spread(torch.cat(projections[:2]))},
        )

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln K: Sinkhorn gives equal features equal shares of every prototype."""
        return {"loss_swapped": math.log(self.settings.prototypes)}


PLUGIN = Swav
