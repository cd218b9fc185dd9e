from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import macl.workflows.demo
from macl import plugins
from macl.metrics import dice
from macl.models.network import choose_strides
from macl.utils.errors import MaclError
from macl.workflows.demo.command import SLICES, SYNTHETIC, VOLUMES, DemoSize, Schedule, demo
from macl.workflows.demo.subjects import (
    CLASSES,
    VoxelGrid,
    load_template,
    synthetic_subject,
    write_subjects,
)

DEMO = Path(macl.workflows.demo.__file__).parent
SMALL = VoxelGrid(size=(48, 56, 6), spacing_mm=(4.0, 4.0, 16.0))
TINY = DemoSize(
    subjects=5,
    test=2,
    budgets=(1,),
    grid=SMALL,
    pretraining=Schedule("macl-plus", (64, 64), batch_size=16, steps=4),
    finetuning=Schedule("strong", (64, 64), batch_size=8, steps=4),
    first=Schedule("strong", (64, 64), batch_size=8, steps=2),
    selftraining=Schedule("mean-teacher", (64, 64), batch_size=8, steps=2),
)
TINY_VOLUMES = replace(
    TINY,
    grid=VoxelGrid(size=(40, 48, 32), spacing_mm=(5.0, 5.0, 6.0)),
    pretraining=Schedule("macl-plus", (16, 16, 16), batch_size=16, steps=3),
    finetuning=Schedule("strong-3d", (32, 32, 32), batch_size=2, steps=3),
    first=Schedule("strong-3d", (32, 32, 32), batch_size=2, steps=2),
    selftraining=Schedule("mean-teacher-3d", (32, 32, 32), batch_size=2, steps=2),
)


def voxels(path: Path) -> np.ndarray:
    return np.array(nibabel.load(path).dataobj)  # pyright: ignore[reportAttributeAccessIssue]


def imports(path: Path) -> set[str]:
    """Every module that a file imports from, at the top and inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            # `from macl import stages` names the module only among its names.
            found |= (
                {node.module or ""}
                if node.module != "macl"
                else {f"macl.{alias.name}" for alias in node.names}
            )
    return found


# ---------------------------------------------------------------- public stages alone


def test_the_demo_uses_nothing_but_the_public_stages() -> None:
    allowed = {
        "macl.utils.errors", "macl.utils.files", "macl.utils.progress",
        "macl.workflows.demo.subjects",
    }  # fmt: skip
    names = (
        "prepare",
        "split",
        "pretrain",
        "finetune",
        "selftrain",
        "predict",
        "evaluate",
        "report",
    )
    stages = {f"macl.stages.{name}" for name in names}
    found = imports(DEMO / "command.py")
    ours = {name for name in found if name.partition(".")[0] == "macl"}
    assert ours - allowed == stages
    outside = {name.partition(".")[0] for name in found - ours}
    assert outside <= set(sys.stdlib_module_names), "the demo computes nothing itself"
    assert "importlib" not in outside


def test_the_subjects_are_made_without_anything_of_macl() -> None:
    ours = {name for name in imports(DEMO / "subjects.py") if name.partition(".")[0] == "macl"}
    assert ours <= {"macl.utils.errors", "macl.utils.files"}


# ---------------------------------------------------------------- subjects


@pytest.fixture(scope="module")
def pair() -> list[tuple[np.ndarray, np.ndarray]]:
    template = load_template()
    return [
        synthetic_subject(template, SMALL, np.random.default_rng([0, number])) for number in (1, 2)
    ]


def test_a_subject_looks_like_a_brain_in_a_t1_scan(
    pair: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    for image, label in pair:
        assert image.shape == label.shape == SMALL.size
        assert set(np.unique(label)) == {0, 1, 2}
        background, grey, white = (image[label == value].mean() for value in range(3))
        assert background < 0.5 * grey < grey < white
        share = np.bincount(label.ravel()) / label.size
        assert 0.1 < share[1] < 0.5
        assert 0.1 < share[2] < 0.4
        # The brain lies within the scan: no class touches its sides.
        assert not label[[0, -1]].any()
        assert not label[:, [0, -1]].any()


def test_subjects_are_clearly_different_brains(pair: list[tuple[np.ndarray, np.ndarray]]) -> None:
    (first_image, first), (second_image, second) = pair
    assert abs(first_image.mean() / second_image.mean() - 1) > 0.02
    for label in (1, 2):
        in_first, in_second = first == label, second == label
        shared = int((in_first & in_second).sum())
        assert 0.3 < dice(int(in_first.sum()), int(in_second.sum()), shared) < 0.85


def test_the_demo_s_volumes_hold_several_crops_and_all_starts_share_a_network() -> None:
    volume, spacing_mm = VOLUMES.grid.size[::-1], VOLUMES.grid.spacing_mm[::-1]
    schedules = (VOLUMES.pretraining, VOLUMES.finetuning, VOLUMES.first, VOLUMES.selftraining)
    assert len({choose_strides(schedule.patch, spacing_mm) for schedule in schedules}) == 1
    assert all(patch < side for patch, side in zip(VOLUMES.pretraining.patch, volume, strict=True))


def test_subjects_are_written_as_nnunet_lays_them_out_and_kept(tmp_path: Path) -> None:
    folder, counted = tmp_path / "Dataset001_Synthetic", []
    write_subjects(folder, 2, SMALL, 3, lambda: counted.append(1))
    assert len(counted) == 2
    reader = plugins.reader("nnunet_raw")
    assert reader.evidence(folder)
    source = reader.read(folder)
    assert [case.name for case in source.cases] == ["synthetic_01", "synthetic_02"]
    assert all(case.label for case in source.cases)
    assert tuple(source.classes.values()) == CLASSES
    assert source.modality == "MR"
    first, second = (
        folder / "imagesTr" / f"synthetic_{number}_0000.nii.gz" for number in ("01", "02")
    )
    image = nibabel.load(first)
    assert image.header.get_zooms() == (4.0, 4.0, 16.0)  # pyright: ignore[reportAttributeAccessIssue]
    written, values = first.stat().st_mtime_ns, voxels(second)
    second.unlink()
    write_subjects(folder, 2, SMALL, 3, lambda: None)
    assert first.stat().st_mtime_ns == written
    np.testing.assert_array_equal(voxels(second), values)


def test_without_nilearn_the_user_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MaclError, match=r"pip install 'macl\[demo\]'"):
        demo(tmp_path / "demo", TINY)


# ---------------------------------------------------------------- the whole path


@pytest.mark.parametrize("size", [TINY, TINY_VOLUMES], ids=["slices", "volumes"])
def test_the_demo_from_end_to_end_and_once_more(
    size: DemoSize, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    page = demo(out, size)
    first = capfd.readouterr()
    steps = [line.partition("/")[0] for line in first.err.splitlines() if "/8 " in line[:4]]
    assert steps == [str(number) for number in range(1, 9)]
    assert SYNTHETIC in first.err
    rows = table(first.out)
    assert [row[:-4] for row in rows] == [["labels", "alone"], ["from", "MACL"], ["self-trained"]]
    assert all(0 <= float(cell) <= 100 for row in rows for cell in row[-3:])
    assert "One seed and 2 synthetic test subjects" in first.out
    assert SYNTHETIC in first.out
    text = page.read_text(encoding="utf-8")
    assert "These subjects are synthetic" in text
    assert "grey matter" in text
    assert text.count('<figure class="overlay"') == 3 * 2
    assert "Patch 1 before augmentation" in text
    assert (out / "report.json").is_file()
    assert len(list((out / "overlays").glob("*.png"))) == 3 * 2

    kept = [
        *out.glob("runs/*/weights.safetensors"),
        *out.glob("runs/*/predictions/*.nii.gz"),
        *out.glob("scans/**/*.gz"),
    ]
    assert len(kept) == 5 + 3 * 2 + 2 * 5
    before = {path: path.stat().st_mtime_ns for path in kept}
    demo(out, size)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert table(capfd.readouterr().out) == rows


def table(printed: str) -> list[list[str]]:
    """The words of each row."""
    first = ("labels alone", "from MACL", "self-trained")
    return [line.split() for line in printed.splitlines() if line.startswith(first)]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MaclError, match="choose another folder"):
        demo(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(MaclError, match="choose another folder"):
        demo(tmp_path / "thesis.tex", TINY)


def test_a_demo_of_another_size_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MaclError, match="nilearn"):
        demo(tmp_path, TINY)
    with pytest.raises(MaclError, match="choose another folder"):
        demo(tmp_path, SLICES)
