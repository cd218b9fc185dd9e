"""Views of patches: a random geometry, then random changes of intensity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from macl.augmentation._per_sample import filled
from macl.augmentation.geometry import resample, sampling_grid, spatial_view
from macl.augmentation.intensity import change_intensity
from macl.config.settings import AugmentationSettings, IntensitySettings
from macl.data.rng import SampleRng

STRONG_VIEWS = AugmentationSettings(
    intensity=IntensitySettings(brightness=0.8, contrast=0.8, gamma=0.5, noise=0.5, blur=0.5)
)
"""Geometry and intensity, for methods that compare a patch with itself alone. The probabilities are
SimCLR's for colour and blur, since scans have no colour."""


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
    grid = sampling_grid(rng, "geometry", settings.spatial, window) * filled(shares, device)
    room = filled([max(0.0, 1.0 - part) for part in shares], device)
    place = rng.uniform("window", (*(1 for _ in patch), len(patch)))
    grid = grid + (place * (room + room) - room)
    shown = resample(images, grid, settings.spatial.interpolation)
    return change_intensity(shown, rng, settings.intensity)
