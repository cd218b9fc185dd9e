"""Views: a draw, then its exact application."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from macl.augmentation import ELASTIC_STRIDE, change_intensity, resample, resample_labels, sampling_grid, spatial_view
from macl.config import IntensitySettings, SpatialSettings
from macl.data.rng import SampleRng

STILL: dict[str, Any] = {
    "mirror": 0.0, "deform": 1.0, "rotation_degrees": 0.0, "scale": (1.0, 1.0), "elastic_alpha": (0.0, 0.0),
}  # fmt: skip


def settings(**changes: Any) -> SpatialSettings:
    return SpatialSettings(**(STILL | changes))


def rng(count: int, seed: int = 0, step: int = 0) -> SampleRng:
    return SampleRng(seed, step, torch.arange(count))


def images(count: int = 2, rows: int = 24, columns: int = 16, channels: int = 2) -> Tensor:
    return torch.randn(count, channels, rows, columns, generator=torch.Generator().manual_seed(5))


def fixed(use: str, value: float, count: int = 1) -> SampleRng:
    """Draws of which one use always yields one value, where a range would hit it by chance only."""

    class Fixed(SampleRng):
        def uniform(self, name: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> Tensor:
            drawn = super().uniform(name, shape, low, high)
            return torch.full_like(drawn, value) if name == use else drawn

    return Fixed(0, 0, torch.arange(count))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(24, 16), (32, 32), (15, 21)])
def test_where_nothing_is_drawn_the_view_is_the_image(interpolation: str, shape: tuple[int, int]) -> None:
    image = images(2, *shape)
    for chosen in (
        settings(interpolation=interpolation),
        SpatialSettings(mirror=0, deform=0, interpolation=interpolation),
    ):
        torch.testing.assert_close(spatial_view(image, rng(2), "v", chosen), image, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("axis", "dimension"), [("row", -2), ("column", -1)])
def test_a_mirror_is_exact(axis: str, dimension: int) -> None:
    image, labels = images(3), torch.randint(0, 4, (3, 24, 16), generator=torch.Generator().manual_seed(0))
    grid = sampling_grid(rng(3), "v", settings(mirror=1.0), 24, 16, (axis,))
    assert torch.equal(resample_labels(labels, grid), labels.flip(dimension))
    for interpolation in ("bilinear", "bicubic"):
        torch.testing.assert_close(resample(image, grid, interpolation), image.flip(dimension), rtol=0, atol=1e-4)
    both = spatial_view(image, rng(3), "v", settings(mirror=1.0))
    torch.testing.assert_close(both, image.flip(-2, -1), rtol=0, atol=1e-4)


def test_axes_are_mirrored_apart_and_half_of_the_time() -> None:
    ramp = torch.arange(4.0)[:, None] * 10 + torch.arange(4.0)
    views = spatial_view(ramp.expand(2000, 1, 4, 4), rng(2000), "v", settings(mirror=0.5, interpolation="bilinear"))
    corners = views[:, 0, 0, 0].round().long()
    shares = torch.bincount(corners, minlength=34)[[0, 3, 30, 33]] / 2000
    assert shares.sum() == 1
    assert ((shares - 0.25).abs() < 0.04).all()


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_a_quarter_turn_equals_rot90(quarters: int) -> None:
    image, labels = images(1, 16, 16), torch.arange(256).reshape(1, 16, 16)
    turn = fixed("v/rotation", quarters * math.pi / 2)
    grid = sampling_grid(turn, "v", settings(rotation_degrees=180.0), 16, 16)
    expected = torch.rot90(image, quarters, (-2, -1))
    torch.testing.assert_close(resample(image, grid, "bicubic"), expected, rtol=0, atol=1e-4)
    assert torch.equal(resample_labels(labels, grid), torch.rot90(labels, quarters, (-2, -1)))


def test_rotations_reach_all_angles_and_no_further() -> None:
    grids = sampling_grid(rng(500), "v", settings(rotation_degrees=30.0), 2, 2)
    right = grids[:, :, 1].mean(1) - grids[:, :, 0].mean(1)
    angles = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert angles.abs().max() <= 30
    assert angles.min() < -28
    assert angles.max() > 28


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_shows_more_or_less_of_the_slice(scale: float) -> None:
    grid = sampling_grid(rng(1), "v", settings(scale=(scale, scale)), 16, 8)
    still = sampling_grid(rng(1), "v", settings(), 16, 8)
    torch.testing.assert_close(grid, scale * still)
    ones = resample(torch.ones(1, 1, 16, 8), grid, "bilinear")
    assert ones.mean().item() == pytest.approx(min(1.0, scale**-2), abs=1e-5), "zero outside"


def test_translation_is_a_fraction_of_the_side() -> None:
    still = sampling_grid(rng(400), "v", settings(), 20, 40)
    moved = sampling_grid(rng(400), "v", settings(translation=0.1), 20, 40) - still
    assert moved.std((1, 2)).max() < 1e-5, "every pixel alike"
    shift = moved[:, 0, 0] / 2
    assert shift.abs().max() <= 0.1 + 1e-5
    assert shift.amax(0).min() > 0.09
    assert shift.amin(0).max() < -0.09


def test_shear_leans_the_axes() -> None:
    grid = sampling_grid(rng(300), "v", settings(shear_degrees=20.0), 2, 2)
    across, down = grid[:, 0, 1] - grid[:, 0, 0], grid[:, 1, 0] - grid[:, 0, 0]
    for along, aside in ((across[:, 0], across[:, 1]), (down[:, 1], down[:, 0])):
        torch.testing.assert_close(along, torch.ones(300))
        lean = torch.atan(aside).rad2deg()
        assert 18 < lean.abs().max() <= 20 + 1e-4


def test_image_and_label_share_a_draw() -> None:
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    labels[:, 10:40, 20:50] = 1
    grid = sampling_grid(rng(4), "v", SpatialSettings(deform=1.0), 64, 64)
    image = resample(labels[:, None].float(), grid, "bilinear")[:, 0]
    moved = resample_labels(labels, grid)
    sure = (image - 0.5).abs() > 0.49
    assert sure.float().mean() > 0.8
    assert torch.equal(moved[sure], (image[sure] > 0.5).long())


@pytest.mark.parametrize("kind", ["spatial", "intensity"])
def test_a_view_depends_on_seed_step_and_sample_alone(kind: str) -> None:
    image = images(6, 32, 32)
    intensity = IntensitySettings(brightness=1, contrast=1, gamma=1, noise=1, blur=1, low_resolution=1)

    def view(numbers: list[int], seed: int = 3, step: int = 9) -> Tensor:
        drawn = SampleRng(seed, step, torch.tensor(numbers))
        if kind == "spatial":
            return spatial_view(image[numbers], drawn, "v", SpatialSettings(deform=1.0))
        return change_intensity(image[numbers], drawn, intensity)

    whole = view([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(view([4, 1, 3]), whole[[4, 1, 3]], rtol=0, atol=1e-5)
    torch.testing.assert_close(view([2]), whole[[2]], rtol=0, atol=1e-5)
    assert torch.equal(view([0, 1, 2, 3, 4, 5]), whole)
    for other in (view([0, 1], seed=4), view([0, 1], step=10)):
        assert ((other - whole[:2]).abs().mean((1, 2, 3)) > 0.01).all()


def test_two_views_differ() -> None:
    image = images(4, 32, 32)
    first, second = (spatial_view(image, rng(4), name, SpatialSettings(deform=1.0)) for name in ("v1", "v2"))
    assert ((first - second).abs().mean((1, 2, 3)) > 0.1).all()


def test_deformation_comes_as_often_as_asked() -> None:
    image = images(1, 16, 16).expand(1000, -1, -1, -1)
    views = spatial_view(image, rng(1000), "v", SpatialSettings(mirror=0.0, deform=0.67))
    changed = (views - image).abs().amax((1, 2, 3)) > 1e-3
    assert changed.float().mean().item() == pytest.approx(0.67, abs=0.05)


@pytest.mark.parametrize(("alpha", "sigma"), [(100.0, 14.0), (350.0, 17.0)])
def test_the_elastic_field_is_as_strong_and_smooth_as_at_full_resolution(alpha: float, sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    side, count = 160, 24
    chosen = settings(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    moved = sampling_grid(rng(count), "v", chosen, side, side) - sampling_grid(
        rng(count), "v", settings(), side, side
    )
    ours = (moved * side / 2).permute(0, 3, 1, 2).reshape(-1, side, side)
    noise = 2 * torch.rand(2 * count, side, side, generator=torch.Generator().manual_seed(0)) - 1
    theirs = alpha * torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), (0, sigma, sigma), mode="constant"))
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.07)
    middle = slice(40, 120)
    assert ours[:, middle, middle].std().item() == pytest.approx(theirs[:, middle, middle].std().item(), rel=0.1)

    def correlation(field: Tensor, lag: int) -> float:
        return ((field[:, :, lag:] * field[:, :, :-lag]).mean() / field.square().mean()).item()

    for lag in (ELASTIC_STRIDE, 14, 28):
        assert correlation(ours, lag) == pytest.approx(correlation(theirs, lag), abs=0.08)


def test_the_strength_of_the_elastic_field_exactly() -> None:
    """Against its expectation: uniform noise of variance 1/3 smoothed by σ has variance 1 / (12 π σ²)."""
    alpha, sigma, side = 200.0, 15.0, 128
    chosen = settings(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    moved = sampling_grid(rng(128), "v", chosen, side, side) - sampling_grid(rng(1), "v", settings(), side, side)
    centre = (moved * side / 2)[:, 56:72, 56:72]
    assert centre.square().mean().sqrt().item() == pytest.approx(alpha / (sigma * (12 * torch.pi) ** 0.5), rel=0.1)


def test_geometry_stays_in_full_precision_under_autocast() -> None:
    chosen = SpatialSettings(deform=1.0, shear_degrees=10.0)
    intensity = IntensitySettings(blur=1.0, low_resolution=1.0)
    expected = sampling_grid(rng(3), "v", chosen, 64, 64)
    changed = change_intensity(images(3, 64, 64), rng(3), intensity)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampling_grid(rng(3), "v", chosen, 64, 64), expected)
        assert torch.equal(change_intensity(images(3, 64, 64), rng(3), intensity), changed)


# ---------------------------------------------------------------- intensity


def changed(image: Tensor, **probabilities: float) -> Tensor:
    return change_intensity(image, rng(len(image)), IntensitySettings(**probabilities))


CHANGES = tuple(IntensitySettings.model_fields)


def test_nothing_changes_by_default() -> None:
    assert torch.equal(changed(images()), images())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_comes_as_often_as_asked(change: str) -> None:
    image = images(1, 8, 8).expand(600, -1, -1, -1)
    different = (changed(image, **{change: 0.3}) != image).any(-1).any(-1).any(-1)
    assert different.float().mean().item() == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("value", [0.0, -3.5, 1e4])
def test_constant_slices_stay_finite(change: str, value: float) -> None:
    constant = torch.full((5, 1, 16, 16), value)
    result = changed(constant, **{change: 1.0})
    assert result.isfinite().all()
    if change in ("contrast", "gamma", "blur", "low_resolution"):
        torch.testing.assert_close(result, constant, rtol=1e-4, atol=1e-4)


def test_brightness_multiplies_a_slice() -> None:
    image = images(50)
    factors = (changed(image, brightness=1.0) / image).flatten(1)
    assert (factors.amax(1) - factors.amin(1)).max() < 1e-3
    assert 0.75 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.25 + 1e-4


def test_contrast_keeps_mean_order_and_range() -> None:
    image = images(50)
    result = changed(image, contrast=1.0)
    assert ((result >= image.amin((2, 3), keepdim=True)) & (result <= image.amax((2, 3), keepdim=True))).all()
    assert (result.flatten(2).sort().indices == image.flatten(2).sort().indices).float().mean() > 0.95
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
