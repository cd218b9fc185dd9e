"""From a store to batches: the same pixels wherever they live, and every slice in its turn."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from fakes.toy_store import write_toy_store
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache, Residence
from macl.data.rng import SampleRng
from macl.data.store import Store, write_array, write_index
from macl.preprocessing.normalisation import normalise
from macl.utils.errors import MaclError

CPU = torch.device("cpu")
RESIDENCES: tuple[Residence, ...] = ("device", "host", "disk")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_toy_store(tmp_path_factory.mktemp("toy") / "store", patients=5, slices=4, side=30, channels=2)


def bank(store: Store, residence: Residence | None = None, labelled: bool = True) -> PatchCache:
    return PatchCache(store, [case.name for case in store.index.cases], labelled, CPU, residence)


def batches(store: Store, size: int = 32, batch_size: int = 6, residence: Residence | None = None, **more) -> Loader:
    return Loader(bank(store, residence), batch_size, size, seed=more.pop("seed", 0), **more)


def gather(store: Store, numbers: list[int], size: int, seed: int = 0) -> Batch:
    slices = bank(store)
    return slices.gather(slices.fetch(np.array(numbers)), SampleRng(seed, 0, torch.tensor(numbers)), size)


def whole(store: Store, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice's normalised image and its label, read directly."""
    case, index = store.index.cases[number // 4], number % 4
    image = normalise(store.read(case.name, "image", index, index + 1), case.normalisation)[0]
    return image, store.read(case.name, "label", index, index + 1)[0]


def changed(store: Store, folder: Path, name: str, image: np.ndarray) -> Store:
    """The store with one case's image replaced."""
    (folder / "cases").mkdir(parents=True)
    cases = []
    for case in store.index.cases:
        arrays = dict(case.arrays)
        for kind in arrays:
            values = image if (case.name, kind) == (name, "image") else store.read(case.name, kind)
            arrays[kind] = write_array(folder, case.name, kind, values)
        cases.append(case.model_copy(update={"arrays": arrays}))
    write_index(folder, store.index.model_copy(update={"cases": tuple(cases)}))
    return Store.open(folder)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_batches_are_the_same_wherever_the_slices_live(store: Store, size: int) -> None:
    device, host, disk = (list(batches(store, size, residence=r).between(0, 7)) for r in RESIDENCES)
    assert len(device) == 7
    for one, two, three in zip(device, host, disk, strict=True):
        for other in (two, three):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.rng.samples, other.rng.samples)
            assert (one.rng.seed, one.rng.step, one.done) == (other.rng.seed, other.rng.step, other.done)


def test_what_a_batch_holds(store: Store) -> None:
    batch = next(batches(store, 32).between(2, 8))
    assert batch.images.shape == (6, 2, 32, 32)
    assert batch.images.dtype == batch.positions.dtype == torch.float32
    assert batch.labels.shape == (6, 32, 32)
    assert batch.labels.dtype == torch.int64
    assert (batch.rng.step, batch.done) == (2, 0.25)
    for number, position in zip(batch.rng.samples.tolist(), batch.positions.tolist(), strict=True):
        assert position == pytest.approx((number % 4 + 1) / 4)
    assert next(Loader(bank(store, labelled=False), 6, 32, 0).between(0, 1)).labels is None


def test_beginning_later_gives_the_same_batches(store: Store) -> None:
    all_of_them = list(batches(store).between(0, 9))
    for later, before in zip(batches(store).between(5, 9), all_of_them[5:], strict=True):
        assert torch.equal(later.images, before.images)
        assert later.done == before.done


@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_small_slice_is_padded_with_zeros_around(store: Store, number: int) -> None:
    image, label = whole(store, number)
    rows, columns = label.shape
    batch = gather(store, [number], 50)
    top, left = (50 - rows + 1) // 2, (50 - columns + 1) // 2
    inner = np.s_[..., top : top + rows, left : left + columns]
    np.testing.assert_allclose(batch.images[0].numpy()[inner], image, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(batch.labels[0].numpy()[inner], label)
    outside = torch.ones(50, 50, dtype=torch.bool)
    outside[inner] = False
    assert not batch.images[0][:, outside].any()
    assert not batch.labels[0][outside].any()
    assert image.min() < 0, "zero is a normalised slice's mean, not its lowest value"


def test_a_large_slice_is_cropped_within_and_anywhere(store: Store) -> None:
    image, label = whole(store, 0)
    windows = {
        (top, left): image[:, top : top + 28, left : left + 28]
        for top in range(label.shape[0] - 27)
        for left in range(label.shape[1] - 27)
    }
    assert len(windows) == 9
    seen = set()
    for seed in range(120):
        batch = gather(store, [0], 28, seed)
        errors = {corner: np.abs(batch.images[0].numpy() - window).max() for corner, window in windows.items()}
        top, left = min(errors, key=lambda corner: errors[corner])
        assert errors[top, left] < 1e-5
        np.testing.assert_array_equal(batch.labels[0].numpy(), label[top : top + 28, left : left + 28])
        seen.add((top, left))
    assert seen == set(windows)


def test_one_side_may_be_cropped_and_the_other_padded(tmp_path: Path, store: Store) -> None:
    case = store.index.cases[0]
    wide = np.arange(4 * 2 * 10 * 40, dtype=np.int16).reshape(4, 2, 10, 40)
    (tmp_path / "cases").mkdir()
    arrays = {
        "image": write_array(tmp_path, "wide", "image", wide),
        "label": write_array(tmp_path, "wide", "label", np.ones((4, 10, 40), np.uint8)),
    }
    normal = case.normalisation.model_copy(
        update={"low": (0, 0), "high": (9999, 9999), "mean": (0, 0), "deviation": (1, 1)}
    )
    stored = case.model_copy(update={"name": "wide", "size": (10, 40), "arrays": arrays, "normalisation": normal})
    write_index(tmp_path, store.index.model_copy(update={"cases": (stored,)}))
    slices = bank(Store.open(tmp_path))
    batch = slices.gather(slices.fetch(np.array([2])), SampleRng(0, 0, torch.tensor([2])), 20)
    assert torch.equal(batch.labels[0].sum(1), torch.tensor([0] * 5 + [20] * 10 + [0] * 5))
    first = int(batch.images[0, 0, 5, 0]) - wide[2, 0, 0, 0]
    np.testing.assert_array_equal(batch.images[0, :, 5:15].numpy(), wide[2, :, :, first : first + 20])


def test_normalisation_by_hand(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=1, side=4)
    case = store.index.cases[0]
    normal = case.normalisation.model_copy(
        update={"low": (10.0,), "high": (30.0,), "mean": (20.0,), "deviation": (5.0,)}
    )
    values = np.array([[0, 10, 11, 20], [25, 30, 31, 99]] * 2, np.int16).reshape(1, 1, 4, 4)
    entry = write_array(tmp_path / "store", case.name, "image", values)
    arrays = {"image": entry}
    write_index(
        tmp_path / "store",
        store.index.model_copy(
            update={"cases": (case.model_copy(update={"arrays": arrays, "normalisation": normal, "size": (4, 4)}),)}
        ),
    )
    slices = bank(Store.open(tmp_path / "store"), labelled=False)
    batch = slices.gather(slices.fetch(np.array([0])), SampleRng(0, 0, torch.tensor([0])), 4)
    expected = [[-2, -2, -1.8, 0], [1, 2, 2, 2]] * 2
    torch.testing.assert_close(batch.images[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float16", "float32"])
@pytest.mark.parametrize("residence", RESIDENCES)
def test_every_stored_type_keeps_its_values(tmp_path: Path, store: Store, dtype: str, residence: Residence) -> None:
    case = store.index.cases[1]
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    low, high = max(float(limits.min), -1e5), min(float(limits.max), 1e5)
    image = np.random.default_rng(0).uniform(low, high, (4, 2, *case.size)).astype(dtype)
    mixed = changed(store, tmp_path / "store", case.name, image)
    slices = bank(mixed, residence)
    pixels = slices.fetch(np.array([6]))
    start = int(pixels.starts[0]) * 2
    stored = pixels.images[start : start + 2 * case.size[0] * case.size[1]].reshape(2, *case.size)
    np.testing.assert_array_equal(stored.numpy(), image[2])


def test_every_slice_comes_once_an_epoch_in_an_order_of_its_own(store: Store) -> None:
    made = batches(store, batch_size=5, seed=4)
    assert made.steps_per_epoch == 4
    epochs = [np.concatenate([made.numbers(4 * epoch + step) for step in range(4)]) for epoch in range(3)]
    for numbers in epochs:
        assert sorted(numbers) == list(range(20))
    assert any((epochs[0] != epochs[1]).tolist())
    other = batches(store, batch_size=5, seed=5)
    assert any((np.concatenate([other.numbers(step) for step in range(4)]) != epochs[0]).tolist())


def test_what_is_left_over_differs_from_epoch_to_epoch(store: Store) -> None:
    made = batches(store, batch_size=6)
    assert made.steps_per_epoch == 3
    passed_over = {frozenset(made.order(epoch)[18:]) for epoch in range(10)}
    assert len(passed_over) > 5
    for step in range(30):
        assert len(set(made.numbers(step))) == 6


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_partition_the_batch(store: Store, ranks: int) -> None:
    together = batches(store, batch_size=6)
    shares = [batches(store, batch_size=6, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in (0, 2, 4):
        parts = [share.numbers(step) for share in shares]
        assert sorted(np.concatenate(parts)) == sorted(together.numbers(step))
    whole_batch = next(together.between(1, 2))
    pictures = dict(zip(whole_batch.rng.samples.tolist(), whole_batch.images, strict=True))
    for share in shares:
        batch = next(share.between(1, 2))
        for number, picture in zip(batch.rng.samples.tolist(), batch.images, strict=True):
            assert torch.equal(picture, pictures[number]), "the same crop on any rank"


def test_fewer_slices_than_a_batch(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = Loader(PatchCache(store, [store.index.cases[0].name], False, CPU), 16, 32, 0)
    assert (made.batch_size, made.steps_per_epoch) == (4, 1)
    for step in range(3):
        assert sorted(made.numbers(step)) == [0, 1, 2, 3]
    assert "fewer slices than a batch of 16: every batch holds all 4" in capsys.readouterr().err


@pytest.mark.parametrize("residence", RESIDENCES)
def test_a_neighbour_is_of_the_same_volume_and_cropped_alike(store: Store, residence: Residence) -> None:
    made = batches(store, size=24, residence=residence, neighbours=True)
    for batch in made.between(0, 3):
        for place, number in enumerate(batch.rng.samples.tolist()):
            beside = number + 1 if number % 4 < 3 else number - 1
            alone = bank(store)
            expected = alone.gather(
                alone.fetch(np.array([beside])), SampleRng(0, batch.rng.step, torch.tensor([number])), 24,
                torch.tensor([beside]),
            )  # fmt: skip
            assert torch.equal(batch.neighbours[place], expected.images[0])
    assert next(batches(store).between(0, 1)).neighbours is None


def test_a_slice_alone_is_its_own_neighbour(tmp_path: Path) -> None:
    single = write_toy_store(tmp_path / "store", patients=3, slices=1, side=16)
    assert bank(single).neighbours(np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("residence", RESIDENCES)
def test_a_broken_case_is_a_sentence(tmp_path: Path, store: Store, residence: Residence) -> None:
    copy = changed(store, tmp_path / "store", "", np.zeros(0))
    name = copy.index.cases[2].name
    wrong = np.zeros((4, 2, 5, 5), np.int16)
    blosc2.asarray(wrong, urlpath=str(tmp_path / "store" / "cases" / f"{name}.image.b2nd"), mode="w")
    with pytest.raises(MaclError, match=f"{name}.*cannot be read"):
        list(batches(copy, residence=residence).between(0, 3))
    with pytest.raises(MaclError, match="no case called 'nobody'"):
        PatchCache(store, ["nobody"], False, CPU)


def test_only_labelled_cases_can_bring_labels(tmp_path: Path) -> None:
    half = write_toy_store(tmp_path / "store", patients=2, slices=2, side=16, unlabelled=1)
    with pytest.raises(MaclError, match="has no label"):
        bank(half)
    assert len(bank(half, labelled=False)) == 4


def test_slices_stay_on_disk_where_memory_is_short(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from macl.data import patch_cache as module

    assert bank(store).residence == "device"
    monkeypatch.setattr(module, "_free_host_bytes", lambda: 1000)
    assert bank(store).residence == "disk"


def test_free_memory_is_a_share_of_what_the_machine_has() -> None:
    from macl.data.patch_cache import _free_host_bytes

    assert 2**20 < _free_host_bytes() < 2**50
