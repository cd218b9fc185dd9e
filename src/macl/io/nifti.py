"""NIfTI: one strict pass over the bytes, the header by nibabel, the grid in ITK's convention."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from macl.io.geometry import Geometry, Volume
from macl.io.integrity import gunzip, require_length, require_size
from macl.utils.errors import RefusedCaseError

SUFFIXES = (".nii.gz", ".nii")

_LPS = np.diag([-1.0, -1.0, 1.0])
_MM_BY_UNIT_CODE = {1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's codes of metre, millimetre and micrometre."""

_LARGEST_SHEAR = 1e-3


@dataclass(frozen=True)
class NiftiHeader:
    """What the first bytes say.

    Attributes:
        geometry: the grid.
        stacked: volumes along the fourth axis and further.
        moments: volumes along the fourth axis, where it is the last one.
        dtype: of the stored numbers.
        offset: bytes before the image data.
        slope, intercept: value = stored × slope + intercept.
        notes: what was assumed.
    """

    geometry: Geometry
    stacked: int
    moments: int
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Length of the image data."""
        return int(np.prod(self.geometry.size, dtype=object)) * self.stacked * self.dtype.itemsize


def read_header(path: Path) -> NiftiHeader:
    """The header alone; RefusedCaseError where it makes no sense."""
    return _parse(_first_bytes(path))


def read(path: Path) -> Volume:
    """The whole file as (stacked, z, y, x); RefusedCaseError unless every byte is there and fits the checksum."""
    header = read_header(path)
    expected = header.offset + header.data_bytes
    if _is_gzip(path):
        data = bytearray()
        for piece in gunzip(path):
            data += piece
            if len(data) > expected:
                break
    else:
        require_length(path.stat().st_size, expected)
        data = bytearray(path.read_bytes())
    require_length(len(data) - header.offset, header.data_bytes)
    flat = np.frombuffer(data, dtype=header.dtype, offset=header.offset)
    array = flat.reshape((header.stacked, *reversed(header.geometry.size)))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if header.slope < 0:
        array = array.astype(np.float64) * header.slope + header.intercept
    plain = header.slope < 0 or (header.slope, header.intercept) == (1.0, 0.0)
    rescale = () if plain else ((header.slope, header.intercept),) * header.stacked
    return Volume(array, header.geometry, rescale, header.notes)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, z, y, x) or (z, y, x) to `path` itself; the same input gives the same bytes."""
    import nibabel

    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(array.T if array.ndim == 3 else np.moveaxis(array, 0, -1).transpose(2, 1, 0, 3),
                                affine_of(geometry), dtype=array.dtype)  # fmt: skip
    image.header.set_xyzt_units("mm")
    image.set_sform(affine_of(geometry), code=1)
    image.set_qform(affine_of(geometry), code=1, strip_shears=True)
    if not geometry.spacing_known:
        image.header.set_xyzt_units("unknown")
    image.to_filename(path)


def affine_of(geometry: Geometry) -> np.ndarray:
    """(4, 4): voxel indices x, y, z → millimetres in right-anterior-superior coordinates, NIfTI's own."""
    affine = np.eye(4)
    matrix = np.asarray(geometry.direction).reshape(3, 3) * np.asarray(geometry.spacing)
    affine[:3, :3] = _LPS @ matrix
    affine[:3, 3] = _LPS @ np.asarray(geometry.origin)
    return affine


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _first_bytes(path: Path) -> bytes:
    if not _is_gzip(path):
        with path.open("rb") as file:
            return file.read(544)
    first = b""
    for piece in gunzip(path):
        first += piece
        if len(first) >= 544:
            break
    return first


def _parse(first: bytes) -> NiftiHeader:
    header = _nibabel_header(first)
    shape = tuple(int(count) for count in header.get_data_shape())
    if not 2 <= len(shape) <= 7:
        raise RefusedCaseError(f"its header announces {len(shape)} dimensions where 3 are meant")
    size = (*shape, 1)[:3] if len(shape) == 2 else shape[:3]
    require_size(shape)
    dtype = header.get_data_dtype()
    if dtype.names or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise RefusedCaseError(f"its voxels are {dtype}, where real numbers are meant")
    slope, intercept = header.get_slope_inter()
    geometry, notes = _grid(header, (size[0], size[1], size[2]))
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**31:
        raise RefusedCaseError("its NIfTI header makes no sense (where its data begins)")
    return NiftiHeader(
        geometry=geometry,
        stacked=int(np.prod(shape[3:], dtype=int)),
        moments=shape[3] if len(shape) > 3 and set(shape[4:]) <= {1} else 1,
        dtype=dtype,
        offset=max(int(offset), int(header["sizeof_hdr"]) + 4),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        notes=notes,
    )


def _nibabel_header(first: bytes) -> Any:
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    sizes = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    kind = next(
        (sizes[size] for order in ("little", "big") if (size := int.from_bytes(first[:4], order)) in sizes), None
    )
    magic = first[344:347] if kind is nibabel.Nifti1Header else first[4:7]
    if kind is None or magic not in (b"n+1", b"n+2"):
        raise RefusedCaseError("it is not a NIfTI file" if first else "the file is empty")
    try:
        header = kind.from_fileobj(BytesIO(first), check=False)
        header.get_data_dtype()
        header.get_slope_inter()
        return header
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise RefusedCaseError(f"its NIfTI header makes no sense ({error})") from None


def _grid(header: Any, size: tuple[int, int, int]) -> tuple[Geometry, tuple[str, ...]]:
    notes: list[str] = []
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    told = bool(np.isfinite(pixdim).all()) and bool((pixdim[[n > 1 for n in size]] > 0).all())
    if has_sform:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
        if has_qform and not np.allclose(affine, _qform(header, affine), rtol=1e-3, atol=1e-2):
            notes.append("sform and qform disagree: the sform was taken")
    elif not told:
        # Neither an affine nor a voxel size: the grid's numbers mean nothing.
        notes.append("the header tells no spacing: distances are in voxels")
        return _unknown(size), tuple(notes)
    elif has_qform:
        affine = np.asarray(_qform(header, None), dtype=np.float64)
    else:
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        notes.append("the header tells no orientation: NIfTI's default (x to the left, y to the front, z up) was taken")
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_BY_UNIT_CODE:
        notes.append("the header tells no unit of length: millimetres were taken")
    return _geometry(affine, size, _MM_BY_UNIT_CODE.get(unit, 1.0)), tuple(notes)


def _qform(header: Any, instead: np.ndarray | None) -> np.ndarray:
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, ArithmeticError) as error:
        if instead is not None:
            return instead
        raise RefusedCaseError(f"its NIfTI qform makes no sense ({error})") from None


def _geometry(affine: np.ndarray, size: tuple[int, int, int], mm: float) -> Geometry:
    if not np.isfinite(affine).all():
        raise RefusedCaseError("its affine holds numbers that are not finite")
    matrix = _LPS @ affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    if (spacing <= 0).any():
        raise RefusedCaseError("its affine is singular: an axis has no length")
    direction = matrix / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _LARGEST_SHEAR:
        raise RefusedCaseError("its affine is sheared: resample it to a grid with right angles first")
    return Geometry(
        size=size,
        spacing=_three(spacing * mm),
        origin=_three(_LPS @ affine[:3, 3] * mm),
        direction=tuple(float(value) + 0.0 for value in direction.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=True,
    )


def _unknown(size: tuple[int, int, int]) -> Geometry:
    return Geometry(
        size=size, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing_known=False
    )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z
