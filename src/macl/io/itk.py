"""NRRD, MetaImage, PNG and JPEG: checked for damage byte by byte, then read by SimpleITK.

SimpleITK reads a MetaImage whose checksum is broken without a word, so lengths and checksums are checked here first.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macl.io.geometry import Geometry, Volume
from macl.io.integrity import checksum, gunzip, inflate, require_size, require_whole_jpeg, require_whole_png
from macl.utils.errors import RefusedCaseError

PICTURES = (".png", ".jpg", ".jpeg")

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", *PICTURES)

_LONGEST_HEADER = 1 << 20

_READERS = {
    ".png": "PNGImageIO", ".jpg": "JPEGImageIO", ".jpeg": "JPEGImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO",
}  # fmt: skip

_KINDS = {
    ".png": "a PNG picture", ".jpg": "a JPEG picture", ".jpeg": "a JPEG picture",
    ".nrrd": "an NRRD file", ".nhdr": "an NRRD header",
}  # fmt: skip

_BYTES = {
    "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1, "char": 1, "signed char": 1, "int8": 1, "int8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "long long": 8, "long long int": 8, "int64": 8, "int64_t": 8,
    "unsigned long long": 8, "uint64": 8, "uint64_t": 8, "ulonglong": 8, "longlong": 8,
    "float": 4, "double": 8,
    "met_uchar": 1, "met_char": 1, "met_short": 2, "met_ushort": 2, "met_int": 4, "met_uint": 4,
    "met_long": 4, "met_ulong": 4, "met_long_long": 8, "met_ulong_long": 8, "met_float": 4, "met_double": 8,
}  # fmt: skip


@dataclass(frozen=True)
class ItkHeader:
    """What SimpleITK says without reading the pixels: grid, components of a voxel, length of a fourth axis, type."""

    geometry: Geometry
    components: int
    stacked: int
    dtype: str


class _Data(NamedTuple):
    """Where the pixels lie, how they are packed, and how many bytes they must be."""

    path: Path
    start: int
    packing: str
    expected: int


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture: one slice, without spacing."""
    return path.suffix.lower() in PICTURES


def read_header(path: Path) -> ItkHeader:
    """The header alone; RefusedCaseError where SimpleITK cannot make sense of it or it announces too much."""
    if path.suffix.lower() == ".png":
        require_whole_png(path)
    elif is_picture(path):
        require_whole_jpeg(path)
    else:
        _data_of(path)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise RefusedCaseError(f"it is not {_kind(path)}, or it is damaged") from None
    size = tuple(int(count) for count in reader.GetSize())
    require_size(size)
    if not 2 <= len(size) <= 4:
        raise RefusedCaseError(f"it has {len(size)} dimensions where 3 are meant")
    pixel = str(_sitk().GetPixelIDValueAsString(reader.GetPixelID()))
    if "complex" in pixel or "label" in pixel:
        raise RefusedCaseError(f"its voxels are {pixel}, where real numbers are meant")
    return ItkHeader(
        geometry=_grid(reader, size, known=not is_picture(path)),
        components=int(reader.GetNumberOfComponents()),
        stacked=size[3] if len(size) == 4 else 1,
        dtype=pixel.removeprefix("vector of "),
    )


def read(path: Path) -> Volume:
    """The whole file as (components or stacked, z, y, x); RefusedCaseError unless every byte is there."""
    header = read_header(path)
    expected = None if is_picture(path) else _checksum(_data_of(path))
    if header.components > 1 and header.stacked > 1:
        raise RefusedCaseError("it has a fourth axis and several components a voxel")
    try:
        image = _reader(path).Execute()
    except RuntimeError:
        raise RefusedCaseError(f"it is not {_kind(path)}, or it is damaged") from None
    array = _sitk().GetArrayFromImage(image)
    if expected not in (None, zlib.crc32(array), zlib.crc32(array.byteswap())):
        # A damaged header can lead SimpleITK astray where the voxels themselves are whole.
        raise RefusedCaseError("it is damaged: its header and its voxels do not fit together")
    if header.components > 1:
        array = np.moveaxis(array, -1, 0)
    array = array.reshape((header.components * header.stacked, *reversed(header.geometry.size)))
    notes = () if header.geometry.spacing_known else ("a picture tells no spacing: distances are in voxels",)
    return Volume(array, header.geometry, notes=notes)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, z, y, x) or (z, y, x) to `path` itself: .nrrd or .mha compressed, .png one slice."""
    sitk = _sitk()
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    several = array.ndim == 4
    array = np.moveaxis(array, 0, -1) if several else array
    if path.suffix.lower() == ".png":
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[0]), isVector=several)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=several)
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path), useCompression=True)


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _reader(path: Path) -> Any:
    sitk = _sitk()
    io = _READERS.get(path.suffix.lower(), "MetaImageIO")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    return reader


def _kind(path: Path) -> str:
    return _KINDS.get(path.suffix.lower(), "a MetaImage file")


def _grid(reader: Any, size: tuple[int, ...], known: bool) -> Geometry:
    flat = len(size) == 2
    dimensions = len(size)
    spacing = [float(value) for value in reader.GetSpacing()]
    origin = [float(value) for value in reader.GetOrigin()]
    matrix = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(dimensions, dimensions)
    if flat:
        spacing, origin = [*spacing, 1.0], [*origin, 0.0]
        matrix = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    matrix = matrix[:3, :3]
    if not known:
        spacing, origin, matrix = [1.0] * 3, [0.0] * 3, np.eye(3)
    if not np.isfinite([*spacing, *origin, *matrix.ravel()]).all() or min(spacing[:3]) <= 0:
        raise RefusedCaseError("its header's spacing or origin is no positive, finite number")
    if np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-3:
        raise RefusedCaseError("its axes are sheared: resample it to a grid with right angles first")
    full = (*size, 1)[:3]
    return Geometry(
        size=(full[0], full[1], full[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(float(value) for value in matrix.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=known,
    )


# ---------------------------------------------------------------- headers, read for where the data is


def _data_of(path: Path) -> _Data:
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    if not head:
        raise RefusedCaseError("the file is empty")
    try:
        return _nrrd_data(path, head) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta_data(path, head)
    except (KeyError, ValueError):
        raise RefusedCaseError(f"it is not {_kind(path)}, or its header makes no sense") from None


def _checksum(data: _Data) -> int:
    """CRC-32 of the unpacked voxels, read to the end; RefusedCaseError unless they are whole."""
    with data.path.open("rb") as file:
        file.seek(data.start)
        if data.packing == "gzip":
            return checksum(gunzip(data.path, data.start), data.expected)
        if data.packing == "zlib":
            return checksum(inflate(file, zlib.MAX_WBITS), data.expected)
        return checksum(iter(lambda: file.read(1 << 20), b""), data.expected)


def _meta_data(path: Path, head: bytes) -> _Data:
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
    expected = _product(size) * channels * _BYTES[fields["elementtype"].lower()]
    packing = "zlib" if fields.get("compresseddata", "false").lower() == "true" else "raw"
    if fields.get("binarydata", "true").lower() != "true":
        raise RefusedCaseError("it is written as text, which cannot be checked for damage: save it as binary")
    where = fields["elementdatafile"]
    if where.lower() == "local":
        return _Data(path, start, packing, expected)
    if int(fields.get("headersize", "0")) != 0:
        raise RefusedCaseError("its data file has a header of its own: save it as .mha")
    return _Data(_beside(path, where), 0, packing, expected)


def _nrrd_data(path: Path, head: bytes) -> _Data:
    if not head.startswith(b"NRRD"):
        raise ValueError("no magic")
    end = min((place + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if (place := head.find(gap)) >= 0), default=len(head))
    fields: dict[str, str] = {}
    for line in head[:end].decode("ascii", "replace").splitlines()[1:]:
        name, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    size = tuple(int(count) for count in fields["sizes"].split())
    require_size(size)
    expected = _product(size) * _BYTES[fields["type"].lower()]
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields["encoding"].lower())
    if packing is None:
        raise RefusedCaseError(
            f"its encoding {fields['encoding']!r} cannot be checked for damage: save it as gzip or raw"
        )
    if any(name in fields for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise RefusedCaseError("its data does not follow its header: save it without skips")
    where = fields.get("data file", fields.get("datafile"))
    if where is not None:
        return _Data(_beside(path, where), 0, packing, expected)
    return _Data(path, end, packing, expected)


def _beside(header: Path, name: str) -> Path:
    """The data file a header names: a plain file in the header's own folder."""
    if Path(name).name != name or name.upper() == "LIST" or "%" in name or " " in name.strip():
        raise RefusedCaseError("its header names data outside its own folder, or in several files: save it as one file")
    path = header.with_name(name)
    if path.is_symlink() or not path.is_file():
        raise RefusedCaseError(f"its data file {name} is not beside it")
    return path


def _product(size: tuple[int, ...]) -> int:
    total = 1
    for count in size:
        total *= count
    return total
