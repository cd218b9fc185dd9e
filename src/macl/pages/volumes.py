"""Volumes of test cases, packed for the viewer in the page."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macl.data.store import Store
from macl.pages.overlays import grey
from macl.preprocessing.orientation import ACROSS, store_affine

MARGIN_FRACTION = 0.25
SMALLEST_MARGIN = 6
MOST_VOXELS = 3_000_000
"""Of one volume; of a larger one every second voxel is kept along its finest axes."""


@dataclass(frozen=True)
class PackedVolume:
    """A case around its structures, its axes nearest to right, anterior and superior.

    Attributes:
        size: voxels along x, y and z.
        affine: 16 numbers, row by row: index (x, y, z, 1) → mm, right-anterior-superior.
        across: the axis across the store's slices.
        thinned: whether voxels were left out.
        spacing_known: False: 1 stands in.
        data: gzip of bytes, x fastest: the image, the truth, then every prediction.
    """

    size: tuple[int, int, int]
    affine: tuple[float, ...]
    across: int
    thinned: bool
    spacing_known: bool
    data: bytes


def pack(store: Store, case: str, predictions: Sequence[np.ndarray]) -> PackedVolume:
    """Pack a case and its predictions, (Z, Y, X) labels on the store's grid.

    Raises:
        MaclError: the store cannot be read.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    stored = store.case(case)
    labels = [store.read(case, "label"), *predictions]
    window = _around(np.any(labels, axis=0))
    affine = store_affine(stored.geometry, stored.orientation, stored.size)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = _steps([part.stop - part.start for part in window], affine)
    part_affine = np.diag([*steps, 1.0])
    part_affine[:3, 3] = [part.start for part in window]
    affine = affine @ part_affine
    thin = tuple(slice(None, None, step) for step in steps)
    image = store.read(case, "image", window)[0][thin]
    arrays = [(255 * grey(image)).round(), *(array[window][thin] for array in labels)]
    turns = io_orientation(affine)
    turned = [apply_orientation(array.astype(np.uint8), turns) for array in arrays]
    affine = affine @ inv_ornt_aff(turns, image.shape)
    x, y, z = turned[0].shape
    return PackedVolume(
        size=(x, y, z),
        affine=tuple(round(float(number), 4) for number in affine.ravel()),
        across=ACROSS[stored.orientation.plane],
        thinned=max(steps) > 1,
        spacing_known=stored.geometry.spacing_known,
        data=gzip.compress(b"".join(array.tobytes("F") for array in turned), mtime=0),
    )


def _around(labelled: np.ndarray) -> tuple[slice, slice, slice]:
    """The part around labelled voxels, with a margin; all, where nothing is labelled."""
    parts = []
    for axis, length in enumerate(labelled.shape):
        others = tuple(other for other in range(3) if other != axis)
        indices = np.flatnonzero(labelled.any(axis=others))
        low, high = (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, length)
        margin = max(SMALLEST_MARGIN, round(MARGIN_FRACTION * (high - low)))
        parts.append(slice(max(0, low - margin), min(length, high + margin)))
    return parts[0], parts[1], parts[2]


def _steps(size: Sequence[int], affine: np.ndarray) -> list[int]:
    """Along each axis, every how many-th voxel to keep."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = np.ones(3, dtype=int)
    while np.prod(np.ceil(size / steps)) > MOST_VOXELS:
        steps[np.argmin(spacing * steps)] *= 2
    return steps.tolist()
