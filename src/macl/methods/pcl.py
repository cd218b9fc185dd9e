"""PCL: positional contrastive learning (Zeng et al. 2021, arXiv 2106.09157).

Slices at similar height show similar anatomy, so they are positives of each other, whatever their
patient: those whose positions p = (index + 1) / slices differ by less than t. The rest is SimCLR:

    x ── t(x)  ── e ── pool, projector ── z1 ╮
      ╰─ t'(x) ── e ── pool, projector ── z2 ┴ contrast, positives |p_i − p_j| < t

The loss takes every anchor's mean over its positives, each against all other anchors: the form of
supervised contrastive learning (Khosla et al. 2020), which the released code uses. t and τ come
from its command. Its views change geometry alone, by mirrors, elastic deformation, rotation and
scale, as here.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from macl.losses import positives_by_position
from macl.methods._contrast import ContrastSettings, TwoViewContrast


class Settings(ContrastSettings):
    """Settings of PCL."""

    threshold: float | tuple[float, float, float] = Field(
        default=0.1,
        description="t: patches nearer than this are positives; one number, or z, y, x in 3D",
    )


class Pcl(TwoViewContrast):
    """A patch attracts all patches at a similar position, of whatever patient."""

    Settings = Settings
    settings: Settings
    contrasts_positions = True

    def positives(self, positions: Tensor) -> Tensor:
        """(B, B): nearer than t on every axis."""
        return positives_by_position(positions, self.settings.threshold)


PLUGIN = Pcl
