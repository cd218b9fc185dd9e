"""What networks are built of, and what stands on them while pre-training: projectors, predictors, momentum twins, queues."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macl import distributed

M = TypeVar("M")
Function = TypeVar("Function", bound=Callable)


def global_projector(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    """Average-pool and a two-layer perceptron: (B, in, h, w) → (B, out)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(in_channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_channels, out_channels),
    )


NEGATIVE_SLOPE = 0.01
"""Of every LeakyReLU in the paper's network."""


def initialise_convolutions(module: nn.Module) -> None:
    """Kaiming-normal weights for LeakyReLU and zero biases, as the paper's network starts; for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3×3 convolutions with BatchNorm and LeakyReLU: (B, in, h, w) → (B, out, h, w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
    )


def region_projector(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1×1 convolutions: (B, in, h, w) → (B, out, h, w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 1), nn.ReLU(inplace=True), nn.Conv2d(in_channels, out_channels, 1)
    )


def normed_perceptron(channels: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with BatchNorm and ReLU between them: (B, first) → (B, last)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(channels[-2], channels[-1]))


def normed_projector(in_channels: int, channels: int) -> nn.Sequential:
    """Average-pool and three layers, BatchNorm after each, the last without scale and shift: (B, in, h, w) → (B, out)."""
    layers = normed_perceptron((in_channels, channels, channels, channels))
    return nn.Sequential(*pooled(), *layers, nn.BatchNorm1d(channels, affine=False))


def image_channels(encoder: nn.Module) -> int:
    """How many channels the images of an encoder have: those its first convolution takes."""
    return next(module.in_channels for module in encoder.modules() if isinstance(module, nn.Conv2d))


def pooled() -> nn.Sequential:
    """(B, C, h, w) → (B, C), the average over places."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def patch_discriminator(in_channels: int, width: int) -> nn.Sequential:
    """Four strided convolutions: (B, in, S, S) → (B, 1, S/16, S/16), a score for every patch: is it real?

    Its norm keeps no running statistics, so that judging an image leaves no trace.
    """
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for level in range(2):
        before, after = width * 2**level, width * 2 ** (level + 1)
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(1, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(width * 4, 1, 4, 2, 1))


class Prototypes(nn.Module):
    """Cosines of features with learned unit vectors: (B, D) → (B, K)."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, channels), dim=1))

    def forward(self, features: Tensor, learning: bool = True) -> Tensor:
        """Features are normalised here, and so are the prototypes, whose length cannot matter."""
        weight = F.normalize(self.weight if learning else self.weight.detach(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.to(weight.dtype), dim=1), weight)


class Queue(nn.Module):
    """The last `size` keys (D channels each), oldest overwritten first; at the start random unit vectors (MoCo)."""

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, channels), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Take in (B, D) keys, those of all processes; of more than fit, the last ones."""
        size = len(self.keys)
        keys = distributed.whole(keys)[-size:]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys[places] = keys.to(self.keys.dtype)
        self.place.copy_((self.place + len(keys)) % size)


def momentum_twin(module: M) -> M:
    """A copy of a module that does not learn by gradient but follows it (`follow`)."""
    twin = copy.deepcopy(module)
    assert isinstance(twin, nn.Module)
    twin.requires_grad_(False)
    return twin


def uncompiled(function: Function) -> Function:
    """Kept out of compiled steps, which would be compiled anew for every number that it is given."""
    return cast(Function, torch.compiler.disable(function))


@uncompiled
@torch.no_grad()
def follow(twin: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move a twin's parameters θ' towards its source's θ: θ' ← m·θ' + (1 − m)·θ; running statistics stay each one's own."""
    own: list[Tensor] = list(twin.parameters())
    towards = [parameter.detach() for parameter in source.parameters()]
    torch._foreach_lerp_(own, towards, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]


@uncompiled
def rising_momentum(start: float, done: float) -> float:
    """From `start` along a cosine to 1 as the run goes from 0 to 1 (BYOL)."""
    return 1.0 - (1.0 - start) * 0.5 * (1.0 + math.cos(math.pi * done))
