"""What goes wrong on users' machines, through the command line: one sentence, the right values."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fakes import bids, dicom, msd, nnunet
from fakes.command import Answer, macl
from fakes.scans import anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.cli import entry
from macl.plugins import names

TINY = [
    word
    for setting in (
        "training.epochs=1", "training.size=32", "training.batch_size=4",
        "backbone_settings.width=4",
    )
    for word in ("--set", setting)
]  # fmt: skip


def put_scans(folder: Path, count: int = 3) -> Path:
    """`images/c0.nii.gz` … with labels."""
    for number in range(count):
        image, label = anatomy(number)
        write_nifti(folder / f"images/c{number}.nii.gz", image)
        write_nifti(folder / f"labels/c{number}.nii.gz", label)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans, their store `st`, its split `sp.json` and a fine-tuned run `ft`."""
    folder = tmp_path_factory.mktemp("trained")
    put_scans(folder / "src", 4)
    for words in (
        ["prepare", folder / "src", folder / "st", "--workers", 1],
        ["split", folder / "st", "--out", folder / "sp.json", "--test", 1, "--budgets", 2],
        ["finetune", folder / "st", "--split", folder / "sp.json", "--labels", 2, "--init",
         "scratch", "--out", folder / "ft", "--device", "cpu", *TINY],
    ):  # fmt: skip
        answer = macl(*words)
        assert answer.code == 0, answer.err
    return folder


def commands(folder: Path, out: Path) -> dict[str, list[object]]:
    """Each stage, writing to or below `out`."""
    finetune = ["finetune", folder / "st", "--split", folder / "sp.json", "--labels", 2]
    return {
        "prepare": ["prepare", folder / "src", out, "--workers", 1],
        "split": [
            "split", folder / "st", "--out", f"{out}.json", "--test", 1, "--budgets", 1,
            "--seed", 7,
        ],
        "pretrain": ["pretrain", folder / "st", "--out", out, "--device", "cpu", *TINY],
        "finetune": [*finetune, "--init", "scratch", "--out", out, "--device", "cpu", *TINY],
        "predict": [
            "predict", folder / "ft", folder / "src/images/c0.nii.gz", "--out", out,
            "--device", "cpu",
        ],
        "evaluate": ["evaluate", folder / "src/labels", folder / "st", "--out", f"{out}.csv"],
        "report": ["report", folder / "ft", "--out", f"{out}.html"],
        "demo": ["demo", "--out", out],
    }  # fmt: skip


STAGES = ["prepare", "split", "pretrain", "finetune", "predict", "evaluate", "report", "demo"]


def one_sentence(answer: Answer) -> str:
    """The last line of stderr, which says what is wrong; there is no traceback."""
    last = answer.err.strip().splitlines()[-1]
    assert answer.code == 1, answer
    assert "Traceback" not in answer.err, answer.err
    assert last.startswith("macl: "), answer.err
    assert last.endswith((".", "?"))
    return last


# ---------------------------------------------------------------- where nothing can be written


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", ["below a file", "too long"])
def test_a_place_that_cannot_be_written(
    trained: Path, tmp_path: Path, stage: str, place: str
) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out" if place == "below a file" else tmp_path / ("n" * 300)
    sentence = one_sentence(macl(*commands(trained, out)[stage]))
    words = {"below a file": ("file",), "too long": ("too long", "shorter")}[place]
    assert all(word in sentence for word in words), sentence
    assert (tmp_path / "file").read_text() == "x"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, writing more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", ["prepare", "split", "predict", "evaluate", "report"])
def test_a_file_that_cannot_grow(trained: Path, tmp_path: Path, stage: str) -> None:
    with files_no_larger_than(20):
        answer = macl(*commands(trained, tmp_path / "out")[stage])
    sentence = one_sentence(answer)
    assert "cannot be written" in sentence
    assert str(tmp_path / "out") in sentence
    assert ".writing-" not in sentence


def without_rights(*words: object) -> subprocess.CompletedProcess[str]:
    """`macl` as a user whom files' permissions bind, which they do not for root."""
    before: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and setpriv is not installed")
        dropped = "-dac_override,-dac_read_search"
        before = ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped]
    command = [*before, sys.executable, "-m", "macl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_may_not_be_read_is_refused_and_the_rest_kept(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number in range(3):
        write_nifti(source / f"c{number}.nii.gz", anatomy(number)[0])
    write_nifti(source / "closed/d.nii.gz", anatomy(5)[0])
    (source / "c1.nii.gz").chmod(0)
    (source / "closed").chmod(0)
    answer = without_rights("prepare", source, tmp_path / "st", "--workers", 1)
    (source / "closed").chmod(0o755)
    assert answer.returncode == 0, answer.stderr
    index = json.loads((tmp_path / "st/store.json").read_text())
    assert [case["name"] for case in index["cases"]] == ["c0", "c2"]
    reason = "it cannot be read (permission denied)"
    assert {one["name"]: one["reason"] for one in index["refused"]} == {
        "c1": reason,
        "closed": reason,
    }


def test_a_folder_of_which_nothing_may_be_read(tmp_path: Path) -> None:
    write_nifti(tmp_path / "src/closed/a.nii.gz", anatomy(0)[0])
    (tmp_path / "src/closed").chmod(0)
    answer = without_rights("inspect", tmp_path / "src")
    (tmp_path / "src/closed").chmod(0o755)
    assert answer.returncode == 1
    assert "permission is denied to" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    put_scans(tmp_path / "src", 2)
    script = f"mkdir {tmp_path}/g; cd {tmp_path}/g; rmdir {tmp_path}/g; {sys.executable} -m macl "
    command = script + f"inspect {tmp_path}/src"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in answer.stderr
    assert answer.returncode == 0 or "working folder no longer exists" in answer.stderr


def test_plain_characters_where_a_terminal_has_no_others(tmp_path: Path) -> None:
    put_scans(tmp_path, 2)
    command = [sys.executable, "-m", "macl", "inspect", tmp_path, "--quick"]
    answer = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert answer.returncode == 0, answer.stderr
    assert "4 x 1.5 x 1" in answer.stdout


def test_a_bug_shows_its_traceback_and_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(entry, "app", fail)
    answer = macl("inspect")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "please report it" in answer.err


# ---------------------------------------------------------------- text files of users

GOOD = json.dumps(
    {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "liver": 1, "disc": 2},
     "numTraining": 3, "file_ending": ".nii.gz"}, indent=1,
)  # fmt: skip

BROKEN: dict[str, tuple[Callable[[str], bytes], str]] = {
    "a comma too many": (
        lambda text: text.replace('"disc": 2', '"disc": 2,').encode(),
        r"line (9|10), column",
    ),
    "UTF-16": (lambda text: text.encode("utf-16"), "UTF-16"),
    "Latin-1": (
        lambda text: text.replace("liver", "Größe").encode("latin-1"),
        "line 8, column 6",
    ),
    "cut off": (lambda text: text[:40].encode(), "line 4, column 6"),
    "empty": (lambda _: b"", "line 1, column 1"),
    "deep": (lambda _: b'{"a": ' + b"[" * 100_000, "nested"),
    "a huge number": (
        lambda text: text.replace('"numTraining": 3', '"numTraining": 3' + "0" * 5000).encode(),
        "number too long",
    ),
    "a list": (lambda text: f"[{text}]".encode(), "not one JSON object"),
}


def described(folder: Path, raw: bytes) -> Path:
    """An nnU-Net folder of two channels with this description."""
    nnunet.write(folder, test=0, channels=("T1", "T2"))
    (folder / "dataset.json").write_bytes(raw)
    return folder


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, mark: bytes) -> None:
    source = described(tmp_path / "d", mark + GOOD.encode())
    answer = macl("inspect", source, "--workers", 1, "--json")
    found = json.loads(answer.out)
    assert (found["reader"], found["cases"], found["labelled"]) == ("nnunet_raw", 3, 3)
    assert found["classes"] == ["background", "liver", "disc"]


@pytest.mark.parametrize("stage", ["inspect", "prepare", "evaluate", "predict"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_description_is_an_error(
    trained: Path, tmp_path: Path, stage: str, fault: str
) -> None:
    damage, words = BROKEN[fault]
    source = described(tmp_path / "d", damage(GOOD))
    (tmp_path / "masks").mkdir()
    write_nifti(tmp_path / "masks/toy_000.nii.gz", anatomy(0)[1])
    answer = {
        "inspect": lambda: macl("inspect", source),
        "prepare": lambda: macl("prepare", source, tmp_path / "st"),
        "evaluate": lambda: macl(
            "evaluate", tmp_path / "masks", source, "--out", tmp_path / "o.csv"
        ),
        "predict": lambda: macl("predict", trained / "ft", source, "--out", tmp_path / "o"),
    }[stage]()
    sentence = one_sentence(answer)
    assert "dataset.json" in sentence
    assert re.search(words, sentence)
    assert not (tmp_path / "st").exists()
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("kind", ["recipe", "grid", "split"])
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xef\xbb\xbf", None),
        ("a = 1\n".encode("utf-16"), "UTF-16"),
        (b"a = 1\nb = \xf6\n", "line 2, column 5"),
        (b"a = [" + b"[" * 50_000, ""),
        (b"a = " + b"9" * 5000, ""),
        (b"a = \n", "line 1"),
        (b"day = 2024-01-01\n", "day"),
    ],
)
def test_recipes_grids_and_splits(
    trained: Path, tmp_path: Path, kind: str, raw: bytes, words: str | None
) -> None:
    path = tmp_path / f"a.{'json' if kind == 'split' else 'toml'}"
    path.write_bytes(raw)
    pretrain = ["pretrain", trained / "st", "--out", tmp_path / "o"]
    answer = macl(
        *{
            "recipe": [*pretrain, "--recipe", path],
            "grid": ["benchmark", path, "--out", tmp_path / "o"],
            "split": [*pretrain, "--split", path],
        }[kind],
        *([] if kind == "grid" else TINY),
    )
    if words is None and kind == "recipe":
        assert answer.code == 0, answer.err
        return
    sentence = one_sentence(answer)
    assert path.name in sentence or words == "day"
    if kind == "recipe" or words != "day":
        assert kind == "split" or (words or "") in sentence
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "1" + "0" * 400])
def test_seeds_of_a_grid_have_bounds(tmp_path: Path, trained: Path, seed: str) -> None:
    grid = tmp_path / "g.toml"
    grid.write_text(
        f'store = "{trained / "st"}"\nsplit = "{trained / "sp.json"}"\nlabels = [2]\n'
        f'seeds = [{seed}]\n[[start]]\nname = "scratch"\n'
    )
    assert "seeds" in one_sentence(macl("benchmark", grid, "--out", tmp_path / "o"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_of_label_names(tmp_path: Path, mark: bytes) -> None:
    bids.write(tmp_path / "b")
    folder = next(iter((tmp_path / "b").rglob("*dseg.tsv"))).parent
    for table in folder.glob("*dseg.tsv"):
        table.write_bytes(mark + b"index\tname\r\n1\tliver\r\n2\ttumour\r\n")
    found = json.loads(macl("inspect", tmp_path / "b", "--workers", 1, "--json").out)
    assert found["classes"] == ["background", "liver", "tumour"]
    for table in folder.glob("*dseg.tsv"):
        table.write_bytes(b"index\tname\n1.5\tliver\n")
    assert "'1.5'" in one_sentence(macl("inspect", tmp_path / "b", "--workers", 1))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "a": 1.5}, "1.5"),
        ({"background": 0, "a": -1}, "-1"),
        ({"background": 0, "a": "one"}, "'one'"),
        ({"background": 0, "a": True}, "True"),
        ({"background": 0, "a": 10**30}, "10000"),
        ({"background": 0, "a": float("inf")}, "inf"),
        ({"background": 0, "a": 1, "b": 1}, "0, 1, 1"),
        ({"a": 1}, "0 for the background"),
        ({"background": 0} | {f"c{n}": n for n in range(1, 300)}, "300 labels"),
    ],
)
def test_declared_label_values(tmp_path: Path, labels: dict[str, object], words: str) -> None:
    source = nnunet.write(tmp_path / "d", labels=labels)
    assert words in one_sentence(macl("prepare", source, tmp_path / "st", "--workers", 1))
    assert not (tmp_path / "st").exists()


def test_fractions_in_a_label_are_named(tmp_path: Path) -> None:
    image, label = anatomy(0)
    write_nifti(tmp_path / "s/images/a.nii.gz", image)
    write_nifti(tmp_path / "s/labels/a.nii.gz", (label * 0.75).astype(np.float32))
    sentence = one_sentence(macl("prepare", tmp_path / "s", tmp_path / "st", "--workers", 1))
    assert "not whole numbers (0.75, 1.5)" in sentence


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_lossy_labels_are_refused(tmp_path: Path, suffix: str) -> None:
    disc = (((np.indices((64, 64)) - 32) ** 2).sum(0) < 200).astype(np.uint8) * 255
    for folder in ("images", "masks"):
        (tmp_path / "s" / folder).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "s/images/a.png")
    lossy = tmp_path / "s/masks/a.jpg"
    Image.fromarray(disc).save(lossy, quality=95)
    if suffix == "png":
        Image.open(lossy).save(lossy.with_suffix(".png"))
        lossy.unlink()
    answer = macl("prepare", tmp_path / "s", tmp_path / "st", "--workers", 1)
    if suffix == "png":
        assert "saved with loss" in one_sentence(answer)
        return
    assert "Labels that are JPEG pictures, which smear label values, are not read (a)" in answer.err
    index = json.loads((tmp_path / "st/store.json").read_text())
    assert ([*index["cases"][0]["arrays"]], index["classes"]) == (["image"], [])
    scored = macl(
        "evaluate", tmp_path / "s/masks", tmp_path / "s/masks", "--out", tmp_path / "o.csv"
    )
    assert "a.jpg is a JPEG" in one_sentence(scored)


MASK_NAMES = {
    "volume-{}.nii": "segmentation-{}.nii",
    "c{}.nii.gz": "c{}_segm.nii.gz",
    "d{}.nii.gz": "d{}_mask_final.nii.gz",
    "p{}_ct.nii.gz": "p{}_label2.nii.gz",
    "images/e{}.nii.gz": "labels_final/e{}.nii.gz",
    "images/f{}.nii.gz": "Expert Segmentations/f{}.nii.gz",
    "img{}.nii.gz": "seg{}.nii.gz",
}


@pytest.mark.parametrize(("image", "label"), MASK_NAMES.items())
def test_masks_are_paired_by_their_usual_names(tmp_path: Path, image: str, label: str) -> None:
    for number in range(3):
        scan, mask = anatomy(number)
        write_nifti(tmp_path / image.format(number), scan)
        write_nifti(tmp_path / label.format(number), mask)
    found = json.loads(macl("inspect", tmp_path, "--workers", 1, "--json").out)
    assert (found["cases"], found["labelled"], found["refused"]) == (3, 3, [])


def test_masks_alone_are_never_scans_in_silence(tmp_path: Path) -> None:
    for number in range(3):
        write_nifti(tmp_path / f"src/a{number}.nii.gz", anatomy(number)[1])
    shown = macl("inspect", tmp_path / "src", "--workers", 1).out
    assert "it looks like a mask" in shown
    answer = macl("prepare", tmp_path / "src", tmp_path / "st", "--workers", 1)
    assert "3 of 3 cases: it looks like a mask" in answer.err
    named = tmp_path / "named"
    for number in range(2):
        write_nifti(named / f"label{number:04d}.nii.gz", anatomy(number)[0])
    assert "Names as masks have them" in macl("inspect", named, "--quick").out
    assert "mask" not in macl("inspect", put_scans(tmp_path / "ok") / "images", "--quick").out


# ---------------------------------------------------------------- the cause, not the symptom


def test_causes_in_nnunet_folders(tmp_path: Path) -> None:
    wrong_ending = nnunet.write(tmp_path / "ending", test=0, file_ending="nii.gz")
    sentence = one_sentence(macl("prepare", wrong_ending, tmp_path / "st"))
    assert "says file_ending 'nii.gz', but the files of imagesTr end in '.nii.gz'" in sentence
    bare = nnunet.write(tmp_path / "bare", test=0, numTraining=10)
    for path in (bare / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    answer = macl("inspect", bare, "--quick", "--json")
    found = json.loads(answer.out)
    assert [one["reason"] for one in found["refused"]] == [
        f"imagesTr/toy_{n:03d}.nii.gz lacks its channel number: rename it to "
        f"toy_{n:03d}_0000.nii.gz"
        for n in range(3)
    ]
    assert any("numTraining 10" in note for note in found["notes"])


def test_the_folder_above_a_data_set(tmp_path: Path) -> None:
    nnunet.write(tmp_path / "raw/Dataset001_Toy")
    sentence = one_sentence(macl("prepare", tmp_path / "raw", tmp_path / "st"))
    assert f"name {tmp_path / 'raw' / 'Dataset001_Toy'} itself" in sentence
    below = macl("inspect", tmp_path / "raw/Dataset001_Toy/imagesTr", "--quick").out
    assert "The folder above has a dataset.json" in below


def test_labels_of_the_test_part_are_used(tmp_path: Path) -> None:
    source = nnunet.write(tmp_path / "d")
    write_nifti(source / "labelsTs/toy_003.nii.gz", anatomy(3)[1])
    found = json.loads(macl("inspect", source, "--quick", "--json").out)
    assert (found["cases"], found["labelled"], found["refused"]) == (4, 4, [])


def test_a_description_that_fits_no_layout(tmp_path: Path) -> None:
    source = nnunet.write(tmp_path / "d")
    entries = json.loads((source / "dataset.json").read_text())
    del entries["file_ending"]
    (source / "dataset.json").write_text(json.dumps(entries))
    assert "file_ending" in one_sentence(macl("prepare", source, tmp_path / "st"))


def test_links_and_plain_gzip(tmp_path: Path) -> None:
    source = msd.write(tmp_path / "msd")
    listed = json.loads((source / "dataset.json").read_text())["training"]
    image = source / listed[0]["image"]
    outside = tmp_path / "elsewhere.nii.gz"
    image.rename(outside)
    image.symlink_to(outside)
    refused = json.loads(macl("inspect", source, "--quick", "--json").out)["refused"]
    assert "is a link, or lies behind one" in refused[0]["reason"]
    write_nifti(tmp_path / "z/a.nii.gz", anatomy(0)[0]).rename(tmp_path / "z/a.nii")
    sentence = one_sentence(macl("prepare", tmp_path / "z", tmp_path / "st"))
    assert "a.nii is compressed" in sentence
    assert "rename it to a.nii.gz" in sentence


# ---------------------------------------------------------------- names


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s/a.nii.gz", anatomy(0)[0])
    patient = tmp_path / "s" / os.fsdecode(b"Gr\xf6\xdfe")
    patient.mkdir()
    write_nifti(tmp_path / "s/x.nii.gz", anatomy(1)[0]).rename(patient / "x.nii.gz")
    answer = macl("prepare", tmp_path / "s", tmp_path / "st", "--workers", 1)
    assert answer.code == 0, answer.err
    index = json.loads((tmp_path / "st/store.json").read_text())
    assert [case["name"] for case in index["cases"]] == ["Gr_e_x", "a"]


@pytest.mark.parametrize("name", ["lesion [enhancing]", "core [/whole]", "[bold]x", ":smile: y"])
def test_names_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    source = nnunet.write(tmp_path / "d", labels={"background": 0, name: 1, "z": 2})
    answer = macl("evaluate", source / "labelsTr", source, "--out", tmp_path / "o.csv")
    assert answer.code == 0, answer.err
    assert name in answer.out
    assert name in macl("inspect", source, "--workers", 1).out


@pytest.mark.parametrize("name", ["=1+2", "+a", "-b", "@c", "\tx", "=cmd|' /C calc'!A0", "'q"])
def test_tables_are_safe_for_spreadsheets(tmp_path: Path, name: str) -> None:
    source = nnunet.write(tmp_path / "d", labels={"background": 0, name: 1, "z": 2})
    (tmp_path / "masks").mkdir()
    shutil.copy(source / "labelsTr/toy_000.nii.gz", tmp_path / "masks/toy_000.nii.gz")
    answer = macl("evaluate", tmp_path / "masks", source, "--out", tmp_path / "o.csv")
    assert answer.code == 0, answer.err
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["case"] == "toy_000"
    assert rows[0]["class"][0] not in "=+-@\t\r"
    assert name.strip() in rows[0]["class"]
    from macl.records.scores import read_rows

    assert [row.class_name for row in read_rows(tmp_path / "o.csv")][1] == "z"
    assert read_rows(tmp_path / "o.csv")[0].class_name == name.replace("\t", "\\t")


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    labels = {"background": 0, "\x1b[31mred": 1, "z": 2}
    source = nnunet.write(tmp_path / "d", labels=labels)
    answer = macl("evaluate", source / "labelsTr", source, "--out", tmp_path / "o.csv")
    assert answer.code == 0
    assert "\x1b" not in answer.out + answer.err + (tmp_path / "o.csv").read_text()
    assert "red" in answer.out


# ---------------------------------------------------------------- people, labels, channels


def patients_of(store: Path) -> dict[str, str]:
    """Case → patient."""
    index = json.loads((store / "store.json").read_text())
    return {case["name"]: case["patient"] for case in index["cases"]}


def put_frames(folder: Path) -> Path:
    """Two people with two frames each."""
    for person in (6, 7):
        for frame in (1, 16):
            image, _ = anatomy(10 * person + frame)
            write_nifti(folder / f"patient{person:03d}_frame{frame:02d}.nii.gz", image)
    return folder


def test_people_as_the_user_states_them(tmp_path: Path) -> None:
    source = put_frames(tmp_path / "src")
    noticed = macl("prepare", source, tmp_path / "a", "--workers", 1)
    assert "4 cases are of 2 people" in noticed.err
    assert "--patients '^[^_]+'" in noticed.err
    assert len(set(patients_of(tmp_path / "a").values())) == 4
    table = tmp_path / "people.csv"
    table.write_bytes(
        b"\xef\xbb\xbfcase;patient\r\n"
        + b"".join(f"{name};{name[:10]}\r\n".encode() for name in patients_of(tmp_path / "a"))
    )
    statements = ["^[^_]+", r"(patient\d+)_", r"(?P<patient>patient\d+)_frame", str(table)]
    for number, statement in enumerate(statements):
        store = tmp_path / f"b{number}"
        answer = macl("prepare", source, store, "--workers", 1, "--patients", statement)
        assert answer.code == 0, answer.err
        assert set(patients_of(store).values()) == {"patient006", "patient007"}
        assert "suggest" not in answer.err


@pytest.mark.parametrize(
    ("statement", "words"),
    [("zzz", "names no patient of"), ("((", "regular expression"), ("no.csv", "There is no")],
)
def test_statements_that_do_not_fit(tmp_path: Path, statement: str, words: str) -> None:
    source = put_frames(tmp_path / "src")
    answer = macl("prepare", source, tmp_path / "st", "--patients", statement)
    assert words in one_sentence(answer)
    assert not (tmp_path / "st").exists()


def test_sites_are_not_people(tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"images/siteA/p{number}.nii.gz", anatomy(number)[0])
        write_nifti(tmp_path / f"images/site B/q{number}.nii.gz", anatomy(number + 9)[0])
    assert json.loads(macl("inspect", tmp_path, "--quick", "--json").out)["patients"] == 4


@pytest.mark.parametrize("how", ["folder", "folder inside", "table"])
def test_labels_as_the_user_states_them(tmp_path: Path, how: str) -> None:
    source = tmp_path / "src"
    masks = source / "truth1" if how == "folder inside" else tmp_path / "truth"
    rows = ["image,label"]
    for number in range(3):
        image, label = anatomy(number)
        write_nifti(source / f"scans of day 1/c{number}.nii.gz", image)
        write_nifti(masks / f"c{number}_manual.nii.gz" if how == "table" else
                    masks / f"c{number}.nii.gz", label)  # fmt: skip
        rows.append(f"src/scans of day 1/c{number}.nii.gz,truth/c{number}_manual.nii.gz")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    stated = tmp_path / "pairs.csv" if how == "table" else masks
    answer = macl("prepare", source, tmp_path / "st", "--labels", stated, "--workers", 1)
    assert answer.code == 0, answer.err
    index = json.loads((tmp_path / "st/store.json").read_text())
    assert len(index["cases"]) == 3
    assert all("label" in case["arrays"] for case in index["cases"])
    counts = np.bincount(anatomy(0)[1].ravel()).tolist()
    assert index["cases"][0]["class_voxels"] == counts


def test_labels_that_fit_nothing(tmp_path: Path) -> None:
    put_scans(tmp_path / "src")
    write_nifti(tmp_path / "m/zzz.nii.gz", anatomy(0)[1])
    answer = macl("prepare", tmp_path / "src/images", tmp_path / "st", "--labels", tmp_path / "m")
    assert "zzz.nii.gz" in one_sentence(answer)


@pytest.mark.parametrize("how", ["folder", "files"])
def test_predict_takes_nnunets_names(trained: Path, tmp_path: Path, how: str) -> None:
    scans = tmp_path / "imagesTs"
    for number in range(2):
        write_nifti(scans / f"p{number}_0000.nii.gz", anatomy(number)[0])
    paths = [scans] if how == "folder" else sorted(scans.iterdir())
    answer = macl("predict", trained / "ft", *paths, "--out", tmp_path / "o", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "o").glob("*.nii.gz")) == [
        "p0.nii.gz",
        "p1.nii.gz",
    ]
    mask = nibabel.load(tmp_path / "o/p0.nii.gz")
    assert mask.shape == tuple(reversed(anatomy(0)[0].shape))  # pyright: ignore


# ---------------------------------------------------------------- advice


@pytest.mark.parametrize("method", names("methods"))
def test_a_batch_of_one(tmp_path: Path, method: str) -> None:
    write_toy_store(tmp_path / "st", patients=3, slices=2, side=32)
    settings = [word.replace("batch_size=4", "batch_size=1") for word in TINY]
    words = ["pretrain", tmp_path / "st", "--method", method, "--out", tmp_path / "o"]
    answer = macl(*words, "--device", "cpu", *settings)
    if method == "masked":
        assert answer.code == 0, answer.err
        return
    assert "training.batch_size must be 2 or more" in one_sentence(answer)
    assert not (tmp_path / "o").exists()


def test_a_single_slice_is_all_there_is(tmp_path: Path) -> None:
    write_toy_store(tmp_path / "st", patients=1, slices=1, side=32)
    answer = macl("pretrain", tmp_path / "st", "--out", tmp_path / "o", "--device", "cpu", *TINY)
    assert "an epoch has only 1" in one_sentence(answer)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--batch-size", "4"], "use --set training.batch_size=…"),
        (["--epochs", "4"], "use --set training.epochs=…"),
        (["--lr", "4"], "use --set training.learning_rate=…"),
        (["--set", "epochs=1"], "did you mean training.epochs?"),
        (["--set", "batch_size=1"], "did you mean training.batch_size?"),
    ],
)
def test_settings_in_the_wrong_place(
    trained: Path, tmp_path: Path, words: list[str], hint: str
) -> None:
    answer = macl("pretrain", trained / "st", "--out", tmp_path / "o", *words)
    assert answer.code in (1, 2)
    assert hint in answer.err


def test_inspect_measures_slices_as_prepare_does(tmp_path: Path) -> None:
    """The header says a thickness of its own; the positions count."""
    dicom.write_series(tmp_path / "src/p", SliceThickness=17, SpacingBetweenSlices=17)
    shown = json.loads(macl("inspect", tmp_path / "src", "--quick", "--json").out)
    macl("prepare", tmp_path / "src", tmp_path / "st", "--workers", 1)
    stored = json.loads((tmp_path / "st/store.json").read_text())["cases"][0]["spacing_mm"]
    assert shown["spacing_mm"][0] == pytest.approx(stored)
    assert 4.0 in stored
    assert 17 not in stored


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    put_scans(tmp_path / "src", 3)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom macl.stages.prepare import prepare\n"
        "prepare(Path('src'), Path('st'), workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Working in one process" in done.stderr
    assert "memory" not in done.stderr
    assert (tmp_path / "st/store.json").is_file()
