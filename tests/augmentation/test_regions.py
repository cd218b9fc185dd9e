"""Random blocks and boxes of patches."""

from __future__ import annotations

import pytest

from fakes.views import rng
from macl.augmentation.regions import random_blocks, random_box


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


@pytest.mark.parametrize("patch", [(40, 60), (10, 20, 30)], ids=str)
def test_a_box_lies_within_its_patch(patch: tuple[int, ...]) -> None:
    for inside in random_box(rng(50), patch, (0.25, 0.75)):
        places = inside.nonzero()
        sides = places.amax(0) - places.amin(0) + 1
        assert int(sides.prod()) == len(places), "a box"
        for side, of in zip(sides.tolist(), patch, strict=True):
            assert 0.25 * of - 1 <= side <= 0.75 * of + 1
