"""MACL: multi-level asymmetric contrastive learning (Zeng et al., arXiv 2309.11876).

Two branches share the encoder e. The dominant branch sees the patch downsampled and runs e and N
decoder blocks d; the auxiliary branch sees it at full size and runs e alone, so that both end at
the same size:

    auxiliary  I1 ── e ───────── Ỹ ── pixel projector ── Z̃ˡ   V1 ── e ─────────── projector ── Z̃ᵍ
                                 │ L_ER                  │ L_d                                 │ L_g
    dominant   I2 ─ down ── e ── Y ── d ──────────────── Zˡ   V2 ─ down ─ e ─ d ── projector ── Zᵍ

The downsampling is the stride of the N deepest levels, per axis: λ = 2^-N in the paper's 2D U-Net.
I1 = I2 is the patch; V1 and V2 are random spatial augmentations of it. The figure gives I1, V1 to
the dominant branch; the naming here is the release's. Zᵍ comes from the decoder (eq. 4, figure and
release; eq. 7 writes the encoder). There is no stop-gradient, and the four views pass through the
network separately, so that BatchNorm sees each alone, as released.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.geometry import spatial_view
from macl.augmentation.intensity import change_intensity
from macl.config.settings import IntensitySettings, PluginSettings, SpatialSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import (
    contrastive,
    dense_contrastive,
    pairs_of_both_branches,
    positives_by_position,
    released_factor,
    spread,
    standardise,
)
from macl.models.heads import global_projector, momentum_copy, update_momentum_copy
from macl.models.layers import double_convolution, initialise_convolutions, resize, spatial_mean
from macl.models.network import Network, Strides, decoder_stride, total_stride
from macl.tasks.pretraining import (
    FEATURE_SPREAD,
    POSITIVES_PER_ANCHOR,
    Method,
)


class Settings(PluginSettings):
    """Settings of MACL; the defaults are the paper's."""

    decoder_blocks: int = Field(
        default=2,
        ge=0,
        description="N; the dominant branch is downsampled by what these blocks enlarge",
    )
    threshold: float | tuple[float, float, float] = Field(
        default=0.1,
        description="t: patches nearer than this are positives; one number, or z, y, x in 3D",
    )
    temperature: float = Field(default=0.1, gt=0, description="τ")
    weight_global: float = Field(default=1.0, ge=0, description="λ1, of L_g")
    weight_dense: float = Field(default=0.5, ge=0, description="λ2, of L_d")
    weight_regularisation: float = Field(default=1.0, ge=0, description="λ3, of L_ER")
    # The release multiplies L_g and L_d by τ / 0.07, a left-over of its ancestor; the λ's were
    # tuned with it.
    released_factor: bool = Field(
        default=True, description="multiply L_g and L_d by τ / 0.07, as the release does"
    )
    projection: int = Field(default=128, gt=0, description="channels of the global projections")
    views: SpatialSettings = SpatialSettings()
    # What macl-plus changes.
    standardised_regularisation: bool = Field(
        default=False,
        description="L_ER compares the bottlenecks' channels brought to mean 0 and deviation 1 "
        "over the batch, so that it cannot fall by shrinking them",
    )
    shared_projection: bool = Field(
        default=False,
        description="the global projectors share their last layer, so that both branches start "
        "out alike",
    )
    # The paper's ablations.
    encoders: Literal["shared", "ema", "independent"] = Field(
        default="shared",
        description="the auxiliary branch's encoder: the same, one that follows, or one of its own",
    )
    encoder_momentum: float = Field(
        default=0.99, ge=0, le=1, description="of the encoder that follows"
    )
    symmetric: bool = Field(
        default=False, description="the auxiliary branch too is downsampled and decoded"
    )
    encoder_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="below 1: two stages, L_g and L_ER, then L_d on a frozen encoder",
    )
    invariance: IntensitySettings = Field(
        default=IntensitySettings(),
        description="changes of I1 and I2; the paper found none to be best",
    )


class Pair(NamedTuple):
    """What the two branches make of the same patches at one level."""

    auxiliary: Tensor
    dominant: Tensor

    def gathered(self, batch: Batch) -> Pair:
        """With the rows of all processes."""
        return Pair(*map(batch.gathered, self))


@dataclass(frozen=True)
class Outputs:
    """What the branches yield at each level; None where it was not asked for.

    Shapes are for the paper's U-Net of width F, slices of side S, s = S/16, and N decoder blocks.
    """

    bottlenecks: Pair | None = None
    """Ỹ (B, 16F, s, s) and Y (B, 16F, s/2^N, s/2^N)"""
    dense: Pair | None = None
    """Z̃ˡ and Zˡ, (B, 16F/2^N, s, s)"""
    projections: Pair | None = None
    """Z̃ᵍ and Zᵍ, (B, projection)"""

    def gathered(self, batch: Batch) -> Outputs:
        """With the maps and projections that L_d and L_g compare them with; L_ER takes each slice
        by itself."""
        return replace(
            self,
            dense=self.dense and self.dense.gathered(batch),
            projections=self.projections and self.projections.gathered(batch),
        )


def _down(maps: Tensor, factors: Sequence[int]) -> Tensor:
    """Linear interpolation, corners aligned: (B, C, *size) → (B, C, *(size / factors))."""
    if max(factors) == 1:
        return maps
    size = [side // factor for side, factor in zip(maps.shape[2:], factors, strict=True)]
    return resize(maps, size, align_corners=True)


class Macl(Method):
    """Both branches on one network."""

    Settings = Settings
    settings: Settings
    contrasts_positions = True
    quantities = {
        "loss_global": Quantity(
            "Global loss",
            "Image level: whole patches at similar positions attract, all others repel. With every "
            "feature alike it stays at ln(2B − 1), times its factor.",
            "nats",
        ),
        "loss_dense": Quantity(
            "Dense loss",
            "Pixel level: the same contrast at every position of the two maps.",
            "nats",
        ),
        "loss_regularisation": Quantity(
            "Equivariant loss",
            "Feature level: how far the two bottlenecks differ. Small also if they merely shrink, "
            "unless they are standardised.",
        ),
        "positives_per_anchor": POSITIVES_PER_ANCHOR,
        "feature_spread": FEATURE_SPREAD,
        "bottleneck_size": Quantity(
            "Bottleneck size",
            "Mean magnitude at the bottleneck. If it falls towards 0, the equivariant loss falls "
            "for nothing.",
        ),
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        self.factor = released_factor(settings.temperature, settings.released_factor)
        self.down_factors = decoder_stride(network.strides, settings.decoder_blocks)
        self.transferable_prefixes = ("encoder.", "decoder.")
        dims, bottleneck, hidden = network.dims, network.channels[-1], network.hidden_channels
        dense = network.decoder_channels[settings.decoder_blocks]
        auxiliary = dense if settings.symmetric else bottleneck
        self.auxiliary_pixel_projector = (
            nn.Identity() if settings.symmetric else double_convolution(dims, bottleneck, dense)
        )
        self.auxiliary_pixel_projector.apply(initialise_convolutions)
        self.auxiliary_global_projector = global_projector(
            dims, auxiliary, hidden, settings.projection
        )
        self.dominant_global_projector = global_projector(dims, dense, hidden, settings.projection)
        if settings.shared_projection:
            self.dominant_global_projector[-1] = self.auxiliary_global_projector[-1]
        if settings.encoders == "ema":
            self.auxiliary_encoder = momentum_copy(network.encoder)
        elif settings.encoders == "independent":
            self.auxiliary_encoder = copy.deepcopy(network.encoder)

    @classmethod
    def trained_decoder_blocks(cls, settings: Settings) -> int:
        """N."""
        return settings.decoder_blocks

    @classmethod
    def patch_multiple(cls, settings: Settings, strides: Strides) -> tuple[int, ...]:
        """Of what the encoder takes, and the dominant branch's image is smaller by the
        downsampling."""
        down = decoder_stride(strides, settings.decoder_blocks)
        return tuple(of * by for of, by in zip(total_stride(strides), down, strict=True))

    @classmethod
    def smallest_image(
        cls, settings: Settings, patch: tuple[int, ...], strides: Strides
    ) -> tuple[int, ...]:
        """The dominant branch's."""
        down = decoder_stride(strides, settings.decoder_blocks)
        return tuple(side // by for side, by in zip(patch, down, strict=True))

    def _auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, *patch) → the branch's bottleneck and the maps it ends with, which are the same
        unless symmetric."""
        settings = self.settings
        images = _down(images, self.down_factors) if settings.symmetric else images
        with torch.set_grad_enabled(torch.is_grad_enabled() and settings.encoders != "ema"):
            shared = settings.encoders == "shared"
            features = self.network.encode(images) if shared else self.auxiliary_encoder(images)
        return features[-1], self.network.decode(features)[-1] if settings.symmetric else features[
            -1
        ]

    def forward(
        self,
        i1: Tensor | None,
        i2: Tensor | None,
        v1: Tensor | None,
        v2: Tensor | None,
        dense: bool = True,
    ) -> Outputs:
        """Four views (B, C, *patch) through both branches; i1 and v1 feed the auxiliary, i2 and v2
        the dominant one."""
        bottlenecks = maps = projections = None
        if i1 is not None and i2 is not None:
            bottleneck, last = self._auxiliary(i1)
            dominant = self.network.encode(_down(i2, self.down_factors))
            bottlenecks = Pair(bottleneck, dominant[-1])
            if dense:
                pixels = self.auxiliary_pixel_projector(last)
                maps = Pair(pixels, self.network.decode(dominant)[-1])
        if v1 is not None and v2 is not None:
            auxiliary = self.auxiliary_global_projector(self._auxiliary(v1)[1])
            decoded = self.network(_down(v2, self.down_factors))
            projections = Pair(auxiliary, self.dominant_global_projector(decoded))
        return Outputs(bottlenecks, maps, projections)

    def weights(self, done: float) -> tuple[float, float, float]:
        """λ1, λ2, λ3 after this share of the run."""
        settings = self.settings
        by_image, by_pixel, by_feature = (
            settings.weight_global,
            settings.weight_dense,
            settings.weight_regularisation,
        )
        if settings.encoder_share == 1:
            return by_image, by_pixel, by_feature
        return (
            (by_image, 0.0, by_feature) if done < settings.encoder_share else (0.0, by_pixel, 0.0)
        )

    def losses(self, outputs: Outputs, positions: Tensor, done: float = 0.0) -> StepOutput:
        """L = λ1·L_g + λ2·L_d + λ3·L_ER (eq. 11) for patches at the given positions (B, axes); what
        was not made is 0."""
        settings, none = self.settings, positions.new_zeros(())
        positives = positives_by_position(positions, settings.threshold)
        loss_global = loss_dense = loss_regularisation = distance = size = none
        if outputs.bottlenecks:
            bottlenecks = outputs.bottlenecks
            loss_regularisation = self._regularise(bottlenecks)
            distance = spread(spatial_mean(bottlenecks.dominant))
            size = bottlenecks.dominant.abs().mean()
        if outputs.dense:
            auxiliary, dominant = outputs.dense
            loss_dense = self.factor * dense_contrastive(
                dominant, auxiliary, positives, settings.temperature
            )
        if outputs.projections:
            auxiliary, dominant = outputs.projections
            anchors = torch.cat((dominant, auxiliary))
            loss_global = self.factor * contrastive(
                anchors, pairs_of_both_branches(positives), settings.temperature
            )
            distance = spread(anchors)
        by_image, by_pixel, by_feature = self.weights(done)
        parts = {
            "loss_global": loss_global,
            "loss_dense": loss_dense,
            "loss_regularisation": loss_regularisation,
            "positives_per_anchor": 2.0 * positives.sum(1).float().mean() - 1.0,
            "feature_spread": distance,
            "bottleneck_size": size,
        }
        total = by_image * loss_global + by_pixel * loss_dense + by_feature * loss_regularisation
        return StepOutput(total, {name: value.detach() for name, value in parts.items()})

    def _regularise(self, bottlenecks: Pair) -> Tensor:
        """L_ER: the auxiliary bottleneck is brought to the dominant one's size."""
        target, dominant = bottlenecks
        target = target if self.settings.symmetric else _down(target, self.down_factors)
        if self.settings.standardised_regularisation:
            dominant, target = standardise(dominant), standardise(target)
        return F.l1_loss(dominant, target)

    def step(self, batch: Batch) -> StepOutput:
        """Views, branches, losses; views and maps that no loss needs are not made."""
        settings, image = self.settings, batch.images
        i1 = i2 = v1 = v2 = None
        by_image, by_pixel, by_feature = self.weights(batch.progress)
        if settings.encoders == "ema":
            update_momentum_copy(
                self.auxiliary_encoder, self.network.encoder, settings.encoder_momentum
            )
        if settings.encoder_share < 1 and batch.progress >= settings.encoder_share:
            self.network.encoder.requires_grad_(False).eval()
        if by_image:
            v1 = spatial_view(image, batch.rng.within("v1"), "geometry", settings.views)
            v2 = spatial_view(image, batch.rng.within("v2"), "geometry", settings.views)
        if by_pixel or by_feature:
            i1 = change_intensity(image, batch.rng.within("i1"), settings.invariance)
            i2 = change_intensity(image, batch.rng.within("i2"), settings.invariance)
        outputs = self(i1, i2, v1, v2, dense=by_pixel > 0).gathered(batch)
        return self.losses(outputs, batch.gathered(batch.positions), batch.progress)

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """L_g and L_d: ln(2B − 1), times the factor."""
        uniform = self.factor * math.log(2 * batch_size - 1)
        return {"loss_global": uniform, "loss_dense": uniform}


PLUGIN = Macl
