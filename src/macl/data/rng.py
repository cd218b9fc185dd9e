"""Random numbers as a pure function of (seed, step, sample).

Every draw is hashed from its coordinates. So a sample gets the same view whether its voxels lie on
the device, in host memory or on disk, on one rank or several, before and after a crash: there is no
generator whose state could be lost. The hash is the finaliser of SplitMix64 (Steele, Lea & Flood
2014), in 64-bit integers that wrap around.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_INVERSE = _signed(pow(_GOLDEN, -1, 1 << 64))
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


@torch.compiler.assume_constant_result
def _key(name: str, seed: int) -> int:
    return _signed(zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


@dataclass(frozen=True)
class SampleRng:
    """The random numbers of one batch.

    Args:
        seed: the run's seed.
        step: the optimiser step of the batch. A tensor () int64 spares a compiled step from being
            compiled again for every step.
        samples: (B,) int64 on the batch's device, each sample's number within the global batch or
            the epoch.
        prefix: put before every name, so that two views drawn under the same names differ.
    """

    seed: int
    step: int | Tensor
    samples: Tensor
    prefix: str = ""

    def within(self, name: str) -> SampleRng:
        """Other random numbers of the same samples, such as those of one view."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def uniform(
        self, name: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        """(B, *shape) float32 in [low, high); `name` distinguishes one use from another."""
        count = math.prod(shape)
        product = self.step * _GOLDEN
        step = product if isinstance(product, Tensor) else _signed(product)
        start = _mix(_mix(self.samples * _GOLDEN + _key(self.prefix + name, self.seed)) + step)
        # start + n·g, written so that a compiler does not take n·g for a memory address, which
        # would overflow.
        number = torch.arange(1, count + 1, device=self.samples.device)
        bits = _mix(((start * _INVERSE)[:, None] + number) * _GOLDEN)
        unit = _shift_right(bits, 40).to(torch.float32) * 2.0**-24
        return (low + (high - low) * unit).reshape(len(self.samples), *shape)

    def chance(self, name: str, probability: float) -> Tensor:
        """(B,) bool, true with the given probability."""
        return self.uniform(name) < probability

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32, standard normal (Box–Muller)."""
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(f"{name}/radius", shape)))
        return radius * torch.cos(2.0 * math.pi * self.uniform(f"{name}/angle", shape))
