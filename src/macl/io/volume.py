"""Read a scan or label whole or not at all, and write one so that it comes back as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macl.io import dicom, itk, nifti, pictures
from macl.io.geometry import Geometry, Header, Volume, grid_difference
from macl.io.source import ScanPath, SliceFiles
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.failures import os_reason
from macl.utils.files import atomic_path
from macl.utils.text import printable

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES, *dicom.SUFFIXES)
"""Endings of scans' file names; a folder may hold a DICOM series."""

_GZIP = b"\x1f\x8b"

_VALUES_LISTED = 8
"""How many values of a label a message lists."""

_SLOPE_TOLERANCE = 1e-4
"""How far a label's value may lie from a whole number, in steps of the stored numbers."""

_LARGEST = float(np.finfo(np.float32).max)

_UNSCALED = (1.0, 0.0)
"""Slope and intercept that change nothing."""


class _Format(NamedTuple):
    read_header: Callable[[Any], Header]
    read: Callable[[Any], Volume]


_NIFTI = _Format(nifti.read_header, nifti.read)
_ITK = _Format(itk.read_header, itk.read)
_DICOM = _Format(dicom.read_header, dicom.read)
_PICTURES = _Format(pictures.read_header, pictures.read)


def suffix_of(path: Path) -> str | None:
    """The suffix that makes a file a scan, in lower case (".nii.gz"); None: it is not a scan."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """A scan's file name without its suffix."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix and not path.is_dir() else path.name


def safe_name(text: str) -> str:
    """`text` as a file name on any system: letters, digits, `.`, `-`, `_`, and no leading dot."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".").rstrip(".")[:150]
    return name or "scan"


def lossy_file(label: ScanPath) -> Path | None:
    """The first file of a label that is saved with loss; None: none is."""
    files = label.files if isinstance(label, SliceFiles) else (label,)
    return next((file for file in files if file.suffix.lower() in itk.JPEG_SUFFIXES), None)


def is_one_scan(path: Path) -> bool:
    """Whether a path is one scan: a file of a known format, or a DICOM folder without folders."""
    if path.is_dir():
        return dicom.is_series_folder(path) and not any(inner.is_dir() for inner in path.iterdir())
    return path.is_file() and (suffix_of(path) is not None or dicom.has_magic_number(path))


def read_header(scan: ScanPath) -> Header:
    """What a scan's file, DICOM folder or slice files announce.

    Raises:
        RefusedCaseError: it is missing, empty or not an image, or announces more than macl reads.
    """
    with _refusing_damage():
        return _format_of(scan).read_header(scan)


def read_scan(
    images: Sequence[ScanPath], channels: int | None = None, frame: int | None = None
) -> Volume:
    """Read one scan as (channels, z, y, x) in the files' own numbers.

    Args:
        images: one scan per channel, or one that holds all channels.
        channels: expected number of channels; None: as many as the voxels have components, and no
            fourth axis.
        frame: index of the time point to read, from 0, if the files' fourth axis is time; None: it
            is not.

    Raises:
        RefusedCaseError: a file is missing, cut off, damaged or of another kind; the number of
            channels is wrong, or they lie on different grids; voxels are NaN, infinite or beyond
            float32; a channel is constant.
    """
    if frame is not None:
        volumes = [_read_frame(scan, frame) for scan in images]
    elif len(images) == 1:
        volumes = [_read_volume(images[0], channels)]
    else:
        volumes = [_read_volume(scan, 1) for scan in images]
    volume = volumes[0] if len(volumes) == 1 else _merge_channels(volumes, channels)
    require_contents(volume.array, volume.rescale)
    return volume


def read_label(label: ScanPath, image: ScanPath | None = None, frame: int | None = None) -> Volume:
    """Read one label as (1, z, y, x) whole numbers.

    Label pictures belong to the files of `image` one by one, in the order of their names; if these
    are DICOM, the label is brought into the order of their positions.

    Args:
        label: the label.
        image: the scan that it labels; needed only to order label pictures.
        frame: index of the time point to read, from 0, if the fourth axis is time.

    Raises:
        RefusedCaseError: as for a scan, or its values are not whole numbers.
    """
    if lossy := lossy_file(label):
        raise RefusedCaseError(
            f"its label {printable(lossy.name)} is a JPEG, which smears label values: save it as "
            "PNG from the original"
        )
    volume = _read_volume(label, None) if frame is None else _read_frame(label, frame)
    array = volume.array
    if len(array) > 1:
        if not _is_picture(label) or not (array == array[:1]).all():
            raise RefusedCaseError(
                f"its label has {len(array)} channels: save class numbers as one grey channel"
            )
        array = array[:1]
    if isinstance(label, SliceFiles) and image is not None and _read_as_dicom(image):
        order = dicom.slice_order(image)
        if len(order) != array.shape[1]:
            raise RefusedCaseError(f"it has {len(order)} slices and its label {array.shape[1]}")
        array = array[:, order]
    if volume.rescale:
        array = _rescaled_label(array, *volume.rescale[0])
    if array.dtype.kind == "f":
        odd = array[~np.isfinite(array) | (array != np.rint(array))]
        if odd.size:
            values = np.unique(odd)
            more = ", …" if len(values) > _VALUES_LISTED else ""
            named = ", ".join(f"{value:.6g}" for value in values[:_VALUES_LISTED])
            raise RefusedCaseError(
                f"its label holds values that are not whole numbers ({named}{more})"
            )
        if np.abs(array).max() >= 2**31:
            raise RefusedCaseError("its label holds values that are too large: use class numbers")
        array = array.astype(np.int32)
    return Volume(array, volume.geometry, notes=volume.notes)


def _rescaled_label(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """The values that stored numbers stand for, whole where they miss that by a rounding alone.

    Headers hold the slope in single precision: 255 of a mask with the slope 3/255 is 3.0000001.
    """
    values = array * slope + intercept
    whole = np.rint(values)
    rounding = np.finfo(np.float32).eps * (np.abs(whole) + 2 * abs(intercept))
    with np.errstate(invalid="ignore"):
        is_rounded = np.abs(values - whole) <= rounding + _SLOPE_TOLERANCE * slope
    return np.where(is_rounded, whole, values)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (z, y, x) or (C, z, y, x) atomically.

    The suffix chooses the format: .nii.gz, .nii, .nrrd, .mha, or .png for a single slice.

    Raises:
        MaclError: another suffix, or an array that does not fit the geometry.
    """
    if tuple(reversed(array.shape[-3:])) != geometry.size or array.ndim not in (3, 4):
        raise MaclError(
            f"An array of shape {array.shape} does not fit the grid {geometry.size} of {path}."
        )
    suffix = suffix_of(path)
    if suffix not in (*nifti.SUFFIXES, ".nrrd", ".mha", ".png"):
        raise MaclError(
            f"{path} cannot be written: name a .nii.gz, .nii, .nrrd, .mha or .png file."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if suffix == ".png" and (geometry.size[2] != 1 or array.dtype not in (np.uint8, np.uint16)):
        raise MaclError(
            f"{path} cannot be written: a .png holds one slice of 8 or 16 bits; name a "
            ".nii.gz file."
        )
    write = nifti.write if suffix in nifti.SUFFIXES else itk.write
    with atomic_path(path) as aside:
        write(aside, array, geometry)


def _format_of(scan: ScanPath) -> _Format:
    """How a scan is read; RefusedCaseError if it is missing, empty or in an unknown format."""
    if _read_as_dicom(scan):
        return _DICOM
    path = scan.files[0] if isinstance(scan, SliceFiles) else scan
    if not path.exists():
        raise RefusedCaseError(f"{path.name} is missing")
    if path.stat().st_size == 0:
        raise RefusedCaseError("the file is empty")
    suffix = suffix_of(path)
    if suffix == ".nii" and _begins_with(path, _GZIP):
        raise RefusedCaseError(
            f"{printable(path.name)} is compressed, as a .nii.gz is: rename it to "
            f"{printable(path.name)}.gz"
        )
    if suffix is None:
        supported = ", ".join(SUFFIXES)
        raise RefusedCaseError(
            f"{path.name} has an unsupported format: use one of {supported}, or a DICOM folder"
        )
    if isinstance(scan, SliceFiles):
        return _PICTURES
    return _NIFTI if suffix in nifti.SUFFIXES else _ITK


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _read_as_dicom(scan: ScanPath) -> bool:
    """Whether to read a scan as DICOM: any folder, and files whose name or contents say so."""
    path = scan.files[0] if isinstance(scan, SliceFiles) else scan
    if path.is_dir():
        return True
    named_so = path.is_file() and path.name.lower().endswith(dicom.SUFFIXES)
    return named_so or dicom.has_magic_number(path)


def _is_picture(scan: ScanPath) -> bool:
    return itk.is_picture(scan.files[0] if isinstance(scan, SliceFiles) else scan)


def _read_volume(scan: ScanPath, channels: int | None) -> Volume:
    """A scan with the expected number of channels; None: any number, and no fourth axis."""
    with _refusing_damage():
        volume = _format_of(scan).read(scan)
    count = len(volume.array)
    if count == channels or (channels is None and not volume.is_4d):
        return volume
    expected = f"{channels} channels" if channels and channels > 1 else "one"
    if volume.is_4d:
        remedy = ", or use --frames if they are time points" if channels else ""
        raise RefusedCaseError(
            f"it is 4D ({count} volumes), expected {expected}: save one volume per file{remedy}"
        )
    raise RefusedCaseError(f"it has {count} channels, expected {expected}")


def _read_frame(scan: ScanPath, frame: int) -> Volume:
    time_points = read_header(scan).time_points
    if not isinstance(scan, Path) or frame >= time_points:
        raise RefusedCaseError(
            f"it has no frame {frame + 1}: its fourth axis has {time_points} time points"
        )
    state = scan.stat()
    series = _read_series(scan, time_points, state.st_mtime_ns, state.st_size)
    array, rescale = series.array[frame : frame + 1], series.rescale[frame : frame + 1]
    return replace(series, array=array, rescale=rescale, is_4d=False)


@lru_cache(maxsize=2)
def _read_series(path: Path, time_points: int, *file_state: int) -> Volume:
    """A whole time series; the last scan and label are cached, as their frames come in a row."""
    return _read_volume(path, time_points)


def _merge_channels(volumes: Sequence[Volume], channels: int | None) -> Volume:
    first = volumes[0]
    for number, volume in enumerate(volumes[1:], start=2):
        if difference := grid_difference(first.geometry, volume.geometry):
            raise RefusedCaseError(
                f"its channels 1 and {number} lie on different grids: {difference}"
            )
    if channels not in (None, len(volumes)):
        raise RefusedCaseError(f"it has {len(volumes)} channels, expected {channels}")
    rescale = tuple(pair for volume in volumes for pair in volume.rescale or (_UNSCALED,))
    return Volume(
        array=np.concatenate([volume.array for volume in volumes]),
        geometry=first.geometry,
        rescale=() if set(rescale) == {_UNSCALED} else rescale,
        notes=tuple(dict.fromkeys(note for volume in volumes for note in volume.notes)),
    )


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Refuse the file, whatever its damage makes a decoder raise."""
    try:
        yield
    except (RefusedCaseError, MemoryError):
        raise
    except OSError as error:
        raise RefusedCaseError(f"it cannot be read ({os_reason(error)})") from None
    except Exception as error:
        raise RefusedCaseError(
            f"it is damaged: reading it fails with {type(error).__name__}"
        ) from None


def require_contents(array: np.ndarray, rescale: Sequence[tuple[float, float]]) -> None:
    """RefusedCaseError if a voxel of (C, …) is NaN, infinite or, as stored or in the scan's values,
    beyond float32, or a channel is constant."""
    scales = rescale or (_UNSCALED,) * len(array)
    for number, (channel, (slope, intercept)) in enumerate(zip(array, scales, strict=True), 1):
        if channel.dtype.kind == "f":
            invalid = int(channel.size - np.isfinite(channel).sum())
            if invalid:
                raise RefusedCaseError(
                    f"{invalid} of its {channel.size} voxels are NaN or infinite"
                )
        which = f"its channel {number}" if len(array) > 1 else "it"
        ends = (float(channel.min()), float(channel.max()))
        if max(map(abs, (*ends, *(end * slope + intercept for end in ends)))) > _LARGEST:
            raise RefusedCaseError(
                f"{which} holds values as large as {max(ends, key=abs):g}, which no scanner "
                "measures: a broken file, or of another data type"
            )
        if channel.min() == channel.max():
            value = float(channel.flat[0])
            raise RefusedCaseError(f"{which} is constant: every voxel is {value:g}")
