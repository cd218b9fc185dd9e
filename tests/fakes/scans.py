"""Small scans and labels, written by the formats' own libraries, and ways to damage them."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

SHAPE = (6, 20, 24)


def anatomy(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An int16 scan (z, y, x) and its uint8 label 0…2: a ring around a disc, on textured ground."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    centre = np.array(shape[1:]) / 2 + random.uniform(-1, 1, 2)
    distance = np.hypot(y - centre[0], x - centre[1]) + np.abs(z - shape[0] / 2)
    radius = 0.45 * min(shape[1:])
    label = ((distance < radius).astype(np.uint8) + (distance < 0.6 * radius)).astype(np.uint8)
    image = 40 + 60 * label + 5 * np.sin(x / 3 + seed) + random.normal(0, 4, shape)
    return np.rint(image).astype(np.int16), label


def affine(spacing: tuple[float, float, float] = (1.0, 1.5, 4.0)) -> np.ndarray:
    """Axes to the left, to the back and up, as most scanners write them."""
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    matrix[:3, 3] = (30.0, 20.0, -10.0)
    return matrix


def write_nifti(path: Path, array: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    """Write (z, y, x), or (volumes, z, y, x) as 4D."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = (2, 1, 0) if array.ndim == 3 else (3, 2, 1, 0)
    image = nibabel.Nifti1Image(
        array.transpose(axes), affine() if matrix is None else matrix, dtype=array.dtype
    )
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def write_itk(path: Path, array: np.ndarray, compressed: bool = True) -> Path:
    """Write (z, y, x), or (rows, columns[, 3]) for a picture, through SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.suffix == ".png"
    image = SimpleITK.GetImageFromArray(array, isVector=picture and array.ndim == 3)
    if not picture:
        image.SetSpacing((1.0, 1.5, 4.0))
        image.SetOrigin((-30.0, -20.0, -10.0))
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    return path


def truncate(path: Path, part: float = 0.6) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def flip_bit(path: Path, part: float = 0.7) -> None:
    """Flip one bit at this share of a file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 0x10
    path.write_bytes(data)


def break_checksum(path: Path) -> None:
    """Change the CRC at the end of a gzip file; its contents stay as they are."""
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)


def announce(path: Path, size: tuple[int, int, int]) -> None:
    """Make an uncompressed NIfTI's header announce another size."""
    data = bytearray(path.read_bytes())
    data[42:48] = np.asarray(size, "<i2").tobytes()
    path.write_bytes(data)


def bomb(path: Path, size: tuple[int, int, int] = (20000, 20000, 300)) -> Path:
    """A tiny .nii.gz that announces a huge scan, followed by zeros."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(size)
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 352
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        packer.compress(header.binaryblock + bytes(4) + bytes(1 << 20)) + packer.flush()
    )
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative path; to compare before and after."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def remove(folder: Path) -> None:
    """Delete a folder that may not be there."""
    shutil.rmtree(folder, ignore_errors=True)
