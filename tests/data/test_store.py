"""The store: what is written is read, and what is broken is named."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import blosc2
import numpy as np
import pytest

from fakes import index as indices
from fakes.reading import digests
from fakes.toy_store import write_toy_store
from macl.data.store import Store, write_array
from macl.data.store_index import StoreIndex, write_index
from macl.utils.errors import MaclError
from macl.utils.parallel import workers_for


def test_an_array_has_chunks_of_slices_and_is_always_the_same_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 900, (2, 40, 150, 20)).astype(np.int16)
    entry = write_array(tmp_path / "a", "case", "image", array)
    write_array(tmp_path / "b", "case", "image", np.asfortranarray(array))
    first = tmp_path / "a" / entry.file
    assert first.read_bytes() == (tmp_path / "b" / entry.file).read_bytes()
    assert blosc2.open(str(first)).chunks == (2, 16, 150, 20)
    assert blosc2.open(str(first)).blocks == (1, 1, 128, 20)
    assert first.stat().st_size < array.nbytes
    assert (entry.shape, entry.dtype) == (array.shape, "int16")
    assert entry.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
    assert [path.name for path in first.parent.iterdir()] == ["case.image.b2nd"]


def test_a_window_is_read_or_all_of_it(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2, slices=5)
    name = next(iter(store.cases))
    whole = store.read(name)
    assert whole.shape == (1, *store.case(name).size)
    window = (slice(1, 3), slice(5, 60), slice(7, 9))
    np.testing.assert_array_equal(store.read(name, window=window), whole[:, 1:3, 5:60, 7:9])
    np.testing.assert_array_equal(store.read(name, window=(slice(3, 4), None, None)), whole[:, 3:4])
    label = store.read(name, "label")
    assert label.shape == store.case(name).size
    np.testing.assert_array_equal(store.read(name, "label", window), label[window])


def test_the_checksum_follows_contents_not_place(tmp_path: Path) -> None:
    first = write_toy_store(tmp_path / "a", patients=2)
    assert Store.open((tmp_path / "a").rename(tmp_path / "moved")).checksum == first.checksum
    assert write_toy_store(tmp_path / "b", patients=2).checksum == first.checksum
    assert write_toy_store(tmp_path / "c", patients=2, seed=1).checksum != first.checksum


def test_an_index_comes_back(tmp_path: Path) -> None:
    index = write_toy_store(tmp_path / "a", patients=2).index
    (tmp_path / "b").mkdir()
    write_index(tmp_path / "b", index)
    assert Store.open(tmp_path / "b").index == index
    assert StoreIndex.model_validate_json((tmp_path / "b/store.json").read_text()) == index


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "store.json").unlink(), "is not a store"),
        (lambda folder: (folder / "store.json").write_text("{"), "cannot be read"),
        (
            lambda folder: (folder / "store.json").write_text(
                '{"format": "macl-store", "version": 9}'
            ),
            "version 9",
        ),
        (
            lambda folder: (folder / "store.json").write_text(
                '{"format": "macl-store", "version": 1}'
            ),
            "version 1, not .* prepare the scans again",
        ),
    ],
)
def test_what_is_no_store_is_named(tmp_path: Path, change, words: str) -> None:
    write_toy_store(tmp_path / "store", patients=2)
    change(tmp_path / "store")
    with pytest.raises(MaclError, match=words):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"nonsense"),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: blosc2.asarray(np.zeros((1, 1, 2, 2), np.uint8), urlpath=str(file), mode="w"),
    ],
)
def test_a_broken_array_is_named(tmp_path: Path, change) -> None:
    store = write_toy_store(tmp_path / "store", patients=2)
    name = next(iter(store.cases))
    change(tmp_path / "store" / store.case(name).arrays["image"].file)
    with pytest.raises(MaclError, match=r"image\.b2nd of the case 'patient001' cannot be read"):
        store.read(name)


def test_an_index_that_points_out_of_the_store_is_refused(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2)
    raw = json.loads((tmp_path / "store/store.json").read_text())
    raw["cases"][0]["arrays"]["image"]["file"] = "../secret.b2nd"
    (tmp_path / "store/store.json").write_text(json.dumps(raw))
    with pytest.raises(MaclError, match="outside that folder"):
        Store.open(tmp_path / "store").read(next(iter(store.cases)))


def test_a_store_of_ten_thousand_cases_holds_its_index_and_no_slice(tmp_path: Path) -> None:
    folder = indices.many(tmp_path / "store", 10_000)
    index_bytes = (folder / "store.json").stat().st_size
    tracemalloc.start()
    try:
        store = Store.open(folder)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(store.index.cases), len(store.cases)) == (10_000, 10_000)
    assert held < 12 * index_bytes
    np.testing.assert_array_equal(
        store.read("case07777", "label"), np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    )


def test_several_processes_read_one_store_at_once(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=4)
    stored = {
        f"{case.name} {kind}": array.sha256
        for case in store.index.cases
        for kind, array in case.arrays.items()
    }
    with workers_for(6, 3) as run:
        assert [found for _, found in run(digests, [tmp_path / "store"] * 6)] == [stored] * 6
