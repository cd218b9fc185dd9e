"""Segmentation metrics: overlap and surface distances, in two named conventions.

`strict` scores a case as one volume, in millimetres (in voxels where the spacing is unknown). A
structure that was missed or invented gets the longest distance in the scan. `paper` repeats what
the authors of MACL report: distances per slice in pixels, as MedPy defines them, where a missed or
invented structure counts as 0.

A structure's surface consists of its voxels that share a face with a voxel outside it; everything
beyond the scan's edge is outside. Distances run between the centres of surface voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Convention = Literal["strict", "paper"]
MaskOutcome = Literal["scored", "both_empty", "missed", "invented"]
Box: TypeAlias = tuple[slice, ...]

DEFINITIONS: Mapping[Convention, Mapping[str, str]] = {
    "strict": {
        "dice": "per case in 3D, 2|P∩T| / (|P|+|T|); mean over cases",
        "jaccard": "per case in 3D, |P∩T| / |P∪T|; mean over cases",
        "hd95": "per case in 3D, the larger of the two directed 95th percentiles of surface "
        "distance; mean over cases",
        "asd": "per case in 3D, mean surface distance over all surface voxels of both masks; mean "
        "over cases",
        "surface": "voxels with a face towards the outside; axes of a single voxel (a flat image) "
        "do not count",
        "both_empty": "undefined: left out of the means and counted separately",
        "missed, invented": "Dice and Jaccard 0, both distances the scan's physical diagonal",
    },
    "paper": {
        "dice": "pooled: voxels summed over all slices of all cases, then 2|P∩T| / (|P|+|T|); no "
        "spread",
        "jaccard": "pooled: voxels summed over all slices of all cases, then |P∩T| / |P∪T|; no "
        "spread",
        "hd95": "per slice in pixels, the 95th percentile over the surface distances of both "
        "directions together (MedPy); mean over all slices of all cases (the release: mean of its "
        "batches' means)",
        "asd": "per slice in pixels, mean distance from the prediction's surface to the truth's "
        "(MedPy); mean over all slices of all cases (the release: mean of its batches' means)",
        "surface": "pixels with an edge towards the outside; the whole slice is scored (the "
        "release: a centre crop)",
        "both_empty": "distance 0 in such a slice, included in the mean",
        "missed, invented": "distance 0 in such a slice, included in the mean",
    },
}


@dataclass(frozen=True)
class Score:
    """One class in one case.

    Attributes:
        truth_voxels, predicted_voxels, shared_voxels: |T|, |P|, |T∩P|.
        hd95, asd: as the convention defines them, in its unit; NaN where undefined.
    """

    truth_voxels: int
    predicted_voxels: int
    shared_voxels: int
    hd95: float
    asd: float

    @property
    def dice(self) -> float:
        """2|P∩T| / (|P|+|T|); NaN where both are empty."""
        return dice(self.truth_voxels, self.predicted_voxels, self.shared_voxels)

    @property
    def jaccard(self) -> float:
        """|P∩T| / |P∪T|; NaN where both are empty."""
        return jaccard(self.truth_voxels, self.predicted_voxels, self.shared_voxels)

    @property
    def outcome(self) -> MaskOutcome:
        """Which of the two masks hold the class: both, neither, the truth or the prediction."""
        if self.truth_voxels:
            return "scored" if self.predicted_voxels else "missed"
        return "invented" if self.predicted_voxels else "both_empty"


def dice(truth_voxels: int, predicted_voxels: int, shared_voxels: int) -> float:
    """2|P∩T| / (|P|+|T|); NaN where both are empty."""
    total = truth_voxels + predicted_voxels
    return 2 * shared_voxels / total if total else math.nan


def jaccard(truth_voxels: int, predicted_voxels: int, shared_voxels: int) -> float:
    """|P∩T| / |P∪T|; NaN where both are empty."""
    union = truth_voxels + predicted_voxels - shared_voxels
    return shared_voxels / union if union else math.nan


def empty_score(convention: Convention) -> Score:
    """The score of a class that neither mask holds."""
    distance = math.nan if convention == "strict" else 0.0
    return Score(0, 0, 0, distance, distance)


# ---------------------------------------------------------------- a whole case


def score_classes(
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: int,
    spacing: Sequence[float],
    convention: Convention,
) -> list[Score]:
    """Score classes 1…`classes` of one case.

    Args:
        truth, prediction: (slices, rows, columns) integers from 0 to `classes`; 0 is background.
        classes: number of classes without the background.
        spacing: distance between voxels along the three axes; `paper` does not use it.
        convention: see `DEFINITIONS`.

    Returns:
        One score per class.
    """
    from scipy.ndimage import find_objects

    boxes = zip(find_objects(truth, classes), find_objects(prediction, classes), strict=True)
    scores: list[Score] = []
    for label, pair in enumerate(boxes, start=1):
        present = [box for box in pair if box is not None]
        if not present:
            scores.append(empty_score(convention))
            continue
        box = union(present)
        masks = truth[box] == label, prediction[box] == label
        if convention == "strict":
            scores.append(strict_score(*masks, spacing, scan_shape=truth.shape))
        else:
            scores.append(paper_score(*masks, slices=len(truth)))
    return scores


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all `boxes`."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def strict_score(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    scan_shape: tuple[int, ...] | None = None,
) -> Score:
    """Score one class as one volume.

    Args:
        truth, prediction: bool of one shape: the whole scan, or any box that holds both structures.
        spacing: distance between voxels along the axes; distances are in its unit.
        scan_shape: shape of the whole scan; None: the masks are the whole scan.
    """
    shape = truth.shape if scan_shape is None else scan_shape
    counts = _counts(truth, prediction)
    if not counts[0] and not counts[1]:
        return Score(*counts, math.nan, math.nan)
    if not counts[0] or not counts[1]:
        diagonal = math.hypot(*(side * step for side, step in zip(shape, spacing, strict=True)))
        return Score(*counts, diagonal, diagonal)
    axes = [axis for axis, side in enumerate(shape) if side > 1] or [0]
    steps = [spacing[axis] for axis in axes]
    flat = tuple(axis for axis in range(len(shape)) if axis not in axes)
    there, back = surface_distances(np.squeeze(prediction, flat), np.squeeze(truth, flat), steps)
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return Score(*counts, hd95, float(there.sum() + back.sum()) / (there.size + back.size))


def paper_score(truth: np.ndarray, prediction: np.ndarray, slices: int | None = None) -> Score:
    """Score one class slice by slice, in pixels.

    Args:
        truth, prediction: bool (slices, rows, columns): the whole scan, or any box that holds both
            structures.
        slices: number of slices of the whole scan; None: the masks are the whole scan.
    """
    hd95 = asd = 0.0
    for true_slice, predicted_slice in zip(truth, prediction, strict=True):
        if not true_slice.any() or not predicted_slice.any():
            continue
        there, back = surface_distances(predicted_slice, true_slice, (1.0, 1.0))
        hd95 += float(np.percentile(np.concatenate((there, back)), 95))
        asd += float(there.mean())
    count = len(truth) if slices is None else slices
    return Score(*_counts(truth, prediction), hd95 / count, asd / count)


def _counts(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, int]:
    shared = int(np.count_nonzero(truth & prediction))
    return int(np.count_nonzero(truth)), int(np.count_nonzero(prediction)), shared


# ---------------------------------------------------------------- surfaces


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a structure that share a face with the outside.

    Args:
        mask: bool of any shape; everything beyond its edge is outside.

    Returns:
        bool of the same shape.
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        voxels, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        kept[1:] &= voxels[:-1]
        kept[:-1] &= voxels[1:]
        kept[0] = kept[-1] = False
    return mask & ~inner


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each structure's surface voxels to the nearest surface voxel of the other.

    Uses a search tree over the surface voxels, which is exact and, unlike a distance map, does not
    grow with the volume.

    Args:
        first, second: bool of one shape, neither empty.
        spacing: distance between voxels along the axes.

    Returns:
        (surface voxels of first,) and (surface voxels of second,), in the unit of `spacing`.
    """
    there, back = surface(first), surface(second)
    return _nearest(there, back, spacing), _nearest(back, there, spacing)


def _nearest(start: np.ndarray, goal: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    from scipy.spatial import KDTree

    points = np.argwhere(goal) * np.asarray(spacing)
    tree = KDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)
    distances = np.zeros(np.count_nonzero(start))
    apart = ~goal[start]  # where the surfaces touch, the distance is 0
    distances[apart] = tree.query(np.argwhere(start & ~goal) * np.asarray(spacing))[0]
    return distances
