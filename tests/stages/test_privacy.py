"""What may be shared names nobody; what stays beside it says who is who."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fakes.command import macl
from fakes.dicom import PATIENT_ID, write_series
from fakes.scans import anatomy, write_nifti
from fakes.threshold_run import write_threshold_run
from macl.data.store import Store

SECRETS = (
    "ACC1234567",
    "12 High Street",
    "High_Street",
    PATIENT_ID,
    "Quixote",
    "19471209",
    "memo",
    "Smith",
)


def export(folder: Path) -> Path:
    write_series(folder / "ACC1234567/t1")
    write_series(folder / "12 High Street/t1", seed=1, PatientID="4711123")
    (folder / "12 High Street/memo of Mr Smith.txt").write_text("a letter")
    return folder


def prepared(source: Path, store: Path, *words: object) -> Store:
    answer = macl("prepare", source, store, "--workers", 1, *words)
    assert answer.code == 0, answer.err
    return Store.open(store)


def test_a_store_of_dicom_names_no_folder_and_no_id(tmp_path: Path) -> None:
    store = prepared(export(tmp_path / "data"), tmp_path / "store")
    for file in filter(Path.is_file, (tmp_path / "store").rglob("*")):
        text = str(file.relative_to(tmp_path)) + file.read_bytes().decode("latin-1") * (
            file.suffix == ".json"
        )
        assert not [secret for secret in SECRETS if secret in text]
    private = json.loads((tmp_path / "store.private.json").read_text())
    assert (tmp_path / "store.private.json").stat().st_mode & 0o077 == 0
    places = {private["names"][case.name] for case in store.index.cases}
    assert places == {
        str(tmp_path / "data/ACC1234567/t1"), str(tmp_path / "data/12 High Street/t1")
    }  # fmt: skip
    assert {private["names"][case.patient] for case in store.index.cases} == {
        PATIENT_ID, "4711123"
    }  # fmt: skip


def test_the_salt_is_each_stores_own_and_is_used_again(tmp_path: Path) -> None:
    source = export(tmp_path / "data")
    first, second = prepared(source, tmp_path / "a"), prepared(source, tmp_path / "b")
    names = {case.name for case in first.index.cases}
    assert not names & {case.name for case in second.index.cases}
    public = hashlib.sha256(f"macl/patient/1/{PATIENT_ID}".encode()).hexdigest()[:12]
    assert public not in (tmp_path / "a/store.json").read_text()
    assert "already prepared" in macl("prepare", source, tmp_path / "a").err
    (tmp_path / "c.private.json").write_bytes((tmp_path / "a.private.json").read_bytes())
    assert {case.name for case in prepared(source, tmp_path / "c").index.cases} == names


def test_keep_identity_keeps_folders_and_ids(tmp_path: Path) -> None:
    store = prepared(export(tmp_path / "data"), tmp_path / "store", "--keep-identity")
    assert {case.name for case in store.index.cases} == {"ACC1234567_t1", "12_High_Street_t1"}
    assert {case.patient for case in store.index.cases} == {PATIENT_ID, "4711123"}
    assert not (tmp_path / "store.private.json").exists()


def test_names_of_other_formats_are_hashed_only_where_they_look_like_someone(
    tmp_path: Path,
) -> None:
    plain = ["case_01", "patient007", "0000012", "t1_w"]
    telling = ["Smith_19471209", "acc-4711", "88123456", "smith@clinic"]
    for index, name in enumerate((*plain, *telling)):
        write_nifti(tmp_path / f"data/{name}.nii.gz", anatomy(index)[0])
    names = {case.name for case in prepared(tmp_path / "data", tmp_path / "store").index.cases}
    assert {name for name in names if not name.startswith("case-")} == {*plain}
    assert len(names) == 8


def test_nothing_is_left_beside_a_store_that_was_not_written(tmp_path: Path) -> None:
    write_series(tmp_path / "data/a", missing=[2])
    assert macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1).code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_masks_of_hidden_names_are_found_again(tmp_path: Path) -> None:
    run = write_threshold_run(tmp_path / "run")
    write_series(tmp_path / "plain")
    write_series(tmp_path / "Quixote 1947", seed=1)
    masks = tmp_path / "masks"
    for _ in range(2):
        for scan in ("plain", "Quixote 1947"):
            answer = macl("predict", run, tmp_path / scan, "--out", masks)
            assert answer.code == 0, answer.err
    written = sorted(path.name for path in masks.glob("*.nii.gz"))
    assert len(written) == 2
    assert written[1] == "plain.nii.gz"
    private = json.loads((tmp_path / "masks.private.json").read_text())
    assert private["names"][written[0].removesuffix(".nii.gz")] == str(tmp_path / "Quixote 1947")
    assert "Quixote" not in (masks / "predictions.json").read_text()
