"""Metrics against hand-computed cases, brute force, MONAI and their own properties."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, gaussian_filter

from macl.metrics import paper_score, score_classes, strict_score, surface, surface_distances

masks_3d = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3), elements=st.booleans())


def cube(shape: tuple[int, ...], corner: tuple[int, ...], side: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5, mode="wrap")
    return noise > np.quantile(noise, 0.8)


def brute_force(
    first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Every distance between every pair of surface voxels, surfaces by scipy's erosion."""
    points = [
        np.argwhere(mask & np.logical_not(binary_erosion(mask))) * spacing
        for mask in (first, second)
    ]
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return distances.min(axis=1), distances.min(axis=0)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_two_cubes_shifted_by_k_voxels(shift: int) -> None:
    truth = cube((12, 12, 12), (2, 2, 2), 5)
    prediction = cube((12, 12, 12), (2, 2, 2 + shift), 5)
    score = strict_score(truth, prediction, (1.0, 1.0, 2.0))
    assert score.dice == pytest.approx((5 - shift) / 5)
    assert score.jaccard == pytest.approx((5 - shift) / (5 + shift))
    # Along the shift, each of the 25 columns of a cube ends `shift` voxels beyond the other cube:
    # more than 5 % of its surface.
    assert score.hd95 == pytest.approx(2.0 * shift)
    assert score.outcome == "scored"


def test_single_voxels_lie_their_physical_distance_apart() -> None:
    truth, prediction = cube((9, 9, 9), (1, 2, 3), 1), cube((9, 9, 9), (4, 6, 3), 1)
    score = strict_score(truth, prediction, (2.0, 0.5, 1.0))
    assert score.hd95 == score.asd == pytest.approx(math.hypot(6.0, 2.0))
    assert (score.dice, score.jaccard) == (0.0, 0.0)


def test_asd_is_the_mean_over_all_surface_voxels_of_both() -> None:
    truth = np.zeros((1, 1, 10), dtype=bool)
    truth[0, 0, 0] = True
    prediction = truth.copy()
    prediction[0, 0, [4, 8]] = True
    # There: 0, 4, 8; back: 0. Mean over all four is 3; the mean of the two means would be 2.
    assert strict_score(truth, prediction, (1.0, 1.0, 1.0)).asd == pytest.approx(3.0)


def test_hd95_takes_the_larger_direction_and_interpolates_the_percentile() -> None:
    truth = np.zeros((1, 1, 40), dtype=bool)
    truth[0, 0, 0] = True
    prediction = truth.copy()
    prediction[0, 0, 10] = True
    # There: 0 and 10, whose 95th percentile is 9.5; back: 0. Together (paper): 0, 0, 10, whose
    # percentile is 9.
    assert strict_score(truth, prediction, (1.0, 1.0, 1.0)).hd95 == pytest.approx(9.5)
    assert paper_score(truth, prediction).hd95 == pytest.approx(9.0)
    assert strict_score(prediction, truth, (1.0, 1.0, 1.0)).hd95 == pytest.approx(9.5)


def test_asd_of_the_paper_runs_from_the_prediction_to_the_truth() -> None:
    truth = np.zeros((1, 1, 40), dtype=bool)
    truth[0, 0, 0] = True
    prediction = truth.copy()
    prediction[0, 0, 10] = True
    assert paper_score(truth, prediction).asd == pytest.approx(5.0)
    assert paper_score(prediction, truth).asd == pytest.approx(0.0)


def test_a_structure_at_the_scans_edge_has_a_surface_there() -> None:
    assert surface(np.ones((3, 3, 3), dtype=bool)).sum() == 26
    whole, inner = np.ones((5, 5, 5), dtype=bool), cube((5, 5, 5), (1, 1, 1), 3)
    score = strict_score(whole, inner, (1.0, 1.0, 1.0))
    # Of the outer shell's 98 voxels, 54 lie 1 away, 36 (edges) √2, 8 (corners, more than 5 %) √3;
    # back, all 26 lie 1 away.
    assert score.hd95 == pytest.approx(math.sqrt(3))
    assert score.asd == pytest.approx((54 + 36 * math.sqrt(2) + 8 * math.sqrt(3) + 26) / (98 + 26))


def test_a_flat_image_is_scored_in_its_plane() -> None:
    truth, prediction = cube((1, 20, 20), (0, 4, 4), 9), cube((1, 20, 20), (0, 4, 7), 9)
    truth_slab, prediction_slab = np.repeat(truth, 30, axis=0), np.repeat(prediction, 30, axis=0)
    flat = strict_score(truth, prediction, (7.0, 1.0, 1.0))
    assert flat.hd95 == pytest.approx(3.0)
    assert flat.asd == pytest.approx(paper_score(truth, prediction).asd, abs=0.2)
    inside = strict_score(truth_slab, prediction_slab, (7.0, 1.0, 1.0))
    assert flat.asd != pytest.approx(inside.asd)


# ---------------------------------------------------------------- empty masks


def test_both_empty_is_undefined_in_strict_and_zero_in_paper() -> None:
    nothing = np.zeros((3, 4, 5), dtype=np.uint8)
    strict = score_classes(nothing, nothing, 1, (1.0, 1.0, 1.0), "strict")[0]
    assert strict.outcome == "both_empty"
    assert all(
        math.isnan(value) for value in (strict.dice, strict.jaccard, strict.hd95, strict.asd)
    )
    paper = score_classes(nothing, nothing, 1, (1.0, 1.0, 1.0), "paper")[0]
    assert (paper.hd95, paper.asd) == (0.0, 0.0)
    assert math.isnan(paper.dice)


@pytest.mark.parametrize(("truth_first", "outcome"), [(True, "missed"), (False, "invented")])
def test_one_empty_costs_the_scans_diagonal_in_strict_and_nothing_in_paper(
    truth_first: bool, outcome: str
) -> None:
    something = cube((30, 40, 50), (3, 3, 3), 4).astype(np.uint8)
    nothing = np.zeros_like(something)
    pair = (something, nothing) if truth_first else (nothing, something)
    strict = score_classes(*pair, 1, (1.0, 2.0, 0.5), "strict")[0]
    assert strict.outcome == outcome
    assert strict.hd95 == strict.asd == pytest.approx(math.hypot(30, 80, 25))
    assert (strict.dice, strict.jaccard) == (0.0, 0.0)
    paper = score_classes(*pair, 1, (1.0, 2.0, 0.5), "paper")[0]
    assert (paper.hd95, paper.asd, paper.dice) == (0.0, 0.0, 0.0)


def test_paper_counts_slices_in_which_either_is_empty_as_zero() -> None:
    truth, prediction = np.zeros((4, 10, 10), dtype=np.uint8), np.zeros((4, 10, 10), dtype=np.uint8)
    truth[0, 2, 2] = prediction[0, 2, 5] = 1  # 3 pixels apart
    truth[1, 2, 2] = 1  # missed in this slice
    prediction[2, 2, 2] = 1  # invented in this slice
    score = score_classes(truth, prediction, 1, (9.0, 9.0, 9.0), "paper")[0]
    assert (score.hd95, score.asd) == (pytest.approx(3 / 4), pytest.approx(3 / 4))


# ---------------------------------------------------------------- against others


@pytest.mark.parametrize("seed", range(4))
def test_strict_equals_monai(seed: int) -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_distance import compute_average_surface_distance

    spacing = (3.0, 0.7, 1.3)
    truth, prediction = blob(seed, (14, 33, 27)), blob(seed + 100, (14, 33, 27))
    prediction[:, :16] = truth[:, :16]
    mine = strict_score(truth, prediction, spacing)
    pair = (
        torch.from_numpy(prediction)[None, None].float(),
        torch.from_numpy(truth)[None, None].float(),
    )
    hd95 = compute_hausdorff_distance(
        *pair, include_background=True, percentile=95, spacing=spacing
    )
    asd = compute_average_surface_distance(
        *pair, include_background=True, symmetric=True, spacing=spacing
    )
    assert mine.hd95 == pytest.approx(float(hd95), rel=1e-5)
    assert mine.asd == pytest.approx(float(asd), rel=1e-5)
    assert mine.dice == pytest.approx(float(compute_dice(*pair)), rel=1e-5)
    assert mine.jaccard == pytest.approx(float(compute_iou(*pair)), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_paper_equals_a_slow_reading_of_the_definition(seed: int) -> None:
    truth, prediction = blob(seed, (6, 20, 24)), blob(seed + 50, (6, 20, 24))
    truth[4] = False
    hd95, asd = [], []
    for true_slice, predicted_slice in zip(truth, prediction, strict=True):
        if true_slice.any() and predicted_slice.any():
            there, back = brute_force(predicted_slice, true_slice, (1.0, 1.0))
            hd95.append(np.percentile(np.hstack((there, back)), 95))
            asd.append(there.mean())
        else:
            hd95.append(0.0)
            asd.append(0.0)
    score = score_classes(
        truth.astype(np.uint8), prediction.astype(np.uint8), 1, (1.0, 1.0, 1.0), "paper"
    )[0]
    assert score.hd95 == pytest.approx(np.mean(hd95))
    assert score.asd == pytest.approx(np.mean(asd))


# ---------------------------------------------------------------- properties


@settings(deadline=None, max_examples=60)
@given(masks_3d, st.randoms(use_true_random=False))
def test_distances_equal_brute_force(first: np.ndarray, random: object) -> None:
    generator = np.random.default_rng(random.randrange(2**32))  # pyright: ignore[reportAttributeAccessIssue]
    second = generator.random(first.shape) < 0.4
    first.flat[0] = second.flat[-1] = True
    spacing = tuple(generator.uniform(0.3, 4.0, size=3))
    for mine, slow in zip(
        surface_distances(first, second, spacing), brute_force(first, second, spacing), strict=True
    ):
        np.testing.assert_allclose(mine, slow, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(masks_3d)
def test_surface_is_what_erosion_takes_away(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(surface(mask), mask & np.logical_not(binary_erosion(mask)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_symmetry_identity_and_the_relation_of_dice_and_jaccard(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, prediction = generator.random((2, 4, 6, 5)) < 0.5
    spacing = tuple(generator.uniform(0.3, 4.0, size=3))
    there, back = strict_score(truth, prediction, spacing), strict_score(prediction, truth, spacing)
    assert there.hd95 == back.hd95
    assert there.asd == pytest.approx(back.asd)
    assert there.dice == back.dice
    assert there.jaccard == pytest.approx(there.dice / (2 - there.dice))
    same = strict_score(truth, truth, spacing)
    assert (same.dice, same.jaccard, same.hd95, same.asd) == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("convention", ["strict", "paper"])
@pytest.mark.parametrize("offset", [(0, 0, 0), (3, 5, 1), (6, 8, 13)])
def test_where_the_structures_lie_in_the_scan_changes_nothing(
    convention: str, offset: tuple[int, int, int]
) -> None:
    small = np.stack([blob(1, (6, 12, 11)), blob(2, (6, 12, 11))]).astype(np.uint8)
    placed = np.zeros((2, 12, 20, 24), dtype=np.uint8)
    placed[
        (slice(None), *(slice(o, o + s) for o, s in zip(offset, small.shape[1:], strict=True)))
    ] = small
    spacing = (4.0, 1.5, 1.5)
    score = score_classes(placed[0], placed[1], 1, spacing, convention)[0]  # pyright: ignore[reportArgumentType]
    truth, prediction = small.astype(bool)
    whole = (
        strict_score(truth, prediction, spacing)
        if convention == "strict"
        else paper_score(truth, prediction)
    )
    slices = 1 if convention == "strict" else 2  # the scan has twice as many, the added ones empty
    assert (score.hd95 * slices, score.asd * slices) == (
        pytest.approx(whole.hd95),
        pytest.approx(whole.asd),
    )


def test_the_crop_changes_no_score() -> None:
    generator = np.random.default_rng(5)
    truth, prediction = np.zeros((2, 10, 40, 40), dtype=np.uint8)
    for label in (1, 2, 3):
        corner = generator.integers(0, (6, 25, 25))
        box = tuple(
            slice(start, start + side) for start, side in zip(corner, (4, 12, 12), strict=True)
        )
        truth[box] = label
        prediction[tuple(slice(side.start, side.stop - 2) for side in box)] = label
    for label, score in enumerate(
        score_classes(truth, prediction, 3, (5.0, 1.0, 1.0), "strict"), start=1
    ):
        uncropped = strict_score(truth == label, prediction == label, (5.0, 1.0, 1.0))
        assert score == uncropped


def test_a_large_case_takes_seconds() -> None:
    z, y, x = np.ogrid[:100, :512, :512]
    truth, prediction = np.zeros((2, 100, 512, 512), dtype=np.uint8)
    for label in range(1, 8):
        row, column = 70 + 130 * (label % 3), 80 + 120 * (label // 3)
        truth[((z - 50) / 40) ** 2 + ((y - row) / 50) ** 2 + ((x - column) / 50) ** 2 < 1] = label
        prediction[((z - 52) / 38) ** 2 + ((y - row) / 52) ** 2 + ((x - column) / 47) ** 2 < 1] = (
            label
        )
    start = time.process_time()
    scores = score_classes(truth, prediction, 7, (1.5, 0.8, 0.8), "strict")
    assert time.process_time() - start < 10
    assert all(0.8 < score.dice < 1 and 0 < score.hd95 < 10 for score in scores)
