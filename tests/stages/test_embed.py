"""`macl embed`: the mean of the bottleneck over every slice or window."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import macl as package
from fakes.command import macl
from fakes.random_run import write_random_run
from fakes.threshold_run import write_threshold_run
from fakes.toy_store import write_toy_store
from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.inference.sliding_window import window_starts
from macl.plugins import find
from macl.preprocessing.normalisation import normalise
from macl.records.runs import read_record, write_record
from macl.tasks.segmentation import load_segmenter


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_toy_store(tmp_path / "my.store", patients=3, slices=4, side=32, unlabelled=1)


def bottleneck(run: Path, images: np.ndarray) -> np.ndarray:
    """(C, *sides) → (F,): the bottleneck's mean, by hand."""
    network = find("models", "unet")
    segmenter = load_segmenter(run, network, torch.device("cpu"))
    with torch.no_grad():
        maps = segmenter.network.encode(torch.from_numpy(images)[None])[-1]
    return maps[0].flatten(1).mean(1).numpy()


@pytest.mark.parametrize("patch", [64, 16], ids=["padded", "in windows"])
def test_a_slice_is_the_mean_of_its_windows(store: Store, tmp_path: Path, patch: int) -> None:
    run = write_random_run(tmp_path / "run", store, size=patch)
    answer = macl("embed", store.path, "--run", run, "--out", tmp_path / "f.npz")
    assert answer.code == 0, answer.err
    with np.load(tmp_path / "f.npz") as file:
        found = dict(file)
    assert found["case_names"].tolist() == ["patient001", "patient002", "patient003"]
    assert found["labelled"].tolist() == [True, True, False]
    assert found["case_of"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found["starts"][:, 0].tolist() == [0, 1, 2, 3] * 3
    case = store.case("patient002")
    image = normalise(store.read("patient002"), case.normalisation)[:, 3]
    rows, columns = image.shape[1:]
    if patch == 64:
        top, left = (64 - rows + 1) // 2, (64 - columns + 1) // 2
        padding = ((0, 0), (top, 64 - rows - top), (left, 64 - columns - left))
        windows = [np.pad(image, padding)]
    else:
        corners = product(window_starts(rows, patch), window_starts(columns, patch))
        windows = [image[:, y : y + patch, x : x + patch] for y, x in corners]
        assert len(windows) > 4
    expected = np.mean([bottleneck(run, window) for window in windows], axis=0)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found["features"][4 + 3], expected, atol=1e-5)
    np.testing.assert_allclose(
        found["case_features"][1], found["features"][4:8].mean(axis=0), atol=1e-6
    )


def test_a_volume_is_cut_into_windows(store: Store, tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run", store, size=(4, 16, 32), dims=3)
    found = package.embed(store.path, tmp_path / "f.npz", run=run, device="cpu")
    case = store.case("patient001")
    image = normalise(store.read("patient001"), case.normalisation)
    expected = bottleneck(run, image[:, :, 0:16, :32])
    assert found["starts"][0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found["features"][0], expected, atol=1e-5)


def test_mistakes_are_one_sentence(store: Store, tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run", store, size=32)
    other = write_threshold_run(
        tmp_path / "other", prepared=PrepareSettings(normalisation="zscore", plane="coronal")
    )
    unfinished = write_random_run(tmp_path / "unfinished", store, size=32)
    record = read_record(unfinished)
    write_record(unfinished, record.model_copy(update={"finished": False}))
    for chosen, out, problem in (
        (run, "f.csv", "ends in .npz"),
        (other, "f.npz", "plane"),
        (unfinished, "f.npz", "is not finished"),
        (tmp_path / "none", "f.npz", "does not exist"),
    ):
        answer = macl("embed", store.path, "--run", chosen, "--out", tmp_path / out)
        assert answer.code == 1
        assert problem in answer.err
        assert not (tmp_path / out).exists()
