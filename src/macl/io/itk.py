"""NRRD, MetaImage, PNG and JPEG: checked for damage byte by byte, then read by SimpleITK.

SimpleITK reads a MetaImage with a broken checksum without complaint, so lengths and checksums are
checked here first.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macl.io.geometry import Geometry, Header, Volume
from macl.io.integrity import (
    checksum,
    gunzip,
    inflate,
    require_size,
    require_whole_jpeg,
    require_whole_png,
)
from macl.utils.errors import RefusedCaseError

JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURES = (".png", *JPEG_SUFFIXES)

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", *PICTURES)

_LONGEST_HEADER = 1 << 20


class _Format(NamedTuple):
    """A file format: its name, the name with its article, and SimpleITK's reader of it."""

    name: str
    described: str
    image_io: str


_PNG = _Format("PNG", "a PNG picture", "PNGImageIO")
_JPEG = _Format("JPEG", "a JPEG picture", "JPEGImageIO")
_NRRD = _Format("NRRD", "an NRRD file", "NrrdImageIO")
_META_IMAGE = _Format("MetaImage", "a MetaImage file", "MetaImageIO")
_FORMATS = {".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".nrrd": _NRRD, ".nhdr": _NRRD}

_BYTES = {
    "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "char": 1, "signed char": 1, "int8": 1, "int8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4,
    "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "int64": 8, "int64_t": 8,
    "ulonglong": 8, "unsigned long long": 8, "uint64": 8, "uint64_t": 8,
    "float": 4, "double": 8,
    "met_uchar": 1, "met_char": 1, "met_short": 2, "met_ushort": 2, "met_int": 4, "met_uint": 4,
    "met_long": 4, "met_ulong": 4, "met_long_long": 8, "met_ulong_long": 8,
    "met_float": 4, "met_double": 8,
}  # fmt: skip
"""Bytes per voxel by the names of types in NRRD and MetaImage headers."""


class _ImageData(NamedTuple):
    """Where the voxels lie: file, first byte, "raw", "gzip" or "zlib", and their unpacked bytes."""

    path: Path
    start: int
    packing: str
    expected_bytes: int


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture: one slice, without spacing."""
    return path.suffix.lower() in PICTURES


def read_header(path: Path) -> Header:
    """The header alone; a picture is checked for damage as a whole.

    Raises:
        RefusedCaseError: the file is damaged, its header is invalid or announces too much, or its
            voxels are not real numbers.
    """
    if not is_picture(path):
        _locate_data(path)
    elif _format(path) is _PNG:
        require_whole_png(path)
    else:
        require_whole_jpeg(path)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise RefusedCaseError(f"it is not {_format(path).described} or is damaged") from None
    size = tuple(int(count) for count in reader.GetSize())
    require_size(size)
    if not 2 <= len(size) <= 4:
        raise RefusedCaseError(f"it has {len(size)} dimensions, expected 3")
    dtype = str(_simple_itk().GetPixelIDValueAsString(reader.GetPixelID()))
    if "complex" in dtype or "label" in dtype:
        raise RefusedCaseError(f"its voxels are of type {dtype}, expected real numbers")
    components = int(reader.GetNumberOfComponents())
    time_points = size[3] if len(size) == 4 else 1
    if components > 1 and time_points > 1:
        raise RefusedCaseError("it has a fourth axis and several components per voxel")
    return Header(
        format=_format(path).name,
        geometry=_geometry(reader, size, spacing_known=not is_picture(path)),
        channels=components * time_points,
        dtype=dtype.removeprefix("vector of "),
        time_points=time_points,
    )


def read(path: Path) -> Volume:
    """The whole file as (channels, z, y, x).

    Raises:
        RefusedCaseError: as for `read_header`, or bytes are missing, left over or damaged.
    """
    header = read_header(path)
    expected_crc = None if is_picture(path) else _checksum(_locate_data(path))
    try:
        array = _simple_itk().GetArrayFromImage(_reader(path).Execute())
    except RuntimeError:
        raise RefusedCaseError(f"it is not {_format(path).described} or is damaged") from None
    if expected_crc not in (None, zlib.crc32(array), zlib.crc32(array.byteswap())):
        # A damaged header can lead SimpleITK astray although the voxels themselves are whole.
        raise RefusedCaseError("it is damaged: its header and its voxels do not fit together")
    is_4d = header.time_points > 1
    if header.channels > 1 and not is_4d:
        array = np.moveaxis(array, -1, 0)
    array = array.reshape((header.channels, *reversed(header.geometry.size)))
    notes = (
        ()
        if header.geometry.spacing_known
        else ("a picture has no spacing: distances are in voxels",)
    )
    return Volume(array, header.geometry, notes=notes, is_4d=is_4d)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, z, y, x) or (z, y, x) to `path` itself, compressed; a .png holds one slice."""
    sitk = _simple_itk()
    has_channels = array.ndim == 4
    array = np.moveaxis(array, 0, -1) if has_channels else array
    is_flat = _format(path) is _PNG
    array = np.ascontiguousarray(array[0] if is_flat else array)
    image = sitk.GetImageFromArray(array, isVector=has_channels)
    if not is_flat:
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path), useCompression=True)


def _format(path: Path) -> _Format:
    return _FORMATS.get(path.suffix.lower(), _META_IMAGE)


def _simple_itk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _reader(path: Path) -> Any:
    reader = _simple_itk().ImageFileReader()
    reader.SetImageIO(_format(path).image_io)
    reader.SetFileName(str(path))
    return reader


def _geometry(reader: Any, size: tuple[int, ...], spacing_known: bool) -> Geometry:
    dims = len(size)
    spacing = [float(value) for value in reader.GetSpacing()]
    origin = [float(value) for value in reader.GetOrigin()]
    matrix = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(dims, dims)
    if dims == 2:
        spacing, origin = [*spacing, 1.0], [*origin, 0.0]
        matrix = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    matrix = matrix[:3, :3]
    if not spacing_known:
        spacing, origin, matrix = [1.0] * 3, [0.0] * 3, np.eye(3)
    if not np.isfinite([*spacing, *origin, *matrix.ravel()]).all() or min(spacing[:3]) <= 0:
        raise RefusedCaseError("its header's spacing or origin is not a positive, finite number")
    if np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-3:
        raise RefusedCaseError("its axes are sheared: resample it to a grid with right angles")
    x, y, z = (*size, 1)[:3]
    return Geometry(
        size=(x, y, z),
        spacing=(spacing[0], spacing[1], spacing[2]),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(float(value) for value in matrix.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=spacing_known,
    )


# ---------------------------------------------------------------- headers, to locate the voxels


def _locate_data(path: Path) -> _ImageData:
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    if not head:
        raise RefusedCaseError("the file is empty")
    try:
        return _nrrd_data(path, head) if _format(path) is _NRRD else _meta_image_data(path, head)
    except (KeyError, ValueError):
        described = _format(path).described
        raise RefusedCaseError(f"it is not {described}, or its header is invalid") from None


def _checksum(data: _ImageData) -> int:
    """CRC-32 of the unpacked voxels, read to the end; RefusedCaseError unless they are whole."""
    with data.path.open("rb") as file:
        file.seek(data.start)
        if data.packing == "gzip":
            return checksum(gunzip(data.path, data.start), data.expected_bytes)
        if data.packing == "zlib":
            return checksum(inflate(file, zlib.MAX_WBITS), data.expected_bytes)
        return checksum(iter(lambda: file.read(1 << 20), b""), data.expected_bytes)


def _meta_image_data(path: Path, head: bytes) -> _ImageData:
    fields: dict[str, str] = {}
    start = 0
    while "elementdatafile" not in fields:
        end = head.index(b"\n", start)
        name, _, value = head[start:end].decode("ascii").partition("=")
        fields[name.strip().lower()] = value.strip()
        start = end + 1
    size = tuple(int(count) for count in fields["dimsize"].split())
    require_size(size)
    channels = int(fields.get("elementnumberofchannels", "1"))
    expected = math.prod(size) * channels * _BYTES[fields["elementtype"].lower()]
    packing = "zlib" if fields.get("compresseddata", "false").lower() == "true" else "raw"
    if fields.get("binarydata", "true").lower() != "true":
        raise RefusedCaseError(
            "it is written as text, which cannot be checked for damage: save it as binary"
        )
    data_file = fields["elementdatafile"]
    if data_file.lower() == "local":
        return _ImageData(path, start, packing, expected)
    if int(fields.get("headersize", "0")) != 0:
        raise RefusedCaseError("its data file has a header of its own: save it as .mha")
    return _ImageData(_beside(path, data_file), 0, packing, expected)


def _nrrd_data(path: Path, head: bytes) -> _ImageData:
    if not head.startswith(b"NRRD"):
        raise ValueError("no magic")
    ends = (head.find(gap) + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if gap in head)
    end = min(ends, default=len(head))
    fields: dict[str, str] = {}
    for line in head[:end].decode("ascii", "replace").splitlines()[1:]:
        name, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    size = tuple(int(count) for count in fields["sizes"].split())
    require_size(size)
    expected = math.prod(size) * _BYTES[fields["type"].lower()]
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields["encoding"].lower())
    if packing is None:
        raise RefusedCaseError(
            f"its encoding {fields['encoding']!r} cannot be checked for damage: save it as gzip or "
            "raw"
        )
    if any(name in fields for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise RefusedCaseError("its data does not follow its header: save it without skips")
    data_file = fields.get("data file", fields.get("datafile"))
    if data_file is not None:
        return _ImageData(_beside(path, data_file), 0, packing, expected)
    return _ImageData(path, end, packing, expected)


def _beside(header: Path, name: str) -> Path:
    """The data file that a header names: a plain file in the header's own folder."""
    if Path(name).name != name or name.upper() == "LIST" or "%" in name or " " in name.strip():
        raise RefusedCaseError(
            "its header names data outside its own folder, or in several files: save it as one file"
        )
    path = header.with_name(name)
    if path.is_symlink() or not path.is_file():
        raise RefusedCaseError(f"its data file {name} is not beside it")
    return path
