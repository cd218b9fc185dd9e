"""Synthetic subjects from the brain template in nilearn: real anatomy, invented people.

Each subject is the template bent by a random affine map and a random smooth deformation, with its
own tissue contrast, bias field and noise. Subjects differ far less than people do, so results on
them say nothing about clinical data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, write_text

CLASSES = ("background", "grey matter", "white matter")
GREY_SCALE_MAXIMUM = 1000
CENTRE_MM = (0.0, -18.0, 14.0)
"""Centre of the scans in the template's millimetres (right, anterior, superior)."""


@dataclass(frozen=True)
class VoxelGrid:
    """The voxel grid of every synthetic scan, along x, y, z (right, anterior, superior)."""

    size: tuple[int, int, int] = (96, 112, 16)
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 6.0)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): voxel index → millimetres."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.array(CENTRE_MM) - (np.array(self.size) - 1) / 2 * self.spacing_mm
        return affine

    @property
    def points_mm(self) -> np.ndarray:
        """(3, x, y, z): the position of every voxel in millimetres."""
        return _transform(self.affine, np.indices(self.size, dtype=np.float64))


@dataclass(frozen=True)
class Template:
    """The MNI152 brain: intensity and the probabilities of grey and white matter, on one grid."""

    intensity: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    affine: np.ndarray


def load_template() -> Template:
    """Load the MNI152 template at 1 mm from nilearn's package data; nothing is downloaded.

    Raises:
        MaclError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError:
        raise MaclError(
            "The demo takes its anatomy from nilearn, which is not installed: run "
            "pip install 'macl[demo]', then macl demo again."
        ) from None
    images = [
        load(resolution=1)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    ]
    intensity, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    return Template(intensity, grey, white, images[0].affine)


def synthetic_subject(
    template: Template, grid: VoxelGrid, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make one subject: image (x, y, z) int16 and label (x, y, z) uint8 of `CLASSES`."""
    sample = _bent_sampler(template, grid, random)
    volumes = (template.intensity, template.grey, template.white)
    intensity, grey, white = (sample(volume) for volume in volumes)
    label = np.stack([1.0 - grey - white, grey, white]).argmax(axis=0).astype(np.uint8)
    brain = np.clip(intensity / template.intensity.max(), 0.0, 1.0)
    contrast = brain + random.uniform(-0.12, 0.08) * grey + random.uniform(-0.12, 0.06) * white
    contrast = np.clip(contrast, 0.0, None) ** random.uniform(0.8, 1.3)
    bias = np.exp(_smooth_field(grid, random, width_mm=60.0, amplitude=0.15))
    noise = random.normal(0.0, random.uniform(0.02, 0.045), size=(2, *grid.size))
    # A scanner gives the magnitude of a complex signal with noise in both parts (Rician noise).
    image = np.hypot(contrast * bias + noise[0], noise[1])
    scale = random.uniform(0.7, 1.0) * GREY_SCALE_MAXIMUM
    return np.round(image * scale).astype(np.int16), label


def write_subjects(
    folder: Path, count: int, grid: VoxelGrid, seed: int, advance: Callable[[], Any]
) -> None:
    """Write subjects as an nnU-Net v2 raw data set; keep those that are there already.

    Args:
        folder: the data set's folder, such as `Dataset001_Name`; `dataset.json` is written last.
        count: number of subjects.
        grid: their voxel grid.
        seed: of every random draw; a subject depends only on it and on its own number.
        advance: called after each subject.

    Raises:
        MaclError: nilearn is not installed.
    """
    template = None
    for number in range(1, count + 1):
        name = f"synthetic_{number:02d}"
        image_path = folder / "imagesTr" / f"{name}_0000.nii.gz"
        label_path = folder / "labelsTr" / f"{name}.nii.gz"
        if not (image_path.exists() and label_path.exists()):
            template = template or load_template()
            image, label = synthetic_subject(template, grid, np.random.default_rng([seed, number]))
            _write_nifti(image_path, image, grid.affine)
            _write_nifti(label_path, label, grid.affine)
        advance()
    description = {
        "name": "Synthetic subjects",
        "description": "Deformed copies of the MNI152 template (ICBM 2009a), not scans of people.",
        "channel_names": {"0": "T1"},
        "labels": {name: value for value, name in enumerate(CLASSES)},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")


def _bent_sampler(
    template: Template, grid: VoxelGrid, random: np.random.Generator
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that samples a template volume at every voxel of the bent grid."""
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    angles = random.uniform(-8.0, 8.0, size=3)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix = rotation @ np.diag(random.uniform(0.92, 1.1, size=3))
    shift_mm = random.uniform(-4.0, 4.0, size=3)
    centred = grid.points_mm - np.array(CENTRE_MM).reshape(3, 1, 1, 1)
    bend_mm = [_smooth_field(grid, random, width_mm=16.0, amplitude=4.0) for _ in range(3)]
    points = np.einsum("ij,j...->i...", matrix, centred) + np.stack(bend_mm)
    points += (np.array(CENTRE_MM) + shift_mm).reshape(3, 1, 1, 1)
    voxels = _transform(np.linalg.inv(template.affine), points)

    def sample(volume: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(volume, voxels, order=1, mode="constant", cval=0.0)

    return sample


def _transform(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (4, 4) affine map to points (3, …)."""
    moved = np.einsum("ij,j...->i...", affine[:3, :3], points)
    return moved + affine[:3, 3].reshape(3, 1, 1, 1)


def _smooth_field(
    grid: VoxelGrid, random: np.random.Generator, width_mm: float, amplitude: float
) -> np.ndarray:
    """(x, y, z): Gaussian-filtered noise with standard deviation `amplitude`."""
    from scipy import ndimage

    sigma = [width_mm / spacing for spacing in grid.spacing_mm]
    field = ndimage.gaussian_filter(random.normal(size=grid.size), sigma, mode="wrap")
    return field * (amplitude / field.std())


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as aside:
        nibabel.save(image, aside)
