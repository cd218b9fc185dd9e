"""From a store to batches: the same voxels wherever they live, and every sample in its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from fakes.loading import make_loader
from fakes.toy_store import write_toy_store
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache, Residence
from macl.data.store import Store, write_array
from macl.data.store_index import write_index
from macl.data.windows import Windows, full_shape
from macl.distributed.collectives import require_even_parts
from macl.preprocessing.normalisation import normalise
from macl.utils.errors import MaclError

CPU = torch.device("cpu")
RESIDENCES: tuple[Residence, ...] = ("device", "host", "disk")
# Smaller than the volumes, larger, and both; each in 2D and in 3D.
PATCHES = [(16, 16), (32, 24), (64, 64), (3, 16, 16), (16, 40, 64), (4, 20, 40), (20, 20, 20)]
SAMPLING: list[dict[str, Any]] = [
    {},
    {"foreground_share": 0.5},
    {"patients_per_position": 3, "position_jitter": 0.1},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_toy_store(
        tmp_path_factory.mktemp("toy") / "store", patients=5, slices=4, side=30, channels=2
    )


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five volumes of 6 to 14 slices."""
    folder = tmp_path_factory.mktemp("volumes") / "store"
    return write_toy_store(folder, patients=5, slices=6, more_slices=4, side=30, channels=2)


def cached(
    store: Store, residence: Residence | None = None, labelled: bool = True, **more: Any
) -> PatchCache:
    return PatchCache(store, list(store.cases), labelled, CPU, residence, **more)


def loader(
    store: Store,
    patch: tuple[int, ...] = (32, 32),
    batch_size: int = 6,
    residence: Residence | None = None,
    seed: int = 0,
    **more: Any,
) -> Loader:
    return make_loader(cached(store, residence), batch_size, patch, seed, **more)


def of_sample(store: Store, number: int, patch: tuple[int, ...], seed: int = 0) -> Batch:
    """The batch of one sample, drawn among all of an epoch."""
    batch = next(loader(store, patch, 1000, seed=seed).between(0, 1))
    place = batch.rng.samples.tolist().index(number)
    return batch.rows(slice(place, place + 1))


def whole_slice(store: Store, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice's normalised image (C, y, x) and its label, read directly."""
    case, index = store.index.cases[number // 4], number % 4
    image = normalise(store.read(case.name), case.normalisation)[:, index]
    return image, store.read(case.name, "label")[index]


def changed(store: Store, folder: Path, name: str, image: np.ndarray) -> Store:
    """The store with one case's image replaced."""
    (folder / "cases").mkdir(parents=True)
    cases = []
    for case in store.index.cases:
        arrays = dict(case.arrays)
        for kind in arrays:
            replaced = (case.name, kind) == (name, "image")
            values = image if replaced else store.read(case.name, kind)
            arrays[kind] = write_array(folder, case.name, kind, values)
        cases.append(case.model_copy(update={"arrays": arrays}))
    write_index(folder, store.index.model_copy(update={"cases": tuple(cases)}))
    return Store.open(folder)


# ---------------------------------------------------------------- what a batch holds


@pytest.mark.parametrize("sampling", SAMPLING, ids=["epoch", "foreground", "groups"])
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_batches_are_the_same_wherever_the_voxels_live(
    volumes: Store, patch: tuple[int, ...], sampling: dict[str, Any]
) -> None:
    device, host, disk = (
        list(loader(volumes, patch, residence=r, neighbours=True, **sampling).between(0, 3))
        for r in RESIDENCES
    )
    assert len(device) == 3
    for here, *others in zip(device, host, disk, strict=True):
        for other in others:
            for name in ("images", "labels", "centres", "neighbours"):
                ours, theirs = getattr(here, name), getattr(other, name)
                assert ours is not None
                assert torch.equal(ours, theirs), name
            assert torch.equal(here.rng.samples, other.rng.samples)
            assert (here.rng.seed, here.rng.step) == (other.rng.seed, other.rng.step)
            assert here.progress == other.progress


def reference(store: Store, windows: Windows, patch: tuple[int, ...]) -> tuple[Any, Any]:
    """Images and labels of windows, one by one: whole volumes, normalised, padded and cut."""
    images, labels = [], []
    depth, rows, columns = full_shape(patch)
    for volume, (z, y, x) in zip(windows.volumes.tolist(), windows.starts.tolist(), strict=True):
        case = store.index.cases[volume]
        image = normalise(store.read(case.name), case.normalisation)
        around = [(side, side) for side in (depth, rows, columns)]
        image = np.pad(image, [(0, 0), *around])
        label = np.pad(store.read(case.name, "label"), around)
        window = np.s_[
            ..., z + depth : z + 2 * depth, y + rows : y + 2 * rows, x + columns : x + 2 * columns
        ]
        images.append(image[window].reshape(-1, *patch))
        labels.append(label[window].reshape(patch))
    return np.stack(images), np.stack(labels)


@pytest.mark.parametrize("sampling", SAMPLING, ids=["epoch", "foreground", "groups"])
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_batches_equal_windows_cut_one_by_one(
    volumes: Store, patch: tuple[int, ...], sampling: dict[str, Any]
) -> None:
    made = loader(volumes, patch, seed=3, neighbours=True, **sampling)
    batch = next(made.between(1, 2))
    samples, windows = made.sampler.draw(1)
    images, labels = reference(volumes, windows, patch)
    assert torch.equal(batch.rng.samples, samples)
    assert batch.images.shape == (made.batch_size, 2, *patch)
    np.testing.assert_allclose(batch.images, images, rtol=0, atol=1e-5)
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.labels, labels)
    beside = made.cache.volumes.neighbours(windows, patch)
    assert batch.neighbours is not None
    np.testing.assert_allclose(
        batch.neighbours, reference(volumes, beside, patch)[0], rtol=0, atol=1e-5
    )


def test_what_a_batch_holds(store: Store) -> None:
    batch = next(loader(store).between(2, 8))
    assert batch.images.shape == (6, 2, 32, 32)
    assert batch.images.dtype == batch.centres.dtype == torch.float32
    assert batch.labels is not None
    assert batch.labels.shape == (6, 32, 32)
    assert batch.labels.dtype == torch.int64
    assert (batch.rng.step, batch.progress) == (2, 0.25)
    assert batch.labelled is None
    for number, position in zip(
        batch.rng.samples.tolist(), batch.positions[:, 0].tolist(), strict=True
    ):
        assert position == pytest.approx((number % 4 + 1) / 4)
    unlabelled = make_loader(cached(store, labelled=False), 6, (32, 32), 0)
    assert next(unlabelled.between(0, 1)).labels is None


def test_what_a_batch_of_volumes_holds(volumes: Store) -> None:
    batch = next(loader(volumes, (4, 24, 20)).between(2, 8))
    assert batch.images.shape == (6, 2, 4, 24, 20)
    assert batch.labels is not None
    assert batch.labels.shape == (6, 4, 24, 20)
    assert batch.centres.shape == batch.positions.shape == (6, 3)
    assert (batch.rng.step, batch.progress) == (2, 0.25)


@pytest.mark.parametrize("sampling", SAMPLING, ids=["epoch", "foreground", "groups"])
@pytest.mark.parametrize("patch", [(32, 32), (4, 24, 24)], ids=str)
def test_beginning_later_gives_the_same_batches(
    volumes: Store, patch: tuple[int, ...], sampling: dict[str, Any]
) -> None:
    all_of_them = list(loader(volumes, patch, **sampling).between(0, 9))
    later = list(loader(volumes, patch, **sampling).between(5, 9))
    for ours, theirs in zip(later, all_of_them[5:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.centres, theirs.centres)
        assert ours.progress == theirs.progress


@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_small_slice_is_padded_with_zeros_around(store: Store, number: int) -> None:
    image, label = whole_slice(store, number)
    rows, columns = label.shape
    batch = of_sample(store, number, (50, 50))
    assert batch.labels is not None
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
    image, label = whole_slice(store, 0)
    windows = {
        (top, left): image[:, top : top + 28, left : left + 28]
        for top in range(label.shape[0] - 27)
        for left in range(label.shape[1] - 27)
    }
    assert len(windows) == 9
    seen = set()
    for seed in range(120):
        batch = of_sample(store, 0, (28, 28), seed)
        errors = {
            corner: np.abs(batch.images[0].numpy() - window).max()
            for corner, window in windows.items()
        }
        top, left = min(errors, key=lambda corner: errors[corner])
        assert errors[top, left] < 1e-5
        assert batch.labels is not None
        np.testing.assert_array_equal(
            batch.labels[0].numpy(), label[top : top + 28, left : left + 28]
        )
        seen.add((top, left))
    assert seen == set(windows)


@pytest.mark.parametrize("patch", [(20, 20), (4, 20, 20)], ids=str)
@pytest.mark.parametrize("residence", RESIDENCES)
def test_one_side_may_be_cropped_and_the_other_padded(
    tmp_path: Path, store: Store, residence: Residence, patch: tuple[int, ...]
) -> None:
    case = store.index.cases[0]
    wide = np.arange(2 * 4 * 10 * 40, dtype=np.int16).reshape(2, 4, 10, 40)
    (tmp_path / "cases").mkdir()
    arrays = {
        "image": write_array(tmp_path, "wide", "image", wide),
        "label": write_array(tmp_path, "wide", "label", np.ones((4, 10, 40), np.uint8)),
    }
    numbers = {"low": (0, 0), "high": (9999, 9999), "mean": (0, 0), "deviation": (1, 1)}
    stored = case.model_copy(
        update={
            "name": "wide",
            "size": (4, 10, 40),
            "arrays": arrays,
            "normalisation": case.normalisation.model_copy(update=numbers),
        }
    )
    write_index(tmp_path, store.index.model_copy(update={"cases": (stored,)}))
    batch = next(loader(Store.open(tmp_path), patch, 1, residence).between(0, 1))
    z = 0 if len(patch) == 3 else int(batch.rng.samples[0])
    image, label = batch.images.reshape(2, -1, 20, 20), batch.labels
    assert label is not None
    expected = torch.tensor([0] * 5 + [20] * 10 + [0] * 5)
    assert (label.reshape(-1, 20, 20).sum(2) == expected).all()
    first = int(image[0, 0, 5, 0]) - wide[0, z, 0, 0]
    np.testing.assert_array_equal(
        image[:, :, 5:15], wide[:, z : z + image.shape[1], :, first : first + 20]
    )


def test_normalisation_by_hand(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=1, side=4)
    case = store.index.cases[0]
    normal = case.normalisation.model_copy(
        update={"low": (10.0,), "high": (30.0,), "mean": (20.0,), "deviation": (5.0,)}
    )
    values = np.array([[0, 10, 11, 20], [25, 30, 31, 99]] * 2, np.int16).reshape(1, 1, 4, 4)
    entry = write_array(tmp_path / "store", case.name, "image", values)
    update = {"arrays": {"image": entry}, "normalisation": normal, "size": (1, 4, 4)}
    cases = (case.model_copy(update=update),)
    write_index(tmp_path / "store", store.index.model_copy(update={"cases": cases}))
    cache = cached(Store.open(tmp_path / "store"), labelled=False)
    expected = torch.tensor([[-2, -2, -1.8, 0], [1, 2, 2, 2]] * 2)
    batch = next(make_loader(cache, 1, (4, 4), 0).between(0, 1))
    torch.testing.assert_close(batch.images[0, 0], expected)
    batch = next(make_loader(cache, 1, (1, 4, 4), 0).between(0, 1))
    torch.testing.assert_close(batch.images[0, 0, 0], expected)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "float16", "float32"]
)
@pytest.mark.parametrize("residence", RESIDENCES)
def test_every_stored_type_keeps_its_values(
    tmp_path: Path, store: Store, dtype: str, residence: Residence
) -> None:
    case = store.index.cases[1]
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    low, high = max(float(limits.min), -1e5), min(float(limits.max), 1e5)
    image = np.random.default_rng(0).uniform(low, high, (2, *case.size)).astype(dtype)
    mixed = changed(store, tmp_path / "store", case.name, image)
    cache, patch = cached(mixed, residence), case.size[1:]
    windows = Windows(torch.tensor([1]), torch.tensor([[2, 0, 0]]))
    fetched = cache.fetch(windows, patch)
    start, *sides = fetched.layout[0, :4].tolist()
    block = fetched.images[2 * start : 2 * (start + int(np.prod(sides)))].reshape(2, *sides)
    place = int(fetched.layout[0, 4])
    np.testing.assert_array_equal(block[:, place].numpy(), image[:, 2])


# ---------------------------------------------------------------- epochs and ranks


def samples_of(made: Loader, step: int) -> list[int]:
    return made.sampler.draw(step)[0].tolist()


@pytest.mark.parametrize("patch", [(32, 32), (4, 24, 24)], ids=str)
@pytest.mark.parametrize("sampling", SAMPLING, ids=["epoch", "foreground", "groups"])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_batch(
    volumes: Store, patch: tuple[int, ...], sampling: dict[str, Any], world_size: int
) -> None:
    whole = next(loader(volumes, patch, neighbours=True, **sampling).between(1, 2))
    for rank in range(world_size):
        made = loader(volumes, patch, rank=rank, world_size=world_size, neighbours=True, **sampling)
        share = next(made.between(1, 2))
        for name in ("images", "labels", "centres", "neighbours"):
            ours, everyones = getattr(share, name), getattr(whole, name)
            assert torch.equal(ours, everyones[rank::world_size]), name
        assert torch.equal(share.rng.samples, whole.rng.samples[rank::world_size])


def test_ranks_partition_every_batch(store: Store) -> None:
    together = loader(store)
    shares = [loader(store, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 2, 4):
        parts = [next(share.between(step, step + 1)).rng.samples for share in shares]
        assert sorted(torch.cat(parts).tolist()) == sorted(samples_of(together, step))


def test_fewer_slices_than_a_batch(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    cache = PatchCache(store, [store.index.cases[0].name], False, CPU)
    made = make_loader(cache, 16, (32, 32), 0)
    assert (made.batch_size, made.steps_per_epoch) == (4, 1)
    for step in range(3):
        assert sorted(samples_of(made, step)) == [0, 1, 2, 3]
    words = "fewer slices than a batch of 16: every batch holds all 4"
    assert words in capsys.readouterr().err


def test_what_is_kept_is_announced(volumes: Store, capsys: pytest.CaptureFixture[str]) -> None:
    loader(volumes, residence="disk")
    assert "46 slices of 5 cases (0 MiB) are kept on disk." in capsys.readouterr().err
    loader(volumes, (4, 24, 20), residence="host")
    said = capsys.readouterr().err
    assert "5 volumes (0 MiB) are kept in host memory." in said
    assert "An epoch takes 14 patches of 4 × 24 × 20 voxels from them." in said


@pytest.mark.parametrize(
    ("patch", "covers"), [((64, 64), False), ((14, 38, 30), True), ((13, 38, 30), False)]
)
def test_patches_that_cover_every_volume_are_known(
    volumes: Store, patch: tuple[int, ...], covers: bool
) -> None:
    assert loader(volumes, patch).all_patches_cover_their_volume == covers


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("residence", RESIDENCES)
def test_a_broken_case_is_a_sentence(tmp_path: Path, store: Store, residence: Residence) -> None:
    copy = changed(store, tmp_path / "store", "", np.zeros(0))
    name = copy.index.cases[2].name
    path = tmp_path / "store" / "cases" / f"{name}.image.b2nd"
    blosc2.asarray(np.zeros((2, 4, 5, 5), np.int16), urlpath=str(path), mode="w")
    with pytest.raises(MaclError, match=f"{name}.*cannot be read"):
        list(loader(copy, residence=residence).between(0, 3))
    with pytest.raises(MaclError, match="no case called 'nobody'"):
        PatchCache(store, ["nobody"], False, CPU)


def test_only_labelled_cases_can_bring_labels(tmp_path: Path) -> None:
    half = write_toy_store(tmp_path / "store", patients=2, slices=2, side=16, unlabelled=1)
    with pytest.raises(MaclError, match="has no label"):
        cached(half)
    assert len(cached(half, labelled=False).volumes.cases) == 2


@pytest.mark.parametrize("patch", [(16, 16), (2, 16, 16)], ids=str)
@pytest.mark.parametrize("residence", RESIDENCES)
def test_cases_without_a_label_are_marked(
    tmp_path: Path, residence: Residence, patch: tuple[int, ...]
) -> None:
    half = write_toy_store(tmp_path / "store", patients=4, slices=2, side=16, unlabelled=2)
    cache = PatchCache(half, list(half.cases), list(half.cases)[:2], CPU, residence)
    made = make_loader(cache, 4, patch, 0, foreground_share=1.0)
    for batch in made.between(0, 4):
        _, windows = made.sampler.draw(int(batch.rng.step))
        assert batch.labelled is not None
        assert batch.labels is not None
        assert batch.labelled.tolist() == [volume < 2 for volume in windows.volumes.tolist()]
        shown = batch.labels.flatten(1).amax(1) > 0
        assert torch.equal(shown, batch.labelled)


def test_voxels_stay_on_disk_where_memory_is_short(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from macl.data import patch_cache as module

    assert cached(store).residence == "device"
    monkeypatch.setattr(module, "free_host_bytes", lambda: 1000)
    assert cached(store).residence == "disk"


@pytest.mark.parametrize("patch", [(32, 32), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("residence", RESIDENCES)
def test_unlabelled_patches_follow_the_labelled_ones(
    store: Store, residence: Residence, patch: tuple[int, ...]
) -> None:
    """Labels that other cases have in the store are not read; all of them are shown in turn."""
    names = list(store.cases)
    cache = PatchCache(store, names, [names[1]], CPU, residence)
    made = make_loader(cache, 3, patch, 0, unlabelled_batch_size=2, foreground_share=1.0)
    assert made.batch_size == 5
    seen: set[int] = set()
    for batch in made.between(0, 20):
        _, windows = made.sampler.draw(int(batch.rng.step))
        assert batch.labels is not None
        assert batch.labelled is not None
        assert batch.labelled.tolist() == [True] * 3 + [False] * 2
        assert windows.volumes[:3].tolist() == [1] * 3
        seen |= {*windows.volumes[3:].tolist()}
        shown = batch.labels.flatten(1).amax(1) > 0
        assert torch.equal(shown, batch.labelled)
        assert len({*batch.rng.samples.tolist()}) == 5, "no two patches share random numbers"
    assert seen == {0, 2, 3, 4}


def test_patches_of_a_mixed_batch_are_those_of_their_volumes(store: Store) -> None:
    names = list(store.cases)
    cache = PatchCache(store, names, [names[1], names[3]], CPU)
    made = make_loader(cache, 4, (64, 64), 0, unlabelled_batch_size=4)
    for batch in made.between(0, 5):
        _, windows = made.sampler.draw(int(batch.rng.step))
        for image, volume, start in zip(batch.images, windows.volumes, windows.starts, strict=True):
            expected, _ = whole_slice(store, 4 * int(volume) + int(start[0]))
            rows, columns = expected.shape[1:]
            top, left = (-start[1:]).tolist()
            found = image[:, top : top + rows, left : left + columns]
            torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_few_labelled_patches_repeat_to_fill_a_batch(store: Store) -> None:
    """Four labelled slices in batches of six: every step shows them all, some of them twice."""
    names = list(store.cases)
    cache = PatchCache(store, names, [names[0]], CPU)
    made = make_loader(cache, 6, (32, 32), 0, unlabelled_batch_size=1)
    assert (made.batch_size, made.steps_per_epoch) == (7, 1)
    for batch in made.between(0, 8):
        _, windows = made.sampler.draw(int(batch.rng.step))
        counts = torch.bincount(windows.starts[:6, 0], minlength=4)
        assert counts.sum() == 6
        assert counts.max() <= 2


def test_given_labels_take_the_place_of_the_stores(store: Store) -> None:
    names = list(store.cases)
    given = {name: np.full(store.case(name).size, 7, np.uint8) for name in names[1:3]}
    for residence in RESIDENCES:
        cache = PatchCache(store, names, [names[0]], CPU, residence, given_labels=given)
        (batch,) = make_loader(cache, 4, (16, 16), 0, unlabelled_batch_size=16).between(0, 1)
        _, windows = make_loader(cache, 4, (16, 16), 0, unlabelled_batch_size=16).sampler.draw(0)
        assert batch.labels is not None
        for label, volume in zip(batch.labels[4:], windows.volumes[4:].tolist(), strict=True):
            assert (label == (7 if volume in (1, 2) else 0)).all()


def test_processes_share_both_kinds_evenly(store: Store) -> None:
    names = list(store.cases)
    cache = PatchCache(store, names, [names[0]], CPU)
    whole = next(make_loader(cache, 4, (32, 32), 0, unlabelled_batch_size=2).between(0, 1))
    for rank in range(2):
        share = next(
            make_loader(cache, 4, (32, 32), 0, rank, 2, unlabelled_batch_size=2).between(0, 1)
        )
        assert torch.equal(share.images, whole.images[rank::2])
        assert share.labelled is not None
        assert share.labelled.tolist() == [True, True, False]
    with pytest.raises(MaclError, match="2 processes cannot share 4 labelled and 3 unlabelled"):
        require_even_parts(4, 3, 2)
