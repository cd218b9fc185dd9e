"""Which patches a batch shows: every sample in its turn, classes evenly, and groups by position."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes.loading import make_loader
from fakes.toy_store import write_toy_store
from macl.data.patch_cache import PatchCache
from macl.data.sampling import EpochSampler, GroupedSampler, find_class_voxels
from macl.data.store import Store, write_array
from macl.data.store_index import write_index
from macl.data.windows import Volumes, select_volumes
from macl.utils.errors import MaclError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six volumes of 9, 13 and 17 slices."""
    folder = tmp_path_factory.mktemp("toy") / "store"
    return write_toy_store(folder, patients=6, slices=9, more_slices=4, side=40)


@pytest.fixture(scope="module")
def volumes(store: Store) -> Volumes:
    return select_volumes(store, list(store.cases))


def changed_cases(store: Store, folder: Path, **fields: list[Any]) -> Store:
    """A copy of a store whose cases have other values of these fields, in order."""
    cases = []
    for number, case in enumerate(store.index.cases):
        cases.append(case.model_copy(update={name: all_[number] for name, all_ in fields.items()}))
    shutil.copytree(store.path, folder)
    write_index(folder, store.index.model_copy(update={"cases": tuple(cases)}))
    return Store.open(folder)


# ---------------------------------------------------------------- epochs


def test_every_slice_comes_once_an_epoch_in_an_order_of_its_own(volumes: Volumes) -> None:
    made = EpochSampler(volumes, (32, 32), 13, seed=4)
    assert made.steps_per_epoch == 6
    epochs = [
        torch.cat([made.draw(6 * epoch + step)[0] for step in range(6)]) for epoch in range(3)
    ]
    for samples in epochs:
        assert sorted(samples.tolist()) == list(range(78))
    assert not torch.equal(epochs[0], epochs[1])
    other = EpochSampler(volumes, (32, 32), 13, seed=5)
    assert not torch.equal(torch.cat([other.draw(step)[0] for step in range(6)]), epochs[0])


def test_an_epoch_covers_the_depth_of_every_volume(volumes: Volumes) -> None:
    made = EpochSampler(volumes, (8, 32, 32), 7, seed=1)
    assert volumes.samples_per_volume((8, 32, 32)).tolist() == [2, 2, 3, 2, 2, 3]
    assert made.steps_per_epoch == 2
    for epoch in range(3):
        drawn = [made.draw(2 * epoch + step)[1].volumes for step in range(2)]
        assert torch.bincount(torch.cat(drawn)).tolist() == [2, 2, 3, 2, 2, 3]


def test_a_sample_has_another_window_every_epoch(volumes: Volumes) -> None:
    made = EpochSampler(volumes, (4, 24, 24), 21, seed=1)
    starts = set()
    for step in range(8):
        samples, windows = made.draw(step)
        starts.add(tuple(windows.starts[samples.tolist().index(0)].tolist()))
    assert len(starts) > 5


def test_what_is_left_over_differs_from_epoch_to_epoch(volumes: Volumes) -> None:
    made = EpochSampler(volumes, (32, 32), 32, seed=0)
    assert made.steps_per_epoch == 2
    passed_over = {frozenset(made.order(epoch)[64:].tolist()) for epoch in range(10)}
    assert len(passed_over) > 5
    for step in range(30):
        assert len(set(made.draw(step)[0].tolist())) == 32


# ---------------------------------------------------------------- foreground


@pytest.mark.parametrize("patch", [(16, 16), (3, 16, 16), (12, 64, 8)], ids=str)
def test_every_patch_shows_a_class_where_all_must(store: Store, patch: tuple[int, ...]) -> None:
    cache = PatchCache(store, list(store.cases), True, CPU)
    made = make_loader(cache, 6, patch, 0, foreground_share=1.0)
    for batch in made.between(0, 12):
        assert batch.labels is not None
        assert (batch.labels.flatten(1).amax(1) > 0).all()


@pytest.mark.parametrize("patch", [(16, 16), (3, 16, 16)], ids=str)
def test_classes_are_drawn_evenly_however_large_they_are(
    tmp_path: Path, patch: tuple[int, ...]
) -> None:
    """A disc of 1 voxel in a patch of 1 voxel's reach: half of the patches contain it."""
    store = write_toy_store(tmp_path / "store", patients=1, slices=8, side=40)
    case = store.index.cases[0]
    label = np.zeros(case.size, np.uint8)
    label[:, :30] = 1
    label[5, 39, 38] = 2
    entry = write_array(store.path, case.name, "label", label)
    case = case.model_copy(update={"arrays": {**case.arrays, "label": entry}})
    write_index(store.path, store.index.model_copy(update={"cases": (case,)}))
    opened = Store.open(store.path)
    cache = PatchCache(opened, list(opened.cases), True, CPU)
    made = make_loader(cache, 2, patch, 0, foreground_share=1.0)
    with_disc = torch.cat(
        [(batch.labels == 2).flatten(1).any(1) for batch in made.between(0, 400)]  # pyright: ignore
    )
    assert with_disc.float().mean() == pytest.approx(0.5, abs=0.06)


def test_a_patch_lies_anywhere_around_its_voxel(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=8, side=40)
    case = store.index.cases[0]
    label = np.zeros(case.size, np.uint8)
    label[5, 20, 1] = 1
    entry = write_array(store.path, case.name, "label", label)
    case = case.model_copy(update={"arrays": {**case.arrays, "label": entry}})
    write_index(store.path, store.index.model_copy(update={"cases": (case,)}))
    opened = Store.open(store.path)
    volumes = select_volumes(opened, list(opened.cases))
    voxels = find_class_voxels(opened, volumes)
    assert voxels.voxels[:1].tolist() == [[5, 20, 1]]
    made = EpochSampler(volumes, (3, 4, 4), 3, 0, foreground_share=1.0, class_voxels=voxels)
    starts = torch.cat([made.draw(step)[1].starts for step in range(300)])
    seen = [set(axis.tolist()) for axis in starts.unbind(1)]
    assert seen == [{3, 4, 5}, {17, 18, 19, 20}, {0, 1}]


@pytest.mark.parametrize("patch", [(16, 16), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_only_the_share_is_moved(
    store: Store, volumes: Volumes, patch: tuple[int, ...], share: float
) -> None:
    voxels = find_class_voxels(store, volumes)
    plain = EpochSampler(volumes, patch, 8, seed=2)
    made = EpochSampler(volumes, patch, 8, 2, foreground_share=share, class_voxels=voxels)
    unmoved = round(8 * (1 - share))
    moved = 0
    for step in range(4):
        (samples, windows), (plain_samples, plain_windows) = made.draw(step), plain.draw(step)
        assert torch.equal(samples, plain_samples)
        assert torch.equal(windows.volumes, plain_windows.volumes)
        assert torch.equal(windows.starts[:unmoved], plain_windows.starts[:unmoved])
        moved += int((windows.starts != plain_windows.starts).any(1).sum())
    assert (moved > 0) == (share > 0)
    assert moved <= 4 * 8 * share


def test_a_case_without_a_class_stays_random(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=3, slices=5, side=32)
    cases = list(store.index.cases)
    for number in (0, 2):
        entry = write_array(
            store.path, cases[number].name, "label", np.zeros(cases[number].size, np.uint8)
        )
        update = {"arrays": {**cases[number].arrays, "label": entry}}
        cases[number] = cases[number].model_copy(update=update)
    write_index(store.path, store.index.model_copy(update={"cases": tuple(cases)}))
    opened = Store.open(store.path)
    volumes = select_volumes(opened, list(opened.cases))
    voxels = find_class_voxels(opened, volumes)
    assert voxels.classes.tolist() == [0, 2, 0]
    for patch in ((8, 8), (2, 8, 8)):
        plain = EpochSampler(volumes, patch, 6, seed=2)
        made = EpochSampler(volumes, patch, 6, 2, foreground_share=1.0, class_voxels=voxels)
        _, windows = made.draw(0)
        random = windows.volumes != 1
        assert torch.equal(windows.starts[random], plain.draw(0)[1].starts[random])


def test_class_voxels_are_a_thousand_at_most_and_always_the_same(
    tmp_path: Path, store: Store
) -> None:
    volumes = select_volumes(store, list(store.cases))
    voxels, again = (find_class_voxels(store, volumes) for _ in range(2))
    assert torch.equal(voxels.voxels, again.voxels)
    assert int(voxels.counts.max()) == 1000
    for number, case in enumerate(volumes.cases):
        label = store.read(case.name, "label")
        classes = [int(value) for value in np.unique(label) if value]
        assert int(voxels.classes[number]) == len(classes)
        for column, value in enumerate(classes):
            first, count = int(voxels.firsts[number, column]), int(voxels.counts[number, column])
            z, y, x = voxels.voxels[first : first + count].unbind(1)
            assert count == min(1000, (label == value).sum())
            assert (label[z, y, x] == value).all()
            assert len({*zip(z.tolist(), y.tolist(), x.tolist(), strict=True)}) == count


def test_slices_of_air_show_no_class(tmp_path: Path, store: Store) -> None:
    contents = [tuple(float(z in (2, 4)) for z in range(case.slices)) for case in store.index.cases]
    sparse = changed_cases(store, tmp_path / "sparse", content=contents)
    volumes = select_volumes(sparse, list(sparse.cases), 0.5)
    voxels = find_class_voxels(sparse, volumes)
    assert {*voxels.voxels[:-1, 0].tolist()} == {2, 4}
    made = EpochSampler(volumes, (16, 16), 12, 0, foreground_share=1.0, class_voxels=voxels)
    assert {*made.draw(0)[1].starts[:, 0].tolist()} <= {2, 4}


# ---------------------------------------------------------------- groups


def grouped(volumes: Volumes, patch: tuple[int, ...], **changes: Any) -> GroupedSampler:
    options = {"batch_size": 12, "seed": 0, "patients_per_position": 4, "jitter": 0.06} | changes
    return GroupedSampler(volumes, patch, **options)


@pytest.mark.parametrize("patch", [(24, 24), (3, 8, 8), (5, 8, 64)], ids=str)
def test_a_group_shows_different_patients_at_one_position(
    volumes: Volumes, patch: tuple[int, ...]
) -> None:
    made, jitter = grouped(volumes, patch), 0.06
    # The coarsest voxels, 1/9 of the volume, may lie between: a centre then takes the nearest.
    reach = 2 * max(jitter, 0.5 / 9)
    for step in range(20):
        samples, windows = made.draw(step)
        assert samples.tolist() == list(range(12))
        centres = volumes.centres(windows, patch)[:, : 1 if len(patch) == 2 else 3]
        for first in range(0, 12, 4):
            members = range(first, first + 4)
            assert len({int(windows.volumes[member]) for member in members}) == 4
            for a, b in combinations(members, 2):
                assert (centres[a] - centres[b]).abs().max() <= reach + 1e-6


def test_positions_are_spread_over_the_volume(volumes: Volumes) -> None:
    made = grouped(volumes, (3, 8, 8))
    centres = torch.cat([volumes.centres(made.draw(step)[1], (3, 8, 8)) for step in range(80)])
    for axis in centres.unbind(1):
        counts = torch.histc(axis, bins=4, min=0.15, max=0.85)
        assert counts.min() > 0.1 * len(axis)


def test_patches_are_drawn_within_the_jitter_and_stay_in_the_volume(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=6, slices=40, more_slices=9, side=40)
    volumes = select_volumes(store, list(store.cases))
    made = grouped(volumes, (8, 16, 16), jitter=0.1)
    spread = []
    for step in range(40):
        _, windows = made.draw(step)
        stops = windows.starts + torch.tensor([8, 16, 16])
        assert (windows.starts >= 0).all()
        assert (stops <= volumes.extents[windows.volumes]).all()
        centres = volumes.centres(windows, (8, 16, 16)).reshape(3, 4, 3)
        spread.append(centres.amax(1) - centres.amin(1))
    spread = torch.cat(spread)
    assert spread.max() <= 0.2 + 1e-6
    assert spread.mean() > 0.05


def test_without_jitter_patches_lie_at_the_nearest_place(volumes: Volumes) -> None:
    for patch in ((24, 24), (3, 8, 8)):
        made = grouped(volumes, patch, jitter=0.0)
        for step in range(10):
            _, windows = made.draw(step)
            heights = volumes.centres(windows, patch)[:, 0].reshape(3, 4)
            assert (heights.amax(1) - heights.amin(1)).max() <= 1 / 9 + 1e-6


@pytest.mark.parametrize("patch", [(24, 24), (3, 8, 8)], ids=str)
def test_groups_depend_on_seed_and_step_alone(volumes: Volumes, patch: tuple[int, ...]) -> None:
    made, again, other = (grouped(volumes, patch, seed=seed) for seed in (0, 0, 1))
    _ = again.draw(5), again.draw(1)
    for step in (0, 7):
        assert torch.equal(made.draw(step)[1].starts, again.draw(step)[1].starts)
        assert not torch.equal(made.draw(step)[1].starts, other.draw(step)[1].starts)
    assert not torch.equal(made.draw(0)[1].starts, made.draw(7)[1].starts)


def test_all_patients_and_all_their_cases_are_drawn_as_often(tmp_path: Path, store: Store) -> None:
    """Patients a, b and c with 3, 2 and 1 cases."""
    of_patients = changed_cases(store, tmp_path / "patients", patient=list("aaabbc"))
    volumes = select_volumes(of_patients, list(of_patients.cases))
    made = grouped(volumes, (3, 8, 8), batch_size=6, patients_per_position=3)
    drawn = Counter()
    for step in range(150):
        _, windows = made.draw(step)
        patients = ["aaabbc"[volume] for volume in windows.volumes.tolist()]
        assert sorted(patients[:3]) == sorted(patients[3:]) == list("abc")
        drawn.update(windows.volumes.tolist())
    assert drawn[5] == 300
    for case, share in ((0, 100), (1, 100), (2, 100), (3, 150), (4, 150)):
        assert drawn[case] == pytest.approx(share, abs=45)


def test_fewer_patients_than_a_group_holds_repeat(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2, slices=9, side=32)
    volumes = select_volumes(store, list(store.cases))
    _, windows = grouped(volumes, (3, 8, 8), batch_size=4).draw(0)
    assert sorted(windows.volumes.tolist()) == [0, 0, 1, 1]


def test_volumes_without_room_are_shown_whole(volumes: Volumes) -> None:
    made = grouped(volumes, (24, 64, 64))
    for step in range(5):
        _, windows = made.draw(step)
        sizes = volumes.extents[windows.volumes]
        middle = torch.div(sizes - torch.tensor([24, 64, 64]), 2, rounding_mode="floor")
        assert torch.equal(windows.starts, middle)


def test_slices_of_air_are_in_no_group(tmp_path: Path, store: Store) -> None:
    contents = [
        tuple(float(z not in (0, 3, 4)) for z in range(case.slices)) for case in store.index.cases
    ]
    sparse = changed_cases(store, tmp_path / "sparse", content=contents)
    volumes = select_volumes(sparse, list(sparse.cases), 0.5)
    made = grouped(volumes, (24, 24))
    heights = torch.cat([made.draw(step)[1].starts[:, 0] for step in range(30)])
    assert not {0, 3, 4}.intersection(heights.tolist())
    assert len({*heights.tolist()}) > 8


def test_a_batch_is_made_of_whole_groups(volumes: Volumes) -> None:
    with pytest.raises(MaclError, match=r"batch of 14 patches cannot .*training\.batch_size=12,"):
        grouped(volumes, (3, 8, 8), batch_size=14, patients_per_position=6)
    with pytest.raises(MaclError, match=r"training\.batch_size=6,"):
        grouped(volumes, (3, 8, 8), batch_size=2, patients_per_position=6)
    few = grouped(volumes, (8, 32, 32), batch_size=40)
    assert (few.batch_size, few.steps_per_epoch) == (12, 1), "14 samples, in whole groups"
    assert len(few.draw(3)[0]) == 12
