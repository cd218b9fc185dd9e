"""Grids of scans for property tests: any orientation, tilt and spacing."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from macl.io.geometry import Geometry


def geometry_of(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    matrix: np.ndarray | None = None,
) -> Geometry:
    """A grid of (x, y, z) voxels; `matrix` has the directions of its axes as columns."""
    flat = (np.eye(3) if matrix is None else matrix).ravel().tolist()
    return Geometry(
        size=size, spacing=spacing, origin=(3.0, -4.0, 5.0), direction=flat, spacing_known=True
    )


@st.composite
def geometries(draw: st.DrawFn, largest_tilt_degrees: float = 40.0) -> Geometry:
    """Any of the 48 orientations, then tilted: oblique, anisotropic, left- and right-handed."""
    axes = draw(st.permutations(range(3)))
    signs = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    turned = np.eye(3)[:, axes] * signs
    axis = np.array([1.0, *(draw(st.floats(-1, 1)) for _ in range(2))])
    tilt = np.radians(draw(st.floats(0.0, largest_tilt_degrees)))
    rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * tilt).as_matrix()
    size = tuple(draw(st.integers(1, 7)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.3, 6.0)) for _ in range(3))
    return geometry_of(size, spacing, rotation @ turned)  # pyright: ignore[reportArgumentType]


def numbered(geometry: Geometry) -> np.ndarray:
    """(1, z, y, x): each voxel another number."""
    return np.arange(np.prod(geometry.size), dtype=np.int32).reshape(1, *reversed(geometry.size))
