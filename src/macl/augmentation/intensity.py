"""Random changes of intensity, for each patch its own (after nnU-Net's list)."""

from __future__ import annotations

import torch
from torch import Tensor

from macl.augmentation._per_sample import along_axes, gaussian, per_sample
from macl.config.settings import IntensitySettings
from macl.data.rng import SampleRng


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
            chosen = per_sample(rng.chance(f"intensity/{name}", probability), images)
            images = torch.where(chosen, change(images, rng), images)
    return images


def _amount(rng: SampleRng, name: str, low: float, high: float) -> Tensor:
    """(B,), how strongly each patch is changed."""
    return rng.uniform(f"intensity/{name}/amount", (), low, high)


def _spatial_axes(images: Tensor) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))


def _noise(images: Tensor, rng: SampleRng) -> Tensor:
    deviation = per_sample(_amount(rng, "noise", 0.0, 0.3), images)
    return images + deviation * rng.normal("intensity/noise/pixels", tuple(images.shape[1:]))


def _blur(images: Tensor, rng: SampleRng) -> Tensor:
    sigma = _amount(rng, "blur", 0.5, 1.0)
    matrices = [gaussian(sigma, side) for side in images.shape[2:]]
    return along_axes(images, [matrix / matrix.sum(-1, keepdim=True) for matrix in matrices])


def _brightness(images: Tensor, rng: SampleRng) -> Tensor:
    return images * per_sample(_amount(rng, "brightness", 0.75, 1.25), images)


def _contrast(images: Tensor, rng: SampleRng) -> Tensor:
    axes = _spatial_axes(images)
    mean = images.mean(axes, keepdim=True)
    factor = per_sample(_amount(rng, "contrast", 0.75, 1.25), images)
    changed = (images - mean) * factor + mean
    return changed.clamp(images.amin(axes, keepdim=True), images.amax(axes, keepdim=True))


def _low_resolution(images: Tensor, rng: SampleRng) -> Tensor:
    """The values at the centres of coarser cells, joined linearly."""
    zoom = _amount(rng, "low_resolution", 0.5, 1.0)
    return along_axes(images, [_coarsen(zoom, side, images.device) for side in images.shape[2:]])


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
    gamma = per_sample(_amount(rng, "gamma", 0.7, 1.5), images)
    inverted = rng.chance("intensity/gamma/inverted", 0.5).float()
    sign = 1.0 - 2.0 * per_sample(inverted, images)
    source = images * sign
    low, high = source.amin(axes, keepdim=True), source.amax(axes, keepdim=True)
    extent = (high - low).clamp(min=1e-7)
    bent = ((source - low) / extent).clamp(1e-6, 1).pow(gamma) * extent + low
    mean, deviation = source.mean(axes, keepdim=True), source.std(axes, keepdim=True)
    bent_mean, bent_deviation = bent.mean(axes, keepdim=True), bent.std(axes, keepdim=True)
    return ((bent - bent_mean) / bent_deviation.clamp(min=1e-7) * deviation + mean) * sign
