"""SimCLR: a simple framework for contrastive learning (Chen et al. 2020, arXiv 2002.05709).

Two augmentations of a patch are positives of each other, the 2B − 2 others of the batch negatives
(NT-Xent, eq. 1):

    x ── t(x)  ── e ── pool, projector ── z1 ╮
      ╰─ t'(x) ── e ── pool, projector ── z2 ┴ NT-Xent

The loss and the two-layer projector are the paper's. The projector has MACL's widths and no
BatchNorm, so that the comparison is one of losses; the released code has BatchNorm after both
layers. The two views pass through the encoder separately. Scans have no colour: brightness,
contrast and gamma stand in for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from macl.augmentation.views import STRONG_VIEWS
from macl.config.settings import AugmentationSettings
from macl.methods._contrast import ContrastSettings, TwoViewContrast


class Settings(ContrastSettings):
    """Settings of SimCLR; the temperature is the paper's best for ImageNet."""

    views: AugmentationSettings = STRONG_VIEWS


class SimClr(TwoViewContrast):
    """A patch attracts its other view alone."""

    Settings = Settings

    def positives(self, positions: Tensor) -> Tensor:
        """(B, B): the diagonal."""
        return torch.eye(len(positions), dtype=torch.bool, device=positions.device)


PLUGIN = SimClr
