from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from macl.config.settings import PrepareSettings
from macl.records import runs
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.files import sha256
from macl.utils.ranks import Rank


def record(**changes: Any) -> runs.RunRecord:
    values: dict[str, Any] = {
        "kind": "pretrain",
        "settings": {"training": {"epochs": 2, "learning_rate": 0.1}},
        "seed": 0,
        "device": "cpu",
        "versions": runs.versions(),
        "store": "a.store",
        "store_checksum": "abc",
        "reader": "folder",
        "modality": "MR",
        "prepared": PrepareSettings(),
        "channels": ("image",),
    }
    return runs.RunRecord(**(values | changes))


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    written = record(finished=True, patients=("a", "b"), split={"name": "x"}, mirror_axes=("row",))
    runs.write_record(tmp_path, written)
    assert runs.read_record(tmp_path) == written


def test_a_new_run_starts_with_its_record(tmp_path: Path) -> None:
    assert runs.open_run(tmp_path / "runs" / "a", record(), resume=False) == record()
    assert runs.read_record(tmp_path / "runs" / "a") == record()


def test_resuming_what_has_not_begun_begins_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert runs.open_run(tmp_path / "a", record(), resume=True) == record()


def test_resuming_returns_what_the_earlier_run_knew(tmp_path: Path) -> None:
    earlier = record(
        finished=True, steps=40, seconds=12.5, device="cuda:0", store="elsewhere/a.store"
    )
    runs.write_record(tmp_path, earlier)
    assert runs.open_run(tmp_path, record(), resume=True) == earlier


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, "seed"),
        (
            {"settings": {"training": {"epochs": 3, "learning_rate": 0.1}}},
            r"settings\.training\.epochs",
        ),
        ({"store_checksum": "def"}, "store_checksum"),
        ({"patients": ("a",)}, "patients"),
        ({"kind": "finetune"}, "kind"),
    ],
)
def test_a_run_is_not_resumed_as_another(
    tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    runs.write_record(tmp_path, record())
    with pytest.raises(MaclError, match=rf"other settings \({names}\)"):
        runs.open_run(tmp_path, record(**changes), resume=True)
    assert runs.read_record(tmp_path) == record()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    runs.open_run(tmp_path / "a", record(), resume=False)
    with pytest.raises(MaclError, match="already holds a run: add --resume"):
        runs.open_run(tmp_path / "a", record(seed=1), resume=False)
    assert runs.read_record(tmp_path / "a") == record()


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("a thesis")
    for resume in (False, True):
        with pytest.raises(MaclError, match="holds something that is not a run"):
            runs.open_run(tmp_path, record(), resume=resume)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a thesis")
    with pytest.raises(MaclError, match="holds something that is not a run"):
        runs.open_run(tmp_path / "a", record(), resume=False)


def test_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(MaclError, match="does not exist"):
        runs.read_record(tmp_path / "a")
    with pytest.raises(MaclError, match="is not a run"):
        runs.read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "macl-run", "version": 2}')
    with pytest.raises(MaclError, match="not a record of this version"):
        runs.read_record(tmp_path)


def test_a_finished_run_has_weights_and_no_state(tmp_path: Path) -> None:
    opened = runs.open_run(tmp_path / "a", record(), resume=False)
    (tmp_path / "a" / runs.STATE).write_bytes(b"state")
    weights = {"encoder.weight": torch.ones(2, 3)}
    about = {"kind": "pretrain"}
    done = runs.finish_run(tmp_path / "a", opened, weights, about, steps=40, seconds=1.23456)
    digest = sha256(tmp_path / "a" / runs.WEIGHTS)
    assert done == record(finished=True, steps=40, seconds=1.235, weights_sha256=digest)
    assert runs.read_record(tmp_path / "a") == done
    assert not (tmp_path / "a" / runs.STATE).exists()
    saved = checkpoint.read(tmp_path / "a" / runs.WEIGHTS)
    assert saved.about == about
    torch.testing.assert_close(dict(saved.tensors), weights)


def test_only_rank_0_finishes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = runs.open_run(tmp_path / "a", record(), resume=False)
    monkeypatch.setattr(runs, "this_rank", lambda: Rank(index=1, world_size=2))
    done = runs.finish_run(tmp_path / "a", opened, {}, {}, steps=40, seconds=1.0)
    assert done == record(finished=True, steps=40, seconds=1.0)
    assert [item.name for item in (tmp_path / "a").iterdir()] == [runs.RECORD]


def test_a_better_description_of_the_log_does_not_stop_a_resume(tmp_path: Path) -> None:
    runs.write_record(tmp_path, record())
    quantities = {"loss_dense": runs.LoggedQuantity(label="Dense loss", unit="nats")}
    assert runs.open_run(tmp_path, record(quantities=quantities), resume=True) == record()


def test_a_log_ends_before_a_line_cut_off(tmp_path: Path) -> None:
    assert list(runs.read_log(tmp_path)) == []
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in runs.read_log(tmp_path)] == [1, 2]
