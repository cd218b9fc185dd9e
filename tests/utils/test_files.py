from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from macl.utils import files
from macl.utils.errors import MaclError


def write_half(path: Path) -> None:
    with files.atomic_path(path) as aside:
        aside.write_text("half")
        raise RuntimeError("killed")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError, match="killed"):
        write_half(path)
    assert files.read_json(path, "an index") == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["index.json"]


def test_the_file_written_aside_keeps_its_suffix_and_folder(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "new" / "mask.nii.gz") as aside:
        assert aside.parent == tmp_path / "new"
        assert aside.name.endswith("mask.nii.gz")
        assert not (tmp_path / "new" / "mask.nii.gz").exists()
        aside.write_bytes(b"scan")
    assert (tmp_path / "new" / "mask.nii.gz").read_bytes() == b"scan"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "mask.nii.gz"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_holds_no_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "a.json", {"dice": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no"),
        (b"{", "cannot be read .*line 1, column 2"),
        (b"\xff\xfe{}", "cannot be read .*UTF-16.*save it as UTF-8"),
        (b"[1]", "it holds a list, not one JSON object"),
    ],
)
def test_broken_json_is_a_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MaclError, match=sentence) as caught:
        files.read_json(path, "an index")
    assert "an index" in str(caught.value)


def test_paths_stay_inside_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert files.inside(folder, "cases/a.b2nd") == folder / "cases/a.b2nd"
    assert files.inside(folder, "cases/../a.b2nd").resolve() == folder / "a.b2nd"
    for outside in ("../a.b2nd", str(tmp_path / "a"), "cases/../../store-2/a", "link/a"):
        with pytest.raises(MaclError, match="lies outside that folder"):
            files.inside(folder, outside)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"scan" * 10_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"scan" * 10_000).hexdigest()


def test_disk_space_is_asked_of_the_folder_to_be_made(tmp_path: Path) -> None:
    files.require_disk_space(tmp_path / "not" / "yet", 1, "The store")
    with pytest.raises(
        MaclError, match=r"The store needs about 1073741824\.0 GiB in .* free some space"
    ):
        files.require_disk_space(tmp_path / "not" / "yet", 2**60, "The store")
