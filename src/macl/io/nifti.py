"""NIfTI: one strict pass over the bytes, the header by nibabel, the grid in ITK's convention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from macl.io.geometry import Geometry, Header, NiftiForms, Volume, direction_matrix
from macl.io.integrity import gunzip, require_length, require_size
from macl.utils.errors import RefusedCaseError

SUFFIXES = (".nii.gz", ".nii")

_HEADER_BYTES = 544
"""Enough for the header of NIfTI-1 (348) or NIfTI-2 (540)."""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
"""Turns NIfTI's right-anterior-superior coordinates into left-posterior-superior ones, and back."""

_MM_BY_UNIT_CODE = {1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's codes of metre, millimetre and micrometre."""

_LARGEST_SHEAR = 1e-3

_LARGEST_QUATERNION_EXCESS = 1e-3
"""By this much the squared length of a quaternion's last three numbers may exceed 1."""

_SCANNER = 1
"""Form code of scanner coordinates."""

_MILLIMETRES = 2
"""Unit code of millimetres, without a unit of time."""


@dataclass(frozen=True)
class NiftiHeader:
    """What the first bytes of a file say.

    Attributes:
        geometry: the grid.
        volumes: number of volumes along the fourth axis and further ones.
        time_points: volumes along the fourth axis, if it is the last one.
        dtype: of the stored numbers.
        offset: bytes before the image data.
        slope, intercept: value = stored × slope + intercept.
        notes: what was assumed.
    """

    geometry: Geometry
    volumes: int
    time_points: int
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Length of the image data."""
        return math.prod(self.geometry.size) * self.volumes * self.dtype.itemsize


def read_header(path: Path) -> Header:
    """The header alone.

    Raises:
        RefusedCaseError: it is invalid or announces too much.
    """
    header = _read_nifti_header(path)
    return Header(
        format="NIfTI",
        geometry=header.geometry,
        channels=header.volumes,
        dtype=header.dtype.name,
        time_points=header.time_points,
    )


def read(path: Path) -> Volume:
    """The whole file as (volumes, z, y, x).

    Raises:
        RefusedCaseError: the header is invalid, bytes are missing or left over, or a checksum does
            not match.
    """
    header = _read_nifti_header(path)
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
    array = flat.reshape((header.volumes, *reversed(header.geometry.size)))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    rescale = ((header.slope, header.intercept),) * header.volumes
    if header.slope < 0:
        array = array.astype(np.float64) * header.slope + header.intercept
        rescale = ()
    elif (header.slope, header.intercept) == (1.0, 0.0):
        rescale = ()
    return Volume(array, header.geometry, rescale, header.notes, is_4d=header.volumes > 1)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, z, y, x) or (z, y, x) to `path` itself; the same input gives the same bytes."""
    import nibabel

    x_first = array.T if array.ndim == 3 else np.moveaxis(array, 0, -1).transpose(2, 1, 0, 3)
    if geometry.nifti:
        version = nibabel.Nifti2Image if geometry.nifti.version == 2 else nibabel.Nifti1Image
        image = version(x_first, None, dtype=array.dtype)
        _set_forms(image.header, geometry.nifti)
    else:
        affine = affine_of(geometry)
        image = nibabel.Nifti1Image(x_first, affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm" if geometry.spacing_known else "unknown")
        image.set_sform(affine, code=_SCANNER)
        image.set_qform(affine, code=_SCANNER, strip_shears=True)
    image.to_filename(path)


def affine_of(geometry: Geometry) -> np.ndarray:
    """(4, 4): voxel indices x, y, z → mm in NIfTI's right-anterior-superior coordinates."""
    affine = np.eye(4)
    affine[:3, :3] = _LPS_FROM_RAS @ (direction_matrix(geometry) * np.asarray(geometry.spacing))
    affine[:3, 3] = _LPS_FROM_RAS @ np.asarray(geometry.origin)
    return affine


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _read_nifti_header(path: Path) -> NiftiHeader:
    header = _nibabel_header(_first_bytes(path))
    shape = tuple(int(count) for count in header.get_data_shape())
    if not 2 <= len(shape) <= 7:
        raise RefusedCaseError(f"its header announces {len(shape)} dimensions, expected 3")
    require_size(shape)
    size = (*shape, 1)[:3]
    dtype = header.get_data_dtype()
    if dtype.names or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise RefusedCaseError(f"its voxels are of type {dtype}, expected real numbers")
    slope, intercept = header.get_slope_inter()
    geometry, notes = _read_grid(header, (size[0], size[1], size[2]))
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**31:
        raise RefusedCaseError("its NIfTI header is invalid (offset of the image data)")
    return NiftiHeader(
        geometry=geometry,
        volumes=math.prod(shape[3:]),
        time_points=shape[3] if len(shape) > 3 and set(shape[4:]) <= {1} else 1,
        dtype=dtype,
        offset=max(int(offset), int(header["sizeof_hdr"]) + 4),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        notes=notes,
    )


def _first_bytes(path: Path) -> bytes:
    if not _is_gzip(path):
        with path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    first = b""
    for piece in gunzip(path, piece_bytes=_HEADER_BYTES):
        first += piece
        if len(first) >= _HEADER_BYTES:
            break
    return first


def _nibabel_header(first: bytes) -> Any:
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    versions = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    sizes = (int.from_bytes(first[:4], order) for order in ("little", "big"))
    version = next((versions[size] for size in sizes if size in versions), None)
    magic = first[344:347] if version is nibabel.Nifti1Header else first[4:7]
    if version is None or magic not in (b"n+1", b"n+2"):
        raise RefusedCaseError("it is not a NIfTI file" if first else "the file is empty")
    try:
        header = version.from_fileobj(BytesIO(first), check=False)
        header.get_data_dtype()
        header.get_slope_inter()
        return header
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise RefusedCaseError(f"its NIfTI header is invalid ({error})") from None


def _read_grid(header: Any, size: tuple[int, int, int]) -> tuple[Geometry, tuple[str, ...]]:
    """The grid, and what was assumed about it or repaired."""
    forms = _forms_of(header)
    has_voxel_size = _has_voxel_size(header, size)
    header, notes = _repair(header, size)
    sform, qform = _sform(header, has_voxel_size), _qform(header)
    unit = forms.units & 7
    if forms.sform_code > 0 and sform is None and qform is not None:
        notes.append("the sform is not a grid: using the qform")
    if sform is not None:
        affine, agree = sform, qform is None or _close(sform, qform)
        if not agree:
            notes.append("sform and qform disagree: using the sform")
        if forms.qform_code > 0 and qform is None:
            notes.append("the qform is not a grid: using the sform")
        is_usual = agree and (forms.qform_code, forms.sform_code) == (_SCANNER, _SCANNER)
    elif not has_voxel_size:
        # Neither an affine nor a voxel size: the grid's numbers mean nothing.
        notes.append("the header gives no spacing: distances are in voxels")
        return _unknown_grid(size, forms), tuple(notes)
    elif qform is not None:
        affine, is_usual = qform, False
    elif forms.qform_code > 0:
        raise RefusedCaseError("its NIfTI qform is not a rotation")
    else:
        affine, is_usual = np.asarray(header.get_base_affine(), dtype=np.float64), False
        notes.append(
            "the header gives no orientation: assuming NIfTI's default (x to the left, y to the "
            "front, z up)"
        )
    if unit not in _MM_BY_UNIT_CODE:
        notes.append("the header gives no unit of length: assuming millimetres")
    geometry = _geometry(affine, size, _MM_BY_UNIT_CODE.get(unit, 1.0))
    is_usual = is_usual and forms.version == 1 and forms.units == _MILLIMETRES
    if not is_usual or min(forms.pixdim[1:4]) <= 0:
        geometry = geometry.model_copy(update={"nifti": forms})
    return geometry, tuple(notes)


def _repair(header: Any, size: tuple[int, int, int]) -> tuple[Any, list[str]]:
    """A copy of a header with what nibabel and ITK repair, too; and what was repaired."""
    repaired, notes = header.copy(), []
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)
    if abs(pixdim[0]) != 1:  # 0 counts as 1, says the standard
        repaired["pixdim"][0] = 1
    if (pixdim[1:4] < 0).any():
        repaired["pixdim"][1:4] = np.abs(pixdim[1:4])
        notes.append("the header gives negative voxel sizes: taking them as positive")
    for axis, count in enumerate(size, start=1):
        if pixdim[axis] == 0 and count == 1:
            repaired["pixdim"][axis] = 1
    quaternion = _quaternion(header)
    squared_length = float(quaternion @ quaternion)
    if 1 < squared_length <= 1 + _LARGEST_QUATERNION_EXCESS:
        for name, value in zip("bcd", quaternion / np.sqrt(squared_length), strict=True):
            repaired[f"quatern_{name}"] = value
        if int(header["qform_code"]) > 0 and squared_length > 1 + 1e-6:
            notes.append("the qform's quaternion is a little too long: shortened to 1")
    return repaired, notes


def _quaternion(header: Any) -> np.ndarray:
    return np.asarray([float(header[f"quatern_{name}"]) for name in "bcd"])


def _has_voxel_size(header: Any, size: tuple[int, int, int]) -> bool:
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    several = [count > 1 for count in size]
    return bool(np.isfinite(pixdim[several]).all() and (pixdim[several] > 0).all())


def _sform(header: Any, has_voxel_size: bool) -> np.ndarray | None:
    """The sform; None: it is not set, or it is not a grid while the qform may be."""
    if int(header["sform_code"]) <= 0:
        return None
    affine = np.asarray(header.get_sform(), dtype=np.float64)
    is_grid = np.isfinite(affine).all() and np.linalg.norm(affine[:3, :3], axis=0).all()
    return affine if is_grid or not (has_voxel_size and int(header["qform_code"]) > 0) else None


def _qform(header: Any) -> np.ndarray | None:
    """The qform of a repaired header; None: it is not set, or it is not a grid."""
    if int(header["qform_code"]) <= 0:
        return None
    try:
        affine = np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, ArithmeticError):
        return None
    is_grid = np.isfinite(affine).all() and np.linalg.norm(affine[:3, :3], axis=0).all()
    return affine if is_grid else None


def _close(sform: np.ndarray, qform: np.ndarray) -> bool:
    return np.allclose(sform, qform, rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- both forms, as they are


def _forms_of(header: Any) -> NiftiForms:
    qfac, dx, dy, dz, dt = _finite(header["pixdim"][:5])
    b, c, d = _finite(_quaternion(header))
    x, y, z = _finite([float(header[f"qoffset_{axis}"]) for axis in "xyz"])
    return NiftiForms(
        version=1 if int(header["sizeof_hdr"]) == 348 else 2,
        units=int(header["xyzt_units"]),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        pixdim=(qfac, dx, dy, dz, dt),
        time_offset=_finite([float(header["toffset"])])[0],
        quaternion=(b, c, d),
        quaternion_offset=(x, y, z),
        sform=_finite(np.concatenate([header[f"srow_{axis}"] for axis in "xyz"])),
    )


def _set_forms(header: Any, forms: NiftiForms) -> None:
    header["xyzt_units"] = forms.units
    header["qform_code"], header["sform_code"] = forms.qform_code, forms.sform_code
    header["pixdim"][: len(forms.pixdim)] = forms.pixdim
    header["toffset"] = forms.time_offset
    for name, value in zip("bcd", forms.quaternion, strict=True):
        header[f"quatern_{name}"] = value
    for index, axis in enumerate("xyz"):
        header[f"qoffset_{axis}"] = forms.quaternion_offset[index]
        header[f"srow_{axis}"] = forms.sform[4 * index : 4 * index + 4]


def _finite(numbers: Any) -> tuple[float, ...]:
    """Numbers that JSON can hold; 0 for those that are not finite."""
    return tuple(np.nan_to_num(np.asarray(numbers, np.float64), posinf=0.0, neginf=0.0).tolist())


# ---------------------------------------------------------------- the grid


def _geometry(affine: np.ndarray, size: tuple[int, int, int], mm_per_unit: float) -> Geometry:
    if not np.isfinite(affine).all():
        raise RefusedCaseError("its affine holds numbers that are not finite")
    matrix = _LPS_FROM_RAS @ affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    if (spacing <= 0).any():
        raise RefusedCaseError("its affine is singular: an axis has no length")
    direction = matrix / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _LARGEST_SHEAR:
        raise RefusedCaseError("its affine is sheared: resample it to a grid with right angles")
    return Geometry(
        size=size,
        spacing=_xyz(spacing * mm_per_unit),
        origin=_xyz(_LPS_FROM_RAS @ affine[:3, 3] * mm_per_unit),
        direction=tuple(float(value) + 0.0 for value in direction.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=True,
    )


def _unknown_grid(size: tuple[int, int, int], forms: NiftiForms) -> Geometry:
    return Geometry(
        size=size,
        spacing=(1, 1, 1),
        origin=(0, 0, 0),
        direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        spacing_known=False,
        nifti=forms,
    )


def _xyz(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z
