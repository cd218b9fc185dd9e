"""Changes of intensity, beside slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from fakes.views import fixed, images, rng
from macl.augmentation.intensity import change_intensity
from macl.config.settings import IntensitySettings
from macl.data.rng import SampleRng

CHANGES = tuple(IntensitySettings.model_fields)


def changed(image: Tensor, **probabilities: float) -> Tensor:
    return change_intensity(image, rng(len(image)), IntensitySettings(**probabilities))


def test_nothing_changes_by_default() -> None:
    assert torch.equal(changed(images()), images())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("patch", [(8, 8), (4, 6, 6)])
def test_a_change_comes_as_often_as_asked(change: str, patch: tuple[int, ...]) -> None:
    image = images(1, *patch).expand(600, -1, *(-1 for _ in patch))
    different = (changed(image, **{change: 0.3}) != image).flatten(1).any(-1)
    assert different.float().mean().item() == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("value", [0.0, -3.5, 1e4])
@pytest.mark.parametrize("patch", [(16, 16), (1, 16, 16), (6, 16, 8)])
def test_constant_patches_stay_finite(change: str, value: float, patch: tuple[int, ...]) -> None:
    constant = torch.full((5, 1, *patch), value)
    result = changed(constant, **{change: 1.0})
    assert result.isfinite().all()
    if change in ("contrast", "gamma", "blur", "low_resolution"):
        torch.testing.assert_close(result, constant, rtol=1e-4, atol=1e-4)


def slow_noise(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    deviation = drawn.uniform("intensity/noise/amount", (), 0.0, 0.3)[b].item()
    return image + deviation * drawn.normal("intensity/noise/pixels", image.shape)[b].numpy()


def slow_blur(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    sigma = drawn.uniform("intensity/blur/amount", (), 0.5, 1.0)[b].item()

    def smooth(channel: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(channel, sigma, mode="constant", truncate=12)

    return np.stack([smooth(channel) / smooth(np.ones_like(channel)) for channel in image])


def slow_brightness(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    return image * drawn.uniform("intensity/brightness/amount", (), 0.75, 1.25)[b].item()


def slow_contrast(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    factor = drawn.uniform("intensity/contrast/amount", (), 0.75, 1.25)[b].item()
    return np.stack(
        [
            np.clip(
                (channel - channel.mean()) * factor + channel.mean(), channel.min(), channel.max()
            )
            for channel in image
        ]
    )


def slow_low_resolution(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    """Every axis for itself: coarse cells take the nearest value, voxels are joined linearly."""
    zoom = drawn.uniform("intensity/low_resolution/amount", (), 0.5, 1.0)[b].item()
    for axis in range(1, image.ndim):
        side = image.shape[axis]
        cells = math.floor(zoom * side)
        nearest = [min(max(round((cell + 0.5) / zoom - 0.5), 0), side - 1) for cell in range(cells)]
        coarse = np.moveaxis(image, axis, 0)[nearest]
        lines = []
        for voxel in range(side):
            place = min(max((voxel + 0.5) * zoom - 0.5, 0.0), cells - 1.0)
            low = min(int(place), cells - 2)
            share = place - low
            lines.append(coarse[low] * (1 - share) + coarse[low + 1] * share)
        image = np.moveaxis(np.stack(lines), 0, axis)
    return image


def slow_gamma(image: np.ndarray, drawn: SampleRng, b: int) -> np.ndarray:
    gamma = drawn.uniform("intensity/gamma/amount", (), 0.7, 1.5)[b].item()
    sign = -1 if drawn.chance("intensity/gamma/inverted", 0.5)[b] else 1
    channels = []
    for channel in image * sign:
        extent = channel.max() - channel.min()
        bent = ((channel - channel.min()) / extent).clip(1e-6, 1) ** gamma
        bent = (bent - bent.mean()) / bent.std() * channel.std() + channel.mean()
        channels.append(bent * sign)
    return np.stack(channels)


SLOW = {
    "noise": slow_noise, "blur": slow_blur, "brightness": slow_brightness,
    "contrast": slow_contrast, "low_resolution": slow_low_resolution, "gamma": slow_gamma,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("patch", [(20, 14), (10, 16, 12), (4, 20, 24)])
def test_a_change_equals_its_slow_reference(change: str, patch: tuple[int, ...]) -> None:
    image, drawn = images(6, *patch), rng(6)
    ours = change_intensity(image, drawn, IntensitySettings(**{change: 1.0}))
    for b in range(6):
        expected = SLOW[change](image[b].double().numpy(), drawn, b)
        np.testing.assert_allclose(ours[b].numpy(), expected, atol=1e-4)


def test_brightness_multiplies_a_slice() -> None:
    image = images(50)
    factors = (changed(image, brightness=1.0) / image).flatten(1)
    assert (factors.amax(1) - factors.amin(1)).max() < 1e-3
    assert 0.75 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.25 + 1e-4


def test_contrast_keeps_mean_order_and_range() -> None:
    image = images(50)
    result = changed(image, contrast=1.0)
    assert (result >= image.amin((2, 3), keepdim=True)).all()
    assert (result <= image.amax((2, 3), keepdim=True)).all()
    order, before = (values.flatten(2).sort().indices for values in (result, image))
    assert (order == before).float().mean() > 0.95
    ratio = result.std((2, 3)) / image.std((2, 3))
    assert ratio.min() < 0.8
    assert ratio.max() > 1.1


def test_noise_has_the_drawn_deviation_and_no_bias() -> None:
    added = changed(torch.zeros(200, 1, 32, 32), noise=1.0)
    deviations = added.std((1, 2, 3))
    assert deviations.max() < 0.33
    assert deviations.mean().item() == pytest.approx(0.15, abs=0.02)
    assert (added.mean((1, 2, 3)).abs() < 5 * deviations / 32 + 1e-6).all()


def test_blur_is_a_gaussian_and_keeps_the_sum() -> None:
    spot = torch.zeros(100, 1, 21, 21)
    spot[:, :, 10, 10] = 1.0
    result = changed(spot, blur=1.0)[:, 0]
    torch.testing.assert_close(result.sum((1, 2)), torch.ones(100), rtol=1e-4, atol=0)
    sigma = (0.5 / (result[:, 10, 10] / result[:, 10, 11]).log()).sqrt()
    assert 0.5 <= sigma.min() < 0.55
    assert 0.95 < sigma.max() <= 1.0 + 1e-4
    torch.testing.assert_close(result, result.mT)


@pytest.mark.parametrize("side", [18, 20, 24, 31])
def test_low_resolution_is_there_and_back(side: int) -> None:
    image = images(3, 32, 32)
    zoom = fixed("intensity/low_resolution/amount", side / 32, 3)
    result = change_intensity(image, zoom, IntensitySettings(low_resolution=1.0))
    coarse = F.interpolate(image, size=(side, side), mode="nearest-exact")
    expected = F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_low_resolution_of_a_volume_is_there_and_back_along_every_axis() -> None:
    patch = (8, 16, 32)
    image = images(2, *patch)
    drawn = fixed("intensity/low_resolution/amount", 0.75, 2)
    result = change_intensity(image, drawn, IntensitySettings(low_resolution=1.0))
    coarse = F.interpolate(image, size=(6, 12, 24), mode="nearest-exact")
    expected = F.interpolate(coarse, size=patch, mode="trilinear", align_corners=False)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_low_resolution_moves_nothing_by_more_than_a_coarse_pixel() -> None:
    ramp = torch.arange(30.0).expand(60, 1, 30, 30)
    result = changed(ramp, low_resolution=1.0)
    assert (result - ramp).abs().max() <= 2.0
    assert (result != ramp).any()


def test_gamma_keeps_mean_deviation_and_order() -> None:
    image = images(60, 32, 32)
    result = changed(image, gamma=1.0)
    torch.testing.assert_close(result.mean((2, 3)), image.mean((2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.std((2, 3)), image.std((2, 3)), rtol=1e-4, atol=0)
    order = image.flatten(2).argsort()
    assert (result.flatten(2).gather(2, order).diff() >= -1e-5).all(), "brighter stays brighter"
    skew = ((result - result.mean((2, 3), keepdim=True)) ** 3).mean((2, 3)).flatten()
    assert skew.min() < -0.1
    assert skew.max() > 0.1
