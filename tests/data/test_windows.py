"""Windows: where patches start, where their centres lie, and which patch is beside another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fakes.loading import make_loader
from fakes.toy_store import write_toy_store
from macl.data.patch_cache import PatchCache, Residence
from macl.data.rng import SampleRng
from macl.data.sampling import EpochSampler
from macl.data.store import Store
from macl.data.store_index import write_index
from macl.data.windows import Volumes, Windows, select_volumes

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Volumes of 4 × 48 × 48, 7 × 52 × 42 and 10 × 56 × 48 voxels."""
    return write_toy_store(tmp_path / "toy.store", patients=3, slices=4, more_slices=3, side=48)


@pytest.fixture
def volumes(store: Store) -> Volumes:
    return select_volumes(store, list(store.cases))


def beside(volumes: Volumes, patch: tuple[int, ...], *starts: tuple[int, int]) -> list[int]:
    """First slices of the neighbours of patches, given as (volume, first slice)."""
    number = torch.tensor([volume for volume, _ in starts])
    first = torch.tensor([[z, 5, 7] for _, z in starts])
    neighbours = volumes.neighbours(Windows(number, first), patch)
    assert torch.equal(neighbours.volumes, number)
    assert torch.equal(neighbours.starts[:, 1:], first[:, 1:])
    return neighbours.starts[:, 0].tolist()


# ---------------------------------------------------------------- starts


def test_slices_are_cropped_by_the_published_rule(volumes: Volumes) -> None:
    """Rows and columns start at ⌊u (spare + 1)⌋ of the sample's own draws, in single precision."""
    samples, windows = EpochSampler(volumes, (32, 45), 21, seed=9).draw(4)
    rng = SampleRng(9, 4, samples)
    for axis, name, side in ((1, "crop/row", 32), (2, "crop/column", 45)):
        for place, unit in enumerate(rng.uniform(name).numpy()):
            length = volumes.cases[int(windows.volumes[place])].size[axis]
            spare = length - side
            at_random = int(np.floor(np.float32(unit) * np.float32(spare + 1)))
            expected = at_random if spare > 0 else spare // 2
            assert int(windows.starts[place, axis]) == expected
    assert windows.starts[:, 0].tolist() == volumes.slice_numbers[samples].tolist()


def test_patches_take_every_place_and_no_other(volumes: Volumes) -> None:
    sampler = EpochSampler(volumes, (8, 55, 60), 4, seed=0)
    windows = [sampler.draw(step)[1] for step in range(60)]
    volume = torch.cat([drawn.volumes for drawn in windows])
    starts = torch.cat([drawn.starts for drawn in windows])
    for number, expected in enumerate(
        ([{-2}, {-4}, {-6}], [{-1}, {-2}, {-9}], [{0, 1, 2}, {0, 1}, {-6}])
    ):
        of_volume = starts[volume == number]
        assert [set(axis.tolist()) for axis in of_volume.unbind(1)] == expected


# ---------------------------------------------------------------- centres


def test_centres_by_hand(volumes: Volumes) -> None:
    slices = Windows(torch.tensor([0, 0, 2]), torch.tensor([[0, 0, 16], [3, -8, 0], [9, 12, 0]]))
    expected = [
        [1 / 4, 16.5 / 48, 32.5 / 48],
        [4 / 4, 24.5 / 48, 16.5 / 48],
        [10 / 10, 28.5 / 56, 16.5 / 48],
    ]
    rows = volumes.centres(slices, (32, 32))
    rows_of_padded = volumes.centres(slices.rows(slice(1, 2)), (64, 32))
    torch.testing.assert_close(rows[[0, 2]], torch.tensor(expected)[[0, 2]])
    torch.testing.assert_close(rows_of_padded, torch.tensor(expected)[[1]])
    # Voxels 3, 4, 5, 6 and 1 … 8 and 41 … 48; and a patch larger than the volume.
    blocks = Windows(torch.tensor([2, 0]), torch.tensor([[2, 0, 40], [-1, 0, 0]]))
    torch.testing.assert_close(
        volumes.centres(blocks.rows(slice(0, 1)), (4, 8, 8)),
        torch.tensor([[4.5 / 10, 4.5 / 56, 44.5 / 48]]),
    )
    torch.testing.assert_close(
        volumes.centres(blocks.rows(slice(1, 2)), (6, 48, 48)),
        torch.tensor([[2.5 / 4, 24.5 / 48, 24.5 / 48]]),
    )


def test_heights_of_slices_are_exact(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=1, slices=97, side=4)
    volumes = select_volumes(store, list(store.cases))
    numbers = torch.arange(97)
    windows = Windows(torch.zeros(97, dtype=torch.int64), torch.stack([numbers] * 3, 1) % 3)
    windows.starts[:, 0] = numbers
    expected = torch.tensor((np.arange(97) + 1) / 97, dtype=torch.float32)
    assert torch.equal(volumes.centres(windows, (2, 2))[:, 0], expected)


# ---------------------------------------------------------------- neighbours


def test_a_neighbour_is_the_next_slice_of_the_same_volume(volumes: Volumes) -> None:
    patch = (32, 32)
    assert beside(volumes, patch, *((0, z) for z in range(4))) == [1, 2, 3, 2]
    assert beside(volumes, patch, (1, 0), (1, 5), (1, 6), (2, 9)) == [1, 6, 5, 8]


def test_a_neighbour_in_a_volume_is_half_a_patch_away(volumes: Volumes) -> None:
    """Forward, or backward, or as far as there is room."""
    patch = (4, 32, 32)
    assert beside(volumes, patch, *((2, z) for z in range(7))) == [2, 3, 4, 5, 6, 3, 4]
    assert beside(volumes, patch, (1, 0), (1, 1), (1, 2), (1, 3)) == [2, 3, 0, 1]
    assert beside(volumes, (9, 32, 32), (2, 0), (2, 1)) == [1, 0]
    assert beside(volumes, patch, (0, 0)) == [0], "there is no other place"
    assert beside(volumes, (7, 32, 32), (0, -1)) == [-1]


def test_a_slice_alone_is_its_own_neighbour(tmp_path: Path) -> None:
    single = write_toy_store(tmp_path / "flat", patients=3, slices=1, side=16)
    volumes = select_volumes(single, list(single.cases))
    assert beside(volumes, (8, 8), (0, 0), (1, 0), (2, 0)) == [0, 0, 0]


@pytest.mark.parametrize("residence", ["device", "disk"])
@pytest.mark.parametrize("dims", [2, 3])
def test_neighbours_are_cropped_like_their_patches(
    store: Store, residence: Residence, dims: int
) -> None:
    """A patch and its neighbour have the same rows and columns."""
    cache = PatchCache(store, list(store.cases), False, CPU, residence)
    large, small = ((2, side, side)[-dims:] for side in (64, 32))
    whole = next(make_loader(cache, 8, large, seed=3, neighbours=True).between(0, 1))
    cropped = next(make_loader(cache, 8, small, seed=3, neighbours=True).between(0, 1))
    assert whole.neighbours is not None
    assert cropped.neighbours is not None
    for patch, neighbour, crop, neighbour_crop in zip(
        whole.images, whole.neighbours, cropped.images, cropped.neighbours, strict=True
    ):
        windows = patch[0].unfold(-2, 32, 1).unfold(-2, 32, 1)
        windows = windows.movedim(0, -3) if dims == 3 else windows
        same = (windows == crop[0]).flatten(2).all(-1).nonzero()
        assert len(same) == 1
        row, column = same[0].tolist()
        torch.testing.assert_close(
            neighbour[..., row : row + 32, column : column + 32], neighbour_crop
        )


def test_without_asking_there_are_none(store: Store) -> None:
    cache = PatchCache(store, list(store.cases), labelled=False, device=CPU)
    for patch in ((32, 32), (2, 32, 32)):
        assert next(make_loader(cache, 4, patch, seed=0).between(0, 1)).neighbours is None


# ---------------------------------------------------------------- slices of air


def with_content(store: Store, content: dict[str, tuple[float, ...]]) -> Volumes:
    cases = tuple(
        case.model_copy(update={"content": content[case.name]}) for case in store.index.cases
    )
    write_index(store.path, store.index.model_copy(update={"cases": cases}))
    return select_volumes(Store.open(store.path), list(store.cases), 0.05)


def test_volumes_end_where_there_is_only_air(store: Store) -> None:
    content = {
        "patient001": (0.0, 0.4, 0.0, 0.4),
        "patient002": (0.0,) * 7,
        "patient003": (0.0, 0.0, *(0.5,) * 6, 0.0, 0.0),
    }
    volumes = with_content(store, content)
    assert [case.name for case in volumes.cases] == ["patient001", "patient003"]
    assert volumes.samples_per_volume((32, 32)).tolist() == [2, 6]
    assert volumes.samples_per_volume((4, 32, 32)).tolist() == [1, 2]
    sampler = EpochSampler(volumes, (4, 32, 32), 3, seed=0)
    firsts = {number: set() for number in (0, 1)}
    for step in range(40):
        _, windows = sampler.draw(step)
        for volume, start in zip(
            windows.volumes.tolist(), windows.starts[:, 0].tolist(), strict=True
        ):
            firsts[volume].add(start)
        centres = volumes.centres(windows, (4, 32, 32))[:, 0]
        whole = (windows.starts[:, 0] + 2.5) / 10
        of_second = windows.volumes == 1
        torch.testing.assert_close(centres[of_second], whole[of_second])
    assert firsts == {0: {0}, 1: {2, 3, 4}}
    assert beside(volumes, (32, 32), (0, 1), (0, 3), (1, 7)) == [3, 1, 6]
