"""Random geometry of patches: draw where every voxel of a view lies, then sample there.

The same code serves slices (B, C, y, x) and volumes (B, C, z, y, x). The geometry follows MACL's
release: mirrors, then elastic deformation, rotation and scale together. Image and label share one
sampling grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from macl.augmentation._per_sample import along_axes, filled, gaussian, per_sample, product
from macl.config.settings import ArrayAxis, SpatialSettings
from macl.data.rng import SampleRng

AXES: tuple[ArrayAxis, ...] = get_args(ArrayAxis)
"""The axes of a volume in the order of its array; a slice has the last two."""

COARSEST_ELASTIC_STRIDE = 4
"""The elastic field is drawn on a grid this much coarser where it is smooth over 14 voxels or more,
and on a finer one where it is rougher."""

THIN_PATCH_RATIO = 3
"""A volume is thin if its longest side is more than this many times its number of slices, and then
stays in the plane of its slices: no tilt, shear or elastic shift across them (nnU-Net's rule)."""

LARGEST_ORIENTED_DEGREES = 30.0
"""The largest rotation and tilt in views that keep the anatomy's orientation."""


def keep_orientation(settings: SpatialSettings, mirror: float = 0.0) -> SpatialSettings:
    """The same geometry for oriented anatomy: rotated by 30° at most.

    Args:
        settings: of the views.
        mirror: probability, for each axis that may be mirrored.
    """
    return settings.model_copy(
        update={
            "mirror": mirror,
            "rotation_degrees": min(settings.rotation_degrees, LARGEST_ORIENTED_DEGREES),
            "tilt_degrees": min(settings.tilt_degrees, LARGEST_ORIENTED_DEGREES),
        }
    )


def spatial_view(images: Tensor, rng: SampleRng, name: str, settings: SpatialSettings) -> Tensor:
    """A random geometry of (B, C, *patch) images, zero outside; `name` tells views apart."""
    grid = sampling_grid(rng, name, settings, images.shape[2:])
    return resample(images, grid, settings.interpolation)


def resample(images: Tensor, grid: Tensor, interpolation: str) -> Tensor:
    """Images (B, C, *patch) at a grid (B, *view, dims) of places, zero outside: (B, C, *view).

    `interpolation` is "nearest", "bilinear" or "bicubic". The last two are trilinear for volumes,
    for which PyTorch has no cubic interpolation.
    """
    mode = "bilinear" if images.ndim == 5 and interpolation == "bicubic" else interpolation
    grid = grid.to(images.dtype)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Labels (B, *patch) int64 at a grid of places, nearest, background outside."""
    return resample(labels[:, None].float(), grid, "nearest")[:, 0].long()


def sampling_grid(
    rng: SampleRng,
    name: str,
    settings: SpatialSettings,
    patch: Sequence[int],
    mirror_axes: Sequence[ArrayAxis] = AXES,
) -> Tensor:
    """Draw where every voxel of a view lies in its patch.

    Voxels count as cubes, since patches carry no spacing: where they are not, a tilt out of the
    plane of the slices shears and scales the anatomy too.

    Args:
        rng: the batch's random numbers.
        name: tells one view from another.
        settings: what is drawn, and how far.
        patch: sides in voxels, (y, x) or (z, y, x).
        mirror_axes: axes that may be mirrored; those that the patch lacks are passed over.

    Returns:
        (B, *patch, dims) float32 in the order (x, y[, z]), −1 and 1 at the patch's outer edges, as
        `torch.nn.functional.grid_sample` takes it.
    """
    device, dims = rng.samples.device, len(patch)
    centred = [
        (torch.arange(side, device=device, dtype=torch.float32) + 0.5) - side / 2 for side in patch
    ]
    places = torch.stack(torch.meshgrid(*centred, indexing="ij")[::-1], dim=-1)[None]
    sides = filled(patch[::-1], device)
    deform = rng.chance(f"{name}/deform", settings.deform)
    identity = torch.eye(dims, device=device)
    matrix = torch.where(deform[:, None, None], _matrix(rng, name, settings, patch), identity)
    reach = settings.translation
    shift = rng.uniform(f"{name}/translation", (dims,), -reach, reach)
    shift = torch.where(deform[:, None], shift * sides, 0.0)
    if settings.elastic_alpha[1] > 0:
        field = _elastic_field(rng, name, settings, patch)
        places = places + torch.where(per_sample(deform, field), field, 0.0)
    # Not as a matrix product: under autocast that would round places to half a voxel.
    coordinates = places.unbind(-1)
    rows = [
        reduce(add, (per_sample(row[:, i], xyz) * xyz for i, xyz in enumerate(coordinates)))
        for row in matrix.unbind(1)
    ]
    places = torch.stack(rows, dim=-1) + per_sample(shift, places)
    signs = [_sign(rng, name, axis, settings.mirror, mirror_axes) for axis in AXES[-dims:][::-1]]
    return places * per_sample(torch.stack(signs, dim=-1), places) / (sides / 2)


def leaves_plane(patch: Sequence[int]) -> bool:
    """Whether views of a patch (y, x) or (z, y, x) are tilted and bent across its slices.

    True of volumes, unless they are thin (`THIN_PATCH_RATIO`).
    """
    return len(patch) == 3 and max(patch) <= THIN_PATCH_RATIO * patch[0]


def _sign(
    rng: SampleRng, name: str, axis: ArrayAxis, probability: float, mirror_axes: Sequence[ArrayAxis]
) -> Tensor:
    mirrored = rng.chance(f"{name}/mirror/{axis}", probability if axis in mirror_axes else 0.0)
    return 1.0 - 2.0 * mirrored.float()


def _matrix(rng: SampleRng, name: str, settings: SpatialSettings, patch: Sequence[int]) -> Tensor:
    """(B, dims, dims), rotation · shear · scale of places in the order (x, y[, z]).

    A scale above 1 shows more of the patch, smaller.
    """
    dims = len(patch)
    largest = math.radians(settings.rotation_degrees)
    angle = rng.uniform(f"{name}/rotation", (), -largest, largest)
    rotations = [_rotation(angle, 0, 1, dims)]
    pairs = [(0, 1), (1, 0)]
    if leaves_plane(patch):
        largest = math.radians(settings.tilt_degrees)
        about_y, about_x = rng.uniform(f"{name}/tilt", (2,), -largest, largest).unbind(1)
        rotations += [_rotation(about_y, 0, 2, dims), _rotation(about_x, 1, 2, dims)]
        pairs += [(0, 2), (2, 0), (1, 2), (2, 1)]
    scale = rng.uniform(f"{name}/scale", (), *settings.scale)
    largest = math.radians(settings.shear_degrees)
    slopes = torch.tan(rng.uniform(f"{name}/shear", (len(pairs),), -largest, largest))
    shear = _identity_except(dict(zip(pairs, slopes.unbind(1), strict=True)), dims)
    return product(*rotations, shear) * scale[:, None, None]


def _rotation(angle: Tensor, a: int, b: int, dims: int) -> Tensor:
    """(B, dims, dims), a rotation by angles (B,) in the plane of coordinates a and b."""
    cos, sin = angle.cos(), angle.sin()
    return _identity_except({(a, a): cos, (a, b): -sin, (b, a): sin, (b, b): cos}, dims)


def _identity_except(entries: Mapping[tuple[int, int], Tensor], dims: int) -> Tensor:
    """(B, dims, dims), the identity except for the entries (B,) at (row, column)."""
    some = next(iter(entries.values()))
    zero, one = torch.zeros_like(some), torch.ones_like(some)
    rows = [
        [entries.get((i, j), one if i == j else zero) for j in range(dims)] for i in range(dims)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _elastic_field(
    rng: SampleRng, name: str, settings: SpatialSettings, patch: Sequence[int]
) -> Tensor:
    """(B, *patch, dims) displacements in voxels, as (x, y[, z]).

    In a slice, uniform noise in [−1, 1], smoothed by σ, times α (Simard 2003). A volume is bent as
    strongly as a slice: across its slices the noise is smoothed, but keeps its variance.
    """
    dims = len(patch)
    shifted = dims if leaves_plane(patch) else 2
    reference = settings.elastic_reference_side
    zoom = sum(patch[-2:]) / (2 * reference) if reference else 1.0
    smoothest = settings.elastic_sigma[0] * zoom
    stride = min(COARSEST_ELASTIC_STRIDE, max(1, int(smoothest / 3.5)))
    coarse = [math.ceil(side / stride) for side in patch]
    noise = rng.uniform(f"{name}/elastic", (shifted, *coarse), -1.0, 1.0)
    sigma = rng.uniform(f"{name}/sigma", (), *settings.elastic_sigma) * (zoom / stride)
    # In a slice, smoothing averages (2σ√π)² numbers, on the coarse grid stride² times fewer, so
    # the noise that is left is `stride` times larger.
    alpha = rng.uniform(f"{name}/alpha", (), *settings.elastic_alpha) * (zoom**2 / stride)
    smoothing = [gaussian(sigma, side) for side in coarse]
    if dims == 3:
        smoothing[0] = F.normalize(smoothing[0], dim=-1)
    field = along_axes(noise, smoothing)
    field = field * per_sample(alpha, field)
    mode = "bilinear" if dims == 2 else "trilinear"
    field = F.interpolate(field, size=tuple(patch), mode=mode, align_corners=False).movedim(1, -1)
    return F.pad(field, (0, dims - shifted)) if shifted < dims else field
