"""One scan or label, read whole or not at all, and written so that it comes back as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from macl.io import dicom, itk, nifti, pictures
from macl.io.geometry import Geometry
from macl.io.geometry import Volume as Volume
from macl.io.geometry import grid_difference as grid_difference
from macl.io.source import Scan, Stack
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.files import atomic_path

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES, *dicom.SUFFIXES)
"""What the name of a scan's file ends with; a folder may hold a DICOM series."""


@dataclass(frozen=True)
class Header:
    """What a scan's file announces before its voxels are read.

    Attributes:
        format: "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG" or "DICOM".
        geometry: the grid.
        channels: components of a voxel, or volumes along a fourth axis.
        dtype: of the stored numbers, as the file's library names it.
        modality: "MR", "CT" or "unknown".
        moments: volumes along a fourth axis, if it has one, counted among the channels too.
    """

    format: str
    geometry: Geometry
    channels: int
    dtype: str
    modality: str = "unknown"
    moments: int = 1


def suffix_of(path: Path) -> str | None:
    """The suffix by which a file is known as a scan, in lower case (".nii.gz"); None: it is none."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """A scan's file name without its suffix."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix and not path.is_dir() else path.name


def safe_name(text: str) -> str:
    """`text` as a file name on any system: letters, digits, `.`, `-` and `_`, not starting with a dot."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".").rstrip(".")[:150]
    return name or "scan"


def read_header(path: Scan) -> Header:
    """What the file, DICOM folder or stack announces.

    Raises:
        RefusedCaseError: it is missing, empty, no image, or announces more than is read.
    """
    with _refusing():
        if _is_dicom(path):
            return Header("DICOM", *dicom.read_header(path))
        if isinstance(path, Stack):
            return Header(_format(_known_suffix(path.files[0])), *pictures.read_header(path))
        suffix = _known_suffix(path)
        if suffix in nifti.SUFFIXES:
            header = nifti.read_header(path)
            return Header("NIfTI", header.geometry, header.stacked, header.dtype.name, moments=header.moments)
        found = itk.read_header(path)
        channels = found.components * found.stacked
        return Header(_format(suffix), found.geometry, channels, found.dtype, moments=found.stacked)


def read_scan(images: tuple[Scan, ...], channels: int | None = None, frame: int | None = None) -> Volume:
    """One scan: one file, DICOM folder or stack per channel, or one that holds all channels.

    Args:
        images: the files.
        channels: how many there must be; None: as many as the file has components, and no fourth axis.
        frame: the moment to read, from 0, where the files' fourth axis is time; None: it is not.

    Returns:
        (channels, z, y, x) in the files' own numbers.

    Raises:
        RefusedCaseError: a file is missing, cut off, damaged, of another kind, has the wrong number of channels, holds
            NaN or infinity, is constant, or the channels lie on different grids.
    """
    volumes = [_read_file(path, channels if len(images) == 1 else 1, frame) for path in images]
    first = volumes[0]
    for number, volume in enumerate(volumes[1:], start=2):
        if difference := grid_difference(first.geometry, volume.geometry):
            raise RefusedCaseError(f"its channels 1 and {number} lie on different grids: {difference}")
    if len(volumes) > 1:
        if channels is not None and len(volumes) != channels:
            raise RefusedCaseError(f"it has {len(volumes)} channels where {channels} are meant")
        rescale = tuple(pair for volume in volumes for pair in volume.rescale or ((1.0, 0.0),))
        notes = tuple(dict.fromkeys(note for volume in volumes for note in volume.notes))
        plain = all(pair == (1.0, 0.0) for pair in rescale)
        array = np.concatenate([volume.array for volume in volumes])
        first = Volume(array, first.geometry, () if plain else rescale, notes)
    _require_contents(first.array)
    return first


def read_label(path: Scan, image: Scan | None = None, frame: int | None = None) -> Volume:
    """One label: (1, z, y, x) whole numbers.

    A stack of pictures has a slice for each file of `image`, in the order of their names; where these are DICOM, it is
    brought into the order of their positions. `frame` is the moment to read of a time series.

    Raises:
        RefusedCaseError: as for a scan, or its values are not whole numbers.
    """
    volume = _read_file(path, None, frame)
    array = volume.array
    if len(array) > 1:
        if not _is_picture(path) or not (array == array[:1]).all():
            raise RefusedCaseError(f"its label has {len(array)} channels: save class numbers as one grey channel")
        array = array[:1]
    if isinstance(path, Stack) and image is not None and _is_dicom(image):
        array = array[:, _order(image, array.shape[1])]
    if volume.rescale:
        slope, intercept = volume.rescale[0]
        array = array * slope + intercept
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or np.abs(array).max() >= 2**31 or (array != np.rint(array)).any():
            raise RefusedCaseError("its label holds values that are not whole numbers")
        array = array.astype(np.int32)
    return Volume(array, volume.geometry, notes=volume.notes)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (z, y, x) or (C, z, y, x) atomically; the suffix chooses .nii.gz, .nii, .nrrd, .mha or .png (one slice).

    Raises:
        MaclError: another suffix, or an array that does not fit the geometry.
    """
    if tuple(reversed(array.shape[-3:])) != geometry.size or array.ndim not in (3, 4):
        raise MaclError(f"An array of shape {array.shape} does not fit the grid {geometry.size} of {path}.")
    suffix = suffix_of(path)
    if suffix not in (*nifti.SUFFIXES, ".nrrd", ".mha", ".png"):
        raise MaclError(f"{path} cannot be written: name a .nii.gz, .nii, .nrrd, .mha or .png file.")
    if suffix == ".png" and (geometry.size[2] != 1 or array.dtype not in (np.uint8, np.uint16, np.bool_)):
        raise MaclError(f"{path} cannot be written: a .png holds one slice of 8 or 16 bit; name a .nii.gz file.")
    writer = nifti if suffix in nifti.SUFFIXES else itk
    with atomic_path(path) as aside:
        writer.write(aside, array, geometry)


def _read_file(path: Scan, channels: int | None, frame: int | None) -> Volume:
    if frame is not None:
        return _read_frame(path, frame)
    with _refusing():
        if _is_dicom(path):
            volume, stacked = dicom.read(path), False
        elif isinstance(path, Stack):
            volume, stacked = pictures.read(path), False
        elif _known_suffix(path) in nifti.SUFFIXES:
            volume = nifti.read(path)
            stacked = len(volume.array) > 1
        else:
            header = itk.read_header(path)
            volume, stacked = itk.read(path), header.stacked > 1
    count = len(volume.array)
    if stacked and channels != count:
        moments = ", or use --frames where they are moments in time" if channels else ""
        raise RefusedCaseError(
            f"it is 4D ({count} volumes) where {_meant(channels)} meant: save one volume per file{moments}"
        )
    if channels is not None and count != channels:
        raise RefusedCaseError(f"it has {count} channels where {_meant(channels)} meant")
    return volume


def _read_frame(path: Scan, frame: int) -> Volume:
    moments = read_header(path).moments
    if not isinstance(path, Path) or frame >= moments:
        raise RefusedCaseError(f"it has no moment {frame + 1}: its fourth axis counts {moments}")
    state = path.stat()
    series = _read_series(path, moments, state.st_mtime_ns, state.st_size)
    return replace(series, array=series.array[frame : frame + 1], rescale=series.rescale[frame : frame + 1])


@lru_cache(maxsize=2)
def _read_series(path: Path, moments: int, *state: int) -> Volume:
    """A time series, kept because its moments are asked for one after the other; and its label beside it."""
    return _read_file(path, moments, None)


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever a damaged file makes a decoder raise, it is the file that is refused."""
    try:
        yield
    except (RefusedCaseError, MemoryError):
        raise
    except OSError as error:
        raise RefusedCaseError(f"it cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:
        raise RefusedCaseError(f"it is damaged: reading it ends in a {type(error).__name__}") from None


def _meant(channels: int | None) -> str:
    return f"{channels} are" if channels and channels > 1 else "one is"


def _require_contents(array: np.ndarray) -> None:
    for number, channel in enumerate(array, start=1):
        if channel.dtype.kind == "f" and (broken := int(channel.size - np.isfinite(channel).sum())):
            raise RefusedCaseError(f"{broken} of its {channel.size} voxels are NaN or infinite")
        if channel.min() == channel.max():
            which = f"channel {number} of it" if len(array) > 1 else "it"
            raise RefusedCaseError(f"{which} is constant: every voxel is {float(channel.flat[0]):g}")


def _is_dicom(scan: Scan) -> bool:
    path = scan.files[0] if isinstance(scan, Stack) else scan
    return path.is_dir() or (path.is_file() and (path.name.lower().endswith(dicom.SUFFIXES) or dicom.is_dicom(path)))


def _is_picture(scan: Scan) -> bool:
    return itk.is_picture(scan.files[0] if isinstance(scan, Stack) else scan)


def _order(image: Scan, slices: int) -> list[int]:
    places = dicom.order(image)
    if len(places) != slices:
        raise RefusedCaseError(f"it has {len(places)} slices and its label {slices}")
    return places


def _format(suffix: str) -> str:
    names = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".nrrd": "NRRD", ".nhdr": "NRRD"}
    return names.get(suffix, "MetaImage")


def _known_suffix(path: Path) -> str:
    if not path.exists():
        raise RefusedCaseError(f"{path.name} is missing")
    if path.stat().st_size == 0:
        raise RefusedCaseError("the file is empty")
    suffix = suffix_of(path)
    if suffix is None:
        raise RefusedCaseError(f"{path.name} is of no format that is read ({', '.join(SUFFIXES)} or a DICOM folder)")
    return suffix


def is_one_scan(path: Path) -> bool:
    """Whether a path is one scan: a file of a known format, or a folder that holds a DICOM series and no folders."""
    if path.is_dir():
        return dicom.is_series(path) and not any(inside.is_dir() for inside in path.iterdir())
    return path.is_file() and (suffix_of(path) is not None or dicom.is_dicom(path))
