"""What an index cannot say of real scans: it is input, which may be broken or made up."""

from __future__ import annotations

import math
from collections.abc import Iterable

from macl.data.store_index import ArrayKind, Orientation, StoredCase, StoreIndex
from macl.io.geometry import Geometry, direction_matrix, nearest_axes

MOST_VOXELS = 2**40
"""More than any scan has: an index that says so is broken."""

IMAGE_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32")

DOUBTFUL = 1e-3
SURELY_NEAREST = 0.75
"""Components of a direction: too small to tell a sign; too large for another axis to be nearer."""


def contradiction(index: StoreIndex) -> str | None:
    """What cannot be right in an index, in a phrase; None: nothing."""
    if not index.channels or not index.cases:
        return "it has no channels or no cases"
    values, names = index.label_values, index.classes
    if len(values) != len(names):
        return f"it has {len(names)} classes, but {len(values)} label values"
    if len({*values}) < len(values) or len({*names}) < len(names):
        return "a class or a label value is there twice"
    if index.prepared.normalisation is None:
        return "it does not say how the scans were normalised"
    plan = index.prepared.plan
    if plan is not None and len(plan.channels) != len(index.channels):
        return f"it has {len(index.channels)} channels, but its plan {len(plan.channels)}"
    seen: set[str] = set()
    for case in index.cases:
        problem = _contradiction_in(case, len(index.channels), len(names), plan is not None)
        if problem is None and (not case.name or case.name in seen):
            problem = "its name is there twice, or empty"
        if problem:
            return f"of the case {case.name!r}, {problem}"
        seen.add(case.name)
    return None


def _contradiction_in(case: StoredCase, channels: int, classes: int, planned: bool) -> str | None:
    size = case.size
    if case.channels != channels:
        return f"{case.channels} channels, not the store's {channels}"
    if min(size) < 1 or math.prod(size) * channels > MOST_VOXELS:
        return f"the size {size}"
    shapes: dict[ArrayKind, tuple[int, ...]] = {
        "image": (channels, *size),
        "label": size,
        "truth": case.orientation.scanned_size,
    }
    if "image" not in case.arrays or ("truth" in case.arrays and not case.labelled):
        return "an array is missing"
    for kind, array in case.arrays.items():
        if array.shape != shapes[kind]:
            return f"the {kind}'s shape {array.shape}, not {shapes[kind]}"
        if array.dtype not in (IMAGE_TYPES if kind == "image" else ("uint8",)):
            return f"the {kind}'s type {array.dtype!r}"
    if case.labelled and not classes:
        return "a label, though the store has no classes"
    return (
        _contradiction_in_space(case, planned)
        or _contradiction_in_numbers(case, channels)
        or _contradiction_in_counts(case, classes)
    )


def _contradiction_in_space(case: StoredCase, planned: bool) -> str | None:
    geometry, orientation = case.geometry, case.orientation
    if case.spacing_mm is not None and not _all_positive(case.spacing_mm):
        return f"the spacing {case.spacing_mm}"
    finite = map(math.isfinite, (*geometry.origin, *geometry.direction))
    if not _all_positive(geometry.spacing) or min(geometry.size) < 1 or not all(finite):
        return "the scan's grid"
    permutation = orientation.permutation
    if sorted(permutation) != [0, 1, 2]:
        return f"the permutation {permutation}"
    if orientation.scanned_size != tuple(geometry.size[2 - axis] for axis in permutation):
        return f"the permutation {permutation}, which does not lead to {orientation.scanned_size}"
    if not planned and not _leads_to_anatomy(geometry, orientation):
        return f"the permutation {permutation} or the flips {orientation.flipped}"
    if orientation.crop is not None:
        spans = zip(orientation.crop, orientation.scanned_size, strict=True)
        if not planned or not all(0 <= start < stop <= side for (start, stop), side in spans):
            return f"the crop {orientation.crop}"
    return None


def _leads_to_anatomy(geometry: Geometry, orientation: Orientation) -> bool:
    """Whether permutation and flips lead to slices of the plane, left-posterior-superior."""
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[orientation.plane]
    anatomical = (across, *(axis for axis in (2, 1, 0) if axis != across))
    axes = [2 - axis for axis in orientation.permutation]
    parts = [geometry.direction[3 * of + axis] for of, axis in zip(anatomical, axes, strict=True)]
    for part, flipped in zip(parts, orientation.flipped, strict=True):
        if abs(part) > DOUBTFUL and flipped != (part < 0):
            return False
    if min(map(abs, parts)) > SURELY_NEAREST:
        return True
    matrix, nearest = direction_matrix(geometry), nearest_axes(geometry)
    best = sum(abs(matrix[axis, index]) for index, axis in enumerate(nearest))
    return sum(map(abs, parts)) > best - DOUBTFUL


def _contradiction_in_numbers(case: StoredCase, channels: int) -> str | None:
    low, high, mean, deviation = numbers = (
        case.normalisation.low,
        case.normalisation.high,
        case.normalisation.mean,
        case.normalisation.deviation,
    )
    if (
        any(len(values) != channels for values in numbers)
        or not all(math.isfinite(value) for values in (low, high, mean) for value in values)
        or not _all_positive(deviation)
        or any(a > b for a, b in zip(low, high, strict=True))
    ):
        return "the normalisation"
    if case.rescale and (
        len(case.rescale) != channels
        or not all(_all_positive((slope,)) and math.isfinite(at) for slope, at in case.rescale)
    ):
        return "the rescaling"
    return None


def _contradiction_in_counts(case: StoredCase, classes: int) -> str | None:
    if case.content and (
        len(case.content) != case.slices or not all(0 <= share <= 1 for share in case.content)
    ):
        return "the content of its slices"
    counts = case.class_voxels
    if counts is not None and (
        len(counts) != classes
        or any(count < 0 for count in counts)
        or sum(counts) != math.prod(case.size)
    ):
        return "the voxels of its classes"
    return None


def _all_positive(values: Iterable[float]) -> bool:
    return all(0 < value < math.inf for value in values)
