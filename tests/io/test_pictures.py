"""Pictures: JPEG files are whole or refused, and one picture per slice makes a volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from fakes.dicom import write_series
from fakes.scans import anatomy, truncate, write_itk
from macl.io.source import SliceFiles
from macl.io.volume import read_header, read_label, read_scan
from macl.utils.errors import RefusedCaseError


def write_jpeg(path: Path, colours: int = 3) -> np.ndarray:
    """Write a picture and return (channels, rows, columns) as its decoder gives them back."""
    grey = anatomy(0, (1, 40, 52))[0][0].astype(np.uint8)
    picture = np.stack([grey, grey // 2, 255 - grey], axis=-1) if colours == 3 else grey
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(picture, isVector=colours == 3), str(path))
    decoded = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return np.moveaxis(decoded, -1, 0) if colours == 3 else decoded[None]


@pytest.mark.parametrize("colours", [1, 3])
def test_a_jpeg_is_one_slice_without_spacing(tmp_path: Path, colours: int) -> None:
    expected = write_jpeg(tmp_path / "a.jpg", colours)
    header, volume = read_header(tmp_path / "a.jpg"), read_scan((tmp_path / "a.jpg",))
    assert (header.format, header.channels, header.geometry.spacing_known) == (
        "JPEG",
        colours,
        False,
    )
    np.testing.assert_array_equal(volume.array[:, 0], expected)
    assert volume.geometry.size == (52, 40, 1)


@pytest.mark.parametrize("part", [0.05, 0.3, 0.9, 0.99])
def test_a_jpeg_that_is_cut_off_is_refused(tmp_path: Path, part: float) -> None:
    write_jpeg(tmp_path / "a.jpg")
    truncate(tmp_path / "a.jpg", part)
    with pytest.raises(RefusedCaseError, match=r"truncated|not|damaged"):
        read_scan((tmp_path / "a.jpg",))


@pytest.mark.parametrize("kept", ["empty", "text", "png"])
def test_what_only_calls_itself_a_jpeg_is_refused(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "a.jpg"
    if kept == "png":
        write_itk(tmp_path / "a.png", anatomy(0)[0][0].astype(np.uint8)).rename(path)
    else:
        path.write_bytes(b"" if kept == "empty" else b"a picture")
    with pytest.raises(RefusedCaseError, match="empty" if kept == "empty" else "contents are not"):
        read_header(path)


def test_a_jpeg_that_announces_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    frame = next(
        index for index in range(len(data)) if data[index : index + 2] in (b"\xff\xc0", b"\xff\xc2")
    )
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(RefusedCaseError, match="65535 × 65535 voxels, more than"):
        read_header(tmp_path / "a.jpg")


def write_stack(folder: Path, array: np.ndarray, grey: bool = False) -> SliceFiles:
    for index, picture in enumerate(array):
        write_itk(
            folder / f"{index:03d}.png",
            np.repeat(picture[..., None], 3, axis=-1) if grey else picture,
        )
    return SliceFiles(tuple(sorted(folder.iterdir())), grey)


@pytest.mark.parametrize("grey", [False, True])
def test_pictures_in_order_are_one_volume(tmp_path: Path, grey: bool) -> None:
    array = anatomy(1)[0].astype(np.uint8)
    stack = write_stack(tmp_path / "s", array, grey)
    header = read_header(stack)
    assert (header.format, header.channels, header.geometry.size) == ("PNG", 1, (24, 20, 6))
    np.testing.assert_array_equal(read_scan((stack,), 1).array, array[None])


def test_pictures_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    array = anatomy(1)[0].astype(np.uint8)
    write_itk(tmp_path / "a/003.png", array[0, :-1])
    with pytest.raises(RefusedCaseError, match="different sizes"):
        read_scan((write_stack(tmp_path / "a", array[:3]),))
    coloured = write_stack(tmp_path / "b", array, grey=True)
    write_itk(coloured.files[2], np.stack([array[0], array[1], array[2]], axis=-1))
    with pytest.raises(RefusedCaseError, match="coloured, expected grey"):
        read_scan((coloured,), 1)
    coloured.files[4].unlink()
    with pytest.raises(RefusedCaseError, match=r"missing|cannot be read"):
        read_scan((coloured,), 1)


def test_label_pictures_follow_the_positions_of_dicom_slices(tmp_path: Path) -> None:
    pixels = write_series(tmp_path / "s")
    image = SliceFiles(tuple(sorted((tmp_path / "s").iterdir())))
    by_name = np.stack([read_scan((file,)).array[0, 0] for file in image.files])
    label = write_stack(tmp_path / "g", (by_name > 100).astype(np.uint8))
    np.testing.assert_array_equal(read_scan((image,)).array[0], pixels)
    np.testing.assert_array_equal(read_label(label, image).array[0], pixels > 100)
    assert not np.array_equal(by_name, pixels)
    with pytest.raises(RefusedCaseError, match="5 slices and its label 4"):
        read_label(SliceFiles(label.files[:4]), image)
