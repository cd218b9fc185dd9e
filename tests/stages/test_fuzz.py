"""prepare against damaged files: no crash, no hang, no flood of memory, and nothing broken is kept.

MACL_FUZZ_FILES sets the number of damaged files, MACL_FUZZ_SEED which they are.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from fakes import dicom
from fakes.scans import affine, anatomy, announce, bomb, break_checksum, write_itk, write_nifti
from macl.data.store import Store

FILES = int(os.environ.get("MACL_FUZZ_FILES", "100"))
SEED = int(os.environ.get("MACL_FUZZ_SEED", "0"))
SECONDS = 60 + FILES
MOST_MEMORY_GIB = 1.0

RUN = """
import json, re, sys
from macl.stages.prepare import prepare
from pathlib import Path
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
status = Path("/proc/self/status").read_text()
print(json.dumps(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])))
"""
"""Peak memory from /proc: that of getrusage begins with the memory of the parent process."""


def jpeg(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(anatomy(0)[0][0].astype(np.uint8)), str(path))
    return path


def series(path: Path) -> Path:
    dicom.write_series(path.parent)
    return sorted(path.parent.iterdir())[2]


WRITERS: dict[str, Callable[[Path], Path]] = {
    "nii.gz": lambda path: write_nifti(path, anatomy(0)[0]),
    "nii": lambda path: write_nifti(path, anatomy(0)[0]),
    "nrrd": lambda path: write_itk(path, anatomy(0)[0]),
    "mha": lambda path: write_itk(path, anatomy(0)[0]),
    "raw.mha": lambda path: write_itk(path, anatomy(0)[0], compressed=False),
    "png": lambda path: write_itk(path, anatomy(0)[0][0].astype(np.uint8)),
    "jpg": jpeg,
    "dcm": series,
}


# ---------------------------------------------------------------- damage to be refused


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) - 3)])


def not_finite(path: Path, draw: random.Random) -> None:
    array = anatomy(0)[0].astype(np.float32)
    array[draw.randrange(6), draw.randrange(20), draw.randrange(24)] = draw.choice(
        [np.nan, np.inf, -np.inf]
    )
    shutil.rmtree(path.parent)
    write_nifti(path.parent / "scan.nii.gz", array)


def checksum(path: Path, draw: random.Random) -> None:
    shutil.rmtree(path.parent)
    break_checksum(write_nifti(path.parent / "scan.nii.gz", anatomy(draw.randrange(9))[0]))


def huge(path: Path, draw: random.Random) -> None:
    shutil.rmtree(path.parent)
    bomb(
        path.parent / "scan.nii.gz", (draw.choice([20000, 30000]), 20000, draw.choice([300, 30000]))
    )


def swollen(path: Path, draw: random.Random) -> None:
    """A header that announces a small scan, before data that unpacks to far more."""
    shutil.rmtree(path.parent)
    data = bytearray(
        nibabel.Nifti1Image(
            np.zeros((400, 400, draw.choice([100, 200])), np.int16), affine()
        ).to_bytes()
    )
    data[42:48] = np.asarray((8, 8, 2), "<i2").tobytes()
    path.parent.mkdir()
    (path.parent / "scan.nii.gz").write_bytes(gzip.compress(data, 1))


def other_size(path: Path, draw: random.Random) -> None:
    shutil.rmtree(path.parent)
    plain = write_nifti(path.parent / "scan.nii", anatomy(0)[0])
    announce(
        plain,
        (draw.choice([0, -5, 25, 32767]), draw.choice([21, 32767]), draw.choice([-1, 7, 32767])),
    )


def link_out(path: Path, draw: random.Random) -> None:
    outside = path.parents[2] / f"outside{draw.randrange(10**9)}{''.join(path.suffixes)}"
    shutil.move(path, outside)
    path.symlink_to(outside)


MUST_BE_REFUSED = (cut, cut, cut, not_finite, checksum, huge, swollen, other_size, link_out)


# ---------------------------------------------------------------- damage that may be harmless


def flip_bits(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 8])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def break_header(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = draw.randrange(min(len(data), 400))
    data[start : start + 8] = draw.randbytes(8)
    path.write_bytes(data)


def fill(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice([b"", b"\0" * 500, draw.randbytes(500), path.read_bytes() * 2]))


MAY_BE_KEPT = (flip_bits, flip_bits, break_header, break_header, fill)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, dict[str, str], dict]:
    """The folder, its store, the damage of each case, and the run's peak memory and messages."""
    folder = tmp_path_factory.mktemp("fuzz")
    draw = random.Random(SEED)
    damage: dict[str, str] = {}
    for number in range(FILES):
        name = f"m{number:05d}"
        kind = draw.choice(list(WRITERS))
        change = draw.choice(MUST_BE_REFUSED if number % 2 else MAY_BE_KEPT)
        change(WRITERS[kind](folder / "data" / name / f"scan.{kind}"), draw)
        damage[name] = f"{change.__name__} of {kind}"
    for number in range(3):
        write_nifti(folder / "data" / f"good{number}" / "scan.nii.gz", anatomy(number)[0])
    command = [sys.executable, "-c", RUN, str(folder / "data"), str(folder / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    run = {"kibibytes": json.loads(done.stdout.splitlines()[-1]), "err": done.stderr}
    return folder, Store.open(folder / "store"), damage, run


def test_good_cases_are_unharmed(fuzzed) -> None:
    _, store, _, _ = fuzzed
    for number in range(3):
        name = f"good{number}_scan"
        flipped = anatomy(number)[0]
        np.testing.assert_array_equal(store.read(name)[0], flipped)


def test_what_is_cut_off_damaged_or_not_finite_is_refused(fuzzed) -> None:
    _, store, damage, _ = fuzzed
    changes = {change.__name__ for change in MUST_BE_REFUSED}
    kept = [name for name in store.cases if damage.get(name[:6], "").partition(" ")[0] in changes]
    assert [damage[name[:6]] for name in kept] == []


def test_every_damaged_file_is_kept_whole_or_refused_in_a_sentence(fuzzed) -> None:
    _, store, damage, _ = fuzzed
    refused = {entry.name[:6]: entry.reason for entry in store.index.refused}
    kept = {name[:6] for name in store.cases}
    passed = " ".join(store.index.notes)
    hashed = [name for name in (*refused, *kept) if name.startswith("case-")]
    lost = [name for name in damage if not {name} & {*refused, *kept} and name not in passed]
    # Where a folder holds DICOM, its cases and what is refused before it is read are hashed.
    hidden = ("of dcm", "link_out")
    assert [damage[name] for name in lost if not any(word in damage[name] for word in hidden)] == []
    assert len(hashed) > 0 or not lost
    for entry in store.index.refused:
        assert len(entry.reason) > 8
        assert "Error" not in entry.reason.split(" fails with ")[0]
    for name in store.cases:
        assert np.isfinite(store.read(name).astype(np.float64)).all()


def test_memory_stays_small(fuzzed) -> None:
    assert fuzzed[3]["kibibytes"] / 2**20 < MOST_MEMORY_GIB
