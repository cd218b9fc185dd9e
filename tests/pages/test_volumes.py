"""What the page holds of a case's volume."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fakes.toy_store import on_its_side, write_toy_store
from macl.data.store import Store
from macl.pages import volumes
from macl.pages.volumes import PackedVolume, pack
from macl.preprocessing.orientation import to_scan

CASE = "patient001"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_toy_store(tmp_path / "store", patients=1)


def unpacked(volume: PackedVolume) -> np.ndarray:
    """(arrays, x, y, z)."""
    arrays = np.frombuffer(gzip.decompress(volume.data), dtype=np.uint8)
    return arrays.reshape(-1, *volume.size[::-1]).transpose(0, 3, 2, 1)


def test_image_truth_and_predictions_are_cut_to_what_is_labelled(store: Store) -> None:
    label = store.read(CASE, "label")
    prediction = np.zeros_like(label)
    volume = pack(store, CASE, [prediction, label])
    image, truth, nothing, same = unpacked(volume)
    assert (truth > 0).sum() == (label > 0).sum()
    assert not nothing.any()
    np.testing.assert_array_equal(same, truth)
    assert 200 < np.ptp(image) <= 255
    assert truth.size < label.size
    assert volume.size[2] == label.shape[0]


def test_every_voxel_keeps_its_place_in_the_patient(store: Store) -> None:
    tilted = (0.0, 0.0, -1.0, 0.8, 0.6, 0.0, 0.6, -0.8, 0.0)
    store = on_its_side(store, CASE, tilted)
    case = store.case(CASE)
    label = store.read(CASE, "label")
    in_scan = np.argwhere(to_scan(label, case.orientation) == 2)[:, ::-1]
    steps = np.reshape(case.geometry.direction, (3, 3)) * case.geometry.spacing
    expected = (in_scan @ steps.T + case.geometry.origin) * [-1, -1, 1]
    volume = pack(store, CASE, [])
    affine = np.reshape(volume.affine, (4, 4))
    found = np.argwhere(unpacked(volume)[1] == 2) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-2)
    assert (np.abs(affine[:3, :3]).argmax(axis=0) == [0, 1, 2]).all()
    assert (affine[:3, :3].max(axis=0) > 0).all()
    assert volume.across == 2


def test_one_outlier_does_not_darken_the_scan(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = store.read

    def with_outlier(case: str, kind="image", window=None) -> np.ndarray:
        array = read(case, kind, window).copy()
        if kind == "image":
            array[0, 0, 0, 0] = 30_000
        return array

    monkeypatch.setattr(store, "read", with_outlier)
    image = unpacked(pack(store, CASE, []))[0]
    assert np.median(image) > 30


def test_a_large_volume_is_thinned_along_its_finest_axes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack(store, CASE, [])
    monkeypatch.setattr(volumes, "MOST_VOXELS", np.prod(whole.size) // 3)
    thin = pack(store, CASE, [])
    assert thin.thinned
    assert not whole.thinned
    assert np.prod(thin.size) <= np.prod(whole.size) // 3
    assert thin.size[2] == whole.size[2]
    extents = [
        np.abs(np.reshape(volume.affine, (4, 4))[:3, :3] @ volume.size) for volume in (whole, thin)
    ]
    np.testing.assert_allclose(*extents, rtol=0.1)


def test_a_case_without_structures_is_kept_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = store.read
    monkeypatch.setattr(
        store,
        "read",
        lambda case, kind="image", window=None: read(case, kind, window) * (kind == "image"),
    )
    assert pack(store, CASE, []).size == store.case(CASE).size[::-1]
