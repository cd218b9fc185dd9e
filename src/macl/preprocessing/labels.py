"""Labels as a scan's files hold them: their values, and the classes that these stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from macl.io.geometry import Volume, grid_difference
from macl.io.source import MAX_CLASSES, MAX_VALUE, Case
from macl.io.volume import read_label
from macl.utils.errors import MaclError, RefusedCaseError

_FEW_VALUES = 64
"""How many values a mask holds at most, unless it is known to be one."""

_EQUAL_SHARE = 0.4
"""Share of neighbours within the classes from which on a label of many values may be one."""

_VOXELS_COUNTED_AT_A_TIME = 1 << 17
"""Bounds the memory: counting takes eight bytes a voxel."""

_WHITE = 255
_NEAR = 6
"""How far a lossy picture strays from 0 and 255, where it strays little."""

_EVEN_SHARE = 0.8
"""Share of neighbouring voxels with equal values from which on an image may be a mask."""

_VALUES_LISTED = 16
"""How many label values a message lists."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: of the store's labels 0…K.
        labels: value in the scans → label 0…K.
        notes: assumptions, in sentences for the user.
    """

    names: tuple[str, ...]
    labels: Mapping[int, int]
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """For each label 0…K its value in the scans; of several, the first one declared."""
        first: dict[int, int] = {}
        for value, label in self.labels.items():
            first.setdefault(label, value)
        return tuple(first[label] for label in range(len(self.names)))


NO_CLASSES = Classes((), {})


def declared_classes(names: Mapping[int, str]) -> Classes:
    """The classes that a layout declares: label value → name, background first.

    Raises:
        MaclError: there are more classes than a store can tell apart.
    """
    unique = tuple(dict.fromkeys(names.values()))
    if len(unique) > MAX_CLASSES:
        raise MaclError(
            f"{len(unique)} classes are declared, more than {MAX_CLASSES} (background included): "
            "leave out or merge some."
        )
    return Classes(unique, {value: unique.index(name) for value, name in names.items()})


def classes_from_values(values: Iterable[int]) -> Classes:
    """One class for each value in the labels, 0 being the background: for undeclared classes.

    Raises:
        MaclError: there are more values than a store can tell apart.
    """
    ordered = tuple(sorted({0, *values}))
    if len(ordered) > MAX_CLASSES:
        raise MaclError(
            f"The labels hold {len(ordered)} different values together, more than {MAX_CLASSES}: "
            "are they labels?"
        )
    names = tuple("background" if value == 0 else f"class {value}" for value in ordered)
    note = f"No classes are declared: the labels hold {', '.join(map(str, ordered))}."
    return Classes(names, {value: label for label, value in enumerate(ordered)}, (note,))


def label_on_grid(case: Case, image: Volume) -> np.ndarray:
    """Read a case's label as (z, y, x) whole numbers.

    Raises:
        RefusedCaseError: it cannot be read, or lies on another grid than the image.
    """
    assert case.label
    label = read_label(case.label, case.images[0], case.frame)
    if difference := grid_difference(image.geometry, label.geometry):
        raise RefusedCaseError(f"image and label lie on different grids: {difference}")
    return label.array[0]


def count_values(label: np.ndarray) -> dict[int, int]:
    """Value → number of voxels, sorted by value, of a label of any shape.

    Raises:
        RefusedCaseError: a value is negative or too large for a class number.
    """
    lowest, highest = int(label.min()), int(label.max())
    if lowest < 0 or highest > MAX_VALUE:
        raise RefusedCaseError(
            f"its label holds values from {lowest} to {highest}, outside 0 to {MAX_VALUE}"
        )
    voxels = label.reshape(-1)
    counts = np.zeros(highest + 1, dtype=np.int64)
    for start in range(0, len(voxels), _VOXELS_COUNTED_AT_A_TIME):
        part = voxels[start : start + _VOXELS_COUNTED_AT_A_TIME]
        counts += np.bincount(part.astype(np.int64), minlength=highest + 1)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def require_plausible(label: np.ndarray, counts: Mapping[int, int]) -> None:
    """Refuse a label of undeclared classes that looks like an image, or like a smeared mask.

    Args:
        label: of any shape.
        counts: its values and their numbers of voxels, as `count_values` gives them.

    Raises:
        RefusedCaseError: it does.
    """
    if len(counts) > MAX_CLASSES:
        raise RefusedCaseError(
            f"its label holds {len(counts)} different values, more than {MAX_CLASSES}: is it an "
            "image?"
        )
    if len(counts) > _FEW_VALUES and not _lies_in_patches(label):
        raise RefusedCaseError(
            f"its label holds {len(counts)} different values, which change from voxel to voxel: "
            "is it an image?"
        )
    if _looks_smeared(counts):
        raise RefusedCaseError(
            f"its label holds values near 0 and near 255 ({_list_values(counts)}), as a mask saved "
            "with loss or interpolated does: use the original, or round it"
        )


def _lies_in_patches(label: np.ndarray) -> bool:
    """Whether neighbours along the last axis are often equal, the background left out."""
    before, after = label[..., :-1], label[..., 1:]
    labelled = (before != 0) | (after != 0)
    return bool((before == after)[labelled].mean() >= _EQUAL_SHARE)


def _looks_smeared(counts: Mapping[int, int]) -> bool:
    """Whether it is black and white by and large, with shades near both."""
    if max(counts) > _WHITE:
        return False
    near_black = any(0 < value <= _NEAR for value in counts)
    near_white = any(_WHITE - _NEAR <= value < _WHITE for value in counts)
    shown = sum(count for value, count in counts.items() if value > _NEAR)
    white = sum(count for value, count in counts.items() if value >= _WHITE - _NEAR)
    return near_black and near_white and 0 in counts and 2 * white > shown


def require_declared(values: Iterable[int], declared: Collection[int]) -> None:
    """Refuse a label with values that are no class.

    Raises:
        RefusedCaseError: there are some.
    """
    if undeclared := sorted({*values} - {*declared}):
        raise RefusedCaseError(
            f"its label holds {_list_values(undeclared)}, outside the declared classes "
            f"({_list_values(declared)})"
        )


def as_classes(label: np.ndarray, labels: Mapping[int, int]) -> np.ndarray:
    """(z, y, x) values in the scans → labels 0…K as uint8; each value must be among `labels`."""
    numbers = np.zeros(max(labels) + 1, dtype=np.uint8)
    numbers[[*labels]] = [*labels.values()]
    # Slice by slice, since looking up takes eight bytes a voxel.
    return np.stack([numbers[plane] for plane in label])


def _list_values(values: Collection[int]) -> str:
    more = ", …" if len(values) > _VALUES_LISTED else ""
    return ", ".join(map(str, [*values][:_VALUES_LISTED])) + more


def looks_like_a_mask(array: np.ndarray) -> bool:
    """Whether an image holds few whole numbers in large even patches, as masks do."""
    if array.dtype.kind == "f" and (array[:, ::4, ::4, ::4] % 1 != 0).any():
        return False
    if len(np.unique(array[:, ::2, ::4, ::4])) > _FEW_VALUES:
        return False
    if len(np.unique(array)) > _FEW_VALUES:
        return False
    return float((array[..., 1:] == array[..., :-1]).mean()) >= _EVEN_SHARE


def mask_note(array: np.ndarray) -> tuple[str, ...]:
    """A phrase about an image that looks like a mask, or ()."""
    if not looks_like_a_mask(array):
        return ()
    return (
        "it looks like a mask (few whole numbers in even patches) but is read as a scan: if it is "
        "a label, say where labels are with --labels",
    )
