"""A DICOM series in a folder: sorted and checked by pydicom, pixels by SimpleITK with the rescaling applied."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from macl.io import itk, nifti
from macl.io.deidentification import Identity, secrets_of
from macl.io.geometry import Geometry, Volume
from macl.io.integrity import require_length, require_size
from macl.io.source import Scan, Stack
from macl.utils.errors import RefusedCaseError

SUFFIXES = (".dcm", ".dicom", ".ima")

_TELLING = ("PatientBirthDate", "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")

_UNEVEN = 0.1
"""Gaps between slices may differ from their median by this part of it."""

_TILT = 1e-3
"""Slices may drift sideways by this part of the stack's height."""


def is_dicom(path: Path) -> bool:
    """Whether a file says "DICM" where DICOM files do."""
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_series(folder: Path) -> bool:
    """Whether a folder itself (not one below it) holds a file of a DICOM series."""
    return folder.is_dir() and any(belongs(path) for path in sorted(folder.iterdir()))


def holds(scan: Scan) -> bool:
    """Whether a scan is DICOM: a folder of a series, a file that says so, or a stack of such files."""
    if isinstance(scan, Stack):
        return is_dicom(scan.files[0])
    return is_series(scan) or is_dicom(scan)


def files_of(scan: Scan) -> list[Path]:
    """The files of a series: those of a stack, those of a folder that are DICOM by name or contents, or the file itself.

    Raises:
        RefusedCaseError: there are none.
    """
    if isinstance(scan, Stack):
        return list(scan.files)
    files = members(scan) if scan.is_dir() else [scan]
    if not files:
        raise RefusedCaseError("the folder holds no DICOM file: there are no slices")
    return files


def members(folder: Path) -> list[Path]:
    """The DICOM files that a folder itself holds, sorted by name."""
    return [file for file in sorted(folder.iterdir()) if belongs(file)]


def order(scan: Scan) -> list[int]:
    """The places of a series' files among `files_of`, in the order of their positions.

    Raises:
        RefusedCaseError: as for `read`.
    """
    return _sort([_dataset(file) for file in files_of(scan)])[0]


def read_header(path: Scan) -> tuple[Geometry, int, str, str]:
    """Geometry, channels, type and modality as the first file announces them, without the checks of `read`."""
    files = files_of(path)
    first = _dataset(files[0])
    size = (int(first.Columns), int(first.Rows), len(files))
    require_size(size)
    matrix, spacing, known = _plane(first)
    thickness = float(first.get("SpacingBetweenSlices", None) or first.get("SliceThickness", None) or 1.0)
    geometry = _geometry(size, (*spacing, abs(thickness) or 1.0), _origin(first), matrix, known)
    signed = "int" if int(first.get("PixelRepresentation", 0)) else "uint"
    bits = int(first.BitsAllocated)
    return geometry, int(first.get("SamplesPerPixel", 1)), f"{signed}{bits}", modality_of(first)


def modality_of(dataset: Any) -> str:
    """ "MR", "CT" or "unknown"."""
    found = str(dataset.get("Modality", ""))
    return found if found in ("MR", "CT") else "unknown"


def identity(path: Scan) -> Identity:
    """Who was scanned, from every readable header of the series; all empty where no header can be read."""
    ids: list[str] = []
    series: list[str] = []
    secrets: set[str] = set()
    for file in files_of(path):
        try:
            dataset = _dataset(file)
            texts = [str(dataset.get(key, "") or "") for key in _TELLING]
        except Exception:  # a damaged header cannot tell; another one of the series may
            continue
        ids.append(str(dataset.get("PatientID", "") or ""))
        series.append(str(dataset.get("SeriesInstanceUID", "") or ""))
        secrets.update(secrets_of(texts[1:], texts[0]))
    return Identity(next(iter(ids), ""), next(iter(series), ""), tuple(sorted(secrets)), readable=bool(ids))


def read(path: Scan) -> Volume:
    """The series as (channels, z, y, x); a stack's files are one series whatever series their headers name.

    Raises:
        RefusedCaseError: a file is no DICOM, cut off or of several frames; several series or several images at one
            position; slices missing, uneven, of different sizes or directions; a tilted gantry.
    """
    files = files_of(path)
    datasets = [_dataset(file) for file in files]
    if not isinstance(path, Stack):
        _require_one_series(datasets)
    _require_alike(datasets)
    places, step = _sort(datasets)
    first = datasets[places[0]]
    size = (int(first.Columns), int(first.Rows), len(files))
    require_size(size)
    for file, dataset in zip(files, datasets, strict=True):
        _require_whole(file, dataset)
    array = np.stack([_pixels(files[index], size) for index in places], axis=1)
    matrix, spacing, known = _plane(first)
    notes = () if known else ("the DICOM header tells no spacing: distances are in voxels",)
    if (
        isinstance(path, Path)
        and path.is_dir()
        and (passed := sum(file.is_file() for file in path.iterdir()) - len(files))
    ):
        notes = (*notes, f"{passed} files beside the DICOM series were passed over")
    return Volume(array, _geometry(size, (*spacing, step), _origin(first), matrix, known), notes=notes)


def belongs(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by its contents where its name says nothing else."""
    if not path.is_file() or path.name.startswith("."):
        return False
    name = path.name.lower()
    return name.endswith(SUFFIXES) or (not name.endswith((*nifti.SUFFIXES, *itk.SUFFIXES)) and is_dicom(path))


def _dataset(file: Path) -> Any:
    import pydicom

    try:
        # A warning would quote the value that is out of order, and that may be the patient's name.
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            dataset.walk(lambda _, element: element.value)
        told = [int(dataset.get(key, 0) or 0) for key in ("Rows", "Columns", "BitsAllocated")]
    except Exception:  # pydicom raises whatever a damaged header leads it to
        raise RefusedCaseError("a file of the series is no DICOM, or it is damaged") from None
    if min(told) < 1:
        raise RefusedCaseError("a DICOM file of it announces no image")
    return dataset


def _require_one_series(datasets: Sequence[Any]) -> None:
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise RefusedCaseError(f"the folder holds {len(series)} DICOM series: put each in a folder of its own")


def _require_alike(datasets: Sequence[Any]) -> None:
    if any(int(dataset.get("NumberOfFrames", 1) or 1) > 1 for dataset in datasets):
        raise RefusedCaseError("a DICOM file of it holds several frames: convert it to NIfTI first")
    if any(int(dataset.BitsAllocated) < 8 for dataset in datasets):
        raise RefusedCaseError("a DICOM file of it holds a mask of one bit a pixel, no scan")
    if any(int(dataset.get("SamplesPerPixel", 1)) > 1 and int(dataset.BitsAllocated) > 8 for dataset in datasets):
        raise RefusedCaseError("its colours have more than 8 bits, which are not read reliably: save it otherwise")
    for key, words in (("Rows", "sizes"), ("Columns", "sizes"), ("SamplesPerPixel", "channels")):
        if len({dataset.get(key) for dataset in datasets}) > 1:
            raise RefusedCaseError(f"its slices have different {words}")
    for key, words in (("PixelSpacing", "spacings"), ("ImageOrientationPatient", "directions")):
        values = [tuple(float(v) for v in dataset.get(key, None) or ()) for dataset in datasets]
        if any(len(v) != len(values[0]) or not np.allclose(v, values[0], atol=1e-4) for v in values):
            raise RefusedCaseError(f"its slices have different {words}")


def _sort(datasets: Sequence[Any]) -> tuple[list[int], float]:
    """The order of the files along the slices' normal, and the distance between slices in mm."""
    first = datasets[0]
    thickness = float(first.get("SpacingBetweenSlices", None) or first.get("SliceThickness", None) or 1.0)
    if len(datasets) == 1:
        return [0], abs(thickness) or 1.0
    if any(dataset.get("ImagePositionPatient", None) is None for dataset in datasets):
        raise RefusedCaseError("its DICOM files do not tell their positions")
    positions = np.asarray([_origin(dataset) for dataset in datasets])
    normal = _plane(first)[0][:, 2]
    heights = positions @ normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    gaps = np.diff(heights[order])
    if gaps.min() < 1e-3:
        together = int((gaps < 1e-3).sum()) + 1
        raise RefusedCaseError(f"{together} of its images share positions: keep one image per position")
    usual = float(np.median(gaps))
    if np.abs(gaps - usual).max() > _UNEVEN * usual:
        raise RefusedCaseError(f"slices are missing or uneven: they lie {gaps.min():.3g} to {gaps.max():.3g} mm apart")
    height = float(heights.max() - heights.min())
    sideways = positions - np.outer(heights, normal)
    drift = float(np.linalg.norm(sideways - sideways[order[0]], axis=1).max())
    if drift > _TILT * height + 0.01:
        raise RefusedCaseError(f"its gantry is tilted: slices drift sideways by {drift:.3g} mm; resample it first")
    return order, height / len(gaps)


def _plane(dataset: Any) -> tuple[np.ndarray, tuple[float, float], bool]:
    """Columns x, y, normal of a slice's axes; its spacing along x and y; whether the header tells the spacing."""
    cosines = dataset.get("ImageOrientationPatient", None)
    matrix = np.eye(3)
    if cosines is not None and len(cosines) == 6:
        x, y = np.asarray(cosines[:3], dtype=np.float64), np.asarray(cosines[3:], dtype=np.float64)
        matrix = np.stack([x, y, np.cross(x, y)], axis=1)
        if not np.isfinite(matrix).all() or np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-3:
            raise RefusedCaseError("its slices' axes are not at right angles")
    spacing = [float(value) for value in dataset.get("PixelSpacing", None) or ()]
    known = len(spacing) == 2 and min(spacing) > 0
    return matrix, (spacing[1], spacing[0]) if known else (1.0, 1.0), known


def _origin(dataset: Any) -> tuple[float, float, float]:
    position = [float(value) for value in dataset.get("ImagePositionPatient", None) or (0.0, 0.0, 0.0)]
    if len(position) != 3 or not np.isfinite(position).all():
        raise RefusedCaseError("its DICOM files do not tell their positions")
    return position[0], position[1], position[2]


def _geometry(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    matrix: np.ndarray,
    known: bool,
) -> Geometry:
    return Geometry(
        size=size,
        spacing=spacing if known else (1.0, 1.0, 1.0),
        origin=origin,
        direction=tuple(float(value) for value in matrix.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=known,
    )


def _require_whole(file: Path, header: Any) -> None:
    """The pixel data is as long as the header says; compressed data ends with its end marker."""
    import pydicom

    try:
        with warnings.catch_warnings(action="ignore"):
            data = pydicom.dcmread(file).get("PixelData", b"") or b""
    except (EOFError, ValueError, TypeError, KeyError, OSError):
        raise RefusedCaseError("it is truncated: a DICOM file of it ends too early") from None
    if not data:
        raise RefusedCaseError("a DICOM file of it holds no pixels")
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        _require_all_fragments(data)
        return
    pixels = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1))
    expected = pixels * int(header.BitsAllocated) // 8
    # An odd length is padded to an even one.
    require_length(len(data) - (len(data) - expected == 1), expected)


def _require_all_fragments(data: bytes) -> None:
    from pydicom.encaps import parse_fragments

    try:
        count, _ = parse_fragments(data)
    except (ValueError, EOFError):
        count = 0
    if count < 1:
        raise RefusedCaseError("it is truncated: compressed pixels of a DICOM file end too early")


def _pixels(file: Path, size: tuple[int, int, int]) -> np.ndarray:
    """(channels, y, x) of one file, rescaled as its header says."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        array = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise RefusedCaseError("the pixels of a DICOM file of it cannot be decoded") from None
    array = array.reshape((size[1], size[0], -1))
    return np.moveaxis(array, -1, 0)
