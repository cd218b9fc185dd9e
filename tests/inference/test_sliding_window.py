"""Sliding windows over slices and volumes, against direct computation."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from macl.augmentation.geometry import AXES
from macl.config.settings import ArrayAxis
from macl.data.store_index import Normalisation
from macl.inference.sliding_window import (
    SegmenterMember,
    WindowGrid,
    default_batch_size,
    predict_slices,
    predict_volume,
    window_starts,
)
from macl.preprocessing.normalisation import normalise
from macl.utils.errors import MaclError


def small_network(seed: int, dims: int = 2, channels: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    conv, pool, up = (
        (nn.Conv2d, nn.MaxPool2d, nn.ConvTranspose2d)
        if dims == 2
        else (nn.Conv3d, nn.MaxPool3d, nn.ConvTranspose3d)
    )
    layers = (conv(channels, 4, 3, padding=1), nn.ReLU(), pool(2))
    return nn.Sequential(*layers, up(4, 4, 2, stride=2), conv(4, classes, 1)).eval()


class Pointwise(nn.Module):
    """Looks at single voxels, so that windows and padding change nothing; counts its windows."""

    def __init__(self, patch: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.patch, self.batches = tuple(patch), []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == self.patch
        self.batches.append(len(images))
        return images[:, :1] * self.weight.reshape(-1, *(1 for _ in self.patch))


def pointwise_probabilities(network: Pointwise, image: Tensor) -> Tensor:
    return (image[:1] * network.weight[:, None, None, None]).softmax(0).detach()


def predict_slow(
    network: nn.Module, image: Tensor, patch: tuple[int, int, int], mirror_axes: Sequence[ArrayAxis]
) -> np.ndarray:
    """The definition, voxel weights and all, for a volume at least as large as the patch."""
    axes = [AXES.index(axis) + 2 for axis in mirror_axes]
    flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    centred = [np.arange(side) - (side - 1) / 2 for side in patch]
    bells = [np.exp(-0.5 * (c / (side / 8)) ** 2) for c, side in zip(centred, patch, strict=True)]
    weight = np.einsum("i,j,k->ijk", *bells)
    total, weights = 0.0, np.zeros(image.shape[1:])
    starts = [window_starts(*sides) for sides in zip(image.shape[1:], patch, strict=True)]
    for corner in product(*starts):
        box = tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        window = image[(slice(None), *box)][None]
        mirrored = [network(window.flip(flip)).softmax(1).flip(flip) for flip in flips]
        mean = torch.stack(mirrored).mean(0)[0].detach().numpy()
        padded = np.zeros((len(mean), *image.shape[1:]))
        padded[(slice(None), *box)] = weight * mean
        total = total + padded
        weights[box] += weight
    return total / weights


ALL_AXES: list[tuple[ArrayAxis, ...]] = [(), ("row",), ("row", "column")]


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("shape", [(16, 16), (10, 13), (40, 16), (37, 55), (9, 41)])
@pytest.mark.parametrize("mirror_axes", ALL_AXES)
def test_in_2d_windows_padding_and_mirroring_change_nothing_for_a_pointwise_network(
    shape: tuple[int, int], mirror_axes: tuple[ArrayAxis, ...]
) -> None:
    network = Pointwise((16, 16))
    image = torch.randn(1, 3, *shape)
    probabilities = predict_volume(
        network, image, patch=(16, 16), mirror_axes=mirror_axes, batch_size=5
    )
    torch.testing.assert_close(probabilities, pointwise_probabilities(network, image))
    assert max(network.batches) <= 5
    windows = 3 * len(window_starts(shape[0], 16)) * len(window_starts(shape[1], 16))
    assert sum(network.batches) == windows * 2 ** len(mirror_axes)


@pytest.mark.parametrize("shape", [(4, 8, 6), (1, 5, 3), (9, 8, 6), (3, 21, 7), (11, 13, 19)])
@pytest.mark.parametrize("mirror_axes", [(), ("slice",), ("slice", "row", "column")])
def test_in_3d_windows_padding_and_mirroring_change_nothing_for_a_pointwise_network(
    shape: tuple[int, int, int], mirror_axes: tuple[ArrayAxis, ...]
) -> None:
    patch = (4, 8, 6)
    network = Pointwise(patch)
    image = torch.randn(1, *shape)
    probabilities = predict_volume(
        network, image, patch=patch, mirror_axes=mirror_axes, batch_size=3
    )
    torch.testing.assert_close(probabilities, pointwise_probabilities(network, image))
    assert max(network.batches) <= 3
    counts = [len(window_starts(*sides)) for sides in zip(shape, patch, strict=True)]
    assert sum(network.batches) == np.prod(counts) * 2 ** len(mirror_axes)


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 16, 9), (17, 16, 33), (40, 7, 21)])
@pytest.mark.parametrize("patch", [(1, 8, 8), (4, 8, 8), (8, 16, 5)])
def test_windows_cover_every_voxel_and_their_weights_sum_to_the_total(
    size: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    windows = WindowGrid.over(size, patch)
    total = torch.zeros(size)
    for corner in windows.corners:
        box = tuple(slice(a, a + side) for a, side in zip(corner, windows.sides, strict=True))
        assert total[box].shape == windows.weights.shape
        total[box] += windows.weights
    assert (total > 0).all()
    expected = windows.depth_weight[:, None, None] * windows.plane_weight
    torch.testing.assert_close(total, expected)
    assert list(windows.corners) == sorted(windows.corners)


@pytest.mark.parametrize(
    ("side", "window"), [(17, 16), (24, 16), (25, 16), (100, 16), (101, 33), (2, 1)]
)
def test_windows_reach_from_edge_to_edge_and_overlap_by_half(side: int, window: int) -> None:
    starts = window_starts(side, window)
    assert (starts[0], starts[-1] + window) == (0, side)
    assert all(0 < step <= max(1, window // 2) for step in np.diff(starts))


@pytest.mark.parametrize(("dims", "size"), [(2, (4, 16, 16)), (3, (16, 16, 16))])
def test_one_window_equals_the_network_itself(dims: int, size: tuple[int, int, int]) -> None:
    network = small_network(0, dims)
    image = torch.randn(2, *size)
    batch = image.movedim(1, 0) if dims == 2 else image[None]
    expected = network(batch).softmax(1).detach()
    expected = expected.movedim(0, 1) if dims == 2 else expected[0]
    predicted = predict_volume(network, image, patch=(16,) * dims, batch_size=3)
    torch.testing.assert_close(predicted, expected)


def test_smaller_slices_are_padded_with_zeros_around_their_middle() -> None:
    network = small_network(1)
    image = torch.randn(2, 2, 9, 14)
    padded = torch.zeros(2, 2, 16, 16)
    padded[:, :, 4:13, 1:15] = image.movedim(1, 0)
    expected = network(padded).softmax(1)[:, :, 4:13, 1:15].detach().movedim(0, 1)
    torch.testing.assert_close(predict_volume(network, image, patch=(16, 16)), expected)


def test_smaller_volumes_are_padded_with_zeros_around_their_middle() -> None:
    network = small_network(1, dims=3)
    image = torch.randn(2, 5, 9, 6)
    padded = torch.zeros(1, 2, 8, 16, 6)
    padded[0, :, 2:7, 4:13] = image
    expected = network(padded).softmax(1)[0, :, 2:7, 4:13].detach()
    torch.testing.assert_close(predict_volume(network, image, patch=(8, 16, 6)), expected)


def test_overlapping_windows_of_slices_are_weighted_by_a_gaussian() -> None:
    network = small_network(2)
    image = torch.randn(2, 1, 16, 24)
    bell = np.exp(-0.5 * ((np.arange(16) - 7.5) / 2.0) ** 2)
    total, weights = np.zeros((3, 16, 24)), np.zeros((16, 24))
    for left in (0, 8):
        window = network(image[:, 0, :, left : left + 16][None]).softmax(1)[0].detach().numpy()
        total[:, :, left : left + 16] += window * np.outer(bell, bell)
        weights[:, left : left + 16] += np.outer(bell, bell)
    predicted = predict_volume(network, image, patch=(16, 16))[:, 0].numpy()
    np.testing.assert_allclose(predicted, total / weights, rtol=1e-4)


@pytest.mark.parametrize("mirror_axes", [(), ("column",), ("slice", "row")])
def test_overlapping_windows_of_volumes_equal_a_slow_reading_of_the_definition(
    mirror_axes: tuple[ArrayAxis, ...],
) -> None:
    network = small_network(3, dims=3)
    image, patch = torch.randn(2, 9, 11, 7), (4, 8, 6)
    predicted = predict_volume(
        network, image, patch=patch, mirror_axes=mirror_axes, batch_size=4
    ).numpy()
    np.testing.assert_allclose(
        predicted, predict_slow(network, image, patch, mirror_axes), atol=1e-5
    )


@pytest.mark.parametrize(("dims", "size"), [(2, (5, 23, 30)), (3, (5, 23, 30)), (3, (20, 8, 9))])
def test_a_constant_network_gives_constants(dims: int, size: tuple[int, int, int]) -> None:
    network = small_network(4, dims)
    for parameter in network[-1].parameters():  # pyright: ignore[reportIndexIssue]
        nn.init.zeros_(parameter)
    predicted = predict_volume(network, torch.randn(2, *size), patch=(8,) * dims)
    torch.testing.assert_close(predicted, torch.full((3, *size), 1 / 3))


def test_away_from_the_edges_of_windows_a_convolution_sees_no_windows() -> None:
    """Shifted windows give the same there, whatever their weights."""
    torch.manual_seed(5)
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    image, patch = torch.randn(1, 13, 20, 17), (6, 8, 10)
    predicted = predict_volume(network, image, patch=patch)
    whole = network(image[None]).softmax(1)[0].detach()
    inside = torch.ones(image.shape[1:], dtype=torch.bool)
    for axis, (side, window) in enumerate(zip(image.shape[1:], patch, strict=True)):
        for start in window_starts(side, window):
            edges = [edge for edge in (start, start + window - 1) if 0 < edge < side - 1]
            inside.index_fill_(axis, torch.tensor(edges, dtype=torch.long), False)
    assert inside.sum() > 100
    torch.testing.assert_close(predicted[:, inside], whole[:, inside])
    assert not torch.allclose(predicted[:, ~inside], whole[:, ~inside])


# ---------------------------------------------------------------- mirror images


def test_mirroring_averages_the_softmax_of_every_mirror_image_of_a_slice() -> None:
    network = small_network(3)
    image = torch.randn(2, 2, 16, 16)
    batch = image.movedim(1, 0)
    flips: list[tuple[int, ...]] = [(), (-2,), (-1,), (-2, -1)]
    mirrored = [network(batch.flip(flip)).softmax(1).flip(flip).detach() for flip in flips]
    for axes, expected in ((("row", "column"), mirrored), (("row",), mirrored[:2])):
        predicted = predict_volume(network, image, patch=(16, 16), mirror_axes=axes)
        torch.testing.assert_close(predicted, torch.stack(expected).mean(0).movedim(0, 1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_mirroring_averages_the_softmax_of_every_mirror_image_of_a_volume(count: int) -> None:
    network = small_network(3, dims=3)
    image = torch.randn(2, 8, 8, 8)
    for axes in combinations(AXES, count):
        places = [AXES.index(axis) + 2 for axis in axes]
        flips = [flip for n in range(count + 1) for flip in combinations(places, n)]
        assert len(flips) == 2**count
        mirrored = [network(image[None].flip(flip)).softmax(1).flip(flip)[0] for flip in flips]
        predicted = predict_volume(network, image, patch=(8, 8, 8), mirror_axes=axes)
        torch.testing.assert_close(predicted, torch.stack(mirrored).mean(0).detach())


def test_mirroring_changes_nothing_for_a_network_that_mirrors_with_the_image() -> None:
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    for flip in ((2,), (3,), (4,)):
        network.weight.data = (network.weight.data + network.weight.data.flip(flip)) / 2
    image = torch.randn(1, 11, 12, 9)
    plain = predict_volume(network, image, patch=(4, 8, 6))
    torch.testing.assert_close(
        predict_volume(network, image, patch=(4, 8, 6), mirror_axes=AXES), plain
    )


def test_axes_that_a_patch_lacks_and_networks_in_training_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="slice"):
        predict_volume(
            small_network(0), torch.zeros(2, 1, 16, 16), patch=(16, 16), mirror_axes=("slice",)
        )
    with pytest.raises(ValueError, match="eval"):
        predict_volume(small_network(0).train(), torch.zeros(2, 1, 16, 16), patch=(16, 16))


# ---------------------------------------------------------------- memory of the device


class Hungry(Pointwise):
    """A network whose device holds `room` windows."""

    def __init__(self, patch: Sequence[int], room: int) -> None:
        super().__init__(patch)
        self.room = room

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


@pytest.mark.parametrize("patch", [(8, 8), (2, 8, 8)])
@pytest.mark.parametrize(
    ("room", "advice"), [(5, "--batch-size 4"), (1, "--batch-size 1"), (0, "--device cpu")]
)
def test_running_out_of_memory_names_the_batch_size_that_fits(
    patch: tuple[int, ...], room: int, advice: str
) -> None:
    with pytest.raises(MaclError, match=advice) as raised:
        predict_volume(Hungry(patch, room), torch.zeros(1, 40, 8, 8), patch=patch, batch_size=16)
    assert f"16 windows of {' × '.join(map(str, patch))} voxels" in str(raised.value)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        predict_volume(small_network(0), torch.zeros(5, 1, 16, 16), patch=(16, 16))


def test_by_default_large_windows_go_one_by_one_and_small_ones_together() -> None:
    assert default_batch_size((512, 512)) == default_batch_size((32, 32)) == 16
    assert default_batch_size((128, 128, 128)) == 1
    assert default_batch_size((40, 56, 40)) == 11
    assert default_batch_size((8, 8, 8)) == 16


# ---------------------------------------------------------------- slice by slice


NORMALISATION = Normalisation(
    low=(-50, -60), high=(800, 700), mean=(300, 310), deviation=(120, 130)
)


def stored_image(*size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 900, size=(2, *size)).astype(np.int16)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("patch", [(16, 16), (4, 16, 16), (16, 8, 8)])
def test_slice_by_slice_equals_the_volume_at_once(patch: tuple[int, ...], batch_size: int) -> None:
    member = SegmenterMember(small_network(4, len(patch)), patch, ("column",))
    image = stored_image(13, 11, 25)
    slices = list(predict_slices([member], image, NORMALISATION, batch_size=batch_size))
    assert len(slices) == 13
    streamed = np.stack(slices, axis=1)
    whole = predict_volume(
        member.network,
        torch.from_numpy(normalise(image, NORMALISATION)),
        patch=patch,
        mirror_axes=member.mirror_axes,
        batch_size=7,
    ).numpy()
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    np.testing.assert_array_equal(streamed.argmax(0), whole.argmax(0))
    np.testing.assert_allclose(streamed.sum(axis=0), 1.0, atol=1e-5)


def test_an_ensemble_averages_probabilities_whatever_its_members_windows() -> None:
    members = [
        SegmenterMember(small_network(0), (32, 32)),
        SegmenterMember(small_network(1), (16, 16), ("row",)),
        SegmenterMember(small_network(2, dims=3), (4, 16, 8)),
        SegmenterMember(small_network(3, dims=3), (4, 16, 8), ("slice",)),
        SegmenterMember(small_network(4, dims=3), (6, 8, 8)),
    ]
    image = stored_image(9, 22, 30)
    alone = [list(predict_slices([member], image, NORMALISATION)) for member in members]
    for chosen in (slice(0, 2), slice(2, 4), slice(2, 5), slice(0, 5)):
        together = list(predict_slices(members[chosen], image, NORMALISATION))
        np.testing.assert_allclose(together, np.mean(alone[chosen], axis=0), atol=1e-6)


class Watching(nn.Module):
    """Notes the bytes of all new tensors in memory whenever it is called."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.network, self.peak = small_network(0, dims), 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tensors = (thing for thing in gc.get_objects() if type(thing) is Tensor)
        storages = {storage.data_ptr(): storage for storage in map(Tensor.untyped_storage, tensors)}
        self.peak = max(self.peak, sum(storage.nbytes() for storage in storages.values()))
        return self.network(images)


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """The garbage collector lists what the test makes alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
def test_memory_does_not_grow_with_the_number_of_slices(patch: tuple[int, ...]) -> None:
    peaks = []
    for count in (40, 200):
        network = Watching(len(patch))
        member = SegmenterMember(network, patch)
        image = stored_image(count, 24, 24)
        slices = predict_slices([member], image, NORMALISATION, batch_size=4)
        assert sum(1 for _ in slices) == count
        peaks.append(network.peak)
    assert peaks[1] <= peaks[0] * 1.05
    probabilities_of_all = 200 * 3 * 24 * 24 * 4
    assert peaks[1] < probabilities_of_all / 3
