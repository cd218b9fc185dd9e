"""Labels as the scans' files hold them: their values, how often each occurs, and the classes that they mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from macl.io.geometry import Volume, grid_difference
from macl.io.source import Case
from macl.io.volume import read_label
from macl.utils.errors import MaclError, RefusedCaseError

MOST_CLASSES = 64
LARGEST_LABEL = 65535
MOST_CLASSES_TOGETHER = 256

_NAMED = 16
"""How many label values a sentence lists."""


@dataclass(frozen=True)
class Classes:
    """What labels 0…K are called, which values in the scans mean which, and how that is known."""

    names: tuple[str, ...]
    labels: Mapping[int, int]
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """For every label 0…K its value in the scans, the first one declared where several mean the same."""
        firsts: dict[int, int] = {}
        for value, label in self.labels.items():
            firsts.setdefault(label, value)
        return tuple(firsts[label] for label in range(len(self.names)))


def declared_classes(names: Mapping[int, str]) -> Classes:
    """The classes of a layout that declares them: label value → name, background first."""
    unique = tuple(dict.fromkeys(names.values()))
    return Classes(unique, {value: unique.index(name) for value, name in names.items()})


def found_classes(values: Iterable[int]) -> Classes:
    """The classes of a layout that declares none: every value that its labels hold is one, 0 the background.

    Raises:
        MaclError: there are more than a store's labels can tell apart.
    """
    ordered = tuple(sorted({0, *values}))
    if len(ordered) > MOST_CLASSES_TOGETHER:
        raise MaclError(
            f"The labels hold {len(ordered)} different values together, more than {MOST_CLASSES_TOGETHER}: "
            "are they labels?"
        )
    names = tuple("background" if value == 0 else f"class {value}" for value in ordered)
    note = f"No classes are declared: the labels hold {', '.join(map(str, ordered))}."
    return Classes(names, {value: label for label, value in enumerate(ordered)}, (note,))


def label_on_grid(case: Case, image: Volume) -> np.ndarray:
    """A case's label, (z, y, x) whole numbers as its file holds them.

    Raises:
        RefusedCaseError: it cannot be read, or lies on another grid than the image.
    """
    assert case.label
    label = read_label(case.label, case.images[0], case.frame)
    if difference := grid_difference(image.geometry, label.geometry):
        raise RefusedCaseError(f"image and label lie on different grids: {difference}")
    return label.array[0]


def count_values(label: np.ndarray) -> dict[int, int]:
    """Value → voxels that hold it, of a label of any shape, sorted by value.

    Raises:
        RefusedCaseError: the values are too many or too large for class numbers.
    """
    lowest, highest = int(label.min()), int(label.max())
    if lowest < 0 or highest > LARGEST_LABEL:
        raise RefusedCaseError(f"its label holds values from {lowest} to {highest}, outside 0 to {LARGEST_LABEL}")
    # Slice by slice: counting needs eight bytes a voxel.
    counts = np.zeros(highest + 1, dtype=np.int64)
    for one in label.reshape(-1, label.shape[-2] * label.shape[-1]):
        counts += np.bincount(one.astype(np.int64), minlength=highest + 1)
    values = np.flatnonzero(counts)
    if len(values) > MOST_CLASSES:
        raise RefusedCaseError(
            f"its label holds {len(values)} different values, more than {MOST_CLASSES}: is it an image?"
        )
    return {int(value): int(counts[value]) for value in values}


def label_values(case: Case) -> tuple[int, ...] | str:
    """The values in a case's label, sorted; or why it cannot be a label."""
    assert case.label
    try:
        return tuple(count_values(read_label(case.label, frame=case.frame).array))
    except RefusedCaseError as error:
        return str(error)


def require_declared(found: Iterable[int], declared: Collection[int]) -> None:
    """Refuse label values that mean no class.

    Raises:
        RefusedCaseError: there are some.
    """
    if strange := sorted({*found} - {*declared}):
        raise RefusedCaseError(f"its label holds {_some(strange)}, outside the declared classes ({_some(declared)})")


def as_classes(label: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Label values → labels 0…K, uint8; the values must be among `classes`."""
    known = np.asarray(sorted(classes))
    labels = np.asarray([classes[value] for value in known.tolist()], dtype=np.uint8)
    return labels[np.searchsorted(known, label)]


def _some(values: Collection[int]) -> str:
    listed = list(values)
    return ", ".join(map(str, listed[:_NAMED])) + (", …" if len(listed) > _NAMED else "")
