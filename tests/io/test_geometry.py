"""The names of a volume's axes, in the array and in the anatomy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from macl.config.settings import AnatomicalAxis, ArrayAxis
from macl.io.geometry import ANATOMICAL_AXES, Geometry, Plane, anatomical_axes, array_axis
from macl.preprocessing.orientation import choose_orientation, orient

SCANNER_AXES: tuple[AnatomicalAxis, ...] = ("left-right", "anterior-posterior", "inferior-superior")
"""Of a grid whose x, y and z point left, posterior and superior."""


@pytest.mark.parametrize("axis", get_args(ArrayAxis))
@pytest.mark.parametrize("plane", get_args(Plane))
def test_an_axis_of_the_array_is_itself(axis: ArrayAxis, plane: Plane) -> None:
    assert array_axis(axis, ANATOMICAL_AXES[plane]) == axis


@pytest.mark.parametrize("plane", get_args(Plane))
def test_anatomical_axes_lie_where_preparation_puts_them(plane: Plane) -> None:
    geometry = Geometry(
        size=(5, 4, 3),
        spacing=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        spacing_known=True,
    )
    z, y, x = np.indices((3, 4, 5))
    orientation = choose_orientation(geometry, plane)
    along = anatomical_axes(geometry, orientation.permutation)
    assert along == ANATOMICAL_AXES[plane]
    for name, coordinate in zip(SCANNER_AXES, (x, y, z), strict=True):
        stored = orient(coordinate, orientation)
        rises = [bool(np.diff(stored, axis=axis).any()) for axis in range(3)]
        assert get_args(ArrayAxis)[rises.index(True)] == array_axis(name, along)
        assert sum(rises) == 1
