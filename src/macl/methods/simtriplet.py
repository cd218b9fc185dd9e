"""SimTriplet: SimSiam over two views and a neighbour (Liu et al. 2021, arXiv 2103.05585).

A neighbour shows nearly the same anatomy, so its projection is a third target:

    x  ── t(x), t'(x) ── e ── projector ── z1, z2 ── predictor ── p1, p2
    x3 ── t"(x3)      ── e ── projector ── z3     ── predictor ── p3

    L = ½ [D(p1, z2) + D(p2, z1)] + ½ [D(p1, z3) + D(p3, z1)],   D = −cos, no gradient through z

In the paper, on microscopy, the neighbour is an adjacent patch of the plane; here it is the next
patch of the volume. The loss is the released code's. Heads are SimSiam's; the released projector's
last BatchNorm also has a scale and a shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from macl.augmentation.views import view
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import negative_cosine, spread
from macl.methods._siamese import Siamese, SiameseSettings
from macl.tasks.pretraining import FEATURE_SPREAD


class Settings(SiameseSettings):
    """Settings of SimTriplet."""


class SimTriplet(Siamese):
    """Two views of a patch and one of its neighbour."""

    Settings = Settings
    settings: Settings
    needs_neighbours = True
    quantities = {
        "loss_views": Quantity("Loss of the views", "−cos between the two views of a patch."),
        "loss_neighbours": Quantity(
            "Loss of the neighbours", "−cos between a patch and its neighbour."
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def losses(self, z1: Tensor, z2: Tensor, z3: Tensor) -> StepOutput:
        """The pair's and the neighbour's half, for projections (B, D)."""
        p1, p2, p3 = (self.predictor(z) for z in (z1, z2, z3))
        t1, t2, t3 = (z.detach() for z in (z1, z2, z3))
        views = 0.5 * (negative_cosine(p1, t2) + negative_cosine(p2, t1))
        neighbours = 0.5 * (negative_cosine(p1, t3) + negative_cosine(p3, t1))
        logged = {
            "loss_views": views.detach(),
            "loss_neighbours": neighbours.detach(),
            "feature_spread": spread(torch.cat((p1, p2))),
        }
        return StepOutput(views + neighbours, logged)

    def step(self, batch: Batch) -> StepOutput:
        """Two views of the patch and one of its neighbour."""
        assert batch.neighbours is not None
        sources = {"v1": batch.images, "v2": batch.images, "v3": batch.neighbours}
        views = (
            view(images, batch.rng.within(name), self.settings.views)
            for name, images in sources.items()
        )
        return self.losses(*(self(images) for images in views))


PLUGIN = SimTriplet
