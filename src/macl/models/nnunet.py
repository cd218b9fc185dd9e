"""nnU-Net's network, built from the user's own plan (Isensee et al. 2021; ResEnc: 2024, arXiv
2404.09556), in 2D and 3D.

The plan (`nnUNetPlans.json`) states the network of each configuration: stages, channels, kernels,
strides, norm and bias. Two kinds are built here, the plain U-Net and the one with a residual
encoder (ResEnc). Both have strided convolutions, InstanceNorm and LeakyReLU:

    plain stage      n × [convolution, norm, LeakyReLU], the first one strided
    residual stage   n × [x ─┬─ convolution, norm, LeakyReLU, convolution, norm ─┬ LeakyReLU]
                             ╰─ average-pool, 1×1 convolution, norm ─────────────╯
    decoder stage    transposed convolution ── concatenate ── n × [convolution, norm, LeakyReLU]

Tensors bear nnU-Net's names, so that weights can go both ways (`macl.models.conversion.nnunet`).
Weights start as nnU-Net's do: Kaiming-normal, and the last norm of every residual block at zero.
The deepest stages repeat their width, which nnU-Net caps at 320 in 3D and 512 in 2D. InstanceNorm
cannot normalise a map of one voxel and makes any two the same, −1 and 1, so the bottleneck must
have four or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from macl.config.settings import PluginSettings
from macl.models._nnunet_plans import NnunetArchitecture, Shape, read_architecture
from macl.models.layers import (
    average_pool,
    conv,
    initialise_convolutions,
    instance_norm,
    transposed_conv,
)
from macl.models.network import Network
from macl.utils.errors import MaclError

CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
"""The configuration of a plan that is built unless another is named."""


class Settings(PluginSettings):
    """Settings of nnU-Net's network: a plan, or the architecture that was read from one."""

    plans: Path | None = Field(default=None, description="an nnUNetPlans.json")
    configuration: str | None = Field(
        default=None, description="of the plan; none: 2d, or 3d_fullres with dims = 3"
    )
    architecture: NnunetArchitecture | None = Field(
        default=None, description="what the plan states; a run keeps it in place of the plan"
    )


class ConvNorm(nn.Module):
    """A convolution with norm and, unless a sum follows, LeakyReLU."""

    def __init__(
        self,
        plan: NnunetArchitecture,
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        stride: Shape | None = None,
        *,
        bias: bool | None = None,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.slope = plan.negative_slope if activated else None
        self.conv = conv(
            plan.dims,
            in_channels,
            out_channels,
            kernel,
            stride=stride or 1,
            padding=tuple((side - 1) // 2 for side in kernel),
            bias=plan.bias if bias is None else bias,
        )
        self.norm = instance_norm(
            plan.dims, out_channels, eps=plan.norm_eps, affine=plan.norm_affine
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in, *size) → (B, out, *(size / stride))."""
        maps = self.norm(self.conv(maps))
        return maps if self.slope is None else F.leaky_relu(maps, self.slope, inplace=True)


class StackedConvs(nn.Module):
    """Convolutions in a row, the first one strided."""

    def __init__(
        self,
        plan: NnunetArchitecture,
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        count: int,
        stride: Shape | None = None,
    ) -> None:
        super().__init__()
        first = ConvNorm(plan, in_channels, out_channels, kernel, stride)
        more = (ConvNorm(plan, out_channels, out_channels, kernel) for _ in range(count - 1))
        self.convs = nn.Sequential(first, *more)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in, *size) → (B, out, *(size / stride))."""
        return self.convs(maps)


class AveragePool(nn.Module):
    """The mean over windows of `stride`."""

    def __init__(self, stride: Shape) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, *size) → (B, C, *(size / stride))."""
        return average_pool(maps, self.stride)


class ResidualBlock(nn.Module):
    """Two convolutions beside the map itself, which is pooled and projected where they change its
    size or channels."""

    def __init__(
        self,
        plan: NnunetArchitecture,
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        stride: Shape,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(plan, in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(plan, out_channels, out_channels, kernel, activated=False)
        self.slope = plan.negative_slope
        beside: list[nn.Module] = []
        if max(stride) > 1:
            beside.append(AveragePool(stride))
        if in_channels != out_channels:
            point = (1,) * plan.dims
            beside.append(
                ConvNorm(plan, in_channels, out_channels, point, bias=False, activated=False)
            )
        self.skip = nn.Sequential(*beside)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in, *size) → (B, out, *(size / stride))."""
        return F.leaky_relu(self.conv2(self.conv1(maps)) + self.skip(maps), self.slope)


class ResidualStage(nn.Module):
    """Residual blocks in a row, the first one strided."""

    def __init__(
        self,
        plan: NnunetArchitecture,
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        count: int,
        stride: Shape,
    ) -> None:
        super().__init__()
        one = (1,) * plan.dims
        first = ResidualBlock(plan, in_channels, out_channels, kernel, stride)
        more = (
            ResidualBlock(plan, out_channels, out_channels, kernel, one) for _ in range(count - 1)
        )
        self.blocks = nn.Sequential(first, *more)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in, *size) → (B, out, *(size / stride))."""
        return self.blocks(maps)


class NnunetEncoder(nn.Module):
    """The stages, after a stem if they are residual."""

    def __init__(self, plan: NnunetArchitecture, in_channels: int) -> None:
        super().__init__()
        if plan.residual:
            self.stem = StackedConvs(plan, in_channels, plan.features[0], plan.kernels[0], 1)
            in_channels = plan.features[0]
        before = (in_channels, *plan.features[:-1])
        stages = zip(
            before, plan.features, plan.kernels, plan.convolutions, plan.strides, strict=True
        )
        self.stages = nn.Sequential(
            *(
                ResidualStage(plan, *stage)
                if plan.residual
                else nn.Sequential(StackedConvs(plan, *stage))
                for stage in stages
            )
        )
        self.residual = plan.residual

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the map of every stage, finest first, bottleneck last."""
        x, features = self.stem(images) if self.residual else images, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class NnunetDecoder(nn.Module):
    """The deepest `count` decoder stages, deepest first."""

    def __init__(self, plan: NnunetArchitecture, count: int | None) -> None:
        super().__init__()
        self.stages, self.transpconvs = nn.ModuleList(), nn.ModuleList()
        levels = range(len(plan.features) - 1, 0, -1)
        for level, convolutions in list(zip(levels, plan.decoder_convolutions, strict=True))[
            :count
        ]:
            below, own = plan.features[level], plan.features[level - 1]
            self.transpconvs.append(
                transposed_conv(plan.dims, below, own, plan.strides[level], bias=plan.bias)
            )
            self.stages.append(
                StackedConvs(plan, 2 * own, own, plan.kernels[level - 1], convolutions)
            )

    def forward(self, features: list[Tensor], blocks: int | None = None) -> list[Tensor]:
        """Encoder maps, finest first → bottleneck and the output of each stage."""
        maps = [features[-1]]
        pairs = zip(self.transpconvs[:blocks], self.stages[:blocks], strict=True)
        for (enlarge, merge), skip in zip(pairs, features[-2::-1], strict=False):
            maps.append(merge(torch.cat((enlarge(maps[-1]), skip), dim=1)))
        return maps


class NnUNet(Network):
    """A plain or residual U-Net, as planned."""

    Settings = Settings
    supported_dims = (2, 3)
    smallest_bottleneck = 4

    def __init__(
        self,
        settings: Settings,
        in_channels: int,
        *,
        dims: int = 2,
        decoder_blocks: int | None = None,
    ) -> None:
        super().__init__()
        plan = settings.architecture
        if plan is None or plan.dims != dims:
            raise ValueError("The settings are not completed for these dimensions.")
        self.dims, self.channels, self.strides = dims, plan.features, plan.strides
        self.encoder = NnunetEncoder(plan, in_channels)
        self.decoder = NnunetDecoder(plan, decoder_blocks)
        self.apply(initialise_convolutions)
        for module in self.modules():
            if isinstance(module, ResidualBlock) and plan.norm_affine:
                nn.init.zeros_(cast(Tensor, module.conv2.norm.weight))

    @classmethod
    def complete(
        cls, settings: Settings, patch: Sequence[int], spacing_mm: Sequence[float] | None
    ) -> Settings:
        """Settings with the architecture of the plan."""
        dims = len(patch)
        if settings.plans is not None:
            name = settings.configuration or CONFIGURATIONS[dims]
            plan = read_architecture(settings.plans, name)
            settings = Settings(configuration=name, architecture=plan)
        if settings.architecture is None:
            raise MaclError(
                "The backbone nnunet is built from your plan: add "
                "--set backbone_settings.plans=…/nnUNetPlans.json."
            )
        if settings.architecture.dims != dims:
            planned = settings.architecture.dims
            raise MaclError(
                f"The plan's configuration {settings.configuration} is {planned}D, but dims is "
                f"{dims}: name another one (backbone_settings.configuration), or add --set "
                f"dims={planned}."
            )
        return settings

    @classmethod
    def deep_supervision(cls, settings: Settings) -> bool:
        """As planned."""
        return settings.architecture is not None and settings.architecture.deep_supervision


PLUGIN = NnUNet
