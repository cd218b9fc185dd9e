"""What headers say is read, repaired with a note where it is odd, and repeated in masks."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image, ImageOps

from fakes.dicom import write_series
from fakes.scans import affine, anatomy
from macl.io.volume import read_header, read_scan, write_volume
from macl.utils.errors import RefusedCaseError

IMAGE, LABEL = anatomy(1)
NAN = float("nan")

QFAC, SIZES, UNITS, CODES, QUATERNION, SFORM = 76, 80, 123, 252, 256, 280
"""Where fields of a NIfTI-1 header begin."""

NIFTI_HEADERS = {
    "usual": [],
    "no form": [(CODES, "2h", 0, 0)],
    "qform alone": [(CODES, "2h", 1, 0)],
    "sform alone": [(CODES, "2h", 0, 1)],
    "other codes": [(CODES, "2h", 3, 4)],
    "forms disagree": [(CODES, "2h", 1, 2), (QUATERNION, "6f", 0, 0, 0, 5, 6, 7)],
    "forms disagree, scanner sform": [(CODES, "2h", 2, 1), (QUATERNION, "6f", 0, 0, 0, 5, 6, 7)],
    "handedness 0": [(QFAC, "f", 0)],
    "handedness 0, qform alone": [(QFAC, "f", 0), (CODES, "2h", 1, 0)],
    "negative sizes": [(SIZES, "3f", -1, -1.5, 4)],
    "negative sizes, qform alone": [(SIZES, "3f", -1, -1.5, 4), (CODES, "2h", 1, 0)],
    "negative sizes, no form": [(SIZES, "3f", -1, -1.5, 4), (CODES, "2h", 0, 0)],
    "no spacing": [(SIZES, "3f", 0, 0, 0), (CODES, "2h", 0, 0)],
    "sizes of NaN, sform alone": [(SIZES, "3f", NAN, NAN, NAN), (CODES, "2h", 0, 1)],
    "metres": [(UNITS, "B", 1)],
    "micrometres and seconds": [(UNITS, "B", 3 + 8)],
    "no unit": [(UNITS, "B", 0)],
}


def nifti(path: Path, changes: list[tuple]) -> Path:
    image = nibabel.Nifti1Image(IMAGE.T, affine())
    image.header.set_xyzt_units("mm")
    image.set_sform(affine(), code=1)
    image.set_qform(affine(), code=1)
    image.to_filename(path)
    data = bytearray(path.read_bytes())
    for offset, form, *values in changes:
        struct.pack_into("<" + form, data, offset, *values)
    path.write_bytes(data)
    return path


def as_nibabel(path: Path) -> np.ndarray:
    return nibabel.load(path).affine


def as_itk(path: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    return np.asarray([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])


def as_qform_first(path: Path) -> np.ndarray:
    header = nibabel.load(path).header
    return header.get_qform() if header["qform_code"] > 0 else header.get_best_affine()


def as_sform_first(path: Path) -> np.ndarray:
    header = nibabel.load(path).header
    return header.get_sform() if header["sform_code"] > 0 else as_qform_first(path)


@pytest.mark.parametrize("read", [as_nibabel, as_itk, as_qform_first, as_sform_first])
@pytest.mark.parametrize("kind", NIFTI_HEADERS)
def test_every_program_finds_a_nifti_mask_on_its_scan(tmp_path: Path, kind: str, read) -> None:
    scan = nifti(tmp_path / "scan.nii", NIFTI_HEADERS[kind])
    volume = read_scan((scan,))
    np.testing.assert_array_equal(volume.array[0], IMAGE)
    write_volume(tmp_path / "mask.nii", LABEL, volume.geometry)
    np.testing.assert_allclose(read(tmp_path / "mask.nii"), read(scan), rtol=1e-6, atol=1e-6)
    again = read_header(tmp_path / "mask.nii").geometry
    np.testing.assert_allclose(again.spacing, volume.geometry.spacing, rtol=1e-6)
    np.testing.assert_allclose(again.origin, volume.geometry.origin, atol=1e-5)
    assert again.spacing_known == volume.geometry.spacing_known == (kind != "no spacing")


@pytest.mark.parametrize("kind", sorted(NIFTI_HEADERS.keys() - {"no spacing"}))
def test_a_nifti_grid_is_that_of_nibabel(tmp_path: Path, kind: str) -> None:
    scan = nifti(tmp_path / "scan.nii", NIFTI_HEADERS[kind])
    factor = {"metres": 1000.0, "micrometres and seconds": 0.001}.get(kind, 1.0)
    expected = np.linalg.norm(as_nibabel(scan)[:3, :3], axis=0) * factor
    geometry = read_header(scan).geometry
    np.testing.assert_allclose(geometry.spacing, expected, rtol=1e-6)
    origin = as_nibabel(scan)[:3, 3] * factor * (-1, -1, 1)
    np.testing.assert_allclose(geometry.origin, origin, rtol=1e-6)


@pytest.mark.parametrize("excess", [1e-7, 1e-6, 1e-5, 1e-4])
def test_a_quaternion_a_rounding_too_long_is_that_of_itk(tmp_path: Path, excess: float) -> None:
    b, c = 0.6 * (1 + excess), 0.8 * (1 + excess)
    scan = nifti(tmp_path / "scan.nii", [(CODES, "2h", 1, 0), (QUATERNION, "3f", b, c, 0)])
    direction = read_header(scan).geometry.direction
    itk = SimpleITK.ReadImage(str(scan)).GetDirection()
    np.testing.assert_allclose(direction, itk, atol=1e-4)


def test_a_quaternion_far_too_long_is_refused_unless_there_is_an_sform(tmp_path: Path) -> None:
    change = (QUATERNION, "3f", 3, 4, 0)
    with pytest.raises(RefusedCaseError, match="qform is not a rotation"):
        read_header(nifti(tmp_path / "a.nii", [(CODES, "2h", 1, 0), change]))
    volume = read_scan((nifti(tmp_path / "b.nii", [change]),))
    assert volume.geometry.spacing == (1.0, 1.5, 4.0)
    assert any("qform is not a grid" in note for note in volume.notes)


def test_an_empty_sform_leaves_the_qform(tmp_path: Path) -> None:
    volume = read_scan((nifti(tmp_path / "a.nii", [(SFORM, "12f", *[0] * 12)]),))
    assert volume.geometry.spacing == (1.0, 1.5, 4.0)
    assert any("sform is not a grid" in note for note in volume.notes)


def test_negative_sizes_are_noted(tmp_path: Path) -> None:
    volume = read_scan((nifti(tmp_path / "a.nii", NIFTI_HEADERS["negative sizes"]),))
    assert any("negative voxel sizes" in note for note in volume.notes)


def test_a_nifti_2_keeps_its_version_and_time_step(tmp_path: Path) -> None:
    series = np.stack([IMAGE, IMAGE + 1])
    image = nibabel.Nifti2Image(series.transpose(3, 2, 1, 0), affine())
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    image.to_filename(tmp_path / "scan.nii.gz")
    volume = read_scan((tmp_path / "scan.nii.gz",), 2)
    write_volume(tmp_path / "mask.nii.gz", series.astype(np.uint8), volume.geometry)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nibabel.Nifti2Image)
    np.testing.assert_array_equal(mask.affine, image.affine)
    np.testing.assert_allclose(mask.header.get_zooms(), image.header.get_zooms())


# ---------------------------------------------------------------- NRRD and MetaImage

NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 24 20 6\nendian: little\nencoding: raw\n"
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "DimSize = 24 20 6\nElementType = MET_SHORT\n"
)
LPS = "space: left-posterior-superior\n"


def nrrd(path: Path, lines: str) -> Path:
    path.write_bytes((NRRD + lines + "\n").encode() + IMAGE.astype("<i2").tobytes())
    return path


def meta_image(path: Path, lines: str) -> Path:
    header = META + lines + "ElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + IMAGE.astype("<i2").tobytes())
    return path


def directions(x: float, y: float, z: float) -> str:
    return f"{LPS}space directions: ({x},0,0) (0,{y},0) (0,0,{z})\nspace origin: ({x},0,0)\n"


def units(*names: str) -> str:
    return "space units: " + " ".join(f'"{name}"' for name in names) + "\n"


UNITS_OF_LENGTH = [
    (nrrd, "a.nrrd", directions(500, 600, 1000) + units("um", "um", "um"), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", directions(500, 600, 1000) + units("µm", "µm", "µm"), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", directions(500, 600, 1) + units("microns", "um", "mm"), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", directions(0.05, 0.06, 0.1) + units("cm", "cm", "cm"), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", directions(5e-4, 6e-4, 1e-3) + units("m", "m", "m"), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", directions(0.5, 0.6, 1) + units("", "", ""), (0.5, 0.6, 1.0)),
    (nrrd, "a.nrrd", 'spacings: 500 600 1000\nunits: "um" "um" "um"\n', (0.5, 0.6, 1.0)),
    (meta_image, "a.mha", "DistanceUnits = um\nElementSpacing = 500 600 1000\n", (0.5, 0.6, 1.0)),
    (meta_image, "a.mha", "DistanceUnits = cm\nElementSpacing = 0.05 0.06 0.1\n", (0.5, 0.6, 1.0)),
]


@pytest.mark.parametrize(("write", "name", "lines", "spacing"), UNITS_OF_LENGTH)
def test_units_of_length_become_millimetres_and_masks_keep_them(
    tmp_path: Path, write, name: str, lines: str, spacing: tuple[float, float, float]
) -> None:
    scan = write(tmp_path / name, lines)
    geometry = read_scan((scan,)).geometry
    np.testing.assert_allclose(geometry.spacing, spacing, rtol=1e-6)
    mask = tmp_path / f"mask{scan.suffix}"
    write_volume(mask, LABEL, geometry)
    np.testing.assert_allclose(read_scan((mask,)).geometry.spacing, spacing, rtol=1e-6)
    np.testing.assert_allclose(read_header(mask).geometry.origin, geometry.origin, rtol=1e-6)
    np.testing.assert_allclose(as_itk(mask), as_itk(scan), rtol=1e-6)


def test_an_unknown_unit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RefusedCaseError, match="'furlong', which macl does not know"):
        read_header(nrrd(tmp_path / "a.nrrd", directions(1, 1, 1) + units(*["furlong"] * 3)))


ABSENT_SPACING = [
    (nrrd, "a.nrrd", ""),
    (nrrd, "a.nrrd", "spacings: NaN NaN NaN\n"),
    (nrrd, "a.nrrd", "spacings: 1 1 NaN\n"),
    (nrrd, "a.nrrd", LPS + "space directions: none none none\n"),
    (nrrd, "a.nrrd", directions(1, 1, 1) + units("pixel", "pixel", "pixel")),
    (meta_image, "a.mha", ""),
]


@pytest.mark.parametrize(("write", "name", "lines"), ABSENT_SPACING)
def test_an_absent_spacing_is_unknown_and_said(
    tmp_path: Path, write, name: str, lines: str
) -> None:
    scan = write(tmp_path / name, lines)
    volume = read_scan((scan,))
    assert not volume.geometry.spacing_known
    assert any("distances are in voxels" in note for note in volume.notes)
    mask = tmp_path / f"mask{scan.suffix}"
    write_volume(mask, LABEL, volume.geometry)
    again = read_scan((mask,))
    assert not again.geometry.spacing_known
    np.testing.assert_array_equal(again.array[0], LABEL)


def test_a_metaimage_is_rescaled_as_its_header_says(tmp_path: Path) -> None:
    lines = "ElementSpacing = 1 1 1\nElementToIntensityFunctionSlope = 2\n"
    lines += "ElementToIntensityFunctionOffset = -5\n"
    assert read_scan((meta_image(tmp_path / "a.mha", lines),)).rescale == ((2.0, -5.0),)


@pytest.mark.parametrize("name", ["a scan.raw", "./scan.raw", "raw/scan.raw", "Größe 1.raw"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_detached_data_is_found_under_any_name(tmp_path: Path, name: str, suffix: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / name).write_bytes(IMAGE.astype("<i2").tobytes())
    header = tmp_path / f"scan{suffix}"
    detached = META + f"ElementSpacing = 1 1.5 4\nElementDataFile = {name}\n"
    if suffix == ".nhdr":
        detached = NRRD + f"spacings: 1 1.5 4\ndata file: {name}\n"
    header.write_text(detached, encoding="utf-8")
    volume = read_scan((header,))
    np.testing.assert_array_equal(volume.array[0], IMAGE)
    assert volume.geometry.spacing == (1.0, 1.5, 4.0)


@pytest.mark.parametrize("name", ["../out.raw", "./../out.raw", "raw/../../out.raw", "link.raw"])
def test_detached_data_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in/raw").mkdir(parents=True)
    (tmp_path / "out.raw").write_bytes(IMAGE.astype("<i2").tobytes())
    (tmp_path / "in/link.raw").symlink_to(tmp_path / "out.raw")
    for place in (name, str(tmp_path / "out.raw")):
        (tmp_path / "in/scan.mhd").write_text(META + f"ElementDataFile = {place}\n")
        with pytest.raises(RefusedCaseError, match="outside its own folder"):
            read_scan((tmp_path / "in/scan.mhd",))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_as_it_is_shown(tmp_path: Path, suffix: str, orientation: int) -> None:
    rows, columns = np.indices((32, 48))
    picture = Image.fromarray((rows * 4 + columns * 2).astype(np.uint8))
    tags = picture.getexif()
    tags[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    picture.save(path, exif=tags)
    with Image.open(path) as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored))
    volume = read_scan((path,))
    assert volume.geometry == read_header(path).geometry
    assert volume.geometry.size == (shown.shape[1], shown.shape[0], 1)
    np.testing.assert_allclose(volume.array[0, 0].astype(int), shown.astype(int), atol=2)
    assert any("orientation tag" in note for note in volume.notes) == (orientation > 1)


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("modality", ["RTSTRUCT", "SR", "SEG", "RTDOSE"])
def test_what_lies_beside_a_dicom_series_is_passed_over(tmp_path: Path, modality: str) -> None:
    import pydicom

    pixels = write_series(tmp_path / "scan")
    other = pydicom.dcmread(tmp_path / "scan/IM0000.dcm")
    other.Modality, other.SeriesInstanceUID = modality, "1.2.3.77"
    if modality in ("RTSTRUCT", "SR"):
        for tag in ("Rows", "Columns", "BitsAllocated", "PixelData"):
            delattr(other, tag)
    other.save_as(tmp_path / "scan/A.dcm", enforce_file_format=True)
    volume = read_scan((tmp_path / "scan",))
    np.testing.assert_array_equal(volume.array[0], pixels)
    assert read_header(tmp_path / "scan").geometry.size == volume.geometry.size
    assert any("1 DICOM files without a scan were ignored" in note for note in volume.notes)


def test_a_slice_without_a_thickness_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", shape=(1, 12, 16))
    volume = read_scan((tmp_path / "scan",))
    assert any("no thickness" in note for note in volume.notes)
