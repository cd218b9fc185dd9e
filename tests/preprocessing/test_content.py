"""Slices of air: the store knows them, pre-training leaves them out, positions stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fakes.command import macl
from fakes.loading import make_loader
from fakes.scans import anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.data.patch_cache import PatchCache, Residence
from macl.data.store import Store
from macl.data.store_index import write_index
from macl.data.windows import Windows
from macl.preprocessing.normalisation import normalise
from macl.stages.inspect import inspect
from macl.stages.prepare import prepare
from macl.utils.errors import MaclError

CPU = torch.device("cpu")
CONTENT = {
    "patient001": (0.0, 0.2, 0.5, 0.04),
    "patient002": (0.01, 0.0, 0.0, 0.0),
    "patient003": (0.3, 0.0, 0.3, 0.3),
}
KEPT = {"patient001": [1, 2], "patient003": [0, 2, 3]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three cases of four slices; the second case holds nothing but air."""
    store = write_toy_store(tmp_path / "store", patients=3, slices=4, side=32)
    cases = tuple(
        case.model_copy(update={"content": CONTENT[case.name]}) for case in store.index.cases
    )
    write_index(store.path, store.index.model_copy(update={"cases": cases}))
    return Store.open(store.path)


def cache_of(
    store: Store, content: float, residence: Residence = "device", labelled: bool = True
) -> PatchCache:
    return PatchCache(store, list(store.cases), labelled, CPU, residence, content)


@pytest.mark.parametrize("residence", ["device", "host", "disk"])
def test_slices_of_air_are_left_out_and_the_others_keep_their_place(
    store: Store, residence: Residence
) -> None:
    cache = cache_of(store, 0.05, residence)
    assert [case.name for case in cache.volumes.cases] == list(KEPT)
    batch = next(make_loader(cache, 5, (64, 64), seed=0).between(0, 1))
    assert batch.labels is not None
    order = batch.rng.samples.argsort().tolist()
    heights = batch.positions[order, 0].tolist()
    assert heights == pytest.approx([2 / 4, 3 / 4, 1 / 4, 3 / 4, 4 / 4])
    expected = [(name, number) for name, numbers in KEPT.items() for number in numbers]
    for row, (name, number) in zip(order, expected, strict=True):
        image = normalise(store.read(name), store.case(name).normalisation)[:, number]
        rows, columns = image.shape[1:]
        top, left = (64 - rows + 1) // 2, (64 - columns + 1) // 2
        inner = np.s_[..., top : top + rows, left : left + columns]
        np.testing.assert_allclose(batch.images[row].numpy()[inner], image, rtol=0, atol=1e-5)
        label = store.read(name, "label")[number]
        np.testing.assert_array_equal(batch.labels[row].numpy()[inner], label)


def test_a_neighbour_is_the_next_slice_that_is_kept(store: Store) -> None:
    volumes = cache_of(store, 0.05).volumes
    starts = torch.zeros(5, 3, dtype=torch.int64)
    starts[:, 0] = volumes.slice_numbers
    beside = volumes.neighbours(Windows(volumes.slice_volumes, starts), (64, 64))
    assert beside.starts[:, 0].tolist() == [2, 1, 2, 3, 2]


def test_without_a_minimum_every_slice_is_there(store: Store) -> None:
    assert len(cache_of(store, 0.0).volumes.slice_numbers) == 12


def test_too_high_a_minimum_and_a_store_that_does_not_know_are_errors(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(
        MaclError,
        match=r"No slice of .* has a content of 0\.9 or more: choose a smaller minimum_content",
    ):
        cache_of(store, 0.9)
    with pytest.raises(MaclError, match="does not know how much of its slices is air"):
        cache_of(write_toy_store(tmp_path / "old", patients=1), 0.05)


def test_prepare_measures_content_and_pretrain_leaves_air_out(tmp_path: Path) -> None:
    for number in (1, 2):
        image, _ = anatomy(number, (8, 32, 32))
        image[[0, 7]] = np.random.default_rng(number).integers(0, 9, (2, 32, 32))
        write_nifti(tmp_path / f"data/p{number}.nii.gz", image)
    index = prepare(tmp_path / "data", tmp_path / "store", workers=1)
    for case in index.cases:
        assert [share == 0 for share in case.content] == [True] + [False] * 6 + [True]
    assert inspect(tmp_path / "store")["slices_with_less_content_than"]["0.01"] == 4
    words = [
        "training.epochs=1",
        "training.size=64",
        "training.batch_size=4",
        "backbone_settings.width=8",
    ]
    chosen = [word for setting in (*words, "minimum_content=0.02") for word in ("--set", setting)]
    answer = macl(
        "pretrain", tmp_path / "store", "--out", tmp_path / "run", "--device", "cpu", *chosen
    )
    assert answer.code == 0, answer.err
    assert "Left out 4 of 16 slices, of which less than 0.02 is not air." in answer.err
    assert "12 slices of 2 cases" in answer.err
    answer = macl(
        "pretrain", tmp_path / "store", "--out", tmp_path / "none", "--set", "minimum_content=1"
    )
    assert answer.code == 1
    assert "choose a smaller minimum_content" in answer.err
    assert not (tmp_path / "none").exists()
