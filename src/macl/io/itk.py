"""NRRD, MetaImage, PNG and JPEG: checked for damage byte by byte, then read by SimpleITK.

SimpleITK reads a MetaImage with a broken checksum without complaint, so lengths and checksums are
checked here first.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macl.io.geometry import Geometry, Header, Volume, direction_matrix
from macl.io.integrity import (
    checksum,
    gunzip,
    inflate,
    require_size,
    require_whole_jpeg,
    require_whole_png,
)
from macl.io.picture_orientation import as_shown, read_orientation, swaps_axes
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.files import inside

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


_MM_IN_UNIT = {"mm": 1.0, "um": 0.001, "nm": 1e-6, "cm": 10.0, "m": 1000.0, "in": 25.4}

_UNIT_NAMES = {
    "millimeter": "mm", "micron": "um", "micrometer": "um", "nanometer": "nm",
    "centimeter": "cm", "meter": "m", "inch": "in", "inche": "in",
}  # fmt: skip
"""Long names of units, without a plural s."""

_VOXEL_UNITS = ("pixel", "px", "voxel")

_MILLIMETRES = (1.0, 1.0, 1.0)


class _ImageData(NamedTuple):
    """Where the voxels lie: file, first byte, "raw", "gzip" or "zlib", and their unpacked bytes."""

    path: Path
    start: int
    packing: str
    expected_bytes: int


@dataclass(frozen=True)
class _Grid:
    """What a header says about its grid and its numbers, and SimpleITK does not tell.

    Attributes:
        spacing_known: whether it gives a spacing.
        unit_mm: millimetres in its unit of length, along each axis of space.
        rescale: slope and intercept of the values, if they are not the stored numbers.
        notes: what was assumed.
        orientation: how a picture is turned when it is shown.
    """

    spacing_known: bool
    unit_mm: tuple[float, float, float] = _MILLIMETRES
    rescale: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    orientation: int = 1


class _Announced(NamedTuple):
    """A header, what SimpleITK leaves out of it, and where the voxels lie (not of a picture)."""

    header: Header
    grid: _Grid
    data: _ImageData | None


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture: one slice, without spacing."""
    return path.suffix.lower() in PICTURES


def read_header(path: Path) -> Header:
    """The header alone; a picture is checked for damage as a whole, and its axes are as shown.

    Raises:
        RefusedCaseError: the file is damaged, its header is invalid or announces too much, or its
            voxels are not real numbers.
    """
    return _announced(path).header


def _announced(path: Path) -> _Announced:
    data = None
    if is_picture(path):
        (require_whole_png if _format(path) is _PNG else require_whole_jpeg)(path)
        grid = _picture_grid(path)
    else:
        fields, data = _locate_data(path)
        grid = (_nrrd_grid if _format(path) is _NRRD else _meta_image_grid)(fields)
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
    header = Header(
        format=_format(path).name,
        geometry=_picture_geometry(size, grid) if is_picture(path) else _geometry(reader, grid),
        channels=components * time_points,
        dtype=dtype.removeprefix("vector of "),
        time_points=time_points,
    )
    return _Announced(header, grid, data)


def read(path: Path) -> Volume:
    """The whole file as (channels, z, y, x); a picture as it is shown.

    Raises:
        RefusedCaseError: as for `read_header`, or bytes are missing, left over or damaged.
    """
    header, grid, data = _announced(path)
    expected_crc = _checksum(data) if data else None
    try:
        array = _simple_itk().GetArrayFromImage(_reader(path).Execute())
    except RuntimeError:
        raise RefusedCaseError(f"it is not {_format(path).described} or is damaged") from None
    if expected_crc is not None and expected_crc not in _possible_checksums(array, header):
        # A damaged header can lead SimpleITK astray although the voxels themselves are whole.
        raise RefusedCaseError("it is damaged: its header and its voxels do not fit together")
    if is_picture(path):
        array = np.ascontiguousarray(as_shown(array, grid.orientation))
    is_4d = header.time_points > 1
    if header.channels > 1 and not is_4d:
        array = np.moveaxis(array, -1, 0)
    array = array.reshape((header.channels, *reversed(header.geometry.size)))
    rescale = ()
    if grid.rescale and grid.rescale[0] < 0:
        array = array.astype(np.float64) * grid.rescale[0] + grid.rescale[1]
    elif grid.rescale:
        rescale = (grid.rescale,) * header.channels
    return Volume(array, header.geometry, rescale, grid.notes, is_4d)


def _possible_checksums(array: Any, header: Header) -> Iterator[int]:
    """CRC-32 of voxels in either byte order, with their channels last, or first as NRRD may have.

    SimpleITK gives channels last, wherever the file has them.
    """
    orders: list[Any] = [array]
    if header.channels > 1 and header.time_points == 1:
        orders.append(np.ascontiguousarray(np.moveaxis(array, -1, 0)))
    for order in orders:
        yield zlib.crc32(order)
        yield zlib.crc32(order.byteswap())


def from_image(image: Any) -> Volume:
    """A SimpleITK image in memory, of two or three dimensions, as (channels, z, y, x).

    Raises:
        RefusedCaseError: it has other dimensions, its axes are sheared, or it announces too much.
    """
    if image.GetDimension() not in (2, 3):
        raise RefusedCaseError(f"it has {image.GetDimension()} dimensions, expected 3")
    require_size(image.GetSize())
    geometry = _geometry(image, _Grid(spacing_known=True))
    array = _simple_itk().GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        array = np.moveaxis(array, -1, 0)
    return Volume(array.reshape((components, *reversed(geometry.size))), geometry)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, z, y, x) or (z, y, x) to `path` itself, compressed; a .png holds one slice."""
    sitk = _simple_itk()
    has_channels = array.ndim == 4
    array = np.moveaxis(array, 0, -1) if has_channels else array
    is_flat = _format(path) is _PNG
    array = np.ascontiguousarray(array[0] if is_flat else array)
    image = sitk.GetImageFromArray(array, isVector=has_channels)
    if not is_flat:
        _set_grid(image, geometry)
    sitk.WriteImage(image, str(path), useCompression=True)
    if not is_flat:
        edit = _edit_nrrd if _format(path) is _NRRD else _edit_meta_image
        edit(path, geometry)


def _set_grid(image: Any, geometry: Geometry) -> None:
    """Give an image of SimpleITK a grid, in the unit of the scan's own file."""
    matrix = direction_matrix(geometry) * np.asarray(geometry.spacing)
    matrix /= np.asarray(geometry.unit_mm)[:, None]
    spacing = np.linalg.norm(matrix, axis=0)
    if geometry.unit_mm == _MILLIMETRES:
        spacing = np.asarray(geometry.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((np.asarray(geometry.origin) / geometry.unit_mm).tolist())
    image.SetDirection((matrix / spacing).ravel().tolist())


def _edit_nrrd(path: Path, geometry: Geometry) -> None:
    """Write into a header what SimpleITK does not: units, or that the spacing is unknown."""
    if not geometry.spacing_known:
        _edit_header(path, rb"space(?: directions| origin)?: .*\n", b"")
    elif geometry.unit_mm != _MILLIMETRES:
        units = " ".join(f'"{_unit_name(mm)}"' for mm in geometry.unit_mm)
        _edit_header(path, rb"space directions: ", f"space units: {units}\n".encode() + rb"\g<0>")


def _edit_meta_image(path: Path, geometry: Geometry) -> None:
    """Write into a header what SimpleITK does not: units, or that the spacing is unknown."""
    if not geometry.spacing_known:
        _edit_header(path, rb"(?:ElementSpacing|ITK_original_spacing) = .*\n", b"")
    elif geometry.unit_mm != _MILLIMETRES:
        unit = f"DistanceUnits = {_unit_name(geometry.unit_mm[0])}\n".encode()
        _edit_header(path, rb"ElementSpacing = ", unit + rb"\g<0>")


def _edit_header(path: Path, lines: bytes, replacement: bytes) -> None:
    """Replace the lines of a header that begin so; the voxels that follow it stay as they are."""
    data = path.read_bytes()
    ends_after = b"\n\n" if _format(path) is _NRRD else b"ElementDataFile = LOCAL\n"
    end = data.index(ends_after) + 1
    header = re.sub(rb"(?m)^" + lines, replacement, data[:end])
    path.write_bytes(header + data[end:])


def _unit_name(mm: float) -> str:
    return next(name for name, size in _MM_IN_UNIT.items() if math.isclose(size, mm))


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


def _picture_geometry(size: tuple[int, ...], grid: _Grid) -> Geometry:
    columns, rows, slices = (*size, 1)[:3]
    if swaps_axes(grid.orientation):
        columns, rows = rows, columns
    return Geometry(
        size=(columns, rows, slices),
        spacing=(1, 1, 1),
        origin=(0, 0, 0),
        direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        spacing_known=False,
    )


def _geometry(reader: Any, grid: _Grid) -> Geometry:
    size = tuple(int(count) for count in reader.GetSize())
    dims = len(size)
    spacing = [float(value) for value in reader.GetSpacing()]
    origin = [float(value) for value in reader.GetOrigin()]
    matrix = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(dims, dims)
    if dims == 2:
        spacing, origin = [*spacing, 1.0], [*origin, 0.0]
        matrix = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    spacing, origin, matrix = np.asarray(spacing[:3]), np.asarray(origin[:3]), matrix[:3, :3]
    if not grid.spacing_known:
        spacing = np.ones(3)
    elif grid.unit_mm != _MILLIMETRES:
        scaled = matrix * spacing * np.asarray(grid.unit_mm)[:, None]
        spacing = np.linalg.norm(scaled, axis=0)
        origin, matrix = origin * grid.unit_mm, scaled / np.maximum(spacing, 1e-300)
    if not np.isfinite([*spacing, *origin, *matrix.ravel()]).all() or min(spacing) <= 0:
        raise RefusedCaseError("its header's spacing or origin is not a positive, finite number")
    if np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-3:
        raise RefusedCaseError("its axes are sheared: resample it to a grid with right angles")
    x, y, z = (*size, 1)[:3]
    return Geometry(
        size=(x, y, z),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(matrix.ravel().tolist()),  # pyright: ignore[reportArgumentType]
        spacing_known=grid.spacing_known,
        unit_mm=grid.unit_mm,
    )


# ---------------------------------------------------------------- headers: the grid

_NO_SPACING = "the header gives no spacing: distances are in voxels"
_NO_ORIENTATION = (
    "the header gives no orientation: assuming that x, y and z point to the left, to the back and "
    "up"
)


def _picture_grid(path: Path) -> _Grid:
    notes = ["a picture has no spacing: distances are in voxels"]
    try:
        orientation = read_orientation(path)
    except ValueError:
        orientation = 1
        notes.append("the picture's tags cannot be read: taking it as it is stored")
    if orientation > 1:
        notes.append("the picture is turned as its orientation tag says; its mask is as shown, too")
    return _Grid(spacing_known=False, notes=tuple(notes), orientation=orientation)


def _nrrd_grid(fields: dict[str, str]) -> _Grid:
    kinds = fields.get("kinds", "").lower().split()
    axes = sum(kind in ("domain", "space") for kind in kinds) or len(fields["sizes"].split())
    spatial = min(axes, 3)
    vectors = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    numbers = fields.get("spacings", "").split()
    given = [entry for entry in vectors or numbers if not re.search("none|nan", entry.lower())]
    if vectors and len(vectors) - vectors.count("none") < spatial:
        spatial = len(vectors) - vectors.count("none") or spatial
    if len(given) < spatial:
        return _Grid(spacing_known=False, notes=(_NO_SPACING,))
    notes: list[str] = []
    if not fields.get("space", "").lower().startswith(_ANATOMICAL_SPACES):
        notes.append(_NO_ORIENTATION)
    units = [_unit(unit) for unit in re.findall('"([^"]*)"', fields.get("space units", ""))]
    if not any(units):
        per_axis = re.findall('"([^"]*)"', fields.get("units", "")) if numbers else []
        units = [_unit(unit) for unit, mm in zip(per_axis, numbers, strict=False) if mm in given]
    return _grid_in_units(units[:3], notes)


_ANATOMICAL_SPACES = ("left-", "right-", "las", "ras", "lps")


def _meta_image_grid(fields: dict[str, str]) -> _Grid:
    slope = float(fields.get("elementtointensityfunctionslope", "1") or 1)
    intercept = float(fields.get("elementtointensityfunctionoffset", "0") or 0)
    is_scaled = math.isfinite(slope * intercept) and slope and (slope, intercept) != (1.0, 0.0)
    rescale = (slope, intercept) if is_scaled else None
    if not fields.get("elementspacing") and not fields.get("elementsize"):
        return _Grid(spacing_known=False, rescale=rescale, notes=(_NO_SPACING,))
    matrices = ("transformmatrix", "rotation", "orientation")
    notes = [] if any(fields.get(name) for name in matrices) else [_NO_ORIENTATION]
    unit = _unit(fields.get("distanceunits", ""))
    grid = _grid_in_units([unit] * 3, notes)
    return replace(grid, rescale=rescale)


def _grid_in_units(units: list[str | None], notes: list[str]) -> _Grid:
    """The grid of a header whose units of length are these, in order; None: not given."""
    if "voxel" in units:
        note = "the header gives the spacing in voxels alone: distances are in voxels"
        return _Grid(spacing_known=False, notes=(*notes, note))
    mm = [*(_MM_IN_UNIT[unit or "mm"] for unit in units), *_MILLIMETRES]
    return _Grid(spacing_known=True, unit_mm=(mm[0], mm[1], mm[2]), notes=tuple(notes))


def _unit(text: str) -> str | None:
    """A unit of `_MM_IN_UNIT`, or "voxel"; None: there is none."""
    word = text.strip().lower().replace("µ", "u").replace("μ", "u").replace("metre", "meter")
    if word in ("", "?", "???"):
        return None
    short = word.removesuffix("s")
    if short in _VOXEL_UNITS:
        return "voxel"
    name = _UNIT_NAMES.get(short, word)
    if name not in _MM_IN_UNIT:
        raise RefusedCaseError(
            f"its unit of length is {text.strip()!r}, which macl does not know: save it in mm"
        )
    return name


# ---------------------------------------------------------------- headers, to locate the voxels


def _locate_data(path: Path) -> tuple[dict[str, str], _ImageData]:
    """The fields of a header, and where the voxels lie."""
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


def _meta_image_data(path: Path, head: bytes) -> tuple[dict[str, str], _ImageData]:
    fields: dict[str, str] = {}
    start = 0
    while "elementdatafile" not in fields:
        end = head.index(b"\n", start)
        name, _, value = os.fsdecode(head[start:end]).partition("=")
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
        return fields, _ImageData(path, start, packing, expected)
    if int(fields.get("headersize", "0")) != 0:
        raise RefusedCaseError("its data file has a header of its own: save it as .mha")
    return fields, _ImageData(_beside(path, data_file), 0, packing, expected)


def _nrrd_data(path: Path, head: bytes) -> tuple[dict[str, str], _ImageData]:
    if not head.startswith(b"NRRD"):
        raise ValueError("no magic")
    ends = (head.find(gap) + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if gap in head)
    end = min(ends, default=len(head))
    fields: dict[str, str] = {}
    for line in os.fsdecode(head[:end]).splitlines()[1:]:
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
        return fields, _ImageData(_beside(path, data_file), 0, packing, expected)
    return fields, _ImageData(path, end, packing, expected)


def _beside(header: Path, name: str) -> Path:
    """The data file that a header names: a plain file in the header's own folder or below."""
    if name.upper().startswith("LIST") or "%" in name:
        raise RefusedCaseError("its header names several data files: save it as one file")
    try:
        path = inside(header.parent, name)
    except (MaclError, ValueError):
        raise RefusedCaseError(
            "its header names data outside its own folder: put the data file beside it"
        ) from None
    if path.is_symlink() or not path.is_file():
        raise RefusedCaseError(f"its data file {path.name!r} is not beside it")
    return path
