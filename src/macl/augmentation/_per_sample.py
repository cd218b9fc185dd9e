"""Arithmetic on whole batches in which every sample has values of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def filled(values: Sequence[float], device: torch.device) -> Tensor:
    """(n,) float32, filled on the device: copying it there would keep the host waiting."""
    return torch.stack([torch.full((), float(value), device=device) for value in values])


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) or (B, last) with axes of 1 put in, so that they broadcast over `like`."""
    return values.reshape(len(values), *(1,) * (like.ndim - values.ndim), *values.shape[1:])


def along_axes(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply every axis of (B, C, *patch) images by a matrix (B, side, side) of its own."""
    *slices, rows, columns = (matrix[:, None] for matrix in matrices)
    if not slices:
        return product(rows, images, columns.mT)
    in_plane = product(rows[:, None], images, columns[:, None].mT)
    return product(slices[0], in_plane.flatten(3)).reshape(images.shape)


def product(*matrices: Tensor) -> Tensor:
    """The matrix product in full precision, under autocast too."""
    with torch.autocast(matrices[0].device.type, enabled=False):
        return reduce(torch.matmul, matrices)


def gaussian(sigma: Tensor, side: int) -> Tensor:
    """(B, side, side) that smooth along an axis with a Gaussian of σ (B,), zero outside."""
    index = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (index[:, None] - index[None, :]).square()
    weight = torch.exp(-distance / (2.0 * sigma[:, None, None].square()))
    return weight / (sigma[:, None, None] * math.sqrt(2.0 * math.pi))
