"""Random views of patches: draw a geometry, then apply it; whole batches, on the batch's device.

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

from macl.config.settings import ArrayAxis, AugmentationSettings, IntensitySettings, SpatialSettings
from macl.data.rng import SampleRng

AXES: tuple[ArrayAxis, ...] = get_args(ArrayAxis)
"""The axes of a volume in the order of its array; a slice has the last two."""

COARSEST_ELASTIC_STRIDE = 4
"""The elastic field is drawn on a grid this much coarser where it is smooth over 14 voxels or more,
and on a finer one where it is rougher."""

THIN_PATCH_RATIO = 3
"""A volume is thin if its longest side is more than this many times its number of slices, and then
stays in the plane of its slices: no tilt, shear or elastic shift across them (nnU-Net's rule)."""

STRONG_VIEWS = AugmentationSettings(
    intensity=IntensitySettings(brightness=0.8, contrast=0.8, gamma=0.5, noise=0.5, blur=0.5)
)
"""Geometry and intensity, for methods that compare a patch with itself alone. The probabilities are
SimCLR's for colour and blur, since scans have no colour."""


LARGEST_ORIENTED_DEGREES = 30.0
"""The largest rotation and tilt in views that keep the anatomy's orientation."""


# ---------------------------------------------------------------- views


def view(images: Tensor, rng: SampleRng, settings: AugmentationSettings) -> Tensor:
    """A random geometry of (B, C, *patch) images, then random changes of intensity."""
    moved = spatial_view(images, rng, "geometry", settings.spatial)
    return change_intensity(moved, rng, settings.intensity)


def two_views(
    images: Tensor, rng: SampleRng, settings: AugmentationSettings
) -> tuple[Tensor, Tensor]:
    """Two independent views of each patch, drawn as "v1" and "v2"."""
    return view(images, rng.within("v1"), settings), view(images, rng.within("v2"), settings)


def small_window(patch: Sequence[int], share: float, multiple: Sequence[int]) -> tuple[int, ...]:
    """Sides of the window of `small_view`: a share of the patch's, rounded down to a multiple per
    axis, but not to 0."""
    return tuple(
        max(m, int(side * share) // m * m) for side, m in zip(patch, multiple, strict=True)
    )


def small_view(
    images: Tensor,
    rng: SampleRng,
    settings: AugmentationSettings,
    share: float,
    multiple: Sequence[int],
) -> Tensor:
    """`view` of a window somewhere in the patch, at the patch's own resolution (multi-crop, SwAV).

    Args:
        images: (B, C, *patch).
        rng: the random numbers of this view.
        settings: of geometry and intensity.
        share: each side of the window as a share of the patch's.
        multiple: per axis, of the window's sides.

    Returns:
        (B, C, *window).
    """
    device, patch = images.device, images.shape[2:]
    window = small_window(patch, share, multiple)
    shares = [small / side for small, side in zip(window, patch, strict=True)][::-1]
    grid = sampling_grid(rng, "geometry", settings.spatial, window) * _filled(shares, device)
    room = _filled([max(0.0, 1.0 - part) for part in shares], device)
    place = rng.uniform("window", (*(1 for _ in patch), len(patch)))
    grid = grid + (place * (room + room) - room)
    shown = resample(images, grid, settings.spatial.interpolation)
    return change_intensity(shown, rng, settings.intensity)


def random_blocks(rng: SampleRng, patch: Sequence[int], block: int, share: float) -> Tensor:
    """Choose a share of the blocks of a patch at random, as many in every patch of the batch.

    Args:
        rng: the batch's random numbers.
        patch: sides of the patch in voxels.
        block: side of a block in voxels; blocks at the far ends are cut off where it does not fit.
        share: of the blocks, rounded to whole blocks.

    Returns:
        (B, 1, *patch) bool, true inside the chosen blocks.
    """
    counts = [math.ceil(side / block) for side in patch]
    rank = rng.uniform("blocks", (math.prod(counts),)).argsort(1).argsort(1)
    chosen = (rank < round(share * math.prod(counts))).reshape(-1, 1, *counts)
    for axis in range(2, chosen.ndim):
        chosen = chosen.repeat_interleave(block, axis)
    return chosen[..., *(slice(side) for side in patch)]


def random_box(rng: SampleRng, patch: Sequence[int], shares: tuple[float, float]) -> Tensor:
    """(B, *patch) bool, true in a box somewhere in each patch (CutMix).

    Args:
        rng: the batch's random numbers.
        patch: sides of the patch in voxels.
        shares: the least and the largest share of a side of the patch that a side of the box has.
    """
    inside = torch.ones((), dtype=torch.bool, device=rng.samples.device)
    for number, (axis, side) in enumerate(zip(AXES[-len(patch) :], patch, strict=True)):
        length = rng.uniform(f"box/{axis}/length", (), *shares)
        start = rng.uniform(f"box/{axis}/start") * (1.0 - length)
        place = (torch.arange(side, device=rng.samples.device) + 0.5) / side
        along = (place >= start[:, None]) & (place < (start + length)[:, None])
        shape = [side if other == number else 1 for other in range(len(patch))]
        inside = inside & along.reshape(-1, *shape)
    return inside


# ---------------------------------------------------------------- geometry


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
    sides = _filled(patch[::-1], device)
    deform = rng.chance(f"{name}/deform", settings.deform)
    identity = torch.eye(dims, device=device)
    matrix = torch.where(deform[:, None, None], _matrix(rng, name, settings, patch), identity)
    reach = settings.translation
    shift = rng.uniform(f"{name}/translation", (dims,), -reach, reach)
    shift = torch.where(deform[:, None], shift * sides, 0.0)
    if settings.elastic_alpha[1] > 0:
        field = _elastic_field(rng, name, settings, patch)
        places = places + torch.where(_per_sample(deform, field), field, 0.0)
    # Not as a matrix product: under autocast that would round places to half a voxel.
    coordinates = places.unbind(-1)
    rows = [
        reduce(add, (_per_sample(row[:, i], xyz) * xyz for i, xyz in enumerate(coordinates)))
        for row in matrix.unbind(1)
    ]
    places = torch.stack(rows, dim=-1) + _per_sample(shift, places)
    signs = [_sign(rng, name, axis, settings.mirror, mirror_axes) for axis in AXES[-dims:][::-1]]
    return places * _per_sample(torch.stack(signs, dim=-1), places) / (sides / 2)


def leaves_plane(patch: Sequence[int]) -> bool:
    """Whether views of a patch (y, x) or (z, y, x) are tilted and bent across its slices.

    True of volumes, unless they are thin (`THIN_PATCH_RATIO`).
    """
    return len(patch) == 3 and max(patch) <= THIN_PATCH_RATIO * patch[0]


def _filled(values: Sequence[float], device: torch.device) -> Tensor:
    """(n,) float32, filled on the device: copying it there would keep the host waiting."""
    return torch.stack([torch.full((), float(value), device=device) for value in values])


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) or (B, last) with axes of 1 put in, so that they broadcast over `like`."""
    return values.reshape(len(values), *(1,) * (like.ndim - values.ndim), *values.shape[1:])


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
    return _product(*rotations, shear) * scale[:, None, None]


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
    smoothing = [_gaussian(sigma, side) for side in coarse]
    if dims == 3:
        smoothing[0] = F.normalize(smoothing[0], dim=-1)
    field = _along_axes(noise, smoothing)
    field = field * _per_sample(alpha, field)
    mode = "bilinear" if dims == 2 else "trilinear"
    field = F.interpolate(field, size=tuple(patch), mode=mode, align_corners=False).movedim(1, -1)
    return F.pad(field, (0, dims - shifted)) if shifted < dims else field


def _along_axes(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply every axis of (B, C, *patch) images by a matrix (B, side, side) of its own."""
    *slices, rows, columns = (matrix[:, None] for matrix in matrices)
    if not slices:
        return _product(rows, images, columns.mT)
    in_plane = _product(rows[:, None], images, columns[:, None].mT)
    return _product(slices[0], in_plane.flatten(3)).reshape(images.shape)


def _product(*matrices: Tensor) -> Tensor:
    """The matrix product in full precision, under autocast too."""
    with torch.autocast(matrices[0].device.type, enabled=False):
        return reduce(torch.matmul, matrices)


def _gaussian(sigma: Tensor, side: int) -> Tensor:
    """(B, side, side) that smooth along an axis with a Gaussian of σ (B,), zero outside."""
    index = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (index[:, None] - index[None, :]).square()
    weight = torch.exp(-distance / (2.0 * sigma[:, None, None].square()))
    return weight / (sigma[:, None, None] * math.sqrt(2.0 * math.pi))


# ---------------------------------------------------------------- intensity


def change_intensity(images: Tensor, rng: SampleRng, settings: IntensitySettings) -> Tensor:
    """Random intensity changes of (B, C, *patch) normalised images (after nnU-Net's list).

    Each comes with its own probability, for each patch.
    """
    changes = {
        "noise": _noise, "blur": _blur, "brightness": _brightness,
        "contrast": _contrast, "low_resolution": _low_resolution, "gamma": _gamma,
    }  # fmt: skip
    for name, change in changes.items():
        probability = getattr(settings, name)
        if probability > 0:
            chosen = _per_sample(rng.chance(f"intensity/{name}", probability), images)
            images = torch.where(chosen, change(images, rng), images)
    return images


def _amount(rng: SampleRng, name: str, low: float, high: float) -> Tensor:
    """(B,), how strongly each patch is changed."""
    return rng.uniform(f"intensity/{name}/amount", (), low, high)


def _spatial_axes(images: Tensor) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))


def _noise(images: Tensor, rng: SampleRng) -> Tensor:
    deviation = _per_sample(_amount(rng, "noise", 0.0, 0.3), images)
    return images + deviation * rng.normal("intensity/noise/pixels", tuple(images.shape[1:]))


def _blur(images: Tensor, rng: SampleRng) -> Tensor:
    sigma = _amount(rng, "blur", 0.5, 1.0)
    matrices = [_gaussian(sigma, side) for side in images.shape[2:]]
    return _along_axes(images, [matrix / matrix.sum(-1, keepdim=True) for matrix in matrices])


def _brightness(images: Tensor, rng: SampleRng) -> Tensor:
    return images * _per_sample(_amount(rng, "brightness", 0.75, 1.25), images)


def _contrast(images: Tensor, rng: SampleRng) -> Tensor:
    axes = _spatial_axes(images)
    mean = images.mean(axes, keepdim=True)
    factor = _per_sample(_amount(rng, "contrast", 0.75, 1.25), images)
    changed = (images - mean) * factor + mean
    return changed.clamp(images.amin(axes, keepdim=True), images.amax(axes, keepdim=True))


def _low_resolution(images: Tensor, rng: SampleRng) -> Tensor:
    """The values at the centres of coarser cells, joined linearly."""
    zoom = _amount(rng, "low_resolution", 0.5, 1.0)
    return _along_axes(images, [_coarsen(zoom, side, images.device) for side in images.shape[2:]])


def _coarsen(zoom: Tensor, side: int, device: torch.device) -> Tensor:
    """(B, side, side): sample `zoom` times as many places of a line, nearest, and join linearly."""
    index = torch.arange(side, device=device, dtype=torch.float32)
    place = (index[None] + 0.5) * zoom[:, None] - 0.5
    low = place.floor()
    share = place - low
    last = (zoom[:, None] * side).floor() - 1

    def seen(cell: Tensor) -> Tensor:
        cell = cell.clamp(min=0).minimum(last)
        centre = ((cell + 0.5) / zoom[:, None] - 0.5).round().clamp(0, side - 1)
        return (index[None, None] == centre[..., None]).float()

    return seen(low) * (1 - share)[..., None] + seen(low + 1) * share[..., None]


def _gamma(images: Tensor, rng: SampleRng) -> Tensor:
    """x^γ on the patch's own range, its mean and deviation kept (nnU-Net).

    Half of the time on the inverted patch.
    """
    axes = _spatial_axes(images)
    gamma = _per_sample(_amount(rng, "gamma", 0.7, 1.5), images)
    inverted = rng.chance("intensity/gamma/inverted", 0.5).float()
    sign = 1.0 - 2.0 * _per_sample(inverted, images)
    source = images * sign
    low, high = source.amin(axes, keepdim=True), source.amax(axes, keepdim=True)
    extent = (high - low).clamp(min=1e-7)
    bent = ((source - low) / extent).clamp(1e-6, 1).pow(gamma) * extent + low
    mean, deviation = source.mean(axes, keepdim=True), source.std(axes, keepdim=True)
    bent_mean, bent_deviation = bent.mean(axes, keepdim=True), bent.std(axes, keepdim=True)
    return ((bent - bent_mean) / bent_deviation.clamp(min=1e-7) * deviation + mean) * sign
