"""Intensities: normalisation by hand, storage without loss, and how much of a slice is not air."""

from __future__ import annotations

import numpy as np
import pytest

from macl.preprocessing.normalisation import as_stored, content_of, measure, normalise


def test_normalisation_by_hand() -> None:
    array = np.arange(200, dtype=np.int16).reshape(1, 2, 10, 10)
    clipped = np.clip(array, 1.99, 197.01)
    numbers = measure(array, "clip_zscore")
    assert numbers.low == pytest.approx((1.99,))
    assert numbers.high == pytest.approx((197.01,))
    assert numbers.mean == pytest.approx((clipped.mean(),))
    assert numbers.deviation == pytest.approx((clipped.std(),))
    ready = normalise(array, numbers)
    assert ready.dtype == np.float32
    np.testing.assert_allclose(ready, (clipped - clipped.mean()) / clipped.std(), rtol=1e-5)
    plain = measure(array, "zscore")
    np.testing.assert_allclose(
        normalise(array, plain), (array - array.mean()) / array.std(), rtol=1e-5
    )


def test_channels_are_normalised_apart() -> None:
    random = np.random.default_rng(0)
    array = np.stack([random.normal(5, 2, (3, 8, 8)), random.normal(-900, 70, (3, 8, 8))])
    ready = normalise(array, measure(array, "zscore"))
    np.testing.assert_allclose(ready.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(ready.std(axis=(1, 2, 3)), 1, atol=1e-4)


def test_a_few_bright_voxels_on_a_flat_ground_are_not_clipped_away() -> None:
    array = np.zeros((1, 4, 20, 20), np.int16)
    array[0, 2, 3:5, 3:5] = 100
    ready = normalise(array, measure(array, "clip_zscore"))
    assert np.isfinite(ready).all()
    assert ready[0, 2, 3, 3] > 5


def test_outliers_do_not_drown_a_scan() -> None:
    array = np.random.default_rng(0).normal(300, 50, (1, 10, 30, 30)).astype(np.float32)
    array[0, 0, 0, :5] = 2.5e6
    stored = as_stored(array, (), "clip_zscore")
    assert stored.array.dtype == np.float16
    assert np.isfinite(stored.array).all()
    ready = normalise(stored.array, stored.normalisation)
    np.testing.assert_allclose(ready, normalise(array, measure(array, "clip_zscore")), atol=5e-3)
    assert np.abs(ready).max() < 4


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, "uint8"),
        (-1, 255, "int16"),
        (0, 40000, "uint16"),
        (-5, 40000, "int32"),
        (0, 2**31 - 1, "int32"),
    ],
)
def test_whole_numbers_are_kept_in_the_smallest_type(low: int, high: int, dtype: str) -> None:
    array = np.linspace(low, high, 72, dtype=np.int64).reshape(1, 2, 6, 6)
    for given_as in (array, array.astype(np.float64)):
        stored = as_stored(given_as, (), "zscore")
        assert stored.array.dtype == dtype
        np.testing.assert_array_equal(stored.array, array)
        assert stored.rescale == ()


def test_rescale_leads_back_to_the_scans_values() -> None:
    random = np.random.default_rng(0)
    array = np.stack([random.uniform(0, 1, (3, 8, 8)), random.uniform(0, 1e5, (3, 8, 8))])
    stored = as_stored(array, ((2.0, 1.0), (1.0, 0.0)), "zscore")
    slopes, shifts = (
        np.array(values)[:, None, None, None] for values in zip(*stored.rescale, strict=True)
    )
    values = stored.array.astype(np.float64) * slopes + shifts
    np.testing.assert_allclose(values[0], array[0] * 2 + 1, atol=2e-3)
    np.testing.assert_allclose(values[1], array[1], rtol=2e-3, atol=50)


def test_a_window_clips_in_hounsfield_units_whatever_the_file_stores() -> None:
    hounsfield = np.linspace(-1000, 1500, 4 * 20 * 20).reshape(1, 4, 20, 20).round()
    inside = np.clip(hounsfield, -160, 240)
    expected = (inside - inside.mean()) / inside.std()
    whole = as_stored(
        (hounsfield + 1024).astype(np.int16), ((1.0, -1024.0),), "clip_zscore", "soft_tissue"
    )
    halves = as_stored(
        (hounsfield / 2 + 512.3).astype(np.float32), ((2.0, -1024.6),), "clip_zscore", "soft_tissue"
    )
    assert (whole.array.dtype, halves.array.dtype) == (np.int16, np.float16)
    for stored in (whole, halves):
        np.testing.assert_allclose(
            normalise(stored.array, stored.normalisation), expected, atol=2e-2
        )
    assert whole.normalisation.low == pytest.approx((864.0,))


def test_content_is_the_share_of_voxels_brighter_than_the_scans_mean() -> None:
    scan = np.full((2, 4, 8, 10), -1000, np.int16)
    scan[0, 1, :4] = 40
    scan[1, 2, :, :5] = 40
    scan[:, 3, 0, 0] = 40
    stored = as_stored(scan, (), "zscore")
    assert content_of(stored.array, stored.normalisation) == (0.0, 0.5, 0.5, 0.0125)


@pytest.mark.parametrize("window", [None, "soft_tissue"])
def test_slices_of_noise_hold_no_content_whatever_the_file_stores(window: str | None) -> None:
    random = np.random.default_rng(0)
    scan = random.normal(-1000, 10, (1, 5, 40, 40))
    scan[:, 1:4, 10:30, 10:30] = random.normal(50, 20, (1, 3, 20, 20))
    for array in (scan, scan.round().astype(np.int16)):
        stored = as_stored(array, (), "clip_zscore", window)
        np.testing.assert_allclose(
            content_of(stored.array, stored.normalisation), (0, 0.25, 0.25, 0.25, 0), atol=0.005
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("span", [2, 30, 250, 60_000])
def test_percentiles_are_those_of_the_sorted_voxels(dtype: type, span: int) -> None:
    random = np.random.default_rng(0)
    lowest = 0 if np.dtype(dtype).kind == "u" else -30_000
    for shape in ((3, 5, 7), (2, 31, 17)):
        highest = lowest + min(span, 255 if dtype == np.uint8 else span)
        voxels = random.integers(lowest, highest, shape)
        voxels.flat[:2] = lowest, highest - 1
        found = measure(voxels.astype(dtype)[None], "clip_zscore")
        low, high = np.percentile(voxels, (1.0, 99.0))
        assert (found.low, found.high) == ((low,), (high,))
