"""Shared pieces: queue, momentum twin and its schedule, prototypes, projectors, windows and
blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from macl.augmentation.regions import random_blocks
from macl.augmentation.views import STRONG_VIEWS, small_view, two_views, view
from macl.config.settings import AugmentationSettings, SpatialSettings
from macl.data.rng import SampleRng
from macl.models.heads import (
    Prototypes,
    Queue,
    momentum_copy,
    rising_momentum,
    siamese_projector,
    update_momentum_copy,
)

STILL = AugmentationSettings(
    spatial=SpatialSettings(mirror=0, deform=0, elastic_alpha=(0, 0), interpolation="bilinear")
)


def rng(count: int, step: int = 0) -> SampleRng:
    return SampleRng(seed=1, step=step, samples=torch.arange(count))


def test_a_queue_keeps_the_last_keys_in_a_ring():
    queue = Queue(5, 2)
    started = queue.keys.clone()
    queue.push(torch.full((3, 2), 1.0))
    assert torch.equal(queue.keys[3:], started[3:])
    queue.push(torch.full((4, 2), 2.0))
    assert queue.keys[:, 0].tolist() == [2.0, 2.0, 1.0, 2.0, 2.0]
    assert int(queue.place) == 2
    queue.push(torch.arange(16.0).reshape(8, 2))
    assert sorted(queue.keys[:, 0].tolist()) == [6.0, 8.0, 10.0, 12.0, 14.0]
    assert set(queue.state_dict()) == {"keys", "place"}


def test_a_twin_follows_and_does_not_learn():
    source = nn.Linear(3, 2)
    twin = momentum_copy(source)
    before = twin.weight.clone()
    with torch.no_grad():
        source.weight.add_(1.0)
    update_momentum_copy(twin, source, 0.75)
    torch.testing.assert_close(twin.weight, 0.75 * before + 0.25 * source.weight)
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_momentum_rises_to_one():
    assert rising_momentum(0.9, 0.0) == pytest.approx(0.9)
    assert rising_momentum(0.9, 0.5) == pytest.approx(0.95)
    assert rising_momentum(0.9, 1.0) == pytest.approx(1.0)


def test_prototypes_give_cosines():
    prototypes, features = Prototypes(4, 3), torch.randn(5, 4)
    with torch.no_grad():
        prototypes.weight.mul_(7.0)
    slow = torch.stack(
        [F.cosine_similarity(features, weight[None]) for weight in prototypes.weight], 1
    )
    torch.testing.assert_close(prototypes(features), slow)
    assert not prototypes(features, learning=False).requires_grad


def test_a_normed_projector_ends_centred():
    out = siamese_projector(2, 3, 8)(torch.randn(16, 3, 2, 2))
    torch.testing.assert_close(out.mean(0), torch.zeros(8), atol=1e-5, rtol=0)


def test_two_views_of_one_recipe_differ_and_repeat():
    images = torch.randn(3, 1, 32, 32)
    first, second = two_views(images, rng(3), STRONG_VIEWS)
    assert not torch.equal(first, second)
    assert torch.equal(first, view(images, rng(3).within("v1"), STRONG_VIEWS))
    assert not torch.equal(first, view(images, rng(3, step=1).within("v1"), STRONG_VIEWS))


def test_a_small_view_is_a_window_at_the_slices_resolution():
    """On a ramp along both axes, a window shows the same slope, and all of it lies in the slice."""
    ramp = torch.arange(64.0)
    images = torch.stack((ramp.expand(64, 64), ramp[:, None].expand(64, 64)))[None].expand(
        4, -1, -1, -1
    )
    window = small_view(images, rng(4), STILL, 0.5, (16, 16))
    assert window.shape == (4, 2, 32, 32)
    torch.testing.assert_close(window[:, 0].diff(dim=2), torch.ones(4, 32, 31), atol=1e-3, rtol=0)
    torch.testing.assert_close(window[:, 1].diff(dim=1), torch.ones(4, 31, 32), atol=1e-3, rtol=0)
    corners = window[:, :, 0, 0]
    assert (corners >= -0.01).all()
    assert (corners <= 32.01).all()
    assert len(corners[:, 0].unique()) == 4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.75])
def test_blocks_cover_their_share_of_every_slice(share):
    covered = random_blocks(rng(6), (64, 64), 16, share)
    blocks = covered.reshape(6, 4, 16, 4, 16).float().mean((2, 4))
    assert set(blocks.unique().tolist()) <= {0.0, 1.0}
    assert (blocks.sum((1, 2)) == round(share * 16)).all()
    assert len({tuple(slice_.flatten().tolist()) for slice_ in blocks}) > 1


def test_blocks_fit_sides_that_are_no_multiple():
    assert random_blocks(rng(2), (40, 24), 16, 0.5).shape == (2, 1, 40, 24)
