"""What stands on a network during pre-training: projectors, predictors, discriminators, momentum
copies and queues."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macl.distributed import collectives
from macl.models.layers import conv, global_average_pool

M = TypeVar("M")
Function = TypeVar("Function", bound=Callable)


def global_projector(
    dims: int, in_channels: int, hidden_channels: int, out_channels: int
) -> nn.Sequential:
    """Average-pool and a two-layer perceptron: (B, in, *size) → (B, out)."""
    return nn.Sequential(
        *global_average_pool(dims),
        nn.Linear(in_channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_channels, out_channels),
    )


def mlp_with_batch_norm(channels: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with BatchNorm and ReLU between them: (B, first) → (B,
    last)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels[:-1]):
        layers += [
            nn.Linear(before, after, bias=False),
            nn.BatchNorm1d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(channels[-2], channels[-1]))


def region_projector(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions of kernel 1: (B, in, *size) → (B, out, *size)."""
    first = conv(dims, in_channels, in_channels, 1)
    return nn.Sequential(first, nn.ReLU(inplace=True), conv(dims, in_channels, out_channels, 1))


def siamese_projector(dims: int, in_channels: int, channels: int) -> nn.Sequential:
    """Average-pool and three layers, each with BatchNorm, the last without scale and shift: (B, in,
    *size) → (B, out)."""
    layers = mlp_with_batch_norm((in_channels, channels, channels, channels))
    return nn.Sequential(
        *global_average_pool(dims), *layers, nn.BatchNorm1d(channels, affine=False)
    )


DISCRIMINATOR_STRIDE = 16
"""How many voxels of the image one score of the patch discriminator spans along each axis."""


def patch_discriminator(dims: int, in_channels: int, width: int) -> nn.Sequential:
    """Four strided convolutions: (B, in, *patch) → (B, 1, *(patch / 16)), a score for every region:
    is it real?

    Its norm keeps no running statistics, so that judging an image leaves no trace.
    """
    layers: list[nn.Module] = [
        conv(dims, in_channels, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
    ]
    for level in range(2):
        before, after = width * 2**level, width * 2 ** (level + 1)
        layers += [
            conv(dims, before, after, 4, stride=2, padding=1),
            nn.GroupNorm(1, after),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, conv(dims, width * 4, 1, 4, stride=2, padding=1))


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
    """The last `size` keys (D channels each), oldest overwritten first.

    Args:
        size: how many.
        channels: D.
        filled: at the start with random unit vectors (MoCo); else with zeros (SwAV).
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, channels: int, *, filled: bool = True) -> None:
        super().__init__()
        keys = torch.randn(size, channels) if filled else torch.zeros(size, channels)
        self.register_buffer("keys", F.normalize(keys, dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @property
    def is_full(self) -> Tensor:
        """() bool, kept on the device: whether its last place has been taken."""
        return self.keys[-1].any()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Take in (B, D) keys, those of all processes; of more than fit, the last ones."""
        size = len(self.keys)
        keys = collectives.all_gather(keys)[-size:]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys[places] = keys.to(self.keys.dtype)
        self.place.copy_((self.place + len(keys)) % size)


def momentum_copy(module: M) -> M:
    """A copy of a module that does not learn by gradient but follows it
    (`update_momentum_copy`)."""
    twin = copy.deepcopy(module)
    assert isinstance(twin, nn.Module)
    twin.requires_grad_(False)
    return twin


def kept_uncompiled(function: Function) -> Function:
    """Kept out of compiled steps, which would be compiled anew for every number that it is
    given."""
    return cast(Function, torch.compiler.disable(function))


@kept_uncompiled
@torch.no_grad()
def update_momentum_copy(twin: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move a twin's parameters θ' towards its source's θ: θ' ← m·θ' + (1 − m)·θ; running statistics
    stay each one's own."""
    own: list[Tensor] = list(twin.parameters())
    towards = [parameter.detach() for parameter in source.parameters()]
    torch._foreach_lerp_(own, towards, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]


@kept_uncompiled
def rising_momentum(start: float, done: float) -> float:
    """From `start` along a cosine to 1 as the run goes from 0 to 1 (BYOL)."""
    return 1.0 - (1.0 - start) * 0.5 * (1.0 + math.cos(math.pi * done))
