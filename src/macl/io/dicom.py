"""A DICOM series: sorted and checked by pydicom, its pixels read by SimpleITK and rescaled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from macl.io import itk, nifti
from macl.io.deidentification import Identity, identifiers_in
from macl.io.geometry import Geometry, Header, Volume
from macl.io.integrity import require_length, require_size
from macl.io.source import ScanPath, SliceFiles
from macl.utils.errors import RefusedCaseError
from macl.utils.files import entries

SUFFIXES = (".dcm", ".dicom", ".ima")

_NAME_TAGS = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")

_ID_TAGS = (
    "AccessionNumber", "StudyID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers",
    "AdmissionID",
)  # fmt: skip

_SHORTEST_ID = 4
"""A shorter StudyID, such as "1", identifies nobody."""

_UNEVEN = 0.1
"""Gaps between slices may differ from their median by this share of it."""

_LARGEST_TILT = 1e-3
"""Slices may drift sideways by this share of the volume's height."""

NOT_SCANS = ("SEG", "RTDOSE", "RTIMAGE", "PR", "SR", "KO", "REG", "DOC", "RTSTRUCT", "RTPLAN")
"""Modalities of objects that belong to a scan and are none, though some have pixels."""

_NO_IMAGE = "one of its DICOM files announces no image"

_HEADER_TAGS = [
    "Rows", "Columns", "BitsAllocated", "PixelRepresentation", "SamplesPerPixel", "Modality",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SpacingBetweenSlices",
    "SliceThickness",
]  # fmt: skip
"""What the header of a volume is made of."""


def has_magic_number(path: Path) -> bool:
    """Whether a file says "DICM" where DICOM files do."""
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    if not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by its contents if its name says nothing else."""
    if not path.is_file() or path.name.startswith("."):
        return False
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return True
    return not name.endswith((*nifti.SUFFIXES, *itk.SUFFIXES)) and has_magic_number(path)


def files_in(folder: Path) -> list[Path]:
    """The DICOM files directly inside a folder, sorted by name."""
    return [path for path in entries(folder) if is_dicom_file(path)]


def is_series_folder(folder: Path) -> bool:
    """Whether a DICOM file lies directly inside a folder."""
    return any(is_dicom_file(path) for path in entries(folder))


def is_dicom(scan: ScanPath) -> bool:
    """Whether a scan is DICOM: a folder with a series, a file that says so, or such slices."""
    if isinstance(scan, SliceFiles):
        return has_magic_number(scan.files[0])
    return is_series_folder(scan) or has_magic_number(scan)


def slice_order(scan: ScanPath) -> list[int]:
    """The indices of a series' files, given in the order of their names, sorted by position.

    Raises:
        RefusedCaseError: as for `read`.
    """
    return _sort_slices(_read_images(scan).datasets)[0]


def read_header(scan: ScanPath) -> Header:
    """The header of the volume as its first image announces it, without the checks of `read`."""
    files = _files_of(scan)
    if isinstance(scan, Path) and scan.is_dir():
        images = _read_images(scan, _HEADER_TAGS)
        first, count = images.datasets[0], len(images.files)
    else:
        first, count = _require_image(_read_dataset(files[0])), len(files)
    size = (int(first.Columns), int(first.Rows), count)
    require_size(size)
    sign = "int" if int(first.get("PixelRepresentation", 0)) else "uint"
    return Header(
        format="DICOM",
        geometry=_geometry(first, size, _announced_distance(files, first)),
        channels=int(first.get("SamplesPerPixel", 1)),
        dtype=f"{sign}{int(first.BitsAllocated)}",
        modality=_modality(first),
    )


def read_identity(scan: ScanPath) -> Identity:
    """Who was scanned, from every readable header of the series; empty if none can be read."""
    patient_ids: list[str] = []
    series_uids: list[str] = []
    identifiers: set[str] = set()
    for file in _files_of(scan):
        try:
            dataset = _read_dataset(file)
            names = [str(dataset.get(tag, "") or "") for tag in _NAME_TAGS]
            birth_date = str(dataset.get("PatientBirthDate", "") or "")
            ids = [str(dataset.get(tag, "") or "") for tag in _ID_TAGS]
        except Exception:  # another header of the series may be readable
            continue
        patient_ids.append(str(dataset.get("PatientID", "") or ""))
        series_uids.append(str(dataset.get("SeriesInstanceUID", "") or ""))
        identifiers.update(identifiers_in(names, birth_date))
        identifiers.update(word for word in ids if len(word) >= _SHORTEST_ID)
    return Identity(
        patient_id=next(iter(patient_ids), ""),
        series_uid=next(iter(series_uids), ""),
        identifiers=tuple(sorted(identifiers)),
        readable=bool(patient_ids),
    )


def read(scan: ScanPath) -> Volume:
    """The series as (channels, z, y, x); `SliceFiles` are one series whatever their headers say.

    Raises:
        RefusedCaseError: a file is not DICOM, is cut off or holds several frames; there are several
            series, or several images at one position; slices are missing, uneven, or of different
            sizes or directions; the gantry is tilted.
    """
    files, datasets, without_image = _read_images(scan)
    if not isinstance(scan, SliceFiles):
        _require_one_series(datasets)
    _require_supported(datasets)
    _require_alike(datasets)
    order, distance_mm = _sort_slices(datasets)
    first = datasets[order[0]]
    size = (int(first.Columns), int(first.Rows), len(files))
    require_size(size)
    for file, dataset in zip(files, datasets, strict=True):
        _require_whole(file, dataset)
    array = np.stack([_read_pixels(files[index], size) for index in order], axis=1)
    geometry = _geometry(first, size, distance_mm)
    notes: list[str] = []
    if not geometry.spacing_known:
        notes.append("the DICOM header gives no spacing: distances are in voxels")
    elif len(files) == 1 and _slice_distance(first) is None:
        notes.append("the DICOM header gives no thickness of its single slice: assuming 1 mm")
    if without_image:
        notes.append(f"{without_image} DICOM files without a scan were ignored (contours, reports)")
    if isinstance(scan, Path) and scan.is_dir():
        others = sum(path.is_file() for path in scan.iterdir()) - len(files) - without_image
        if others:
            notes.append(f"{others} files beside the DICOM series were ignored")
    return Volume(array, geometry, notes=tuple(notes))


def _files_of(scan: ScanPath) -> list[Path]:
    if isinstance(scan, SliceFiles):
        return list(scan.files)
    files = files_in(scan) if scan.is_dir() else [scan]
    if not files:
        raise RefusedCaseError("the folder holds no DICOM files: there are no slices")
    return files


class _Images(NamedTuple):
    """The files of a series with an image, their headers, and how many files have none."""

    files: list[Path]
    datasets: list[Any]
    without_image: int


def _read_images(scan: ScanPath, tags: list[str] | None = None) -> _Images:
    """The headers of a series, without the contours, reports and masks in its folder."""
    files = _files_of(scan)
    datasets = [_read_dataset(file, tags) for file in files]
    pairs = list(zip(files, datasets, strict=True))
    if isinstance(scan, Path) and scan.is_dir():
        with_image = [pair for pair in pairs if _has_image(pair[1])]
        scans = [pair for pair in with_image if str(pair[1].get("Modality")) not in NOT_SCANS]
        if not with_image:
            raise RefusedCaseError("its folder holds no DICOM file with an image")
        pairs = scans or with_image
    for _, dataset in pairs:
        _require_image(dataset)
    kept_files, kept_datasets = (list(column) for column in zip(*pairs, strict=True))
    return _Images(kept_files, kept_datasets, len(files) - len(pairs))


def _has_image(dataset: Any) -> bool:
    return all(int(dataset.get(tag, 0) or 0) > 0 for tag in ("Rows", "Columns", "BitsAllocated"))


def _require_image(dataset: Any) -> Any:
    if not _has_image(dataset):
        raise RefusedCaseError(_NO_IMAGE)
    return dataset


def _read_dataset(file: Path, tags: list[str] | None = None) -> Any:
    """A file's header, every element of which can be read; or some of its elements alone."""
    import pydicom

    try:
        # A warning would quote the invalid value, and that may be the patient's name.
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            dataset.walk(lambda _, element: element.value)
        _has_image(dataset)
        return dataset
    except Exception:  # pydicom raises anything when a header is damaged
        raise RefusedCaseError("one of its files is not DICOM or is damaged") from None


def _modality(dataset: Any) -> str:
    modality = str(dataset.get("Modality", ""))
    return modality if modality in ("MR", "CT") else "unknown"


def _require_one_series(datasets: Sequence[Any]) -> None:
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise RefusedCaseError(
            f"the folder holds {len(series)} DICOM series: put each in a folder of its own"
        )


def _require_supported(datasets: Sequence[Any]) -> None:
    for dataset in datasets:
        bits = int(dataset.BitsAllocated)
        if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
            raise RefusedCaseError(
                "one of its DICOM files holds several frames: convert it to NIfTI first"
            )
        if bits < 8:
            raise RefusedCaseError(
                "one of its DICOM files is a mask with one bit per pixel, not a scan"
            )
        if int(dataset.get("SamplesPerPixel", 1)) > 1 and bits > 8:
            raise RefusedCaseError(
                "its colours have more than 8 bits, which cannot be read reliably: save them with 8"
            )


def _require_alike(datasets: Sequence[Any]) -> None:
    for tag, name in (("Rows", "sizes"), ("Columns", "sizes"), ("SamplesPerPixel", "channels")):
        if len({dataset.get(tag) for dataset in datasets}) > 1:
            raise RefusedCaseError(f"its slices have different {name}")
    for tag, name in (("PixelSpacing", "spacings"), ("ImageOrientationPatient", "directions")):
        values = [tuple(float(v) for v in dataset.get(tag, None) or ()) for dataset in datasets]
        if any(
            len(v) != len(values[0]) or not np.allclose(v, values[0], atol=1e-4) for v in values
        ):
            raise RefusedCaseError(f"its slices have different {name}")


def _sort_slices(datasets: Sequence[Any]) -> tuple[list[int], float]:
    """The indices of the files, sorted along the slices' normal, and the slices' distance in mm."""
    first = datasets[0]
    if len(datasets) == 1:
        return [0], _slice_distance(first) or 1.0
    if any(dataset.get("ImagePositionPatient", None) is None for dataset in datasets):
        raise RefusedCaseError("its DICOM headers give no slice positions")
    positions = np.asarray([_origin(dataset) for dataset in datasets])
    normal = _slice_plane(first).axes[:, 2]
    heights = positions @ normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    gaps = np.diff(heights[order])
    if gaps.min() < 1e-3:
        together = int((gaps < 1e-3).sum()) + 1
        raise RefusedCaseError(f"{together} of its images share positions: keep one per position")
    median = float(np.median(gaps))
    if np.abs(gaps - median).max() > _UNEVEN * median:
        raise RefusedCaseError(
            "slices are missing or uneven: their distances range from "
            f"{gaps.min():.3g} to {gaps.max():.3g} mm"
        )
    height = float(heights.max() - heights.min())
    sideways = positions - np.outer(heights, normal)
    drift = float(np.linalg.norm(sideways - sideways[order[0]], axis=1).max())
    if drift > _LARGEST_TILT * height + 0.01:
        raise RefusedCaseError(
            f"its gantry is tilted: slices drift sideways by {drift:.3g} mm; resample it first"
        )
    return order, height / len(gaps)


def _announced_distance(files: Sequence[Path], first: Any) -> float:
    """The distance between slices in mm as `read` takes it, from their positions; if these give
    none, which `read` refuses, as one header gives it."""
    import pydicom

    tags = ["ImagePositionPatient", "ImageOrientationPatient"]
    try:
        with warnings.catch_warnings(action="ignore"):
            headers = [
                pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
                for file in files[1:]
            ]
        return _sort_slices([first, *headers])[1]
    except Exception:  # pydicom raises anything when a header is damaged
        return _slice_distance(first) or 1.0


def _slice_distance(dataset: Any) -> float | None:
    """The distance between slices in mm, as one header gives it; None: it gives none."""
    distance = dataset.get("SpacingBetweenSlices", None) or dataset.get("SliceThickness", None)
    return abs(float(distance or 0)) or None


class _SlicePlane(NamedTuple):
    """Unit vectors x, y and normal as columns, and the spacing of x and y in mm if it is known."""

    axes: np.ndarray
    spacing: tuple[float, float] | None


def _slice_plane(dataset: Any) -> _SlicePlane:
    cosines = dataset.get("ImageOrientationPatient", None)
    axes = np.eye(3)
    if cosines is not None and len(cosines) == 6:
        x = np.asarray(cosines[:3], dtype=np.float64)
        y = np.asarray(cosines[3:], dtype=np.float64)
        axes = np.stack([x, y, np.cross(x, y)], axis=1)
        if not np.isfinite(axes).all() or np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
            raise RefusedCaseError("its slices' axes are not at right angles")
    spacing = [float(value) for value in dataset.get("PixelSpacing", None) or ()]
    known = len(spacing) == 2 and min(spacing) > 0
    return _SlicePlane(axes, (spacing[1], spacing[0]) if known else None)


def _origin(dataset: Any) -> tuple[float, float, float]:
    position = [float(value) for value in dataset.get("ImagePositionPatient", None) or (0, 0, 0)]
    if len(position) != 3 or not np.isfinite(position).all():
        raise RefusedCaseError("its DICOM headers give no slice positions")
    return position[0], position[1], position[2]


def _geometry(first: Any, size: tuple[int, int, int], distance_mm: float) -> Geometry:
    """The grid of a series whose first slice has this header."""
    axes, spacing = _slice_plane(first)
    return Geometry(
        size=size,
        spacing=(*spacing, distance_mm) if spacing else (1.0, 1.0, 1.0),
        origin=_origin(first),
        direction=tuple(float(value) for value in axes.ravel()),  # pyright: ignore[reportArgumentType]
        spacing_known=spacing is not None,
    )


def _require_whole(file: Path, header: Any) -> None:
    """The pixel data is as long as the header says; compressed data has all its fragments."""
    import pydicom

    try:
        with warnings.catch_warnings(action="ignore"):
            data = pydicom.dcmread(file).get("PixelData", b"") or b""
    except (EOFError, ValueError, TypeError, KeyError, OSError):
        raise RefusedCaseError("it is truncated: one of its DICOM files ends too early") from None
    if not data:
        raise RefusedCaseError("one of its DICOM files holds no pixels")
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
        raise RefusedCaseError(
            "it is truncated: the compressed pixels of a DICOM file end too early"
        )


def _read_pixels(file: Path, size: tuple[int, int, int]) -> np.ndarray:
    """(channels, y, x) of one file, rescaled as its header says."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        array = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise RefusedCaseError("the pixels of one of its DICOM files cannot be decoded") from None
    return np.moveaxis(array.reshape((size[1], size[0], -1)), -1, 0)
