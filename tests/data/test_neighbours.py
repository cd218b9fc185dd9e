"""Batches that bring a neighbour of every slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fakes.toy_store import write_toy_store
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path):
    return write_toy_store(tmp_path / "toy.store", patients=3, slices=4, side=48)


def test_a_neighbour_is_the_next_slice_of_the_same_volume(store):
    bank = PatchCache(store, [case.name for case in store.index.cases], labelled=False, device=CPU)
    assert bank.neighbours(np.arange(12)).tolist() == [1, 2, 3, 2, 5, 6, 7, 6, 9, 10, 11, 10]


def test_a_slice_alone_is_its_own_neighbour(tmp_path):
    store = write_toy_store(tmp_path / "flat.store", patients=3, slices=1, side=48)
    bank = PatchCache(store, [case.name for case in store.index.cases], labelled=False, device=CPU)
    assert bank.neighbours(np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("residence", ["device", "disk"])
def test_neighbours_are_cropped_like_their_slices(store, residence):
    """A slice and its neighbour in the same window: cropping whole slices by hand gives the same pixels."""
    names = [case.name for case in store.index.cases]
    bank = PatchCache(store, names, labelled=False, device=CPU, residence=residence)
    whole = Loader(bank, 12, 64, seed=3, neighbours=True)
    small = Loader(bank, 12, 32, seed=3, neighbours=True)
    (large,), (cropped,) = list(whole.between(0, 1)), list(small.between(0, 1))
    assert large.neighbours is not None
    assert cropped.neighbours is not None
    for slice_, neighbour, crop, neighbour_crop in zip(
        large.images, large.neighbours, cropped.images, cropped.neighbours, strict=True
    ):
        windows = slice_[0].unfold(0, 32, 1).unfold(1, 32, 1)
        same = (windows == crop[0]).all(-1).all(-1).nonzero()
        assert len(same) == 1
        row, column = same[0].tolist()
        torch.testing.assert_close(neighbour[:, row : row + 32, column : column + 32], neighbour_crop)


def test_without_asking_there_are_none(store):
    bank = PatchCache(store, [case.name for case in store.index.cases], labelled=False, device=CPU)
    assert next(Loader(bank, 4, 32, seed=0).between(0, 1)).neighbours is None


def test_draws_within_a_name_are_draws_of_their_own(store):
    bank = PatchCache(store, [case.name for case in store.index.cases], labelled=False, device=CPU)
    rng = next(Loader(bank, 4, 32, seed=0).between(0, 1)).rng
    first, second = (rng.within(name).uniform("angle") for name in ("v1", "v2"))
    assert not torch.equal(first, second)
    assert torch.equal(first, rng.uniform("v1/angle"))
