"""Scan → resampled slices → scan: a smooth structure comes back, whatever the scan's orientation and spacing.

What is promised is bounded as the test is: slices at 0.5 to 1 times the scan's finer in-plane spacing, structures at
least 20 pixels across. Slices coarser than the scan lose more of its outline. Without
resampling the way there and back is exact for any structure: see the tests of orientation.
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
from macl.config import PrepareSettings
from macl.data.store import Orientation, Store
from macl.io.geometry import Geometry
from macl.io.nifti import affine_of
from macl.preprocessing.orientation import orient, plan, spacing_of, to_scan
from macl.preprocessing.resampling import label_to_slices, prepared_size, to_scan_plane
from macl.stages.prepare import prepare

LEAST_DICE = 0.99
LEAST_PIXELS_ACROSS = 20


@dataclass(frozen=True)
class Scan:
    """A geometry, a structure in it as depth (z, y, x) that is positive inside, and the spacing asked for."""

    geometry: Geometry
    radii: tuple[float, float, float]
    centre: tuple[float, float, float]
    spacing_mm: float

    @property
    def label(self) -> np.ndarray:
        """(z, y, x): 1 in the structure, 2 in its core."""
        depth = self.depth(*np.indices(self.geometry.size[::-1])[::-1])
        return np.digitize(depth, (0.0, 0.5), right=True).astype(np.uint8)

    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """1 in the middle of an ellipsoid, 0 on its surface, at positions in voxels."""
        away = [((at - c) / r) ** 2 for at, c, r in zip((x, y, z), self.centre, self.radii, strict=True)]
        return 1.0 - np.sqrt(sum(away))


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    """Any rotation, left- and right-handed, anisotropic spacing; the core is half the structure's width."""
    size = tuple(draw(st.integers(2 * LEAST_PIXELS_ACROSS + 4, 60)) for _ in range(3))
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
    radii = tuple(draw(st.floats(LEAST_PIXELS_ACROSS, (count - 3) / 2)) for count in size)
    centre = tuple((count - 1) / 2 + draw(st.floats(-0.5, 0.5)) for count in size)
    _, rows_mm, columns_mm = spacing_of(geometry, plan(geometry))
    spacing_mm = draw(st.floats(0.5, 1.0)) * min(rows_mm, columns_mm)
    return Scan(geometry, radii, centre, spacing_mm)  # pyright: ignore[reportArgumentType]


def dice(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Per class; no class in either counts as 0."""
    pairs = [(ours == value, theirs == value) for value in (1, 2)]
    return [float(2 * (a & b).sum() / max(1, a.sum() + b.sum())) for a, b in pairs]


def restored(probabilities: np.ndarray, orientation: Orientation) -> np.ndarray:
    """(n, K, rows, columns) → (z, y, x) labels, as `predict` restores them."""
    return to_scan(to_scan_plane(probabilities, orientation).argmax(axis=1), orientation)


@given(scans())
@settings(max_examples=60, deadline=None)
def test_a_label_comes_back_from_resampled_slices(scan: Scan) -> None:
    orientation = plan(scan.geometry)
    size = prepared_size(scan.geometry, PrepareSettings(spacing_mm=scan.spacing_mm))[1:]
    prepared = label_to_slices(scan.label, orientation, size)
    one_hot = (prepared[:, None] == np.arange(3)[:, None, None]).astype(np.float32)
    assert min(dice(restored(one_hot, orientation), scan.label)) >= LEAST_DICE


@given(scans())
@settings(max_examples=40, deadline=None)
def test_probabilities_on_resampled_slices_come_back_to_their_place(scan: Scan) -> None:
    """The probabilities are computed at the prepared pixels' own positions in the scan, and never resampled before."""
    orientation = plan(scan.geometry)
    slices, *size = prepared_size(scan.geometry, PrepareSettings(spacing_mm=scan.spacing_mm))
    counts = orientation.scanned_size
    fractions = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(counts, (slices, *size), strict=True)]
    positions = [orient(axis, orientation) for axis in np.indices(scan.geometry.size[::-1])[::-1]]
    x, y, z = (_at(axis, fractions) for axis in positions)
    depth = scan.depth(x, y, z)
    share = [1 / (1 + np.exp(-8 * (depth - at))) for at in (0.0, 0.5)]
    probabilities = np.stack([1 - share[0], share[0] - share[1], share[1]], axis=1).astype(np.float32)
    ours = restored(probabilities, orientation)
    expected = _winning(scan)
    assert min(dice(ours, expected)) >= LEAST_DICE


def _at(positions: np.ndarray, fractions: list[np.ndarray]) -> np.ndarray:
    """A linear field of oriented voxel positions, read at fractional places: linear along each axis, also outside."""
    start = positions[0, 0, 0]
    steps = [positions[1, 0, 0] - start, positions[0, 1, 0] - start, positions[0, 0, 1] - start]
    grids = np.meshgrid(*fractions, indexing="ij")
    return start + sum(step * grid for step, grid in zip(steps, grids, strict=True))


def _winning(scan: Scan) -> np.ndarray:
    """(z, y, x): the class whose probability is largest at each voxel of the scan itself."""
    depth = scan.depth(*np.indices(scan.geometry.size[::-1])[::-1])
    share = [1 / (1 + np.exp(-8 * (depth - at))) for at in (0.0, 0.5)]
    return np.stack([1 - share[0], share[0] - share[1], share[1]]).argmax(axis=0)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0])
def test_a_prepared_file_comes_back_from_its_store(tmp_path: Path, factor: float) -> None:
    rotation = Rotation.from_euler("xyz", (25, -40, 10), degrees=True).as_matrix()
    geometry = Geometry(
        size=(56, 50, 12),
        spacing=(1.1, 0.9, 6.0),
        origin=(3.0, -4.0, 5.0),
        direction=tuple(rotation.ravel().tolist()),
        spacing_known=True,
    )
    scan = Scan(geometry, (23.0, 21.0, 5.0), (27.3, 24.6, 5.5), factor * 0.9)
    (tmp_path / "scans").mkdir()
    noise = np.random.default_rng(0).integers(0, 50, scan.label.shape)
    write_nifti(tmp_path / "scans/a.nii.gz", (noise + 100 * scan.label).astype(np.int16), affine_of(geometry))
    write_nifti(tmp_path / "scans/a_seg.nii.gz", scan.label, affine_of(geometry))
    asked = PrepareSettings(spacing_mm=scan.spacing_mm)
    prepare(tmp_path / "scans", tmp_path / "store", settings=asked, workers=1)
    store = Store.open(tmp_path / "store")
    (case,) = store.index.cases
    label = store.read(case.name, "label")
    one_hot = (label[:, None] == np.arange(3)[:, None, None]).astype(np.float32)
    assert min(dice(restored(one_hot, case.orientation), scan.label)) >= LEAST_DICE
