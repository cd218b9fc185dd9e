"""GCL: contrastive learning of global and local features (Chaitanya et al. 2020, arXiv 2006.10511).

Volumes of one organ are cut into S parts along their axis; patches of the same part, of any
patient, are positives. Stage 1 trains the encoder e this way, with a projector g1. Stage 2 freezes
it and trains decoder blocks d, so that a region looks alike in two renderings of its intensity and
unlike other regions of the same patch:

    stage 1   x ── t(x), t'(x) ── e ── pool, g1 ── z ── contrast, positives: same part of the volume
    stage 2   x ── two intensities ── e (frozen) ── d ── g2 ── contrast, positives: same region

Stage 1 uses PCL's and MACL's form by default (each positive against all other anchors);
`original_form` is the paper's, which leaves other positives out of the denominator. Stage 2 is the
paper's strategy "random" within a slice. S, τ, the 13 regions of 3×3 positions and the three
decoder blocks come from the released commands; there a region meets five others of each rendering,
here it meets all. The released views of stage 1 are crops with changed brightness and contrast;
ours are MACL's. The paper trains the stages in two runs; here the first `encoder_share` of one run
is stage 1.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from macl.augmentation.geometry import spatial_view
from macl.augmentation.intensity import change_intensity
from macl.augmentation.views import two_views
from macl.config.settings import AugmentationSettings, IntensitySettings, PluginSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.task import Quantity, StepOutput
from macl.losses import (
    contrastive,
    contrastive_per_pair,
    pairs_of_both_branches,
    positives_by_partition,
    released_factor,
    spread,
)
from macl.models.heads import global_projector, region_projector
from macl.models.network import Network, Strides, decoder_stride, total_stride
from macl.tasks.pretraining import FEATURE_SPREAD, Method
from macl.utils.errors import MaclError
from macl.utils.text import format_size


class Settings(PluginSettings):
    """Settings of GCL."""

    partitions: int = Field(default=4, gt=0, description="S, parts of a volume")
    original_form: bool = Field(
        default=False, description="leave other positives out of the denominator (the paper)"
    )
    temperature: float = Field(default=0.1, gt=0, description="τ")
    released_factor: bool = Field(
        default=False, description="multiply stage 1 by τ / 0.07, as MACL's release does"
    )
    projection: int = Field(default=128, gt=0, description="channels of g1's and g2's outputs")
    encoder_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the run that is stage 1"
    )
    decoder_blocks: int = Field(default=3, ge=1, description="l, blocks trained in stage 2")
    regions: int = Field(default=13, gt=1, description="regions of a slice, drawn anew each step")
    region_side: int = Field(default=3, gt=0, description="places of the map along a region's side")
    views: AugmentationSettings = AugmentationSettings()
    local_intensity: IntensitySettings = IntensitySettings(brightness=0.8, contrast=0.8)


def _tiles(maps: Tensor, side: int) -> Tensor:
    """(B, D, *size) → (B, tiles, D·side^dims): the map cut into tiles; what is left over at the far
    end is dropped."""
    dims = maps.ndim - 2
    for axis in range(2, 2 + dims):
        maps = maps.unfold(axis, side, side)
    counts = maps.shape[2 : 2 + dims].numel()
    order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    return maps.permute(order).reshape(maps.shape[0], counts, -1)


class Gcl(Method):
    """An encoder with g1; decoder blocks with g2."""

    Settings = Settings
    settings: Settings
    contrasts_positions = True
    quantities = {
        "loss_global": Quantity(
            "Global loss", "Stage 1: patches of the same part of the volume attract.", "nats"
        ),
        "loss_local": Quantity(
            "Local loss", "Stage 2: the same region in two renderings attracts.", "nats"
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        bottleneck = network.channels[-1]
        dense = network.decoder_channels[settings.decoder_blocks]
        self.transferable_prefixes = ("encoder.", "decoder.")
        self.global_projector = global_projector(
            network.dims, bottleneck, network.hidden_channels, settings.projection
        )
        self.local_projector = region_projector(network.dims, dense, settings.projection)

    @classmethod
    def trained_decoder_blocks(cls, settings: Settings) -> int:
        """l."""
        return settings.decoder_blocks

    @classmethod
    def require_patch(cls, settings: Settings, patch: tuple[int, ...], strides: Strides) -> None:
        """The maps of stage 2 must hold two regions, to be contrasted with each other."""
        side = settings.region_side
        whole, up = total_stride(strides), decoder_stride(strides, settings.decoder_blocks)
        maps = [of * by // down for of, by, down in zip(patch, up, whole, strict=True)]
        if math.prod(length // side for length in maps) < 2:
            raise MaclError(
                f"GCL contrasts regions of {side} places a side, of which maps of "
                f"{format_size(maps)} hold no two: raise training.size or "
                "method_settings.decoder_blocks, or lower method_settings.region_side."
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → global projections (B, D)."""
        return self.global_projector(self.network.encode(images)[-1])

    def global_loss(self, z1: Tensor, z2: Tensor, positions: Tensor) -> Tensor:
        """Stage 1's loss of both views' projections (B, D) of slices at the given positions (B,
        axes)."""
        form = contrastive_per_pair if self.settings.original_form else contrastive
        positives = pairs_of_both_branches(
            positives_by_partition(positions, self.settings.partitions)
        )
        return self._factor() * form(torch.cat((z1, z2)), positives, self.settings.temperature)

    def local_loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Stage 2's loss of two renderings' regions (B, R, D): each against all others of its
        slice, in both."""
        anchors = torch.cat((first, second), dim=1)
        same = torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
        return contrastive(anchors, pairs_of_both_branches(same), self.settings.temperature)

    def _regions(self, maps: Tensor, rng: SampleRng) -> Tensor:
        """(B, D, *size) → (B, regions, D·side^dims), of random tiles that are the same for both
        renderings."""
        side = self.settings.region_side
        tiles = _tiles(maps, side)
        chosen = rng.uniform("regions", (tiles.shape[1],)).argsort(1)[:, : self.settings.regions]
        return tiles.gather(1, chosen[..., None].expand(-1, -1, tiles.shape[2]))

    def step(self, batch: Batch) -> StepOutput:
        """Stage 1 or stage 2, by how much of the run is done."""
        none = batch.images.new_zeros(())
        if batch.progress < self.settings.encoder_share:
            v1, v2 = two_views(batch.images, batch.rng, self.settings.views)
            z1, z2, positions = (
                batch.gathered(rows) for rows in (self(v1), self(v2), batch.positions)
            )
            loss, features = self.global_loss(z1, z2, positions), torch.cat((z1, z2))
            parts = {"loss_global": loss.detach(), "loss_local": none}
        else:
            first, second = (
                self._regions(self._frozen_maps(batch, name), batch.rng) for name in ("r1", "r2")
            )
            loss, features = self.local_loss(first, second), first.flatten(0, 1)
            parts = {"loss_global": none, "loss_local": loss.detach()}
        return StepOutput(loss, {**parts, "feature_spread": spread(features)})

    def _frozen_maps(self, batch: Batch, name: str) -> Tensor:
        """One rendering's maps (B, D, *size): geometry shared by both, intensity its own."""
        self.network.encoder.eval()
        shared = spatial_view(batch.images, batch.rng, "geometry", self.settings.views.spatial)
        with torch.no_grad():
            intensity = self.settings.local_intensity
            features = self.network.encode(
                change_intensity(shared, batch.rng.within(name), intensity)
            )
        return self.local_projector(self.network.decode(features)[-1])

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln(2B − 1), times the factor; in the original form it depends on who is in the batch."""
        if self.settings.original_form:
            return {}
        return {"loss_global": self._factor() * math.log(2 * batch_size - 1)}

    def _factor(self) -> float:
        return released_factor(self.settings.temperature, self.settings.released_factor)


PLUGIN = Gcl
