"""Geometry of slices and volumes: a draw, then its exact application."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from fakes.views import fixed, geometry, images, rng
from macl.augmentation.geometry import (
    COARSEST_ELASTIC_STRIDE,
    leaves_plane,
    resample,
    resample_labels,
    sampling_grid,
    spatial_view,
)
from macl.augmentation.intensity import change_intensity
from macl.config.settings import ArrayAxis, IntensitySettings, SpatialSettings

IN_PLANE: tuple[ArrayAxis, ...] = ("row", "column")


def spatial_axes(tensor: Tensor) -> tuple[int, ...]:
    """The axes of the patch in (B, C, *patch)."""
    return tuple(range(2, tensor.ndim))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape", [(24, 16), (32, 32), (15, 21), (12, 24, 16), (16, 16, 16), (5, 9, 21), (1, 15, 21)]
)
def test_where_nothing_is_drawn_the_view_is_the_image(
    interpolation: str, shape: tuple[int, ...]
) -> None:
    image = images(2, *shape)
    for chosen in (
        geometry(interpolation=interpolation),
        SpatialSettings(mirror=0, deform=0, interpolation=interpolation),
    ):
        view = spatial_view(image, rng(2), "v", chosen)
        torch.testing.assert_close(view, image, rtol=0, atol=1e-4)


def test_where_nothing_is_drawn_a_trilinear_view_is_the_image_to_the_last_digits() -> None:
    image, labels = images(2, 12, 24, 16), torch.randint(0, 9, (2, 12, 24, 16))
    grid = sampling_grid(rng(2), "v", geometry(), (12, 24, 16))
    torch.testing.assert_close(resample(image, grid, "bilinear"), image, rtol=0, atol=1e-5)
    assert torch.equal(resample_labels(labels, grid), labels)
    still = sampling_grid(rng(2), "v", geometry(), (8, 16, 16))
    image = images(2, 8, 16, 16)
    assert torch.equal(resample(image, still, "bilinear"), image), "exact where halves are exact"


@pytest.mark.parametrize(
    ("shape", "axis", "dimension"),
    [
        ((24, 16), "row", -2),
        ((24, 16), "column", -1),
        ((10, 24, 16), "slice", -3),
        ((10, 24, 16), "row", -2),
        ((10, 24, 16), "column", -1),
    ],
)
def test_a_mirror_is_exact(shape: tuple[int, ...], axis: ArrayAxis, dimension: int) -> None:
    image = images(3, *shape)
    labels = torch.randint(0, 4, (3, *shape), generator=torch.Generator().manual_seed(0))
    grid = sampling_grid(rng(3), "v", geometry(mirror=1.0), shape, (axis,))
    assert torch.equal(resample_labels(labels, grid), labels.flip(dimension))
    for interpolation in ("bilinear", "bicubic"):
        view = resample(image, grid, interpolation)
        torch.testing.assert_close(view, image.flip(dimension), rtol=0, atol=1e-4)
    every = spatial_view(image, rng(3), "v", geometry(mirror=1.0))
    torch.testing.assert_close(every, image.flip(spatial_axes(image)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_axes_are_mirrored_apart_and_half_of_the_time(dims: int) -> None:
    ramp = torch.arange(4.0)
    numbers = (
        10 * ramp[:, None] + ramp
        if dims == 2
        else 100 * ramp[:, None, None] + (10 * ramp[:, None] + ramp)
    )
    chosen = geometry(mirror=0.5, interpolation="bilinear")
    views = spatial_view(numbers.expand(2000, 1, *numbers.shape), rng(2000), "v", chosen)
    corners = views.flatten(1)[:, 0].round().long()
    expected = [int("".join(digits)) for digits in product("03", repeat=dims)]
    counts = torch.bincount(corners, minlength=334)[expected]
    assert counts.sum() == 2000
    assert ((counts / 2000 - 0.5**dims).abs() < 0.04).all()


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_a_quarter_turn_equals_rot90(quarters: int) -> None:
    image, labels = images(1, 16, 16), torch.arange(256).reshape(1, 16, 16)
    turn = fixed("v/rotation", quarters * math.pi / 2)
    grid = sampling_grid(turn, "v", geometry(rotation_degrees=180.0), (16, 16))
    expected = torch.rot90(image, quarters, (-2, -1))
    torch.testing.assert_close(resample(image, grid, "bicubic"), expected, rtol=0, atol=1e-4)
    assert torch.equal(resample_labels(labels, grid), torch.rot90(labels, quarters, (-2, -1)))


@pytest.mark.parametrize(
    ("use", "angles", "plane"),
    [
        ("v/rotation", math.pi / 2, (-2, -1)),
        ("v/tilt", [math.pi / 2, 0.0], (-3, -1)),
        ("v/tilt", [0.0, math.pi / 2], (-3, -2)),
    ],
)
def test_a_quarter_turn_of_a_volume_equals_rot90(
    use: str, angles: float | list[float], plane: tuple[int, int]
) -> None:
    image, labels = images(1, 8, 8, 8), torch.arange(512).reshape(1, 8, 8, 8)
    grid = sampling_grid(fixed(use, angles), "v", geometry(), (8, 8, 8))
    expected = torch.rot90(image, 1, plane)
    torch.testing.assert_close(resample(image, grid, "bilinear"), expected, rtol=0, atol=1e-5)
    assert torch.equal(resample_labels(labels, grid), torch.rot90(labels, 1, plane))


def test_a_rotation_in_plane_moves_no_voxel_to_another_slice() -> None:
    image = images(1, 5, 12, 12)
    turn = fixed("v/rotation", math.pi / 2)
    view = resample(image, sampling_grid(turn, "v", geometry(), (5, 12, 12)), "bilinear")
    torch.testing.assert_close(view, torch.rot90(image, 1, (-2, -1)), rtol=0, atol=1e-5)


def test_a_grid_of_a_volume_voxel_by_voxel() -> None:
    """Rotation about z, y and x, shear, scale, translation and mirrors, written out in float64."""
    chosen = geometry(
        mirror=0.5, rotation_degrees=70.0, tilt_degrees=40.0, scale=(0.7, 1.3), shear_degrees=15.0,
        translation=0.2,
    )  # fmt: skip
    patch, drawn = (4, 6, 5), rng(3)
    grids = sampling_grid(drawn, "v", chosen, patch)

    def draw(use: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        return drawn.uniform(f"v/{use}", shape, low, high).double().numpy()

    turn, tilt, lean = (math.radians(degrees) for degrees in (70, 40, 15))
    rotations, tilts = draw("rotation", (), -turn, turn), draw("tilt", (2,), -tilt, tilt)
    scales, slopes = draw("scale", (), 0.7, 1.3), np.tan(draw("shear", (6,), -lean, lean))
    shifts = draw("translation", (3,), -0.2, 0.2)
    sides = np.array(patch[::-1])
    for b in range(3):
        about_y, about_x = tilts[b]
        rotation = Rotation.from_euler("ZYX", [rotations[b], -about_y, about_x]).as_matrix()
        xy, yx, xz, zx, yz, zy = slopes[b]
        shear = np.array([[1, xy, xz], [yx, 1, yz], [zx, zy, 1]])
        sign = [
            -1 if drawn.chance(f"v/mirror/{axis}", 0.5)[b] else 1
            for axis in ("column", "row", "slice")
        ]
        for z, y, x in np.ndindex(patch):
            place = np.array([x, y, z]) + 0.5 - sides / 2
            moved = scales[b] * rotation @ shear @ place + shifts[b] * sides
            expected = sign * moved / (sides / 2)
            np.testing.assert_allclose(grids[b, z, y, x].numpy(), expected, atol=1e-5)


def test_rotations_reach_all_angles_and_no_further() -> None:
    grids = sampling_grid(rng(500), "v", geometry(rotation_degrees=30.0), (2, 2))
    right = grids[:, :, 1].mean(1) - grids[:, :, 0].mean(1)
    angles = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert angles.abs().max() <= 30
    assert angles.min() < -28
    assert angles.max() > 28


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_shows_more_or_less_of_the_slice(scale: float) -> None:
    grid = sampling_grid(rng(1), "v", geometry(scale=(scale, scale)), (16, 8))
    still = sampling_grid(rng(1), "v", geometry(), (16, 8))
    torch.testing.assert_close(grid, scale * still)
    ones = resample(torch.ones(1, 1, 16, 8), grid, "bilinear")
    assert ones.mean().item() == pytest.approx(min(1.0, scale**-2), abs=1e-5), "zero outside"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_is_the_same_along_every_axis_of_a_volume(scale: float) -> None:
    grid = sampling_grid(rng(1), "v", geometry(scale=(scale, scale)), (8, 16, 12))
    torch.testing.assert_close(grid, scale * sampling_grid(rng(1), "v", geometry(), (8, 16, 12)))
    ones = resample(torch.ones(1, 1, 8, 16, 12), grid, "bilinear")
    assert ones.mean().item() == pytest.approx(min(1.0, scale**-3), abs=1e-5), "zero outside"


def test_a_volume_is_translated_along_every_axis_by_its_own_share() -> None:
    image, labels = images(1, 8, 12, 16), torch.randint(1, 5, (1, 8, 12, 16))
    shift = fixed("v/translation", [0.25, -1 / 12, 0.125])  # 4 columns, −1 row, 1 slice
    grid = sampling_grid(shift, "v", geometry(translation=0.3), (8, 12, 16))
    expected, expected_labels = torch.zeros_like(image), torch.zeros_like(labels)
    expected[..., :7, 1:, :12] = image[..., 1:, :11, 4:]
    expected_labels[..., :7, 1:, :12] = labels[..., 1:, :11, 4:]
    torch.testing.assert_close(resample(image, grid, "bilinear"), expected, rtol=0, atol=1e-4)
    assert torch.equal(resample_labels(labels, grid), expected_labels), "background outside"


@pytest.mark.parametrize(
    ("patch", "leaves"),
    [
        ((64, 64), False),
        ((64, 64, 64), True),
        ((40, 56, 40), True),
        ((16, 48, 48), True),
        ((16, 49, 16), False),
        ((1, 2, 2), True),
        ((1, 16, 16), False),
    ],
)
def test_thin_volumes_stay_in_the_plane_of_their_slices(
    patch: tuple[int, ...], leaves: bool
) -> None:
    assert leaves_plane(patch) is leaves
    if len(patch) == 3:
        chosen = SpatialSettings(
            deform=1.0, tilt_degrees=60.0, shear_degrees=20.0, mirror=0.0, translation=0.2
        )
        height = sampling_grid(rng(3), "v", chosen, patch)[..., 2].flatten(2)
        assert ((height.amax(2) - height.amin(2)).max() > 1e-3).item() is leaves


def test_a_volume_of_one_slice_is_seen_as_that_slice() -> None:
    """The draws that both have in common bear the same names."""
    chosen = SpatialSettings(deform=1.0, shear_degrees=10.0, translation=0.1)
    image = images(4, 64, 48)
    flat = sampling_grid(rng(4), "v", chosen, (64, 48), IN_PLANE)
    grid = sampling_grid(rng(4), "v", chosen, (1, 64, 48), IN_PLANE)
    torch.testing.assert_close(grid[:, 0, ..., :2], flat, rtol=0, atol=1e-5)
    height = rng(4).uniform("v/translation", (3,), -0.1, 0.1)[:, 2]
    torch.testing.assert_close(grid[..., 2], (2 * height)[:, None, None, None].expand(4, 1, 64, 48))
    level = grid * torch.tensor([1.0, 1.0, 0.0])
    view = resample(image[:, :, None], level, "bilinear")[:, :, 0]
    torch.testing.assert_close(view, resample(image, flat, "bilinear"), rtol=0, atol=1e-3)


def test_translation_is_a_fraction_of_the_side() -> None:
    still = sampling_grid(rng(400), "v", geometry(), (20, 40))
    moved = sampling_grid(rng(400), "v", geometry(translation=0.1), (20, 40)) - still
    assert moved.std((1, 2)).max() < 1e-5, "every pixel alike"
    shift = moved[:, 0, 0] / 2
    assert shift.abs().max() <= 0.1 + 1e-5
    assert shift.amax(0).min() > 0.09
    assert shift.amin(0).max() < -0.09


def test_shear_leans_the_axes() -> None:
    grid = sampling_grid(rng(300), "v", geometry(shear_degrees=20.0), (2, 2))
    across, down = grid[:, 0, 1] - grid[:, 0, 0], grid[:, 1, 0] - grid[:, 0, 0]
    for along, aside in ((across[:, 0], across[:, 1]), (down[:, 1], down[:, 0])):
        torch.testing.assert_close(along, torch.ones(300))
        lean = torch.atan(aside).rad2deg()
        assert 18 < lean.abs().max() <= 20 + 1e-4


@pytest.mark.parametrize("patch", [(64, 64), (48, 64, 64), (12, 64, 64)])
def test_image_and_label_share_a_draw(patch: tuple[int, ...]) -> None:
    labels = torch.zeros(4, *patch, dtype=torch.long)
    labels[..., 10:40, 20:50] = 1
    grid = sampling_grid(rng(4), "v", SpatialSettings(deform=1.0), patch)
    image = resample(labels[:, None].float(), grid, "bilinear")[:, 0]
    moved = resample_labels(labels, grid)
    sure = (image - 0.5).abs() > 0.49
    assert sure.float().mean() > 0.8
    assert torch.equal(moved[sure], (image[sure] > 0.5).long())


@pytest.mark.parametrize("patch", [(64, 48), (20, 24, 28)])
def test_labels_are_nearest_and_no_class_is_invented(patch: tuple[int, ...]) -> None:
    classes = torch.tensor([0, 3, 7])
    labels = classes[torch.randint(0, 3, (6, *patch), generator=torch.Generator().manual_seed(1))]
    grid = sampling_grid(rng(6), "v", SpatialSettings(deform=1.0), patch)
    moved = resample_labels(labels, grid)
    assert {*moved.unique().tolist()} <= {0, 3, 7}
    sides = torch.tensor(patch[::-1])
    nearest = ((grid + 1) * sides / 2 - 0.5).round().long().flip(-1)  # (z, y, x)
    inside = ((nearest >= 0) & (nearest < torch.tensor(patch))).all(-1)
    expected = torch.zeros_like(moved)
    for b in range(6):
        at = nearest[b][inside[b]].unbind(-1)
        expected[b][inside[b]] = labels[b][at]
    assert (moved == expected).float().mean() > 0.999, "but for the last bit of a place on an edge"


@pytest.mark.parametrize("patch", [(32, 32), (16, 16, 16)])
def test_two_views_differ(patch: tuple[int, ...]) -> None:
    image, chosen = images(4, *patch), SpatialSettings(deform=1.0)
    first, second = (spatial_view(image, rng(4), name, chosen) for name in ("v1", "v2"))
    assert ((first - second).abs().flatten(1).mean(1) > 0.1).all()


def test_deformation_comes_as_often_as_asked() -> None:
    image = images(1, 16, 16).expand(1000, -1, -1, -1)
    views = spatial_view(image, rng(1000), "v", SpatialSettings(mirror=0.0, deform=0.67))
    changed = (views - image).abs().amax((1, 2, 3)) > 1e-3
    assert changed.float().mean().item() == pytest.approx(0.67, abs=0.05)


@pytest.mark.parametrize(("alpha", "sigma"), [(100.0, 14.0), (350.0, 17.0)])
def test_the_elastic_field_is_as_strong_and_smooth_as_at_full_resolution(
    alpha: float, sigma: float
) -> None:
    side, count = 160, 24
    chosen = geometry(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(count), "v", geometry(), (side, side))
    moved = sampling_grid(rng(count), "v", chosen, (side, side)) - still
    ours = (moved * side / 2).permute(0, 3, 1, 2).reshape(-1, side, side)
    noise = 2 * torch.rand(2 * count, side, side, generator=torch.Generator().manual_seed(0)) - 1
    theirs = alpha * torch.from_numpy(
        ndimage.gaussian_filter(noise.numpy(), (0, sigma, sigma), mode="constant")
    )
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.07)
    middle = slice(40, 120)
    assert ours[:, middle, middle].std().item() == pytest.approx(
        theirs[:, middle, middle].std().item(), rel=0.1
    )

    def correlation(field: Tensor, lag: int) -> float:
        return ((field[:, :, lag:] * field[:, :, :-lag]).mean() / field.square().mean()).item()

    for lag in (COARSEST_ELASTIC_STRIDE, 14, 28):
        assert correlation(ours, lag) == pytest.approx(correlation(theirs, lag), abs=0.08)


def test_the_strength_of_the_elastic_field_exactly() -> None:
    """Uniform noise of variance 1/3, smoothed by σ, has variance 1 / (12 π σ²)."""
    alpha, sigma, side = 200.0, 15.0, 128
    chosen = geometry(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(1), "v", geometry(), (side, side))
    moved = sampling_grid(rng(128), "v", chosen, (side, side)) - still
    centre = (moved * side / 2)[:, 56:72, 56:72]
    expected = alpha / (sigma * (12 * torch.pi) ** 0.5)
    assert centre.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("side", [48, 96, 192])
def test_an_elastic_field_with_a_reference_side_scales_with_the_patch(side: int) -> None:
    """α and σ for slices of 128² bend every slice by the same share of its side."""
    alpha, sigma = 200.0, 15.0
    chosen = geometry(
        elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma), elastic_reference_side=128
    )
    still = sampling_grid(rng(1), "v", geometry(), (side, side))
    moved = sampling_grid(rng(256), "v", chosen, (side, side)) - still
    centre = (moved / 2)[:, side // 2 - 4 : side // 2 + 4, side // 2 - 4 : side // 2 + 4]
    expected = alpha / (sigma * (12 * torch.pi) ** 0.5) / 128
    assert centre.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)


def test_the_elastic_field_of_a_volume_is_as_strong_as_that_of_a_slice() -> None:
    """Along every axis it is as smooth: two values `lag` apart correlate by exp(−lag² / 4σ²)."""
    alpha, sigma, side = 50.0, 6.0, 48
    chosen = geometry(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(1), "v", geometry(), (side, side, side))
    field = (sampling_grid(rng(48), "v", chosen, (side, side, side)) - still) * side / 2
    expected = alpha / (sigma * (12 * torch.pi) ** 0.5)
    middle = field[:, :, 16:32, 16:32]
    for shift in middle.unbind(-1):
        assert shift.square().mean().sqrt().item() == pytest.approx(expected, rel=0.15)
    strength = middle.square().mean((0, 2, 3, 4)).sqrt()
    assert ((strength / expected - 1).abs() < 0.25).all(), "in the outermost slices too"
    middle = field[:, 12:36, 12:36, 12:36]
    for axis in (1, 2, 3):
        for lag in (COARSEST_ELASTIC_STRIDE, 6, 12):
            near, far = middle.narrow(axis, 0, 24 - lag), middle.narrow(axis, lag, 24 - lag)
            ours = (near * far).mean() / (near.square().mean() * far.square().mean()).sqrt()
            assert ours.item() == pytest.approx(math.exp(-((lag / sigma) ** 2) / 4), abs=0.12)


@pytest.mark.parametrize("patch", [(64, 64), (24, 32, 32)])
def test_geometry_stays_in_full_precision_under_autocast(patch: tuple[int, ...]) -> None:
    chosen = SpatialSettings(deform=1.0, shear_degrees=10.0)
    intensity = IntensitySettings(blur=1.0, low_resolution=1.0)
    expected = sampling_grid(rng(3), "v", chosen, patch)
    changed = change_intensity(images(3, *patch), rng(3), intensity)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampling_grid(rng(3), "v", chosen, patch), expected)
        assert torch.equal(change_intensity(images(3, *patch), rng(3), intensity), changed)
