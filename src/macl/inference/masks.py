"""A prepared scan → its mask on the scan's own grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macl.inference.scans import PreparedScan
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.preprocessing.orientation import kept_part, orient
from macl.preprocessing.resampling import to_scanned_size
from macl.utils.errors import MaclError
from macl.utils.memory import free_host_bytes
from macl.utils.text import format_size


@dataclass(frozen=True)
class Segmentation:
    """A scan's mask on its own grid.

    Attributes:
        mask: (z, y, x) label values, in a small integer type.
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

    What was cropped away is background.

    Args:
        ensemble: segmenters of the same classes; their probabilities are averaged.
        scan: the scan.
        label_values: of the classes, in their order.
        with_probabilities: keep the probabilities of the whole scan too.
        batch_size: windows at a time; None: `sliding_window.default_batch_size`.

    Raises:
        MaclError: memory runs out, or the probabilities of the whole scan do not fit into it.
    """
    size = scan.geometry.size[::-1]
    values = smallest_array(label_values)
    mask = np.full(size, values[0])
    kept = _room_for_probabilities(len(values), size) if with_probabilities else None
    # Views in the order of the slices, so that nothing is copied when a scan lies otherwise.
    mask_slices = kept_part(orient(mask, scan.orientation), scan.orientation)
    kept_slices = None
    if kept is not None:
        kept_slices = kept_part(orient(kept, scan.orientation), scan.orientation)
    slices = predict_slices(ensemble, scan.image, scan.normalisation, batch_size=batch_size)
    on_scan = to_scanned_size(slices, scan.image.shape[1], scan.orientation)
    for index, probabilities in enumerate(on_scan):
        mask_slices[index] = values[probabilities.argmax(axis=0)]
        if kept_slices is not None:
            kept_slices[:, index] = probabilities
    return Segmentation(mask, kept)


def _room_for_probabilities(classes: int, size: Sequence[int]) -> np.ndarray:
    needed, free = 4 * classes * math.prod(size), free_host_bytes()
    if needed > free:
        raise MaclError(
            f"The probabilities of {classes} classes in {format_size(size)} voxels need "
            f"{needed / 2**30:.1f} GiB of memory, but only {free / 2**30:.1f} GiB are free: "
            "predict without --probabilities, or on a machine with more memory."
        )
    probabilities = np.zeros((classes, *size), dtype=np.float32)
    probabilities[0] = 1
    return probabilities


def smallest_array(values: Sequence[int]) -> np.ndarray:
    """Integers as an array of a small type that holds them all."""
    return np.asarray(values, dtype=np.result_type(*map(np.min_scalar_type, values)))
