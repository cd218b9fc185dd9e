"""A prepared scan → its mask on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macl.inference.scans import PreparedScan
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.preprocessing.orientation import orient
from macl.preprocessing.resampling import to_scanned_size


@dataclass(frozen=True)
class Segmentation:
    """A scan's mask on its own grid.

    Attributes:
        mask: (z, y, x) label values, in the smallest type that holds them.
        probabilities: (K, z, y, x) float32, where they were asked for.
    """

    mask: np.ndarray
    probabilities: np.ndarray | None


def segment(
    ensemble: Sequence[SegmenterMember],
    scan: PreparedScan,
    label_values: Sequence[int],
    *,
    with_probabilities: bool = False,
    batch_size: int | None = None,
) -> Segmentation:
    """Segment a scan slice by slice, so that only its mask and its image are whole in memory.

    Args:
        ensemble: segmenters of the same classes; their probabilities are averaged.
        scan: the scan.
        label_values: of the classes, in their order.
        with_probabilities: keep the probabilities of the whole scan too.
        batch_size: windows at a time; None: `sliding_window.default_batch_size`.

    Raises:
        MaclError: memory runs out.
    """
    size = scan.geometry.size[::-1]
    values = smallest_array(label_values)
    mask = np.empty(size, dtype=values.dtype)
    kept = np.empty((len(values), *size), dtype=np.float32) if with_probabilities else None
    # Views in the order of the slices, so that nothing is copied when a scan lies otherwise.
    mask_slices = orient(mask, scan.orientation)
    kept_slices = None if kept is None else orient(kept, scan.orientation)
    slices = predict_slices(ensemble, scan.image, scan.normalisation, batch_size=batch_size)
    on_scan = to_scanned_size(slices, scan.image.shape[1], scan.orientation)
    for index, probabilities in enumerate(on_scan):
        mask_slices[index] = values[probabilities.argmax(axis=0)]
        if kept_slices is not None:
            kept_slices[:, index] = probabilities
    return Segmentation(mask, kept)


def smallest_array(values: Sequence[int]) -> np.ndarray:
    """Integers as an array of the smallest type that holds them all."""
    return np.asarray(values, dtype=np.result_type(*map(np.min_scalar_type, values)))
