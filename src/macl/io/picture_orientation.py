"""How a picture is turned when it is shown: the orientation tag of EXIF, or of XMP without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_ORIENTATION_TAG = 0x0112

_MARKS = (b"Exif", b"eXIf", b"exif", b"tiff:Orientation")
"""One of them is in every picture that has an orientation tag."""


def read_orientation(path: Path) -> int:
    """The orientation of a PNG or JPEG file, from 1 (as stored) to 8; 1 if it has none.

    Raises:
        ValueError: its tags cannot be read.
    """
    data = path.read_bytes()
    if not any(mark in data for mark in _MARKS):
        return 1
    from PIL import Image

    try:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # Pillow raises anything when tags are damaged
        raise ValueError("its tags cannot be read") from error
    return orientation if orientation in range(1, 9) else 1


def swaps_axes(orientation: int) -> bool:
    """Whether rows become columns."""
    return orientation >= 5


def as_shown(array: np.ndarray, orientation: int) -> np.ndarray:
    """A picture's array (rows, columns, …) as stored → as it is shown."""
    if swaps_axes(orientation):
        array = np.swapaxes(array, 0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return np.flip(array, flips.get(orientation, ()))
