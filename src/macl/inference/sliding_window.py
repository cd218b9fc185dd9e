"""Class probabilities of volumes of any size, from windows of a network's patch size.

Slices and volumes share this code: a network for slices has a patch (y, x), which is taken as a
patch of depth 1. A volume is predicted from its first slice to its last, and every slice is
returned as soon as no later window touches it, so that memory does not grow with the number of
slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from macl.augmentation.geometry import AXES
from macl.config.settings import ArrayAxis
from macl.data.store_index import Normalisation
from macl.inference.folding import folded
from macl.preprocessing.normalisation import normalise
from macl.utils.errors import MaclError
from macl.utils.memory import is_out_of_memory, largest_that_fits
from macl.utils.text import format_size

SLICES_PER_BATCH = 16
VOXELS_PER_BATCH = 16 * 256 * 256

Slab = Callable[[int, int], Tensor]
"""start, stop → the normalised slices from start to stop: (C, stop − start, Y, X) float32."""


@dataclass(frozen=True)
class SegmenterMember:
    """One segmenter of an ensemble. An ensemble may have a single member.

    Attributes:
        network: in eval mode, (B, C, *patch) → (B, K, *patch) logits, on the device that computes.
        patch: sides of its windows in voxels, (y, x) or (z, y, x).
        mirror_axes: the axes whose mirror images its prediction is averaged over.
        bf16: whether it computes in bf16; what is averaged and returned is float32.

    Raises:
        ValueError: the network is in training mode, or a mirror axis is not one of the patch.
    """

    network: nn.Module
    patch: tuple[int, ...]
    mirror_axes: tuple[ArrayAxis, ...] = ()
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.network.training:
            raise ValueError("The network must be in eval mode: call network.eval() first.")
        if not {*self.mirror_axes} <= {*AXES[-len(self.patch) :]}:
            raise ValueError(f"A patch of {self.patch} voxels has no axes {self.mirror_axes}.")

    @property
    def window(self) -> tuple[int, int, int]:
        """Sides (z, y, x) of its windows; slices are windows of depth 1."""
        depth, rows, columns = (1,) * (3 - len(self.patch)) + self.patch
        return depth, rows, columns

    @cached_property
    def folded(self) -> nn.Module:
        """The network with its BatchNorms folded into convolutions, as its weights are now."""
        return folded(self.network)


def predict_volume(
    network: nn.Module,
    image: Tensor,
    *,
    patch: Sequence[int],
    mirror_axes: Sequence[ArrayAxis] = (),
    batch_size: int | None = None,
) -> Tensor:
    """Class probabilities of one volume.

    Axes shorter than the patch are zero-padded around their middle. Longer ones are covered by
    windows that overlap by half or more, weighted by a Gaussian around their middle. The softmax is
    averaged over each window and its mirror images.

    Args:
        network: in eval mode, (B, C, *patch) → (B, K, *patch) logits.
        image: (C, Z, Y, X) float32, normalised, on the device that is to hold the result.
        patch: sides of the network's windows in voxels: (y, x) to predict each slice by itself, or
            (z, y, x).
        mirror_axes: "slice" reverses the order of slices, "row" that of rows, "column" that of
            columns.
        batch_size: windows at a time; None: `default_batch_size`.

    Returns:
        (K, Z, Y, X) float32 on the device of `image`.

    Raises:
        MaclError: memory runs out; the sentence names the batch size that would fit.
    """
    member = SegmenterMember(network, tuple(patch), tuple(mirror_axes))
    grid = WindowGrid.over(image.shape[1:], member.window)
    slices = _predict([member], grid, lambda start, stop: image[:, start:stop], batch_size)
    first, size = next(slices), image.shape[1:]
    probabilities = first.new_empty((len(first), *size))
    probabilities[:, 0] = first
    for index, plane in enumerate(slices, start=1):
        probabilities[:, index] = plane
    return probabilities


def predict_slices(
    ensemble: Sequence[SegmenterMember],
    image: np.ndarray,
    normalisation: Normalisation,
    *,
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Class probabilities of one volume, slice by slice, averaged over an ensemble.

    Predicts as `predict_volume` does, but holds only as many slices as the windows of a batch
    touch. Members with the same 3D patch share that memory.

    Args:
        ensemble: segmenters of the same classes, for slices, for volumes, or for both.
        image: (C, Z, Y, X) in the units of `normalisation`.
        normalisation: of the image.
        batch_size: windows at a time; None: `default_batch_size`.

    Yields:
        (K, Y, X) float32 probabilities of every slice, in order.

    Raises:
        MaclError: memory runs out; the sentence names the batch size that would fit.
    """
    # 3D windows are averaged over the ensemble before they are added up, so that memory does not
    # grow with the ensemble. In 2D there is little to save, and each member adds up its own.
    groups: dict[object, list[SegmenterMember]] = {}
    for number, member in enumerate(ensemble):
        groups.setdefault(member.patch if len(member.patch) == 3 else number, []).append(member)

    @lru_cache(maxsize=len(groups))
    def slab(start: int, stop: int) -> Tensor:
        return torch.from_numpy(normalise(image[:, start:stop], normalisation))

    predicted = [
        _predict(members, WindowGrid.over(image.shape[1:], members[0].window), slab, batch_size)
        for members in groups.values()
    ]
    if len(predicted) == 1:
        yield from (plane.numpy() for plane in predicted[0])
        return
    counts = torch.tensor([len(members) for members in groups.values()])[:, None, None, None]
    for slices in zip(*predicted, strict=True):
        together = torch.stack(slices)
        if len(ensemble) == len(groups):
            yield together.mean(0).numpy()
        else:
            yield (together * counts).sum(0).div_(len(ensemble)).numpy()


def default_batch_size(patch: Sequence[int]) -> int:
    """Windows to predict at a time: 16 slices, or volumes of at most as many voxels as 16 slices of
    256 × 256 have, but no more than 16 and at least one.
    """
    if len(patch) == 2:
        return SLICES_PER_BATCH
    return min(SLICES_PER_BATCH, max(1, VOXELS_PER_BATCH // math.prod(patch)))


# ---------------------------------------------------------------- windows


@dataclass(frozen=True)
class WindowGrid:
    """The windows that cover a volume, in order of their first slice, and how they are weighted.

    Attributes:
        size: of the volume, (Z, Y, X).
        sides: of a window within the volume, (z, y, x): the patch's, or the volume's if shorter.
        corners: first slice, row and column of every window.
        weights: of the voxels of a window, (z, y, x): a Gaussian around the middle.
        depth_weight, plane_weight: (Z,) and (Y, X); their product is the sum of the weights of all
            windows.
    """

    size: tuple[int, int, int]
    sides: tuple[int, int, int]
    corners: tuple[tuple[int, int, int], ...]
    weights: Tensor
    depth_weight: Tensor
    plane_weight: Tensor

    @classmethod
    def over(cls, size: Sequence[int], window: Sequence[int]) -> WindowGrid:
        """Windows of sides `window` over a volume of `size` voxels, both (z, y, x)."""
        starts_z, starts_y, starts_x = map(window_starts, size, window)
        sides = [min(pair) for pair in zip(size, window, strict=True)]
        depth, rows, columns = sides
        bell_z, bell_y, bell_x = map(_bell, sides, window)
        plane = torch.outer(bell_y, bell_x)
        depth_weight, plane_weight = torch.zeros(size[0]), torch.zeros(*size[1:])
        for z in starts_z:
            depth_weight[z : z + depth] += bell_z
        for y, x in product(starts_y, starts_x):
            plane_weight[y : y + rows, x : x + columns] += plane
        return cls(
            (size[0], size[1], size[2]),
            (depth, rows, columns),
            tuple(product(starts_z, starts_y, starts_x)),
            bell_z[:, None, None] * plane,
            depth_weight,
            plane_weight,
        )

    @property
    def windows_do_not_overlap(self) -> bool:
        """Whether every slice lies in one window, which covers it whole."""
        return len(self.corners) * self.sides[0] == self.size[0]

    def cut(self, slab: Slab, corner: tuple[int, int, int]) -> Tensor:
        """The image within a window: (C, *sides)."""
        z, y, x = corner
        depth, rows, columns = self.sides
        return slab(z, z + depth)[..., y : y + rows, x : x + columns]


def window_starts(side: int, window: int) -> list[int]:
    """First voxels of windows along an axis of `side` voxels.

    Windows of `window` voxels are spread evenly from edge to edge and overlap by half or more.
    """
    if side <= window:
        return [0]
    steps = math.ceil((side - window) / max(window // 2, 1))
    return [round(step * (side - window) / steps) for step in range(steps + 1)]


def _bell(side: int, window: int) -> Tensor:
    """(side,) Gaussian weights around the middle; the deviation is an eighth of a window."""
    offset = torch.arange(side) - (side - 1) / 2
    return torch.exp(-0.5 * (offset / (window / 8)) ** 2)


# ---------------------------------------------------------------- prediction


def _predict(
    members: Sequence[SegmenterMember], grid: WindowGrid, slab: Slab, batch_size: int | None
) -> Iterator[Tensor]:
    """(K, Y, X) probabilities of every slice, in order: the mean of members of equal windows."""
    batch_size = default_batch_size(members[0].patch) if batch_size is None else batch_size
    if batch_size < 1:
        raise MaclError(f"batch_size={batch_size} is too small: take 1 or more.")
    depth, rows, columns = grid.sides
    sums: dict[int, Tensor] = {}
    for start in range(0, len(grid.corners), batch_size):
        stop = start + batch_size
        batch = grid.corners[start:stop]
        images = torch.stack([grid.cut(slab, corner) for corner in batch])
        predicted = [_window_probabilities(member, images) for member in members]
        probabilities = predicted[0] if len(members) == 1 else torch.stack(predicted).mean(0)
        if grid.windows_do_not_overlap:
            for window in probabilities:
                yield from (plane.contiguous() for plane in window.unbind(1))
            continue
        weights, plane_weight = (
            weight.to(images.device) for weight in (grid.weights, grid.plane_weight)
        )
        for (z, y, x), window in zip(batch, probabilities, strict=True):
            for offset in range(depth):
                if z + offset not in sums:
                    sums[z + offset] = window.new_zeros(len(window), *grid.size[1:])
                part = sums[z + offset][:, y : y + rows, x : x + columns]
                part += weights[offset] * window[:, offset]
        finished = grid.corners[stop][0] if stop < len(grid.corners) else grid.size[0]
        for z in [z for z in sums if z < finished]:
            yield sums.pop(z).div_(plane_weight * grid.depth_weight[z])


def _window_probabilities(member: SegmenterMember, images: Tensor) -> Tensor:
    """`_probabilities`, or a MaclError that names a batch size that fits into memory."""
    try:
        return _probabilities(member, member.folded, images)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the error would keep the tensors alive that did not fit.
    alone = SegmenterMember(member.network, member.patch, bf16=member.bf16)
    fits = largest_that_fits(
        lambda count: _probabilities(alone, alone.network, torch.zeros_like(images[:count])),
        len(images),
    )
    advice = (
        f"use --batch-size {fits} (when fine-tuning, training.batch_size={fits})"
        if fits
        else "use a device with more memory, or --device cpu"
    )
    raise MaclError(
        f"The device ran out of memory predicting {len(images)} windows of "
        f"{format_size(member.patch)} voxels at a time: {advice}."
    )


@torch.inference_mode()
def _probabilities(member: SegmenterMember, network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, *sides) → (B, K, *sides) on the device of the images, averaged over mirror images."""
    device = next(network.parameters()).device
    dims = len(member.patch)
    flat = images if dims == 3 else images.squeeze(2)
    before, padding = [], []
    for side, of in zip(flat.shape[2:], member.patch, strict=True):
        before.append((of - side + 1) // 2)  # as patches are padded for training
        padding = [before[-1], of - side - before[-1], *padding]
    padded = functional.pad(flat.to(device), padding)
    axes = [AXES.index(axis) - len(AXES) for axis in member.mirror_axes]
    flips = [flip for number in range(len(axes) + 1) for flip in combinations(axes, number)]
    with torch.autocast(device.type, torch.bfloat16, enabled=member.bf16):
        total = network(padded).float().softmax(1)
        for flip in flips[1:]:
            total += network(padded.flip(flip)).float().softmax(1).flip(flip)
    inner = [slice(start, start + side) for start, side in zip(before, flat.shape[2:], strict=True)]
    probabilities = total.div_(len(flips))[(..., *inner)].to(images.device)
    return probabilities if dims == 3 else probabilities.unsqueeze(2)
