"""Scans are read whole or refused, and come back as they were written."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from fakes.scans import (
    affine,
    anatomy,
    announce,
    bomb,
    break_checksum,
    flip_bit,
    truncate,
    write_itk,
    write_nifti,
)
from macl.io.geometry import Geometry, axis_codes, corners, grid_difference
from macl.io.integrity import MAX_VOXELS
from macl.io.volume import read_header, read_label, read_scan, write_volume
from macl.utils.errors import MaclError, RefusedCaseError

OBLIQUE = Geometry(
    size=(5, 4, 3),
    spacing=(0.5, 1.25, 3.0),
    origin=(-11.5, 22.25, 7.0),
    direction=(0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0),
    spacing_known=True,
)


def write(path: Path, array: np.ndarray) -> Path:
    return write_nifti(path, array) if ".nii" in path.name else write_itk(path, array)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_voxels_and_grid_are_those_of_simpleitk(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"scan{suffix}", anatomy(1)[0])
    volume, other = read_scan((path,)), SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(other))
    assert volume.geometry.size == other.GetSize()
    np.testing.assert_allclose(volume.geometry.spacing, other.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.origin, other.GetOrigin(), rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.direction, other.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str, dtype: str, channels: int) -> None:
    array = np.arange(60 * channels).reshape(channels, 3, 4, 5).astype(dtype)
    path = tmp_path / f"scan{suffix}"
    write_volume(path, array if channels > 1 else array[0], OBLIQUE)
    volume = read_scan((path,), channels)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(
            getattr(volume.geometry, name), getattr(OBLIQUE, name), atol=1e-6
        )
    assert list(tmp_path.iterdir()) == [path]


def test_a_rewritten_nifti_keeps_its_affine_bit_by_bit(tmp_path: Path) -> None:
    matrix = affine((0.7273, 1.1, 2.9999))
    matrix[:3, 3] = (12.3456, -7.1, 0.3)
    first = write_nifti(tmp_path / "a.nii.gz", anatomy(1)[0], matrix)
    volume = read_scan((first,))
    write_volume(tmp_path / "b.nii.gz", volume.array[0], volume.geometry)
    a, b = nibabel.load(first), nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(a.affine, b.affine)
    np.testing.assert_array_equal(a.header.get_zooms(), b.header.get_zooms())
    assert read_scan((tmp_path / "b.nii.gz",)).geometry == volume.geometry


def test_the_same_mask_is_the_same_file(tmp_path: Path) -> None:
    label = anatomy(1)[1]
    geometry = read_header(write_nifti(tmp_path / "scan.nii.gz", label)).geometry
    for name in ("a", "b"):
        write_volume(tmp_path / name / "mask.nii.gz", label, geometry)
    assert (tmp_path / "a/mask.nii.gz").read_bytes() == (tmp_path / "b/mask.nii.gz").read_bytes()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".png"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    image = anatomy(1)[0]
    path = write(
        tmp_path / f"scan{suffix}", image[0].astype(np.uint8) if suffix == ".png" else image
    )
    truncate(path, part)
    with pytest.raises(RefusedCaseError):
        read_scan((path,))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".png"])
@pytest.mark.parametrize("part", [0.5, 0.7, 0.95])
def test_a_flipped_bit_in_compressed_voxels_is_refused(
    tmp_path: Path, suffix: str, part: float
) -> None:
    image = anatomy(1)[0]
    path = write(
        tmp_path / f"scan{suffix}", image[0].astype(np.uint8) if suffix == ".png" else image
    )
    flip_bit(path, part)
    with pytest.raises(RefusedCaseError, match=r"damaged|truncated|more image data"):
        read_scan((path,))


def test_a_wrong_checksum_is_refused_though_every_voxel_is_right(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", anatomy(1)[0])
    break_checksum(path)
    with pytest.raises(RefusedCaseError, match="checksum"):
        read_scan((path,))


def test_a_metaimage_header_that_misleads_simpleitk_is_refused(tmp_path: Path) -> None:
    path = write_itk(tmp_path / "scan.mha", anatomy(1)[0])
    size = path.read_bytes().split(b"CompressedDataSize = ")[1].split(b"\n")[0]
    path.write_bytes(
        path.read_bytes().replace(
            b"Size = " + size, b"Size = " + b"%0*d" % (len(size), int(size) // 2)
        )
    )
    with pytest.raises(RefusedCaseError, match="damaged"):
        read_scan((path,))


def test_members_of_a_gzip_file_and_padding_are_read(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii", anatomy(1)[0])
    data = path.read_bytes()
    both = tmp_path / "both.nii.gz"
    both.write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + bytes(17))
    np.testing.assert_array_equal(read_scan((both,)).array, read_scan((path,)).array)
    both.write_bytes(gzip.compress(data) + b"more")
    with pytest.raises(RefusedCaseError, match="damaged"):
        read_scan((both,))


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    with pytest.raises(
        RefusedCaseError, match=f"20000 × 20000 × 300 voxels, more than the {MAX_VOXELS}"
    ):
        read_scan((bomb(tmp_path / "bomb.nii.gz"),))
    small = bomb(tmp_path / "small.nii.gz", (10, 10, 10))
    with pytest.raises(RefusedCaseError, match="more image data than the 2000 bytes"):
        read_scan((small,))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".dcm"])
def test_text_under_a_scans_name_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    path.write_text("Dear colleague, please find attached " * 20)
    with pytest.raises(RefusedCaseError):
        read_scan((path,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: np.where(a > a.mean(), np.nan, a), "NaN or infinite"),
        (lambda a: np.where(a == a.max(), np.inf, a), "1 of its 2880 voxels are NaN or infinite"),
        (lambda a: np.full_like(a, 7), "constant: every voxel is 7"),
        (lambda a: np.stack([a, a]), r"4D \(2 volumes\), expected one"),
        (lambda a: a[:0], "there are no slices"),
    ],
)
def test_contents_that_mean_nothing_are_refused(tmp_path: Path, change, reason: str) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", change(anatomy(1)[0].astype(np.float32)))
    with pytest.raises(RefusedCaseError, match=reason):
        read_scan((path,))


def test_a_header_that_announces_no_slices_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii", anatomy(1)[0])
    announce(path, (24, 20, 0))
    with pytest.raises(RefusedCaseError, match="there are no slices"):
        read_scan((path,))


def test_a_sheared_affine_is_refused_by_name(tmp_path: Path) -> None:
    matrix = affine()
    matrix[0, 1] = 0.2
    with pytest.raises(RefusedCaseError, match="sheared"):
        read_scan((write_nifti(tmp_path / "scan.nii.gz", anatomy(1)[0], matrix),))


def test_units_are_turned_into_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(anatomy(1)[0].T, affine((0.001, 0.002, 0.003)))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "scan.nii")
    np.testing.assert_allclose(
        read_scan((tmp_path / "scan.nii",)).geometry.spacing, (1, 2, 3), rtol=1e-6
    )


def test_disagreeing_forms_are_noticed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(anatomy(1)[0].T, affine())
    image.set_sform(affine(), code=1)
    image.set_qform(np.diag([1.0, 1.5, 4.0, 1.0]), code=1)
    image.to_filename(tmp_path / "scan.nii")
    volume = read_scan((tmp_path / "scan.nii",))
    assert any("sform and qform disagree" in note for note in volume.notes)
    assert axis_codes(volume.geometry) == "LPS"


def test_an_unknown_spacing_is_reported(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(anatomy(1)[0].T, None)
    image.header["pixdim"][1:4] = 0
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(tmp_path / "scan.nii")
    assert not read_scan((tmp_path / "scan.nii",)).geometry.spacing_known
    picture = write_itk(tmp_path / "scan.png", anatomy(1)[0][0].astype(np.uint8))
    assert not read_scan((picture,)).geometry.spacing_known


def test_scaled_integers_stay_integers(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(anatomy(1)[0].T, affine())
    image.header.set_slope_inter(0.5, -3.0)
    image.to_filename(tmp_path / "scan.nii")
    data = bytearray((tmp_path / "scan.nii").read_bytes())
    data[112:120] = np.asarray([0.5, -3.0], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(data)
    volume = read_scan((tmp_path / "scan.nii",))
    assert volume.array.dtype == np.int16
    assert volume.rescale == ((0.5, -3.0),)
    truth = np.asarray(nibabel.load(tmp_path / "scan.nii").dataobj).T
    np.testing.assert_allclose(volume.array[0] * 0.5 - 3.0, truth)


def test_channels_are_counted_and_must_share_a_grid(tmp_path: Path) -> None:
    image = anatomy(1)[0]
    first, second = (
        write_nifti(tmp_path / "a.nii.gz", image),
        write_nifti(tmp_path / "b.nii.gz", image + 1),
    )
    assert read_scan((first, second), 2).array.shape == (2, *image.shape)
    both = write_nifti(tmp_path / "both.nii.gz", np.stack([image, image + 1]))
    assert read_scan((both,), 2).array.shape == (2, *image.shape)
    with pytest.raises(RefusedCaseError, match="2 channels, expected 3"):
        read_scan((first, second), 3)
    with pytest.raises(RefusedCaseError, match="1 channels, expected 2"):
        read_scan((first,), 2)
    with pytest.raises(RefusedCaseError, match="different grids"):
        read_scan((first, write_nifti(tmp_path / "c.nii.gz", image, affine((2.0, 1.5, 4.0)))), 2)


def test_a_series_of_coloured_volumes_is_refused(tmp_path: Path) -> None:
    colours = np.repeat(anatomy(1)[0][..., None], 3, axis=-1)
    volume = SimpleITK.GetImageFromArray(colours, isVector=True)
    SimpleITK.WriteImage(SimpleITK.JoinSeries([volume, volume]), str(tmp_path / "scan.mha"))
    with pytest.raises(RefusedCaseError, match="fourth axis and several components"):
        read_header(tmp_path / "scan.mha")


def test_a_frame_that_is_not_there_is_refused(tmp_path: Path) -> None:
    image = anatomy(1)[0]
    path = write_nifti(tmp_path / "scan.nii.gz", np.stack([image, image + 1]))
    np.testing.assert_array_equal(read_scan((path,), frame=1).array[0], image + 1)
    with pytest.raises(RefusedCaseError, match="no frame 3: its fourth axis has 2 time points"):
        read_scan((path,), frame=2)


def test_a_data_file_outside_the_headers_folder_is_refused(tmp_path: Path) -> None:
    path = write_itk(tmp_path / "in" / "scan.mhd", anatomy(1)[0], compressed=False)
    (tmp_path / "in" / "scan.raw").rename(tmp_path / "secret.raw")
    path.write_text(path.read_text().replace("scan.raw", "../secret.raw"))
    with pytest.raises(RefusedCaseError, match="outside its own folder"):
        read_scan((path,))


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    label = anatomy(1)[1]
    as_floats = read_label(write_nifti(tmp_path / "a.nii.gz", label.astype(np.float32)))
    np.testing.assert_array_equal(as_floats.array[0], label)
    assert as_floats.array.dtype.kind == "i"
    for value in (0.5, np.nan, np.inf):
        with pytest.raises(RefusedCaseError, match="not whole numbers"):
            read_label(
                write_nifti(
                    tmp_path / "b.nii.gz", np.where(label == 1, value, label).astype(np.float32)
                )
            )
    colours = np.stack([label[0] * 100, label[0] * 100, label[0]], axis=-1)
    with pytest.raises(RefusedCaseError, match="3 channels"):
        read_label(write_itk(tmp_path / "c.png", colours))
    grey = read_label(
        write_itk(tmp_path / "d.png", np.repeat(label[0][..., None] * 100, 3, axis=-1))
    )
    assert sorted(np.unique(grey.array)) == [0, 100, 200]
    with pytest.raises(RefusedCaseError, match="too large"):
        read_label(write_nifti(tmp_path / "large.nii.gz", label * np.float32(2**31)))
    empty = read_label(write_nifti(tmp_path / "e.nii.gz", np.zeros_like(label)))
    assert not empty.array.any()


def changed(**values: object) -> Geometry:
    return OBLIQUE.model_copy(update=values)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (OBLIQUE, None),
        (changed(spacing=(0.50001, 1.25, 3.0)), None),
        (changed(origin=(-11.49, 22.25, 7.0)), None),
        (changed(size=(5, 4, 2)), "5 × 4 × 3 voxels against 5 × 4 × 2"),
        (changed(spacing=(0.6, 1.25, 3.0)), "spacing"),
        (changed(origin=(-11.0, 22.25, 7.0)), "origin"),
        (changed(direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)), "direction"),
        (changed(spacing=(1, 1, 1), spacing_known=False), None),
    ],
)
def test_grids_differ_in_words(other: Geometry, words: str | None) -> None:
    difference = grid_difference(OBLIQUE, other)
    assert difference is None if words is None else words in (difference or "")


def test_corners_by_hand() -> None:
    centres = corners(OBLIQUE)
    along_x = np.array([0.8, 0.6, 0.0]) * 4 * 0.5
    np.testing.assert_allclose(centres[0], OBLIQUE.origin)
    np.testing.assert_allclose(centres[4], np.array(OBLIQUE.origin) + along_x)


@pytest.mark.parametrize("name", ["mask.jpg", "mask.mhd", "mask"])
def test_formats_that_are_not_written_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MaclError, match=r"name a \.nii\.gz"):
        write_volume(tmp_path / name, np.zeros((3, 4, 5), np.uint8), OBLIQUE)
    assert not list(tmp_path.iterdir())


def test_an_array_of_another_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MaclError, match="does not fit"):
        write_volume(tmp_path / "mask.nii.gz", np.zeros((5, 4, 3), np.uint8), OBLIQUE)


def test_a_picture_comes_back(tmp_path: Path) -> None:
    flat = changed(size=(5, 4, 1))
    colours = np.arange(60, dtype=np.uint8).reshape(3, 1, 4, 5)
    write_volume(tmp_path / "a.png", colours, flat)
    np.testing.assert_array_equal(read_scan((tmp_path / "a.png",), 3).array, colours)
    with pytest.raises(MaclError, match="one slice"):
        write_volume(tmp_path / "b.png", np.zeros((3, 4, 5), np.uint8), OBLIQUE)


def test_a_mask_with_a_slope_is_whole(tmp_path: Path) -> None:
    mask = anatomy(1)[1].astype(np.float64) * 1.5
    image = nibabel.Nifti1Image(mask, np.eye(4))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(RefusedCaseError, match="not whole numbers"):
        read_label(tmp_path / "a.nii.gz")
    whole = nibabel.Nifti1Image(np.where(mask == 1.5, 1, mask), np.eye(4))
    whole.set_data_dtype(np.uint8)
    nibabel.save(whole, tmp_path / "b.nii.gz")
    assert np.unique(read_label(tmp_path / "b.nii.gz").array).tolist() == [0, 1, 3]


def test_an_nrrd_may_hold_its_channels_last(tmp_path: Path) -> None:
    voxels = np.arange(240, dtype="<i2").reshape(2, 4, 5, 6)
    header = (
        "NRRD0004\ntype: int16\ndimension: 4\nspace: left-posterior-superior\nsizes: 6 5 4 2\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2) none\nkinds: domain domain domain list\n"
        "endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + voxels.tobytes())
    np.testing.assert_array_equal(read_scan([tmp_path / "a.nrrd"], 2).array, voxels)
