"""MACL: multi-level asymmetric contrastive learning (Zeng et al., arXiv 2309.11876).

Two branches share the encoder e. The dominant branch sees the slice downsampled by λ = 2^-N and runs e and N decoder
blocks d; the auxiliary branch sees it at full size and runs e alone, so that both end at the same height and width:

    auxiliary   I1 ── e ──────────── Ỹ ── pixel projector ── Z̃ˡ        V1 ── e ── projector ── Z̃ᵍ
                                     │ L_ER                   │ L_d                             │ L_g
    dominant    I2 ── down ── e ──── Y ── d ──────────────── Zˡ        V2 ── down ── e ── d ── projector ── Zᵍ

I1 = I2 is the slice, V1 and V2 are random spatial augmentations of it. The figure writes I1, V1 for the dominant branch;
the naming here is the release's. Zᵍ comes from the decoder (eq. 4, figure and release; eq. 7 writes the encoder). There is no
stop-gradient, and the four views pass through the network apart, so that BatchNorm sees each alone, as released.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.config import PluginSettings, SpatialSettings
from macl.heads import global_projector, pixel_projector
from macl.losses import contrastive, dense_contrastive, for_both_branches, positives_by_position, spread
from macl.plugins import BackboneModule, Batch, Step
from macl.views import spatial_view

POOLED_BY_ENCODER = 16
RELEASED_BASE_TEMPERATURE = 0.07


class Settings(PluginSettings):
    """Settings of MACL; the defaults are the paper's."""

    decoder_blocks: int = Field(default=2, ge=0, le=4, description="N; the dominant branch is downsampled by 2^-N")
    threshold: float = Field(default=0.1, ge=0, description="t: slices nearer than this in position are positives")
    temperature: float = Field(default=0.1, gt=0, description="τ")
    weight_global: float = Field(default=1.0, ge=0, description="λ1, of L_g")
    weight_dense: float = Field(default=0.5, ge=0, description="λ2, of L_d")
    weight_regularisation: float = Field(default=1.0, ge=0, description="λ3, of L_ER")
    # The release multiplies L_g and L_d by τ / 0.07, a left-over of its ancestor; the λ's were tuned with it.
    released_factor: bool = Field(default=True, description="multiply L_g and L_d by τ / 0.07, as the release does")
    projection: int = Field(default=128, gt=0, description="channels of the global projections")
    views: SpatialSettings = SpatialSettings()


@dataclass(frozen=True)
class Outputs:
    """What the branches yield; shapes for slice side S, width F and N decoder blocks, s = S/16."""

    auxiliary_bottleneck: Tensor
    """Ỹ (B, 16F, s, s)"""
    dominant_bottleneck: Tensor
    """Y (B, 16F, s/2^N, s/2^N)"""
    auxiliary_dense: Tensor
    """Z̃ˡ (B, 16F/2^N, s, s)"""
    dominant_dense: Tensor
    """Zˡ (B, 16F/2^N, s, s)"""
    auxiliary_global: Tensor
    """Z̃ᵍ (B, projection)"""
    dominant_global: Tensor
    """Zᵍ (B, projection)"""


def _down(maps: Tensor, blocks: int) -> Tensor:
    """Bilinear, corners aligned, by 2^-blocks: (B, C, h, w) → (B, C, h/2^N, w/2^N)."""
    if blocks == 0:
        return maps
    size = [side // 2**blocks for side in maps.shape[-2:]]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class Macl(nn.Module):
    """Both branches on one backbone."""

    def __init__(self, settings: Settings, backbone: BackboneModule) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        bottleneck = backbone.channels[-1]
        dense = bottleneck // 2**settings.decoder_blocks
        hidden = backbone.channels[2]
        self.auxiliary_pixel_projector = pixel_projector(bottleneck, dense)
        self.auxiliary_global_projector = global_projector(bottleneck, hidden, settings.projection)
        self.dominant_global_projector = global_projector(dense, hidden, settings.projection)

    def forward(self, i1: Tensor, i2: Tensor, v1: Tensor, v2: Tensor) -> Outputs:
        """Four views (B, C, S, S) through both branches; i1 and v1 feed the auxiliary, i2 and v2 the dominant one."""
        blocks = self.settings.decoder_blocks
        auxiliary = self.backbone.encode(i1)[-1]
        dominant = self.backbone.encode(_down(i2, blocks))
        return Outputs(
            auxiliary_bottleneck=auxiliary,
            dominant_bottleneck=dominant[-1],
            auxiliary_dense=self.auxiliary_pixel_projector(auxiliary),
            dominant_dense=self.backbone.decode(dominant),
            auxiliary_global=self.auxiliary_global_projector(self.backbone.encode(v1)[-1]),
            dominant_global=self.dominant_global_projector(self.backbone(_down(v2, blocks))),
        )

    def losses(self, outputs: Outputs, positions: Tensor) -> Step:
        """L = λ1·L_g + λ2·L_d + λ3·L_ER (eq. 11) for slices at the given positions (B,)."""
        settings = self.settings
        positives = positives_by_position(positions, settings.threshold)
        factor = settings.temperature / RELEASED_BASE_TEMPERATURE if settings.released_factor else 1.0
        anchors = torch.cat((outputs.dominant_global, outputs.auxiliary_global))
        loss_global = factor * contrastive(anchors, for_both_branches(positives), settings.temperature)
        loss_dense = factor * dense_contrastive(
            outputs.dominant_dense, outputs.auxiliary_dense, positives, settings.temperature
        )
        target = _down(outputs.auxiliary_bottleneck, settings.decoder_blocks)
        loss_regularisation = F.l1_loss(outputs.dominant_bottleneck, target)
        total = (
            settings.weight_global * loss_global
            + settings.weight_dense * loss_dense
            + settings.weight_regularisation * loss_regularisation
        )
        parts = {
            "loss_global": loss_global,
            "loss_dense": loss_dense,
            "loss_regularisation": loss_regularisation,
            "positives_per_anchor": 2.0 * positives.sum(1).float().mean() - 1.0,
            "feature_spread": spread(anchors),
            "bottleneck_size": outputs.dominant_bottleneck.abs().mean(),
        }
        return Step(total, {name: value.detach() for name, value in parts.items()})

    def step(self, batch: Batch) -> Step:
        """Views, branches, losses."""
        image = batch.images
        v1 = spatial_view(image, batch.draws, "v1", self.settings.views)
        v2 = spatial_view(image, batch.draws, "v2", self.settings.views)
        return self.losses(self(image, image, v1, v2), batch.positions)

    def uniform_loss(self, batch_size: int) -> tuple[str, float]:
        """The logged part that shows collapse, and its value where all features are equal: ln(2B − 1) · factor."""
        factor = self.settings.temperature / RELEASED_BASE_TEMPERATURE if self.settings.released_factor else 1.0
        return "loss_global", factor * float(torch.log(torch.tensor(2.0 * batch_size - 1.0)))

    def handed_on(self) -> tuple[str, ...]:
        """The whole encoder and the decoder blocks that were trained."""
        return ("encoder.", "decoder.")


class Plugin:
    """MACL by name."""

    name = "macl"
    Settings = Settings
    neighbours = False

    def decoder_blocks(self, settings: Settings) -> int:
        """N."""
        return settings.decoder_blocks

    def side_multiple(self, settings: Settings) -> int:
        """16 · 2^N: the bottleneck must be downsampled N times more."""
        return POOLED_BY_ENCODER * 2**settings.decoder_blocks

    def build(self, settings: Settings, backbone: BackboneModule) -> Macl:
        """MACL on a backbone that has N decoder blocks."""
        return Macl(settings, backbone)


PLUGIN = Plugin()
