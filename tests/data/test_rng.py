from __future__ import annotations

import math

import pytest
import torch

from macl.data.rng import SampleRng

SAMPLES = torch.arange(4096)
WRAP = 1 << 64


def slowly(seed: int, step: int, sample: int, name: str, place: int) -> float:
    """One draw in Python's integers: SplitMix64's finaliser as published, masked to 64 bits."""
    import zlib

    golden = 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        value %= WRAP
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WRAP
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WRAP
        return value ^ (value >> 31)

    key = zlib.crc32(name.encode()) * golden + seed * 0xD1342543DE82EF95
    start = mix(mix(sample * golden + key) + step * golden)
    return (mix(start + (place + 1) * golden) >> 40) / 2**24


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 0), (7, 12345), (2**31, 2**33)])
def test_draws_equal_the_published_hash(seed: int, step: int) -> None:
    drawn = SampleRng(seed, step, torch.tensor([0, 1, 999_999])).uniform("angle", (2, 3))
    expected = [
        [slowly(seed, step, sample, "angle", place) for place in range(6)]
        for sample in (0, 1, 999_999)
    ]
    assert torch.equal(drawn, torch.tensor(expected).reshape(3, 2, 3))


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = SampleRng(3, 5, SAMPLES).normal("noise", (4,))
    part = SampleRng(3, 5, SAMPLES[[70, 3, 4000]]).normal("noise", (4,))
    assert torch.equal(part, whole[[70, 3, 4000]])


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    rng = SampleRng(0, 0, SAMPLES[:5])
    assert torch.equal(rng.uniform("a", (10,))[:, :3], rng.uniform("a", (3,)))


@pytest.mark.parametrize(
    "other", [SampleRng(1, 5, SAMPLES), SampleRng(0, 6, SAMPLES), SampleRng(0, 5, SAMPLES + 4096)]
)
def test_seed_step_and_sample_all_matter(other: SampleRng) -> None:
    correlation = torch.corrcoef(
        torch.stack([SampleRng(0, 5, SAMPLES).uniform("a"), other.uniform("a")])
    )[0, 1]
    assert abs(correlation) < 4 / math.sqrt(len(SAMPLES))


def test_names_tell_uses_apart() -> None:
    rng = SampleRng(0, 5, SAMPLES)
    correlation = torch.corrcoef(torch.stack([rng.uniform("row"), rng.uniform("column")]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(len(SAMPLES))


def test_uniform_draws_are_uniform() -> None:
    unit = SampleRng(11, 0, SAMPLES).uniform("a", (32,)).flatten()
    assert unit.dtype == torch.float32
    assert 0 <= unit.min() < unit.max() < 1
    counts = torch.histc(unit, bins=64, min=0, max=1)
    expected = len(unit) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110, (
        "χ² of 63 degrees is above 110 once in 5,000 seeds"
    )


def test_ranges() -> None:
    drawn = SampleRng(0, 0, SAMPLES).uniform("scale", low=0.7, high=1.3)
    assert drawn.shape == (4096,)
    assert drawn.min() >= 0.7
    assert drawn.max() < 1.3
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)


def test_chance() -> None:
    rng = SampleRng(0, 0, SAMPLES)
    assert rng.chance("a", 0.25).float().mean() == pytest.approx(0.25, abs=0.03)
    assert not rng.chance("a", 0.0).any()
    assert rng.chance("a", 1.0).all()


def test_normal_draws_are_normal() -> None:
    drawn = SampleRng(2, 0, SAMPLES).normal("noise", (16,)).flatten()
    assert drawn.isfinite().all()
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)
    assert drawn.std() == pytest.approx(1.0, abs=0.02)
    assert (drawn.abs() < 1.959964).float().mean() == pytest.approx(0.95, abs=0.005)


def test_a_view_has_random_numbers_of_its_own() -> None:
    rng = SampleRng(0, 3, SAMPLES[:8])
    first, second = (rng.within(name).uniform("angle") for name in ("v1", "v2"))
    assert not torch.equal(first, second)
    assert torch.equal(first, rng.uniform("v1/angle"))
