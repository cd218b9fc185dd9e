"""Scan → resampled → scan: a smooth structure comes back, whatever the orientation and spacing.

The promise is bounded as the test is: slices at 0.5 to 1 times the scan's finer in-plane spacing,
or volumes at 0.5 to 1 times each of its spacings, and structures at least 20 voxels across. A store
coarser than the scan loses more of the outline, and so does a coarse axis that is resampled by
nearest neighbour, by half a voxel. Without resampling the way there and back is exact:
see the tests of the orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fakes.scans import write_nifti
from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.data.store_index import Orientation
from macl.io.geometry import Geometry
from macl.io.nifti import affine_of
from macl.preprocessing.orientation import choose_orientation, orient, spacing_of, to_scan
from macl.preprocessing.resampling import (
    choose_nearest_axis,
    label_to_store_grid,
    prepared_size,
    to_scanned_size,
)
from macl.stages.prepare import prepare

LEAST_DICE = 0.99
LEAST_DICE_NEAREST = 0.96
LEAST_VOXELS_ACROSS = 20


@dataclass(frozen=True)
class Scan:
    """A geometry, an ellipsoid in it with a core, and the spacing asked for."""

    geometry: Geometry
    radii: tuple[float, float, float]
    centre: tuple[float, float, float]
    spacing_mm: float | tuple[float, float, float]

    @property
    def label(self) -> np.ndarray:
        """(z, y, x): 1 in the structure, 2 in its core."""
        depth = self.depth(*np.indices(self.geometry.size[::-1])[::-1])
        return np.digitize(depth, (0.0, 0.5), right=True).astype(np.uint8)

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """1 in the middle of an ellipsoid, 0 on its surface, at positions in voxels."""
        away = [
            ((at - c) / r) ** 2 for at, c, r in zip((x, y, z), self.centre, self.radii, strict=True)
        ]
        return 1.0 - np.sqrt(sum(away))

    @property
    def orientation(self) -> Orientation:
        """Of the scan in a store."""
        return choose_orientation(self.geometry)

    @property
    def prepared_size(self) -> tuple[int, int, int]:
        """(Z, Y, X) voxels in the store."""
        orientation = self.orientation
        spacing_mm = spacing_of(self.geometry, orientation)
        return prepared_size(orientation.scanned_size, spacing_mm, self.spacing_mm)

    @property
    def nearest_axis(self) -> int | None:
        """The axis resampled by nearest neighbour."""
        if not isinstance(self.spacing_mm, tuple):
            return None
        return choose_nearest_axis(spacing_of(self.geometry, self.orientation), self.spacing_mm)


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    """Any rotation, left- and right-handed, anisotropic; the core is half the structure's width."""
    size = tuple(draw(st.integers(2 * LEAST_VOXELS_ACROSS + 4, 60)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.4, 4.0)) for _ in range(3))
    rotation = Rotation.random(random_state=draw(st.integers(0, 10**6))).as_matrix()  # pyright: ignore[reportCallIssue]
    mirror = np.diag([1.0, 1.0, draw(st.sampled_from((1.0, -1.0)))])
    geometry = Geometry(
        size=size,  # pyright: ignore[reportArgumentType]
        spacing=spacing,  # pyright: ignore[reportArgumentType]
        origin=(3.0, -4.0, 5.0),
        direction=tuple((rotation @ mirror).ravel().tolist()),
        spacing_known=True,
    )
    radii = tuple(draw(st.floats(LEAST_VOXELS_ACROSS, (count - 3) / 2)) for count in size)
    centre = tuple((count - 1) / 2 + draw(st.floats(-0.5, 0.5)) for count in size)
    scanned_mm = spacing_of(geometry, choose_orientation(geometry))
    if draw(st.booleans()):
        spacing_mm = draw(st.floats(0.5, 1.0)) * min(scanned_mm[1:])
    else:
        spacing_mm = tuple(draw(st.floats(0.5, 1.0)) * mm for mm in scanned_mm)
    return Scan(geometry, radii, centre, spacing_mm)  # pyright: ignore[reportArgumentType]


def dice(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Per class; a class in neither counts as 0."""
    pairs = [(ours == value, theirs == value) for value in (1, 2)]
    return [float(2 * (a & b).sum() / max(1, a.sum() + b.sum())) for a, b in pairs]


def restored(probabilities: np.ndarray, orientation: Orientation) -> np.ndarray:
    """(K, Z, Y, X) → (z, y, x) labels, as `predict` restores them."""
    slices = np.moveaxis(probabilities, 1, 0)
    scanned = to_scanned_size(slices, len(slices), orientation)
    return to_scan(np.stack([plane.argmax(axis=0) for plane in scanned]), orientation)


def one_hot(label: np.ndarray) -> np.ndarray:
    return (label == np.arange(3)[:, None, None, None]).astype(np.float32)


@given(scans())
@settings(max_examples=400, deadline=None)
def test_a_label_comes_back_from_its_store(scan: Scan) -> None:
    prepared = label_to_store_grid(
        scan.label, scan.orientation, scan.prepared_size, scan.nearest_axis
    )
    least = LEAST_DICE if scan.nearest_axis is None else LEAST_DICE_NEAREST
    assert min(dice(restored(one_hot(prepared), scan.orientation), scan.label)) >= least


@given(scans())
@settings(max_examples=40, deadline=None)
def test_probabilities_come_back_to_their_place(scan: Scan) -> None:
    """They are computed at the prepared voxels' positions in the scan, never resampled before."""
    orientation = scan.orientation
    fractions = [
        (np.arange(new) + 0.5) * old / new - 0.5
        for old, new in zip(orientation.scanned_size, scan.prepared_size, strict=True)
    ]
    positions = [orient(axis, orientation) for axis in np.indices(scan.geometry.size[::-1])[::-1]]
    x, y, z = (_at(axis, fractions) for axis in positions)
    probabilities = _probabilities(scan.depth(x, y, z)).astype(np.float32)
    expected = _probabilities(scan.depth(*np.indices(scan.geometry.size[::-1])[::-1]))
    ours = restored(probabilities, orientation)
    assert min(dice(ours, expected.argmax(axis=0))) >= LEAST_DICE


def _at(positions: np.ndarray, fractions: list[np.ndarray]) -> np.ndarray:
    """A linear field of oriented voxel positions, read at fractional places, also outside."""
    start = positions[0, 0, 0]
    steps = [positions[1, 0, 0] - start, positions[0, 1, 0] - start, positions[0, 0, 1] - start]
    grids = np.meshgrid(*fractions, indexing="ij")
    return start + sum(step * grid for step, grid in zip(steps, grids, strict=True))


def _probabilities(depth: np.ndarray) -> np.ndarray:
    """(3, …) of background, structure and core."""
    share = [1 / (1 + np.exp(-8 * (depth - at))) for at in (0.0, 0.5)]
    return np.stack([1 - share[0], share[0] - share[1], share[1]])


@pytest.mark.parametrize("spacing_mm", [0.45, 0.72, 0.9, (6.0, 0.9, 0.9), (3.0, 0.72, 0.8)])
def test_a_prepared_file_comes_back_from_its_store(
    tmp_path: Path, spacing_mm: float | tuple[float, float, float]
) -> None:
    rotation = Rotation.from_euler("xyz", (25, -40, 10), degrees=True).as_matrix()
    geometry = Geometry(
        size=(56, 50, 12),
        spacing=(1.1, 0.9, 6.0),
        origin=(3.0, -4.0, 5.0),
        direction=tuple(rotation.ravel().tolist()),
        spacing_known=True,
    )
    scan = Scan(geometry, (23.0, 21.0, 5.0), (27.3, 24.6, 5.5), spacing_mm)
    (tmp_path / "scans").mkdir()
    noise = np.random.default_rng(0).integers(0, 50, scan.label.shape)
    image = (noise + 100 * scan.label).astype(np.int16)
    write_nifti(tmp_path / "scans/a.nii.gz", image, affine_of(geometry))
    write_nifti(tmp_path / "scans/a_seg.nii.gz", scan.label, affine_of(geometry))
    asked = PrepareSettings(spacing_mm=scan.spacing_mm)
    prepare(tmp_path / "scans", tmp_path / "store", settings=asked, workers=1)
    store = Store.open(tmp_path / "store")
    (case,) = store.index.cases
    wanted = spacing_mm if isinstance(spacing_mm, tuple) else (6.0, spacing_mm, spacing_mm)
    assert case.spacing_mm == pytest.approx(wanted, rel=0.02)
    ours = restored(one_hot(store.read(case.name, "label")), case.orientation)
    assert min(dice(ours, scan.label)) >= LEAST_DICE
    np.testing.assert_array_equal(
        to_scan(store.read(case.name, "truth"), case.orientation), scan.label
    )
