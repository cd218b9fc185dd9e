"""DeSD: self-supervised learning with deep self-distillation (Ye et al. 2022, MICCAI).

DINO's distillation (Caron et al. 2021, arXiv 2104.14294) at several depths. Not only the student's
whole encoder but also its first levels alone, each with a head of its own, predict what the
teacher's whole encoder says of another view:

    t(x)  ── e (student) ┬─ levels … ── heads ── p      ╮
                         ╰─ bottleneck ─ head ── p      ┼ −q · log p, mean over depths, in turn
    t'(x) ── e' (teacher) ─ bottleneck ─ head' ─ q      ╯

The teacher follows the student with a momentum that rises from 0.996 to 1. Centring its scores by a
running mean and sharpening them by a low temperature keep it from a constant answer. Temperatures
and their warm-up (20 of 300 epochs), momenta, K, head widths and the equal weights of the depths
are those of the released code and its command. Scores are cosines with prototypes, which is the
released weight-normed last layer with its length fixed to 1. Two things differ: the released heads
use GELU where these use ReLU, and freeze their last layers for the first epoch, which is left out.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.views import STRONG_VIEWS, two_views
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.distributed import collectives
from macl.engine.task import Quantity, StepOutput
from macl.losses import centred_codes, cross_entropy_with_codes, spread
from macl.models.heads import (
    Prototypes,
    mlp_with_batch_norm,
    momentum_copy,
    rising_momentum,
    update_momentum_copy,
)
from macl.models.layers import global_average_pool, spatial_mean
from macl.models.network import Network
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of DeSD."""

    sub_encoders: int = Field(
        default=3, ge=0, le=4, description="levels above the bottleneck that are distilled too"
    )
    prototypes: int = Field(default=60000, gt=1, description="K")
    momentum: float = Field(
        default=0.996, ge=0, le=1, description="of the teacher at the start; 1 at the end"
    )
    centre_momentum: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="decay of the running mean that is subtracted from the teacher's scores",
    )
    student_temperature: float = Field(
        default=0.1, gt=0, description="of the student's softmax; lower: sharper"
    )
    teacher_temperature: tuple[float, float] = Field(
        default=(0.04, 0.07), description="at the start, after warming"
    )
    warming: float = Field(
        default=0.07, ge=0, le=1, description="share of the run in which the teacher's rises"
    )
    hidden: int = Field(default=2048, gt=0, description="hidden channels of the heads")
    projection: int = Field(default=256, gt=0, description="channels compared with the prototypes")
    views: AugmentationSettings = STRONG_VIEWS


class Desd(Method):
    """A student with a head at each depth, a teacher with one, and the teacher's centre."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_deepest": Quantity(
            "Distillation loss", "Cross-entropy of the whole encoder with the teacher.", "nats"
        ),
        "loss_sub_encoders": Quantity(
            "Distillation loss of the sub-encoders",
            "The same, of the shallower levels, added up.",
            "nats",
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    centre: Tensor

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        depths = network.channels[-1 - settings.sub_encoders :]
        self.heads = nn.ModuleList(self._head(channels) for channels in depths)
        self.teacher_encoder = momentum_copy(network.encoder)
        self.teacher_head = momentum_copy(self.heads[-1])
        self.register_buffer("centre", torch.zeros(settings.prototypes))

    def _head(self, channels: int) -> nn.Sequential:
        settings = self.settings
        layers = mlp_with_batch_norm(
            (channels, settings.hidden, settings.hidden, settings.projection)
        )
        return nn.Sequential(
            *global_average_pool(self.network.dims),
            *layers,
            Prototypes(settings.projection, settings.prototypes),
        )

    def student(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, C, *patch) → scores (B, K) at each depth, and the pooled bottleneck (B, 16F)."""
        features = self.network.encode(images)[-len(self.heads) :]
        return [head(maps) for head, maps in zip(self.heads, features, strict=True)], spatial_mean(
            features[-1]
        )

    @torch.no_grad()
    def teacher(self, views: tuple[Tensor, Tensor], temperature: float) -> list[Tensor]:
        """Views (B, C, *patch) → codes (B, K), before the centre moves towards their scores."""
        scores = [self.teacher_head(self.teacher_encoder(images)[-1]).float() for images in views]
        codes = [centred_codes(score, self.centre, temperature) for score in scores]
        self.centre.lerp_(
            collectives.all_reduce_mean(torch.cat(scores).mean(0)),
            1.0 - self.settings.centre_momentum,
        )
        return codes

    def step(self, batch: Batch) -> StepOutput:
        """Follow, answer, and distil each view's answer into the other view at every depth."""
        settings = self.settings
        momentum = rising_momentum(settings.momentum, batch.progress)
        update_momentum_copy(self.teacher_encoder, self.network.encoder, momentum)
        update_momentum_copy(self.teacher_head, self.heads[-1], momentum)
        views = two_views(batch.images, batch.rng, settings.views)
        (scores1, features1), (scores2, features2) = (self.student(images) for images in views)
        code1, code2 = self.teacher(views, self._teacher_temperature(batch.progress))
        by_depth = [
            0.5 * cross_entropy_with_codes(first, code2, settings.student_temperature)
            + 0.5 * cross_entropy_with_codes(second, code1, settings.student_temperature)
            for first, second in zip(scores1, scores2, strict=True)
        ]
        loss = torch.stack(by_depth).mean()
        parts = {
            "loss_deepest": by_depth[-1].detach(),
            "loss_sub_encoders": (len(by_depth) * loss - by_depth[-1]).detach(),
            "feature_spread": spread(torch.cat((features1, features2))),
        }
        return StepOutput(loss, parts)

    def _teacher_temperature(self, done: float) -> float:
        start, end = self.settings.teacher_temperature
        return (
            end
            if done >= self.settings.warming
            else start + (end - start) * done / self.settings.warming
        )

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln K, where every prototype gets the same; the other collapse, onto one prototype, shows
        as 0."""
        return {"loss_deepest": math.log(self.settings.prototypes)}


PLUGIN = Desd
