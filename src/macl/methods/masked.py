"""Masked reconstruction for a convolutional U-Net, in the spirit of MAE (He et al. 2022, arXiv
2111.06377).

Blocks of the patch are covered, and the whole U-Net learns to fill them in from what is left:

    x ── cover blocks ── e ── d ── 1×1 convolution ── x̂ ── mean square error on the covered voxels

MAE gives its transformer only the visible blocks; a convolution needs every voxel, so covered ones
are set to 0, the mean of a normalised scan. As in MAE, 75 % is covered, blocks have a side of 16,
and only covered voxels count. They are compared as they are; MAE's released command first
normalises each block.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from macl.augmentation.regions import random_blocks
from macl.augmentation.views import view
from macl.config.settings import AugmentationSettings, PluginSettings
from macl.data.batch import Batch
from macl.distributed import collectives
from macl.engine.task import Quantity, StepOutput
from macl.losses import spread
from macl.models.layers import conv, image_channels, spatial_mean
from macl.models.network import Network, Strides
from macl.tasks.pretraining import FEATURE_SPREAD, Method
from macl.utils.errors import MaclError
from macl.utils.text import counted, format_size


class Settings(PluginSettings):
    """Settings of masked reconstruction."""

    covered: float = Field(default=0.75, gt=0, lt=1, description="share of blocks that is covered")
    block: int = Field(default=16, gt=0, description="side of a block in voxels")
    views: AugmentationSettings = AugmentationSettings()


class Masked(Method):
    """A whole U-Net and a 1×1 convolution to the image's channels."""

    Settings = Settings
    settings: Settings
    fewest_patches = 1
    quantities = {
        "loss_covered": Quantity("Reconstruction loss", "Mean square error on the covered voxels."),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        last, channels = network.decoder_channels[-1], image_channels(network.encoder)
        self.to_pixels = conv(network.dims, last, channels, 1)
        self.transferable_prefixes = ("encoder.", "decoder.")

    @classmethod
    def trained_decoder_blocks(cls, settings: Settings) -> None:
        """All of them."""
        return None

    @classmethod
    def require_patch(cls, settings: Settings, patch: tuple[int, ...], strides: Strides) -> None:
        """Of its blocks one must be covered, and one left."""
        blocks = math.prod(math.ceil(side / settings.block) for side in patch)
        if not 0 < round(settings.covered * blocks) < blocks:
            raise MaclError(
                f"A patch of {format_size(patch)} voxels has {counted(blocks, 'block')} of "
                f"{settings.block} voxels a side, of which method_settings.covered="
                f"{settings.covered:g} covers none or all: lower method_settings.block or change "
                "method_settings.covered."
            )

    def losses(self, features: list[Tensor], images: Tensor, covered: Tensor) -> StepOutput:
        """The error of what is restored from `features` on the covered (B, 1, S, S) pixels of
        `images` (B, C, *patch)."""
        restored = self.to_pixels(self.network.decode(features)[-1]).float()
        error = (restored - images).square().mean(1, keepdim=True)
        loss = collectives.all_reduce_sum((error * covered).sum()) / collectives.all_reduce_sum(
            covered.sum()
        )
        return StepOutput(
            loss,
            {"loss_covered": loss.detach(), "feature_spread": spread(spatial_mean(features[-1]))},
        )

    def step(self, batch: Batch) -> StepOutput:
        """Cover, restore, compare."""
        images = view(batch.images, batch.rng, self.settings.views)
        covered = random_blocks(
            batch.rng, images.shape[2:], self.settings.block, self.settings.covered
        )
        features = self.network.encode(images.masked_fill(covered, 0.0))
        return self.losses(features, images, covered)

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """Features that are all equal would restore the mean; what that costs depends on the
        scans."""
        return {}


PLUGIN = Masked
