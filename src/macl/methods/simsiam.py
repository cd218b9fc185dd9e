"""SimSiam: simple siamese representation learning (Chen & He 2021, arXiv 2011.10566).

One encoder, two views. Each view's prediction is drawn to the other's projection, through which no
gradient flows; that stop-gradient alone keeps the features from becoming equal:

    t(x)  ── e ── projector ── z1 ── predictor ── p1 ╮
    t'(x) ── e ── projector ── z2 (stop-gradient) ── ┴ −cos (eq. 1), and with views swapped (eq. 4)

Everything follows the paper and the released code, widths included: the projector's last BatchNorm
has no scale and shift.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from macl.augmentation.views import two_views
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import negative_cosine, spread
from macl.methods._siamese import Siamese, SiameseSettings
from macl.tasks.pretraining import FEATURE_SPREAD


class Settings(SiameseSettings):
    """Settings of SimSiam."""

    stop_gradient: bool = Field(default=True, description="false: an ablation that collapses")


class SimSiam(Siamese):
    """Two views, each predicted from the other."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_similarity": Quantity(
            "Similarity loss", "−cos between predictions and projections of the other view."
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def losses(self, z1: Tensor, z2: Tensor) -> StepOutput:
        """Half of each direction's negative cosine, for projections (B, D)."""
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.settings.stop_gradient else (z1, z2)
        loss = 0.5 * negative_cosine(p1, t2) + 0.5 * negative_cosine(p2, t1)
        # The spread of predictions: BatchNorm keeps the projections of a small batch apart even
        # where all else has collapsed.
        logged = {"loss_similarity": loss.detach(), "feature_spread": spread(torch.cat((p1, p2)))}
        return StepOutput(loss, logged)

    def step(self, batch: Batch) -> StepOutput:
        """Two views, one encoder."""
        v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
        return self.losses(self(v1), self(v2))


PLUGIN = SimSiam
