"""SimTriplet: SimSiam over two views and a neighbour (Liu et al. 2021, arXiv 2103.05585).

A neighbour shows nearly the same anatomy, so its projection is a third target:

    x  ── t(x), t'(x) ── e ── projector ── z1, z2 ── predictor ── p1, p2
    x3 ── t"(x3)      ── e ── projector ── z3     ── predictor ── p3

    L = ½ [D(p1, z2) + D(p2, z1)] + ½ [D(p1, z3) + D(p3, z1)],   D = −cos, no gradient through z

In the paper, on microscopy, the neighbour is an adjacent patch of the plane; here it is the next slice of the volume. The loss
is the released code's. Heads are SimSiam's; there the projector's last BatchNorm has a scale and a shift besides.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from macl.config import AugmentationSettings, PluginSettings
from macl.heads import normed_perceptron, normed_projector
from macl.losses import negative_cosine, spread
from macl.plugins import BackboneModule, Batch, Method, Step
from macl.views import STRONG_VIEWS, view


class Settings(PluginSettings):
    """Settings of SimTriplet."""

    projection: int = Field(default=2048, gt=0, description="channels of the projector")
    hidden: int = Field(default=512, gt=0, description="hidden channels of the predictor")
    views: AugmentationSettings = STRONG_VIEWS


class SimTriplet(nn.Module):
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

    def losses(self, z1: Tensor, z2: Tensor, z3: Tensor) -> Step:
        """The pair's and the neighbour's half, for projections (B, D)."""
        p1, p2, p3 = (self.predictor(z) for z in (z1, z2, z3))
        t1, t2, t3 = (z.detach() for z in (z1, z2, z3))
        views = 0.5 * (negative_cosine(p1, t2) + negative_cosine(p2, t1))
        neighbours = 0.5 * (negative_cosine(p1, t3) + negative_cosine(p3, t1))
        parts = {
            "loss_views": views.detach(),
            "loss_neighbours": neighbours.detach(),
            "feature_spread": spread(torch.cat((p1, p2))),
        }
        return Step(views + neighbours, parts)

    def step(self, batch: Batch) -> Step:
        """Two views of the slice and one of its neighbour."""
        assert batch.neighbours is not None
        sources = {"v1": batch.images, "v2": batch.images, "v3": batch.neighbours}
        views = (view(images, batch.draws.within(name), self.settings.views) for name, images in sources.items())
        return self.losses(*(self(images) for images in views))

    def uniform_loss(self, batch_size: int) -> None:
        """The loss is least where all features are equal, so it shows nothing."""
        return None

    def handed_on(self) -> tuple[str, ...]:
        """The encoder."""
        return ("encoder.",)


PLUGIN = Method("simtriplet", Settings, SimTriplet, neighbours=True)
