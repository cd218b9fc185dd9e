"""PNG and JPEG files, one slice each, as a volume without spacing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from macl.io import itk
from macl.io.geometry import Header, Volume
from macl.io.integrity import require_size
from macl.io.source import SliceFiles
from macl.utils.errors import RefusedCaseError


def read_header(slices: SliceFiles) -> Header:
    """The header of the volume, as its first picture announces it.

    Raises:
        RefusedCaseError: it is not a picture, or the slices together announce too much.
    """
    if not itk.is_picture(slices.files[0]):
        raise RefusedCaseError(f"{slices.name} is not a picture, as its slices should be")
    header = itk.read_header(slices.files[0])
    columns, rows, _ = header.geometry.size
    size = (columns, rows, len(slices.files))
    require_size(size)
    geometry = header.geometry.model_copy(update={"size": size})
    channels = 1 if slices.grey_as_rgb else header.channels
    return replace(header, geometry=geometry, channels=channels)


def read(slices: SliceFiles) -> Volume:
    """The pictures as (channels, z, y, x), in the order of the files.

    Raises:
        RefusedCaseError: one is missing or damaged, they differ in size, or one is coloured where
            grey is expected.
    """
    header = read_header(slices)
    pictures = [itk.read(file) for file in slices.files]
    if any(picture.array.shape != pictures[0].array.shape for picture in pictures):
        raise RefusedCaseError("its slices have different sizes")
    array = np.concatenate([picture.array for picture in pictures], axis=1)
    if slices.grey_as_rgb and not (array == array[:1]).all():
        raise RefusedCaseError("one of its pictures is coloured, expected grey")
    return replace(pictures[0], array=array[: header.channels], geometry=header.geometry)
