"""Inference: windows, padding, mirroring, pieces and ensembles, against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from macl.data.store import Normalisation
from macl.inference.sliding_window import Member, predict_case, predict_slices, window_starts
from macl.io.geometry import Geometry
from macl.preprocessing.orientation import plan
from macl.utils.errors import MaclError


def small_network(seed: int, channels: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, classes, 1))
    return nn.Sequential(*layers, *head).eval()


class Pointwise(nn.Module):
    """Looks at single pixels, so that windows and padding must change nothing; counts what it is asked."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.side, self.batches = side, []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-2:] == (self.side, self.side)
        self.batches.append(len(images))
        return images[:, :1] * self.weight[:, None, None]


@pytest.mark.parametrize("shape", [(16, 16), (10, 13), (40, 16), (37, 55), (9, 41)])
@pytest.mark.parametrize("mirror_axes", [(), ("row",), ("row", "column")])
def test_windows_padding_and_mirroring_change_nothing_for_a_pointwise_network(
    shape: tuple[int, int], mirror_axes: tuple
) -> None:
    network = Pointwise(16)
    images = torch.randn(3, 1, *shape)
    probabilities = predict_slices(network, images, size=16, mirror_axes=mirror_axes, batch_size=5)
    expected = (images * network.weight[:, None, None]).softmax(1).detach()
    torch.testing.assert_close(probabilities, expected)
    assert max(network.batches) <= 5
    windows = 3 * len(window_starts(shape[0], 16)) * len(window_starts(shape[1], 16))
    assert sum(network.batches) == windows * 2 ** len(mirror_axes)


def test_one_window_equals_the_network_itself() -> None:
    network = small_network(0)
    images = torch.randn(4, 2, 16, 16)
    expected = network(images).softmax(1).detach()
    torch.testing.assert_close(predict_slices(network, images, size=16, batch_size=3), expected)


def test_smaller_slices_are_padded_with_zeros_around_their_middle() -> None:
    network = small_network(1)
    images = torch.randn(2, 2, 9, 14)
    padded = torch.zeros(2, 2, 16, 16)
    padded[:, :, 4:13, 1:15] = images
    expected = network(padded).softmax(1)[:, :, 4:13, 1:15].detach()
    torch.testing.assert_close(predict_slices(network, images, size=16), expected)


def test_overlapping_windows_are_weighted_by_a_gaussian() -> None:
    network = small_network(2)
    images = torch.randn(1, 2, 16, 24)
    bell = np.exp(-0.5 * ((np.arange(16) - 7.5) / 2.0) ** 2)
    total, weights = np.zeros((3, 16, 24)), np.zeros((16, 24))
    for left in (0, 8):
        window = network(images[..., left : left + 16]).softmax(1)[0].detach().numpy()
        total[:, :, left : left + 16] += window * np.outer(bell, bell)
        weights[:, left : left + 16] += np.outer(bell, bell)
    np.testing.assert_allclose(predict_slices(network, images, size=16)[0].numpy(), total / weights, rtol=1e-4)


def test_mirroring_averages_the_softmax_of_every_mirror_image() -> None:
    network = small_network(3)
    images = torch.randn(2, 2, 16, 16)
    flips: list[tuple[int, ...]] = [(), (-2,), (-1,), (-2, -1)]
    expected = torch.stack([network(images.flip(f)).softmax(1).flip(f) for f in flips]).mean(0).detach()
    torch.testing.assert_close(predict_slices(network, images, size=16, mirror_axes=("row", "column")), expected)
    rows = torch.stack([network(images.flip(f)).softmax(1).flip(f) for f in flips[:2]]).mean(0).detach()
    torch.testing.assert_close(predict_slices(network, images, size=16, mirror_axes=("row",)), rows)


@pytest.mark.parametrize(("side", "size"), [(17, 16), (24, 16), (25, 16), (100, 16), (101, 33), (2, 1)])
def test_windows_reach_from_edge_to_edge_and_overlap_by_half(side: int, size: int) -> None:
    starts = window_starts(side, size)
    assert (starts[0], starts[-1] + size) == (0, side)
    assert all(0 < step <= max(1, size // 2) for step in np.diff(starts))


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        predict_slices(small_network(0).train(), torch.zeros(1, 2, 16, 16), size=16)


class Hungry(Pointwise):
    """A network whose device holds `room` windows."""

    def __init__(self, side: int, room: int) -> None:
        super().__init__(side)
        self.room = room

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


@pytest.mark.parametrize(("room", "advice"), [(5, "--batch-size 4"), (1, "--batch-size 1"), (0, "--device cpu")])
def test_running_out_of_memory_names_the_batch_size_that_fits(room: int, advice: str) -> None:
    with pytest.raises(MaclError, match=advice):
        predict_slices(Hungry(8, room), torch.zeros(20, 1, 8, 8), size=8, batch_size=16)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        predict_slices(small_network(0), torch.zeros(1, 5, 16, 16), size=16)


GEOMETRY = Geometry(
    size=(30, 22, 7), spacing=(1.0, 1.0, 4.0), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing_known=True
)  # fmt: skip
NORMALISATION = Normalisation(low=(-50, -60), high=(800, 700), mean=(300, 310), deviation=(120, 130))


def stored_slices(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 900, size=(7, 2, rows, columns)).astype(np.int16)


def test_a_case_in_pieces_equals_the_case_at_once() -> None:
    ensemble = [Member(small_network(4), 16, ("column",))]
    case = (stored_slices(11, 15), NORMALISATION, plan(GEOMETRY))
    pieces = list(predict_case(ensemble, *case, batch_size=3))
    assert [piece.shape for piece in pieces] == [(3, 3, 22, 30), (3, 3, 22, 30), (1, 3, 22, 30)]
    (whole,) = predict_case(ensemble, *case, batch_size=7)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)
    np.testing.assert_allclose(whole.sum(axis=1), 1.0, atol=1e-5)


def test_an_ensemble_averages_probabilities_whatever_its_members_windows() -> None:
    members = [
        Member(small_network(0), 32, ()),
        Member(small_network(1), 16, ("row",)),
        Member(small_network(2), 24, ()),
    ]
    case = (stored_slices(22, 30), NORMALISATION, plan(GEOMETRY))
    (together,) = predict_case(members, *case, batch_size=7)
    alone = [next(predict_case([member], *case, batch_size=7)) for member in members]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)
