"""DiRA: discriminative, restorative and adversarial learning (Haghighi et al. 2022, arXiv
2204.10437).

One network learns from three tasks: MoCo v2's contrast on the encoder, restoring the undistorted
view with the decoder, and fooling a discriminator that tells restored views from true ones:

    t(x)  ── distort ── e ┬─ projector ── q ──────────── contrast with k and the queue        L_dis
      │                   ╰─ d ── 1×1 convolution ── x̂ ── (x̂ − t(x))²                          L_res
      │                                               ╰── discriminator(x̂) against t(x)       L_adv
    t'(x) ── e' ── projector' ── k

    L = λ_dis·L_dis + λ_res·L_res + λ_adv·L_adv

From the released code: the weights, MoCo v2's queue, momentum and τ, least squares as adversarial
losses, a discriminator that judges regions, distortion of both views, and a first part of training
without the
adversary. Our own: when the adversary joins; one optimiser for both sides, where the
discriminator's loss sees the restored view without gradient and the network's loss sees a fixed
discriminator; distortion by intensity and covered blocks, without shuffled ones; restoration in the
view's own geometry, where the released code mirrors the view after it took the target.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.augmentation.geometry import spatial_view
from macl.augmentation.intensity import change_intensity
from macl.augmentation.regions import random_blocks
from macl.augmentation.views import STRONG_VIEWS
from macl.config.settings import IntensitySettings, PluginSettings, SpatialSettings
from macl.data.batch import Batch
from macl.engine.task import Quantity, StepOutput
from macl.losses import contrastive_with_queue, spread
from macl.models.heads import (
    DISCRIMINATOR_STRIDE,
    Queue,
    mlp_with_batch_norm,
    momentum_copy,
    patch_discriminator,
    update_momentum_copy,
)
from macl.models.layers import conv, global_average_pool, image_channels
from macl.models.network import Network, Strides, total_stride
from macl.tasks.pretraining import FEATURE_SPREAD, Method


class Settings(PluginSettings):
    """Settings of DiRA."""

    weight_discriminative: float = Field(default=1.0, ge=0, description="λ_dis")
    weight_restorative: float = Field(default=10.0, ge=0, description="λ_res")
    weight_adversarial: float = Field(default=0.001, ge=0, description="λ_adv")
    restoration_from: float = Field(
        default=0.0, ge=0, le=1, description="share of the run before restoration joins"
    )
    adversary_from: float = Field(
        default=0.4, ge=0, le=1, description="share of the run before the adversary joins"
    )
    queue: int = Field(
        default=65536, gt=0, description="K, keys remembered; best well below the number of patches"
    )
    momentum: float = Field(default=0.999, ge=0, le=1, description="m")
    temperature: float = Field(default=0.2, gt=0, description="τ")
    projection: int = Field(default=128, gt=0, description="channels of queries and keys")
    discriminator_width: int = Field(default=64, gt=0, description="channels of its first layer")
    covered: float = Field(
        default=0.1, ge=0, lt=1, description="share of blocks covered in the distorted view"
    )
    block: int = Field(default=16, gt=0, description="side of a covered block in voxels")
    transfer_decoder: bool = Field(
        default=True, description="false: the encoder alone, as MACL's authors compared it"
    )
    views: SpatialSettings = SpatialSettings()
    intensity: IntensitySettings = STRONG_VIEWS.intensity


class Dira(Method):
    """A whole U-Net with a projector, their momentum copies, a queue and a discriminator."""

    Settings = Settings
    settings: Settings
    quantities = {
        "loss_discriminative": Quantity(
            "Discriminative loss", "InfoNCE of queries against their keys and the queue.", "nats"
        ),
        "loss_restorative": Quantity("Restorative loss", "Mean square error of the restored view."),
        "loss_adversarial": Quantity(
            "Adversarial loss", "How far the discriminator is from taking restored views for real."
        ),
        "loss_discriminator": Quantity(
            "Discriminator loss", "Of the discriminator itself, on real and restored views."
        ),
        "feature_spread": FEATURE_SPREAD,
    }

    def __init__(self, settings: Settings, network: Network) -> None:
        super().__init__(settings, network)
        bottleneck, channels = network.channels[-1], image_channels(network.encoder)
        self.projector = nn.Sequential(
            *global_average_pool(network.dims),
            *mlp_with_batch_norm((bottleneck, bottleneck, settings.projection)),
        )
        self.to_pixels = conv(network.dims, network.decoder_channels[-1], channels, 1)
        self.discriminator = patch_discriminator(
            network.dims, channels, settings.discriminator_width
        )
        self.key_encoder = momentum_copy(network.encoder)
        self.key_projector = momentum_copy(self.projector)
        self.queue = Queue(settings.queue, settings.projection)
        if settings.transfer_decoder:
            self.transferable_prefixes = ("encoder.", "decoder.")

    @classmethod
    def trained_decoder_blocks(cls, settings: Settings) -> None:
        """All of them."""
        return None

    @classmethod
    def patch_multiple(cls, settings: Settings, strides: Strides) -> tuple[int, ...]:
        """Of what the encoder and the discriminator take."""
        return tuple(math.lcm(side, DISCRIMINATOR_STRIDE) for side in total_stride(strides))

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """(B, C, *patch) → (B, D), unit vectors."""
        return F.normalize(self.key_projector(self.key_encoder(images)[-1]).float(), dim=1)

    def distorted(self, images: Tensor, batch: Batch, name: str) -> Tensor:
        """A view (B, C, *patch) with its intensity changed and blocks covered."""
        rng = batch.rng.within(name)
        covered = random_blocks(rng, images.shape[2:], self.settings.block, self.settings.covered)
        return change_intensity(images, rng, self.settings.intensity).masked_fill(covered, 0.0)

    def adversarial(self, restored: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """The network's loss, which moves `restored` alone, and the discriminator's, which moves
        the discriminator alone."""
        fixed = {
            name: parameter.detach() for name, parameter in self.discriminator.named_parameters()
        }
        deceived = torch.func.functional_call(self.discriminator, fixed, (restored,)).float()
        on_true, on_restored = (
            self.discriminator(images).float() for images in (true, restored.detach())
        )
        return (deceived - 1).square().mean(), 0.5 * (
            (on_true - 1).square().mean() + on_restored.square().mean()
        )

    def step(self, batch: Batch) -> StepOutput:
        """Contrast; then also restore, then also deceive, each from its share of the run on."""
        settings = self.settings
        update_momentum_copy(self.key_encoder, self.network.encoder, settings.momentum)
        update_momentum_copy(self.key_projector, self.projector, settings.momentum)
        true = spatial_view(batch.images, batch.rng, "v1", settings.views)
        other = spatial_view(batch.images, batch.rng, "v2", settings.views)
        features = self.network.encode(self.distorted(true, batch, "v1"))
        queries, keys = self.projector(features[-1]), self.keys(self.distorted(other, batch, "v2"))
        discriminative = contrastive_with_queue(
            queries, keys, self.queue.keys.clone(), settings.temperature
        )
        self.queue.push(keys)
        restorative = deceiving = discriminator = batch.images.new_zeros(())
        if batch.progress >= settings.restoration_from:
            restored = self.to_pixels(self.network.decode(features)[-1]).float()
            restorative = F.mse_loss(restored, true)
            if batch.progress >= settings.adversary_from:
                deceiving, discriminator = self.adversarial(restored, true)
        loss = (
            settings.weight_discriminative * discriminative
            + settings.weight_restorative * restorative
            + settings.weight_adversarial * deceiving
            + discriminator
        )
        parts = {
            "loss_discriminative": discriminative,
            "loss_restorative": restorative,
            "loss_adversarial": deceiving,
            "loss_discriminator": discriminator,
            "feature_spread": spread(queries),
        }
        return StepOutput(loss, {name: value.detach() for name, value in parts.items()})

    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """ln(K + 1)."""
        return {"loss_discriminative": math.log(self.settings.queue + 1)}


PLUGIN = Dira
