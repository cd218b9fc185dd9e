"""Nothing is silent about data that a model cannot know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes.command import macl
from fakes.dicom import write_series
from fakes.scans import affine, write_nifti
from fakes.threshold_run import known_case, write_threshold_run
from fakes.toy_store import write_toy_store
from macl.data.store import Store
from macl.records.training_range import ChannelRange, TrainingRange
from macl.tasks.initial_weights import InitialWeights
from macl.tasks.training_scans import warn_of_other_pseudonyms

SHAPE = (5, 20, 24)
TRAINED_ON = TrainingRange(
    modality="MR",
    finest_mm=(3.5, 1.4, 0.9),
    coarsest_mm=(4.0, 1.5, 1.0),
    channels=(ChannelRange(low=-100, high=400, smallest_deviation=80, largest_deviation=130),),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_threshold_run(tmp_path / "run", trained_on=TRAINED_ON)


@pytest.mark.parametrize(
    ("factor", "offset", "spacing", "words"),
    [
        (1, 0, (1.0, 1.5, 4.0), []),
        (1, 0, (0.2, 0.3, 4.0), ["spacings of 3.5 × 1.4 × 0.9 mm to 4 ×", "4 × 0.3 × 0.2 mm"]),
        (1, 0, (1.0, 1.5, 12.0), ["spacings of 3.5", "12 × 1.5 × 1 mm"]),
        (40, 0, (1.0, 1.5, 4.0), ["intensities of about -100 to 400"]),
        (0.02, 0, (1.0, 1.5, 4.0), ["intensities of about -100 to 400"]),
        (1, -1024, (1.0, 1.5, 4.0), ["intensities of about -100 to 400"]),
    ],
)
def test_a_scan_unlike_the_training_is_warned_about_with_numbers(
    tmp_path: Path, run: Path, factor: float, offset: int, spacing, words: list[str]
) -> None:
    image = (known_case(SHAPE)[0] * factor + offset).astype(np.int16)
    scan = write_nifti(tmp_path / "scan.nii.gz", image, affine(spacing))
    answer = macl("predict", run, scan, "--out", tmp_path / "masks")
    said = " ".join(answer.err.split())
    assert answer.code == 0
    assert ("unlike that" in said) == bool(words)
    assert all(word in said for word in words)


def test_an_ensemble_is_warned_of_what_none_of_its_runs_has_seen(tmp_path: Path, run: Path) -> None:
    channels = (ChannelRange(low=-4000, high=-900, smallest_deviation=80, largest_deviation=130),)
    darker = TRAINED_ON.model_copy(update={"channels": channels})
    other = write_threshold_run(tmp_path / "other", trained_on=darker)
    for offset, warned in ((0, False), (-3000, False), (9000, True)):
        image = (known_case(SHAPE)[0] + offset).astype(np.int16)
        scan = write_nifti(tmp_path / f"scan{offset}.nii.gz", image)
        answer = macl("predict", run, other, scan, "--out", tmp_path / f"masks{offset}")
        assert answer.code == 0, answer.err
        assert answer.err.count("unlike that") == warned
        assert not warned or "intensities of about -4000 to 400" in " ".join(answer.err.split())


def test_another_modality_is_warned_about(tmp_path: Path, run: Path) -> None:
    write_series(tmp_path / "scan", Modality="CT")
    answer = macl("predict", run, tmp_path / "scan", "--out", tmp_path / "masks")
    assert "trained on MR, but these scans are unlike that: scan (CT)" in " ".join(
        answer.err.split()
    )


def test_a_class_that_no_training_label_shows_is_named(tmp_path: Path) -> None:
    for index in range(4):
        image, label = known_case(SHAPE, index)
        label[label == 9] = 9 if index == 3 else 3
        write_nifti(tmp_path / f"data/images/c{index}.nii.gz", image)
        write_nifti(tmp_path / f"data/labels/c{index}.nii.gz", label)
    assert macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1).code == 0
    (tmp_path / "split.json").write_text(
        '{"format": "macl-split", "version": 1, "name": "toy", "test": ["c2"], '
        '"budgets": {"few": ["c0", "c1"], "all": ["c0", "c1", "c3"]}}'
    )
    for budget, named in (("few", True), ("all", False)):
        answer = macl(
            "finetune", tmp_path / "store", "--split", tmp_path / "split.json", "--labels", budget,
            "--init", "scratch", "--out", tmp_path / budget, "--device", "cpu",
            "--set", "training.epochs=1", "--set", "training.size=16",
            "--set", "training.batch_size=4", "--set", "backbone_settings.width=2",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        assert ("shows class 9" in " ".join(answer.err.split())) == named


@pytest.mark.parametrize(
    ("patient", "warned"),
    [("patient-0123456789ab", False), ("patient-ba9876543210", True), ("patient009", False)],
    ids=["the same names", "other salt", "not hashed"],
)
def test_names_that_are_hashed_apart_are_warned_about(
    tmp_path: Path, patient: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_store(tmp_path / "toy.store", patients=2)
    index = tmp_path / "toy.store" / "store.json"
    hashed = index.read_text().replace(
        '"patient": "patient001"', '"patient": "patient-0123456789ab"'
    )
    index.write_text(hashed)
    weights = InitialWeights("runs/macl", patients=(patient,))
    warn_of_other_pseudonyms(Store.open(tmp_path / "toy.store"), weights)
    assert ("hashed apart" in " ".join(capsys.readouterr().err.split())) == warned
