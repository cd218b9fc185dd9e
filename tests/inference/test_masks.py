"""From a prepared scan to its mask and probabilities, on the scan's own grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from macl.data.store_index import Normalisation
from macl.inference import masks
from macl.inference.masks import segment
from macl.inference.scans import PreparedScan
from macl.inference.sliding_window import SegmenterMember
from macl.io.geometry import Geometry
from macl.preprocessing.orientation import choose_orientation, orient
from macl.utils.errors import MaclError

TURNED = Geometry(
    size=(6, 5, 9),
    spacing=(5.0, 1.0, 1.0),
    origin=(0.0, 0.0, 0.0),
    direction=(0.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
    spacing_known=True,
)
"""A scan whose x axis runs across its axial slices, and two of whose axes are reversed."""


class Threshold(nn.Module):
    """Class 0 below 0, class 1 from 0 to 1, class 2 above."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
        self.bias = nn.Parameter(torch.tensor([0.0, 0.0, -1.0]))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        shape = (-1, *(1 for _ in images.shape[2:]))
        return images * self.weight.reshape(shape) + self.bias.reshape(shape)


def prepared_scan() -> tuple[PreparedScan, np.ndarray]:
    """A scan, and the class of each voxel on its own grid (z, y, x)."""
    classes = np.random.default_rng(0).integers(0, 3, size=TURNED.size[::-1])
    orientation = choose_orientation(TURNED)
    image = np.ascontiguousarray(orient(classes, orientation))[None].astype(np.int16) * 10
    normalisation = Normalisation(low=(0,), high=(20,), mean=(8,), deviation=(6,))
    return PreparedScan(image, orientation, normalisation, TURNED), classes


@pytest.mark.parametrize("patch", [(8, 8), (4, 8, 4)])
def test_mask_and_probabilities_lie_on_the_scans_own_grid(patch: tuple[int, ...]) -> None:
    scan, classes = prepared_scan()
    assert scan.image.shape[1:] != classes.shape
    ensemble = [SegmenterMember(Threshold(), patch, ("row",))]
    done = segment(ensemble, scan, (0, 5, 7), with_probabilities=True)
    np.testing.assert_array_equal(done.mask, np.asarray([0, 5, 7])[classes])
    assert done.mask.dtype == np.uint8
    assert done.probabilities is not None
    assert (done.probabilities.shape, done.probabilities.dtype) == ((3, 9, 5, 6), np.float32)
    np.testing.assert_array_equal(done.probabilities.argmax(0), classes)
    np.testing.assert_allclose(done.probabilities.sum(0), 1.0, atol=1e-5)
    without = segment(ensemble, scan, (0, 5, 7))
    np.testing.assert_array_equal(without.mask, done.mask)
    assert without.probabilities is None


def test_probabilities_that_do_not_fit_into_memory_are_refused_and_masks_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan, classes = prepared_scan()
    ensemble = [SegmenterMember(Threshold(), (8, 8))]
    monkeypatch.setattr(masks, "free_host_bytes", lambda: 1000)
    with pytest.raises(MaclError, match=r"3 classes in 9 × 5 × 6 voxels .* --probabilities"):
        segment(ensemble, scan, (0, 1, 2), with_probabilities=True)
    np.testing.assert_array_equal(segment(ensemble, scan, (0, 1, 2)).mask, classes)
