"""For prediction BatchNorms disappear into convolutions; what is predicted stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fakes.networks import SMALL, odd_patch, small_network
from fakes.processor import needs_bf16_convolutions
from macl.data.store_index import Normalisation
from macl.inference.folding import folded
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.tasks.segmentation import Segmenter

CLASSES = 3


def segmenter(name: str, dims: int) -> Segmenter:
    """In eval mode, with the running statistics of some images."""
    torch.manual_seed(0)
    whole = Segmenter(small_network(name, dims), CLASSES)
    images = torch.randn(4, 1, *odd_patch(whole.network, smallest=3))
    with torch.no_grad():
        for _ in range(3):
            whole(images)
    return whole.eval()


def norms(network: nn.Module) -> int:
    kinds = nn.BatchNorm2d, nn.BatchNorm3d
    return sum(isinstance(part, kinds) for part in network.modules())


@pytest.mark.parametrize(("name", "dims"), SMALL, ids=lambda value: f"{value}")
def test_a_folded_network_yields_the_same_up_to_rounding(name: str, dims: int) -> None:
    whole = segmenter(name, dims)
    before = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    twin = folded(whole)
    images = torch.randn(2, 1, *odd_patch(whole.network, smallest=3))
    with torch.no_grad():
        torch.testing.assert_close(twin(images), whole(images), rtol=1e-4, atol=1e-4)
    after = whole.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("dims", [2, 3])
def test_no_norm_of_the_papers_network_is_left(dims: int) -> None:
    whole = segmenter("unet", dims)
    assert norms(whole) > 0
    assert norms(folded(whole)) == 0


def test_only_what_follows_a_convolution_is_folded() -> None:
    torch.manual_seed(0)
    apart = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    assert folded(apart) is apart
    without_statistics = nn.BatchNorm2d(2, track_running_stats=False)
    of_the_batch = nn.Sequential(nn.Conv2d(1, 2, 1), without_statistics).eval()
    assert folded(of_the_batch) is of_the_batch


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=needs_bf16_convolutions)])
def test_masks_are_those_of_the_network_as_it_is(monkeypatch, bf16: bool) -> None:
    """In bf16 a class may differ where two are about as probable, and nowhere else."""
    whole = segmenter("unet", 2)
    image = np.random.default_rng(0).integers(0, 200, (1, 4, 30, 33)).astype(np.int16)
    normalisation = Normalisation(low=(0,), high=(200,), mean=(100,), deviation=(60,))
    member = SegmenterMember(whole, (32, 32), ("row",), bf16)
    ours = np.stack([*predict_slices([member], image, normalisation)])
    monkeypatch.setattr("macl.inference.sliding_window.folded", lambda network: network)
    plain = SegmenterMember(whole, (32, 32), ("row",))
    expected = np.stack([*predict_slices([plain], image, normalisation)])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=0.03 if bf16 else 1e-5)
    first, second = np.sort(expected, axis=1)[:, [-1, -2]].swapaxes(0, 1)
    sure = first - second > (0.06 if bf16 else 1e-4)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(ours.argmax(1)[sure], expected.argmax(1)[sure])
