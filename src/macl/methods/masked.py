"""Masked reconstruction for a convolutional U-Net, in the spirit of MAE (He et al. 2022, arXiv 2111.06377).

Square blocks of the slice are covered, and the whole U-Net learns to fill them in from what is left:

    x ── blocks covered ── e ── d ── 1×1 convolution ── x̂ ── mean square error on the covered pixels

MAE gives its transformer the visible patches only; a convolution needs every pixel, so covered ones are set to 0, the mean
of a normalised slice. As in MAE the covered share is 75 %, blocks have 16 pixels a side, and only covered pixels count. They
are compared as they are: that every block is first brought to mean 0 and deviation 1, as by MAE's released command, is left out.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from macl import distributed
from macl.config import AugmentationSettings, PluginSettings
from macl.heads import image_channels
from macl.losses import spread
from macl.plugins import BackboneModule, Batch, Method, Step
from macl.views import random_blocks, view


class Settings(PluginSettings):
    """Settings of masked reconstruction."""

    covered: float = Field(default=0.75, gt=0, lt=1, description="share of blocks that is covered")
    block: int = Field(default=16, gt=0, description="side of a block in pixels")
    views: AugmentationSettings = AugmentationSettings()


class Masked(nn.Module):
    """A whole U-Net and a 1×1 convolution to the image's channels."""

    def __init__(self, settings: Settings, backbone: BackboneModule) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.to_pixels = nn.Conv2d(backbone.channels[0], image_channels(backbone.encoder), 1)

    def losses(self, features: list[Tensor], images: Tensor, covered: Tensor) -> Step:
        """The error of what is restored from `features` on the covered (B, 1, S, S) pixels of `images` (B, C, S, S)."""
        restored = self.to_pixels(self.backbone.decode(features)).float()
        error = (restored - images).square().mean(1, keepdim=True)
        loss = distributed.total((error * covered).sum()) / distributed.total(covered.sum())
        return Step(loss, {"loss_covered": loss.detach(), "feature_spread": spread(features[-1].mean((2, 3)))})

    def step(self, batch: Batch) -> Step:
        """Cover, restore, compare."""
        images = view(batch.images, batch.draws, self.settings.views)
        covered = random_blocks(
            batch.draws, images.shape[-2], images.shape[-1], self.settings.block, self.settings.covered
        )
        features = self.backbone.encode(images.masked_fill(covered, 0.0))
        return self.losses(features, images, covered)

    def uniform_loss(self, batch_size: int) -> None:
        """Features that are all equal would restore the mean; what that costs depends on the scans."""
        return None

    def handed_on(self) -> tuple[str, ...]:
        """Encoder and decoder."""
        return ("encoder.", "decoder.")


PLUGIN = Method("masked", Settings, Masked, decoder_blocks=lambda settings: 4)
