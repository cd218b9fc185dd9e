"""Views of slices: draw a geometry, then apply it; whole batches, on the batch's device.

The spatial draw follows the release's augmentation: mirrors, then elastic deformation, rotation and scale together.
Image and label share a draw, since the sampling grid is made once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from macl.config import AugmentationSettings, IntensitySettings, SpatialSettings
from macl.data.rng import SampleRng

ELASTIC_STRIDE = 4
"""The elastic field is smooth over some fifteen pixels, so it is drawn on a grid this much coarser."""


STRONG_VIEWS = AugmentationSettings(
    intensity=IntensitySettings(brightness=0.8, contrast=0.8, gamma=0.5, noise=0.5, blur=0.5)
)
"""Geometry and intensity, for methods that compare a slice with itself alone; the probabilities are SimCLR's for colour
and blur, since scans have no colour."""


def view(images: Tensor, rng: SampleRng, settings: AugmentationSettings) -> Tensor:
    """A random geometry of (B, C, H, W) images, then random changes of intensity."""
    return change_intensity(spatial_view(images, rng, "geometry", settings.spatial), rng, settings.intensity)


def two_views(images: Tensor, rng: SampleRng, settings: AugmentationSettings) -> tuple[Tensor, Tensor]:
    """Two independent views of each slice, drawn as "v1" and "v2"."""
    return view(images, rng.within("v1"), settings), view(images, rng.within("v2"), settings)


def small_view(images: Tensor, rng: SampleRng, settings: AugmentationSettings, share: float, multiple: tuple[int, ...]) -> Tensor:
    """`view` of a square window somewhere in the slice, at the slice's own resolution (multi-crop, SwAV).

    Args:
        images: (B, C, S, S).
        draws: the view's own.
        settings: of geometry and intensity.
        share: the window's side as a share of S.
        multiple: the window's side is rounded down to a multiple of this, but not to 0.

    Returns:
        (B, C, s, s).
    """
    side = images.shape[-1]
    small = max(multiple[0], int(side * share) // multiple[0] * multiple[0])
    grid = sampling_grid(rng, "geometry", settings.spatial, (small, small)) * (small / side)
    room = max(0.0, 1.0 - small / side)
    grid = grid + rng.uniform("window", (1, 1, 2), -room, room)
    return change_intensity(resample(images, grid, settings.spatial.interpolation), rng, settings.intensity)


def random_blocks(rng: SampleRng, patch: Sequence[int], block: int, share: float) -> Tensor:
    """(B, 1, rows, columns) bool: true on a share of the square blocks, chosen at random, as many in every slice."""
    rows, columns = patch
    down, across = math.ceil(rows / block), math.ceil(columns / block)
    rank = rng.uniform("blocks", (down * across,)).argsort(1).argsort(1)
    chosen = (rank < round(share * down * across)).reshape(-1, 1, down, across)
    return chosen.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :rows, :columns]


def spatial_view(images: Tensor, rng: SampleRng, name: str, settings: SpatialSettings) -> Tensor:
    """A random geometry of (B, C, H, W) images, zero outside; `name` tells one view from another."""
    grid = sampling_grid(rng, name, settings, images.shape[2:])
    return resample(images, grid, settings.interpolation)


def resample(images: Tensor, grid: Tensor, interpolation: str) -> Tensor:
    """Images (B, C, H, W) at the grid's places (B, H', W', 2), zero outside."""
    return F.grid_sample(images, grid.to(images.dtype), mode=interpolation, padding_mode="zeros", align_corners=False)


def resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Labels (B, H, W) int64 at the grid's places, nearest, background outside."""
    return resample(labels[:, None].float(), grid, "nearest")[:, 0].long()


def sampling_grid(
    rng: SampleRng,
    name: str,
    settings: SpatialSettings,
    patch: Sequence[int],
    mirror_axes: tuple[str, ...] = ("row", "column"),
) -> Tensor:
    """Where every pixel of the view lies in the slice: (B, rows, columns, 2) as (x, y) in [−1, 1]."""
    device = rng.samples.device
    rows, columns = patch
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) - rows / 2
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) - columns / 2
    place = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), dim=-1)
    deform = rng.chance(f"{name}/deform", settings.deform)
    identity = torch.eye(2, device=device)
    matrix = torch.where(deform[:, None, None], _matrix(rng, name, settings), identity)
    shift = rng.uniform(f"{name}/translation", (2,), -settings.translation, settings.translation)
    # Filled on the device: a tensor made of Python's numbers would be copied there, for which the host waits.
    sides = torch.stack([torch.full((), float(side), device=device) for side in (columns, rows)])
    shift = torch.where(deform[:, None], shift * sides, 0.0)
    place = place[None]
    if settings.elastic_alpha[1] > 0:
        field = _elastic_field(rng, name, settings, rows, columns)
        place = place + torch.where(deform[:, None, None, None], field, 0.0)
    # Not as a matrix product: under autocast that would round places to half a pixel.
    xx, xy, yx, yy = matrix.flatten(1)[:, :, None, None].unbind(1)
    x, y = place.unbind(-1)
    place = torch.stack((xx * x + xy * y, yx * x + yy * y), dim=-1) + shift[:, None, None]
    sign = torch.stack([_sign(rng, name, axis, settings.mirror, mirror_axes) for axis in ("column", "row")], dim=-1)
    return place * sign[:, None, None] / (sides / 2)


def _sign(rng: SampleRng, name: str, axis: str, probability: float, mirror_axes: tuple[str, ...]) -> Tensor:
    mirrored = rng.chance(f"{name}/mirror/{axis}", probability if axis in mirror_axes else 0.0)
    return 1.0 - 2.0 * mirrored.float()


def _matrix(rng: SampleRng, name: str, settings: SpatialSettings) -> Tensor:
    """(B, 2, 2) rotation · shear · scale of places; a scale above 1 shows more of the slice, smaller."""
    turn = math.radians(settings.rotation_degrees)
    angle = rng.uniform(f"{name}/rotation", (), -turn, turn)
    scale = rng.uniform(f"{name}/scale", (), *settings.scale)
    lean = math.radians(settings.shear_degrees)
    shear = torch.tan(rng.uniform(f"{name}/shear", (2,), -lean, lean))
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    one = torch.ones_like(angle)
    leaning = torch.stack((torch.stack((one, shear[:, 0]), -1), torch.stack((shear[:, 1], one), -1)), -2)
    return _product(rotation, leaning) * scale[:, None, None]


def _elastic_field(rng: SampleRng, name: str, settings: SpatialSettings, rows: int, columns: int) -> Tensor:
    """(B, rows, columns, 2) displacements in pixels: uniform noise in [−1, 1], smoothed by σ, times α (Simard 2003)."""
    coarse = [math.ceil(side / ELASTIC_STRIDE) for side in (rows, columns)]
    noise = rng.uniform(f"{name}/elastic", (2, *coarse), -1.0, 1.0)
    sigma = rng.uniform(f"{name}/sigma", (), *settings.elastic_sigma) / ELASTIC_STRIDE
    # Smoothing averages 2σ√π · 2σ√π / 4 fewer numbers on the coarse grid, so the noise left is stride times larger.
    alpha = rng.uniform(f"{name}/alpha", (), *settings.elastic_alpha) / ELASTIC_STRIDE
    down, across = (_gaussian(sigma, side)[:, None] for side in coarse)
    field = _product(down, noise, across.mT) * alpha[:, None, None, None]
    return F.interpolate(field, size=(rows, columns), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _product(*matrices: Tensor) -> Tensor:
    """The matrix product in full precision, under autocast too."""
    with torch.autocast(matrices[0].device.type, enabled=False):
        return reduce(torch.matmul, matrices)


def _gaussian(sigma: Tensor, side: int) -> Tensor:
    """(B, side, side) matrices that smooth along an axis with a Gaussian of σ (B,), zero outside."""
    index = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (index[:, None] - index[None, :]).square()
    weight = torch.exp(-distance / (2.0 * sigma[:, None, None].square()))
    return weight / (sigma[:, None, None] * math.sqrt(2.0 * math.pi))


def change_intensity(images: Tensor, rng: SampleRng, settings: IntensitySettings) -> Tensor:
    """Random intensity changes of (B, C, H, W) normalised images, each with its own probability (after nnU-Net's list)."""
    changes = {
        "noise": _noise, "blur": _blur, "brightness": _brightness,
        "contrast": _contrast, "low_resolution": _low_resolution, "gamma": _gamma,
    }  # fmt: skip
    for name, change in changes.items():
        probability = getattr(settings, name)
        if probability > 0:
            chosen = rng.chance(f"intensity/{name}", probability)[:, None, None, None]
            images = torch.where(chosen, change(images, rng), images)
    return images


def _per_slice(rng: SampleRng, name: str, low: float, high: float) -> Tensor:
    return rng.uniform(f"intensity/{name}/amount", (1, 1, 1), low, high)


def _noise(images: Tensor, rng: SampleRng) -> Tensor:
    deviation = _per_slice(rng, "noise", 0.0, 0.3)
    return images + deviation * rng.normal("intensity/noise/pixels", tuple(images.shape[1:]))


def _blur(images: Tensor, rng: SampleRng) -> Tensor:
    sigma = _per_slice(rng, "blur", 0.5, 1.0).flatten()
    down, across = (_gaussian(sigma, side)[:, None] for side in images.shape[-2:])
    down, across = (matrix / matrix.sum(-1, keepdim=True) for matrix in (down, across))
    return _product(down, images, across.mT)


def _brightness(images: Tensor, rng: SampleRng) -> Tensor:
    return images * _per_slice(rng, "brightness", 0.75, 1.25)


def _contrast(images: Tensor, rng: SampleRng) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    changed = (images - mean) * _per_slice(rng, "contrast", 0.75, 1.25) + mean
    return changed.clamp(images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True))


def _low_resolution(images: Tensor, rng: SampleRng) -> Tensor:
    """Seen through a coarser grid: every pixel takes the value at the centre of its coarse cell, then linearly joined."""
    zoom = _per_slice(rng, "low_resolution", 0.5, 1.0)
    rows, columns = images.shape[-2:]
    matrices = [_coarsen(zoom.flatten(), side, images.device)[:, None] for side in (rows, columns)]
    return _product(matrices[0], images, matrices[1].mT)


def _coarsen(zoom: Tensor, side: int, device: torch.device) -> Tensor:
    """(B, side, side): sample a line at `zoom` times as many places (nearest), then join them linearly."""
    index = torch.arange(side, device=device, dtype=torch.float32)
    place = (index[None] + 0.5) * zoom[:, None] - 0.5
    low = place.floor()
    share = place - low
    last = (zoom[:, None] * side).floor() - 1

    def seen(cell: Tensor) -> Tensor:
        centre = ((cell.clamp(min=0).minimum(last) + 0.5) / zoom[:, None] - 0.5).round().clamp(0, side - 1)
        return (index[None, None] == centre[..., None]).float()

    return seen(low) * (1 - share)[..., None] + seen(low + 1) * share[..., None]


def _gamma(images: Tensor, rng: SampleRng) -> Tensor:
    """x^γ on the slice's own range, its mean and deviation kept (nnU-Net); half of the time on the inverted slice."""
    gamma = _per_slice(rng, "gamma", 0.7, 1.5)
    sign = 1.0 - 2.0 * rng.chance("intensity/gamma/inverted", 0.5).float()[:, None, None, None]
    source = images * sign
    low, high = source.amin((2, 3), keepdim=True), source.amax((2, 3), keepdim=True)
    extent = (high - low).clamp(min=1e-7)
    bent = ((source - low) / extent).clamp(1e-6, 1).pow(gamma) * extent + low
    mean, deviation = source.mean((2, 3), keepdim=True), source.std((2, 3), keepdim=True)
    bent_mean, bent_deviation = bent.mean((2, 3), keepdim=True), bent.std((2, 3), keepdim=True)
    return ((bent - bent_mean) / bent_deviation.clamp(min=1e-7) * deviation + mean) * sign
