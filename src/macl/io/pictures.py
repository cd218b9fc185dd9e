"""Slices that lie in pictures of their own, as one volume without spacing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from macl.io import itk
from macl.io.geometry import Geometry, Volume
from macl.io.integrity import require_size
from macl.io.source import Stack
from macl.utils.errors import RefusedCaseError


def read_header(stack: Stack) -> tuple[Geometry, int, str]:
    """Geometry, channels and type as the first picture announces them.

    Raises:
        RefusedCaseError: it is no picture, or the stack announces too much.
    """
    if not itk.is_picture(stack.files[0]):
        raise RefusedCaseError(f"{stack.name} is no picture, as its slices should be")
    header = itk.read_header(stack.files[0])
    columns, rows, _ = header.geometry.size
    require_size((columns, rows, len(stack.files)))
    geometry = header.geometry.model_copy(update={"size": (columns, rows, len(stack.files))})
    return geometry, 1 if stack.grey else header.components, header.dtype


def read(stack: Stack) -> Volume:
    """The pictures as (channels, z, y, x), in the order of the stack.

    Raises:
        RefusedCaseError: one is missing or damaged, they differ in size, or one is coloured where grey is meant.
    """
    geometry, channels, _ = read_header(stack)
    slices = [itk.read(file) for file in stack.files]
    if any(one.array.shape != slices[0].array.shape for one in slices):
        raise RefusedCaseError("its slices have different sizes")
    array = np.concatenate([one.array for one in slices], axis=1)
    if stack.grey and not (array == array[:1]).all():
        raise RefusedCaseError("a picture of it is coloured where grey is meant")
    return replace(slices[0], array=array[:channels], geometry=geometry)
