"""Scans that change under every flip and turn, with any number of structures and orientation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from fakes.scans import affine

SHAPE = (6, 20, 24)


@dataclass(frozen=True)
class Truth:
    """What a store must hold of a case.

    Attributes:
        patient: who was scanned; "" if the name is a hash.
        image: (channels, z, y, x) in left-posterior-superior order.
        label: (z, y, x) in 0…K, in the same order; None: unlabelled.
    """

    patient: str
    image: np.ndarray
    label: np.ndarray | None


def structures(
    seed: int, classes: int, shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """An int16 scan (z, y, x) that every flip and turn changes, and its uint8 label 0…classes."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    label = np.where((y > 1) & (y < shape[1] - 4) & (z > 0), (x + z) % (classes + 1), 0).astype(
        np.uint8
    )
    image = 10 * z + 3 * y + x + 40 * label + random.integers(0, 5, shape)
    return image.astype(np.int16), label


def write_oriented(
    path: Path,
    array: np.ndarray,
    axes: str = "LPS",
    spacing: tuple[float, float, float] = (1.0, 1.5, 4.0),
    nudge_mm: float = 0.0,
) -> Path:
    """Write a left-posterior-superior (z, y, x) array reoriented to `axes`.

    The origin is off by `nudge_mm` along each axis.
    """
    matrix = affine(spacing)
    matrix[:3, 3] += nudge_mm
    image = nibabel.Nifti1Image(np.ascontiguousarray(array.T), matrix, dtype=array.dtype)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(tuple("LPS")),
        nibabel.orientations.axcodes2ornt(tuple(axes)),
    )
    turned = image.as_reoriented(turn.tolist())
    turned.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    turned.to_filename(path)
    return path
