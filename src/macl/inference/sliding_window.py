"""From slices to class probabilities, and from a case's slices to probabilities on its scan's own grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from macl.data.store import Normalisation, Slicing
from macl.engine.compiling import out_of_memory
from macl.preprocessing.normalisation import normalise
from macl.preprocessing.resampling import to_scan_plane
from macl.utils.errors import MaclError

MirrorAxis = Literal["row", "column"]
DIMENSIONS = {"row": -2, "column": -1}


@dataclass(frozen=True)
class Member:
    """A segmenter as one member of an ensemble, which may have a single member.

    Attributes:
        network: in eval mode, (B, C, size, size) → (B, K, size, size) logits.
        size: side of its windows in pixels.
        mirror_axes: axes whose mirror images its prediction is averaged over.
    """

    network: nn.Module
    size: int
    mirror_axes: tuple[MirrorAxis, ...]


def predict_case(
    ensemble: Sequence[Member],
    slices: np.ndarray,
    normalisation: Normalisation,
    slicing: Slicing,
    *,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Predict a case in pieces of a few slices, so that memory does not grow with the scan.

    Args:
        ensemble: segmenters of the same classes; their probabilities are averaged.
        slices: (n, C, rows, columns) in the units of `normalisation`.
        slicing: how the slices came from the scan.
        batch_size: windows at a time, and slices of a piece.

    Yields:
        (m, K, *slicing.scanned_size) float32 probabilities, the m summing to n in the order of the slices.
    """
    for start in range(0, len(slices), batch_size):
        images = torch.from_numpy(normalise(slices[start : start + batch_size], normalisation))
        predicted = [
            predict_slices(one.network, images, size=one.size, mirror_axes=one.mirror_axes, batch_size=batch_size)
            for one in ensemble
        ]
        yield to_scan_plane(torch.stack(predicted).mean(0).numpy(), slicing)


def predict_slices(
    network: nn.Module, images: Tensor, *, size: int, mirror_axes: Sequence[MirrorAxis] = (), batch_size: int = 16
) -> Tensor:
    """Class probabilities of normalised slices of any height and width.

    Smaller slices are zero-padded to `size` around their middle. Larger ones are covered by windows that overlap by half or
    more, weighted by a Gaussian around their middle. The softmax is averaged over the slice and its mirror images.

    Args:
        network: in eval mode, (B, C, size, size) → (B, K, size, size) logits, on the device that computes.
        images: (n, C, H, W) float32, on the device that is to hold the result.
        size: side of the network's windows in pixels.
        mirror_axes: "row" reverses the order of rows, "column" that of columns.
        batch_size: windows at a time.

    Returns:
        (n, K, H, W) float32 on the device of `images`.

    Raises:
        MaclError: the device's memory does not suffice; the batch size that would fit is named.
    """
    if network.training:
        raise ValueError("The network must be in eval mode: call network.eval() first.")
    try:
        return _predict(network, images, size, tuple(DIMENSIONS[axis] for axis in mirror_axes), batch_size)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # Outside the handler: the error would keep the tensors alive that did not fit.
    fits = _fitting_batch(network, (images.shape[1], size, size), batch_size)
    advice = f"use --batch-size {fits}" if fits else "use a device with more memory, or --device cpu"
    raise MaclError(
        f"The device ran out of memory predicting {batch_size} windows of {size} × {size} pixels at a time: {advice}."
    )


@torch.inference_mode()
def _predict(network: nn.Module, images: Tensor, size: int, mirrored: tuple[int, ...], batch_size: int) -> Tensor:
    count, _, height, width = images.shape
    rows, columns = min(size, height), min(size, width)
    corners = list(product(window_starts(height, size), window_starts(width, size)))
    weight = torch.outer(_bell(rows, size), _bell(columns, size)).to(images.device)
    total_weight = torch.zeros(height, width, device=images.device)
    for top, left in corners:
        total_weight[top : top + rows, left : left + columns] += weight
    total: Tensor | None = None
    windows = [(index, top, left) for index in range(count) for top, left in corners]
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        cut = torch.stack([images[index, :, top : top + rows, left : left + columns] for index, top, left in batch])
        probabilities = _probabilities(network, cut, size, mirrored).to(images.device)
        if total is None:
            total = torch.zeros(count, probabilities.shape[1], height, width, device=images.device)
        for (index, top, left), window in zip(batch, probabilities, strict=True):
            total[index, :, top : top + rows, left : left + columns] += weight * window
    if total is None:
        raise ValueError("There are no slices to predict.")
    return total.div_(total_weight)


def _probabilities(network: nn.Module, images: Tensor, size: int, mirrored: tuple[int, ...]) -> Tensor:
    """(B, C, h, w) → (B, K, h, w), h and w at most `size`: padded, averaged over mirror images, cut back."""
    device = next(network.parameters()).device
    rows, columns = images.shape[-2:]
    top, left = (size - rows + 1) // 2, (size - columns + 1) // 2  # as slices are padded for training
    padded = functional.pad(images.to(device), (left, size - columns - left, top, size - rows - top))
    flips = [flip for number in range(len(mirrored) + 1) for flip in combinations(mirrored, number)]
    mean = torch.zeros((), device=device)
    halved = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(device.type, torch.bfloat16, enabled=halved):
        for flip in flips:
            mean = mean + network(padded.flip(flip)).float().softmax(1).flip(flip) / len(flips)
    return mean[..., top : top + rows, left : left + columns]


def window_starts(side: int, size: int) -> list[int]:
    """Where windows of `size` begin along `side` pixels: evenly, overlapping by half or more, from edge to edge."""
    if side <= size:
        return [0]
    steps = math.ceil((side - size) / max(size // 2, 1))
    return [round(step * (side - size) / steps) for step in range(steps + 1)]


def _bell(side: int, size: int) -> Tensor:
    """(side,) Gaussian weights around the middle, standard deviation an eighth of a window."""
    offset = torch.arange(side) - (side - 1) / 2
    return torch.exp(-0.5 * (offset / (size / 8)) ** 2)


@torch.inference_mode()
def _fitting_batch(network: nn.Module, shape: tuple[int, int, int], batch_size: int) -> int | None:
    """The largest of `batch_size` / 2, / 4, … that the device takes, found by trying."""
    device = next(network.parameters()).device
    while (batch_size := batch_size // 2) >= 1:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _probabilities(network, torch.zeros(batch_size, *shape), shape[-1], ())
            return batch_size
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
    return None
