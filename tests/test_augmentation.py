"""Views of slices and volumes: a draw, then its exact application."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from macl.augmentation import (
    COARSEST_ELASTIC_STRIDE,
    change_intensity,
    leaves_plane,
    random_blocks,
    resample,
    resample_labels,
    sampling_grid,
    small_view,
    spatial_view,
)
from macl.config.settings import ArrayAxis, AugmentationSettings, IntensitySettings, SpatialSettings
from macl.data.rng import SampleRng

STILL: dict[str, Any] = {
    "mirror": 0.0, "deform": 1.0, "rotation_degrees": 0.0, "tilt_degrees": 0.0, "scale": (1.0, 1.0),
    "elastic_alpha": (0.0, 0.0),
}  # fmt: skip
IN_PLANE: tuple[ArrayAxis, ...] = ("row", "column")
CHANGES = tuple(IntensitySettings.model_fields)


def settings(**changes: Any) -> SpatialSettings:
    return SpatialSettings(**(STILL | changes))


def rng(count: int, seed: int = 0, step: int = 0) -> SampleRng:
    return SampleRng(seed, step, torch.arange(count))


def images(count: int = 2, *patch: int, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, *(patch or (24, 16)), generator=generator)


def spatial_axes(tensor: Tensor) -> tuple[int, ...]:
    """The axes of the patch in (B, C, *patch)."""
    return tuple(range(2, tensor.ndim))


def fixed(use: str, value: float | list[float], count: int = 1) -> SampleRng:
    """Draws of which one use always yields one value, where a range would hit it by chance only."""

    class Fixed(SampleRng):
        def uniform(
            self, name: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
        ) -> Tensor:
            drawn = super().uniform(name, shape, low, high)
            return torch.tensor(value).expand(drawn.shape) if name == use else drawn

    return Fixed(0, 0, torch.arange(count))


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape", [(24, 16), (32, 32), (15, 21), (12, 24, 16), (16, 16, 16), (5, 9, 21), (1, 15, 21)]
)
def test_where_nothing_is_drawn_the_view_is_the_image(
    interpolation: str, shape: tuple[int, ...]
) -> None:
    image = images(2, *shape)
    for chosen in (
        settings(interpolation=interpolation),
        SpatialSettings(mirror=0, deform=0, interpolation=interpolation),
    ):
        view = spatial_view(image, rng(2), "v", chosen)
        torch.testing.assert_close(view, image, rtol=0, atol=1e-4)


def test_where_nothing_is_drawn_a_trilinear_view_is_the_image_to_the_last_digits() -> None:
    image, labels = images(2, 12, 24, 16), torch.randint(0, 9, (2, 12, 24, 16))
    grid = sampling_grid(rng(2), "v", settings(), (12, 24, 16))
    torch.testing.assert_close(resample(image, grid, "bilinear"), image, rtol=0, atol=1e-5)
    assert torch.equal(resample_labels(labels, grid), labels)
    still = sampling_grid(rng(2), "v", settings(), (8, 16, 16))
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
    grid = sampling_grid(rng(3), "v", settings(mirror=1.0), shape, (axis,))
    assert torch.equal(resample_labels(labels, grid), labels.flip(dimension))
    for interpolation in ("bilinear", "bicubic"):
        view = resample(image, grid, interpolation)
        torch.testing.assert_close(view, image.flip(dimension), rtol=0, atol=1e-4)
    every = spatial_view(image, rng(3), "v", settings(mirror=1.0))
    torch.testing.assert_close(every, image.flip(spatial_axes(image)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_axes_are_mirrored_apart_and_half_of_the_time(dims: int) -> None:
    ramp = torch.arange(4.0)
    numbers = (
        10 * ramp[:, None] + ramp
        if dims == 2
        else 100 * ramp[:, None, None] + (10 * ramp[:, None] + ramp)
    )
    chosen = settings(mirror=0.5, interpolation="bilinear")
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
    grid = sampling_grid(turn, "v", settings(rotation_degrees=180.0), (16, 16))
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
    grid = sampling_grid(fixed(use, angles), "v", settings(), (8, 8, 8))
    expected = torch.rot90(image, 1, plane)
    torch.testing.assert_close(resample(image, grid, "bilinear"), expected, rtol=0, atol=1e-5)
    assert torch.equal(resample_labels(labels, grid), torch.rot90(labels, 1, plane))


def test_a_rotation_in_plane_moves_no_voxel_to_another_slice() -> None:
    image = images(1, 5, 12, 12)
    turn = fixed("v/rotation", math.pi / 2)
    view = resample(image, sampling_grid(turn, "v", settings(), (5, 12, 12)), "bilinear")
    torch.testing.assert_close(view, torch.rot90(image, 1, (-2, -1)), rtol=0, atol=1e-5)


def test_a_grid_of_a_volume_voxel_by_voxel() -> None:
    """Rotation about z, y and x, shear, scale, translation and mirrors, written out in float64."""
    chosen = settings(
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
    grids = sampling_grid(rng(500), "v", settings(rotation_degrees=30.0), (2, 2))
    right = grids[:, :, 1].mean(1) - grids[:, :, 0].mean(1)
    angles = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert angles.abs().max() <= 30
    assert angles.min() < -28
    assert angles.max() > 28


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_shows_more_or_less_of_the_slice(scale: float) -> None:
    grid = sampling_grid(rng(1), "v", settings(scale=(scale, scale)), (16, 8))
    still = sampling_grid(rng(1), "v", settings(), (16, 8))
    torch.testing.assert_close(grid, scale * still)
    ones = resample(torch.ones(1, 1, 16, 8), grid, "bilinear")
    assert ones.mean().item() == pytest.approx(min(1.0, scale**-2), abs=1e-5), "zero outside"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_is_the_same_along_every_axis_of_a_volume(scale: float) -> None:
    grid = sampling_grid(rng(1), "v", settings(scale=(scale, scale)), (8, 16, 12))
    torch.testing.assert_close(grid, scale * sampling_grid(rng(1), "v", settings(), (8, 16, 12)))
    ones = resample(torch.ones(1, 1, 8, 16, 12), grid, "bilinear")
    assert ones.mean().item() == pytest.approx(min(1.0, scale**-3), abs=1e-5), "zero outside"


def test_a_volume_is_translated_along_every_axis_by_its_own_share() -> None:
    image, labels = images(1, 8, 12, 16), torch.randint(1, 5, (1, 8, 12, 16))
    shift = fixed("v/translation", [0.25, -1 / 12, 0.125])  # 4 columns, −1 row, 1 slice
    grid = sampling_grid(shift, "v", settings(translation=0.3), (8, 12, 16))
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
    still = sampling_grid(rng(400), "v", settings(), (20, 40))
    moved = sampling_grid(rng(400), "v", settings(translation=0.1), (20, 40)) - still
    assert moved.std((1, 2)).max() < 1e-5, "every pixel alike"
    shift = moved[:, 0, 0] / 2
    assert shift.abs().max() <= 0.1 + 1e-5
    assert shift.amax(0).min() > 0.09
    assert shift.amin(0).max() < -0.09


def test_shear_leans_the_axes() -> None:
    grid = sampling_grid(rng(300), "v", settings(shear_degrees=20.0), (2, 2))
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


@pytest.mark.parametrize("kind", ["spatial", "intensity"])
@pytest.mark.parametrize("patch", [(32, 32), (12, 16, 20)])
def test_a_view_depends_on_seed_step_and_sample_alone(kind: str, patch: tuple[int, ...]) -> None:
    image = images(6, *patch)
    intensity = IntensitySettings(**dict.fromkeys(CHANGES, 1.0))

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
        assert ((other - whole[:2]).abs().flatten(1).mean(1) > 0.01).all()


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
    chosen = settings(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(count), "v", settings(), (side, side))
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
    chosen = settings(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(1), "v", settings(), (side, side))
    moved = sampling_grid(rng(128), "v", chosen, (side, side)) - still
    centre = (moved * side / 2)[:, 56:72, 56:72]
    expected = alpha / (sigma * (12 * torch.pi) ** 0.5)
    assert centre.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("side", [48, 96, 192])
def test_an_elastic_field_with_a_reference_side_scales_with_the_patch(side: int) -> None:
    """α and σ for slices of 128² bend every slice by the same share of its side."""
    alpha, sigma = 200.0, 15.0
    chosen = settings(
        elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma), elastic_reference_side=128
    )
    still = sampling_grid(rng(1), "v", settings(), (side, side))
    moved = sampling_grid(rng(256), "v", chosen, (side, side)) - still
    centre = (moved / 2)[:, side // 2 - 4 : side // 2 + 4, side // 2 - 4 : side // 2 + 4]
    expected = alpha / (sigma * (12 * torch.pi) ** 0.5) / 128
    assert centre.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)


def test_the_elastic_field_of_a_volume_is_as_strong_as_that_of_a_slice() -> None:
    """Along every axis it is as smooth: two values `lag` apart correlate by exp(−lag² / 4σ²)."""
    alpha, sigma, side = 50.0, 6.0, 48
    chosen = settings(elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
    still = sampling_grid(rng(1), "v", settings(), (side, side, side))
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


# ---------------------------------------------------------------- windows and blocks


def test_a_small_view_of_a_volume_is_a_window_at_its_own_resolution() -> None:
    """Every axis has its own multiple; a window onto ramps shows their slope and lies inside."""
    patch = (16, 64, 48)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in patch), indexing="ij"))
    still = AugmentationSettings(spatial=settings(deform=0.0))
    window = small_view(ramps.expand(4, -1, -1, -1, -1), rng(4), still, 0.5, (4, 16, 16))
    assert window.shape == (4, 3, 8, 32, 16)
    for axis in range(3):
        slope = window[:, axis].diff(dim=axis + 1)
        torch.testing.assert_close(slope, torch.ones_like(slope), atol=1e-3, rtol=0)
        first = window[:, axis, 0, 0, 0]
        assert (first >= -0.01).all()
        assert (first <= patch[axis] - window.shape[axis + 2] + 0.01).all()
        assert len(first.unique()) == 4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.75])
def test_blocks_cover_their_share_of_every_volume(share: float) -> None:
    covered = random_blocks(rng(6), (8, 16, 12), 4, share)
    assert covered.shape == (6, 1, 8, 16, 12)
    blocks = covered.reshape(6, 2, 4, 4, 4, 3, 4).float().mean((2, 4, 6))
    assert {*blocks.unique().tolist()} <= {0.0, 1.0}
    assert (blocks.sum((1, 2, 3)) == round(share * 24)).all()
    assert len({tuple(volume.flatten().tolist()) for volume in blocks}) > 1


def test_blocks_fit_volumes_whose_sides_are_no_multiple() -> None:
    assert random_blocks(rng(2), (5, 40, 24), 16, 0.5).shape == (2, 1, 5, 40, 24)


# ---------------------------------------------------------------- intensity


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
