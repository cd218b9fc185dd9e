"""The contract of every reader: its data is recognised, counted, and stored as it was scanned."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fakes import (
    acdc,
    amos,
    bids,
    brats2018,
    chaos,
    chd,
    dicom_tree,
    hvsmr,
    isic2018,
    kits2019,
    mmwhs,
    msd,
    nnunet,
    sunnybrook,
)
from fakes.command import macl
from fakes.structures import Truth
from macl.config.recipes import read_recipe
from macl.data.splits import read_split
from macl.data.store import Store
from macl.io.volume import write_volume
from macl.plugins import names, reader
from macl.preprocessing.orientation import to_scan
from macl.readers.amos import ORGANS

PAGES = Path(__file__).parents[2] / "docs" / "datasets"
SECTIONS = [
    "Obtain", "Terms", "Tree", "Commands", "What macl does with it", "Split", "Recipe", "Cite",
    "Sources",
]  # fmt: skip
SEVEN = ("LV", "RV", "LA", "RA", "MYO", "AO", "PA")


@dataclass(frozen=True)
class Layout:
    """A data set in miniature, and what the command line must say about it.

    `write` returns what a store must hold of every case, or else the folder.
    """

    write: Callable[[Path], Mapping[str, Truth] | Path]
    modality: str
    cases: int
    patients: int
    labelled: int
    classes: tuple[str, ...]
    values: tuple[int, ...]
    channels: int = 1


LAYOUTS = {
    "acdc": Layout(acdc.write, "MR", 4, 2, 4, ("RV", "MYO", "LV"), (0, 1, 2, 3)),
    "msd": Layout(msd.write, "MR", 5, 5, 3, ("Ring", "Disc"), (0, 1, 2)),
    "nnunet_raw": Layout(nnunet.write, "CT", 4, 4, 3, ("ring", "disc"), (0, 1, 2)),
    "chd": Layout(chd.write, "CT", 3, 3, 3, SEVEN, tuple(range(8))),
    "brats2018": Layout(
        brats2018.write, "MR", 3, 3, 3,
        ("necrotic and non-enhancing core", "edema", "enhancing tumour"), (0, 1, 2, 4), channels=4,
    ),
    "kits2019": Layout(kits2019.write, "CT", 3, 3, 2, ("kidney", "tumour"), (0, 1, 2)),
    "mmwhs": Layout(
        mmwhs.write, "CT", 3, 3, 2, ("MYO", "LA", "LV", "RA", "RV", "AO", "PA"),
        (0, 205, 420, 500, 550, 600, 820, 850),
    ),
    "hvsmr": Layout(hvsmr.write, "MR", 3, 3, 2, ("myocardium", "blood pool"), (0, 1, 2)),
    "amos": Layout(amos.write, "CT", 4, 4, 3, ORGANS, tuple(range(16))),
    "chaos": Layout(
        chaos.write, "MR", 3, 3, 2, ("liver", "right kidney", "left kidney", "spleen"),
        (0, 63, 126, 189, 252),
    ),
    "isic2018": Layout(isic2018.write, "photograph", 4, 4, 3, ("lesion",), (0, 255), channels=3),
    "bids": Layout(
        bids.write, "MR", 3, 2, 2, ("Left-Hippocampus", "Right-Hippocampus"), (0, 17, 53)
    ),
    "dicom": Layout(dicom_tree.write, "MR", 4, 2, 0, (), ()),
    "sunnybrook": Layout(sunnybrook.write, "MR", 4, 2, 4, ("LV",), (0, 255)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_is_recognised_counted_and_stored_as_it_was_scanned(
    tmp_path: Path, name: str
) -> None:
    layout, data = LAYOUTS[name], tmp_path / "data"
    data.mkdir()
    truths = layout.write(data)

    answer = macl("inspect", data, "--json")
    assert answer.code == 0, answer.err
    summary = json.loads(answer.out)
    counts = {"cases": layout.cases, "patients": layout.patients, "labelled": layout.labelled}
    classes = ("background", *layout.classes) if layout.classes else ()
    expected = {"reader": name, "modality": layout.modality, "classes": [*classes]} | counts
    assert {key: summary[key] for key in expected} == expected
    assert summary["refused"] == []
    assert summary["recognised_by"]

    own_names = ("--keep-identity",) if name == "dicom" else ()
    answer = macl("prepare", data, tmp_path / "store", "--workers", 1, *own_names)
    assert answer.code == 0, answer.err
    assert f"is read as {name} ({summary['recognised_by']})." in answer.err
    store = Store.open(tmp_path / "store")
    index = store.index
    assert (index.reader, index.modality, len(index.channels)) == (
        name,
        layout.modality,
        layout.channels,
    )
    assert (index.classes, index.label_values) == (classes, layout.values)
    assert index.refused == ()
    stored = {"cases": len(index.cases), "patients": len({case.patient for case in index.cases})}
    assert stored | {"labelled": sum(case.labelled for case in index.cases)} == counts
    assert {case.orientation.plane for case in index.cases} == {"axial"}
    if isinstance(truths, Mapping):
        for case, truth in truths.items():
            same(store, case, truth)


def same(store: Store, name: str, truth: Truth) -> None:
    """A stored case is what the fake drew, voxel for voxel, in left-posterior-superior order."""
    case = store.case(name)
    assert case.patient == truth.patient or not truth.patient
    array = store.read(name)
    if case.rescale:
        array = np.stack(
            [
                channel * slope + shift
                for channel, (slope, shift) in zip(array, case.rescale, strict=True)
            ]
        )
    np.testing.assert_array_equal(array, truth.image)
    assert case.labelled == (truth.label is not None)
    if truth.label is not None:
        np.testing.assert_array_equal(store.read(name, "label"), truth.label)


@pytest.mark.parametrize("task", msd.TASKS)
def test_every_task_of_the_decathlon_is_stored_as_it_describes_itself(
    tmp_path: Path, task: str
) -> None:
    stem, modality, classes = msd.TASKS[task]
    data = msd.write(
        tmp_path / task, cases=1, test=1, modality=modality, classes=classes, stem=stem
    )
    answer = macl("prepare", data, tmp_path / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "store")
    index = store.index
    expected = ("msd", "CT" if modality == ("CT",) else "MR", modality, ("background", *classes))
    assert (index.reader, index.modality, index.channels, index.classes) == expected
    assert [(case.name, case.labelled) for case in index.cases] == [
        (f"{stem}_001", True),
        (f"{stem}_002", False),
    ]
    array = store.read(f"{stem}_001").astype(float)
    assert len(array) == len(modality)
    np.testing.assert_array_equal(
        array, array[:1] + 10 * np.arange(len(modality))[:, None, None, None]
    )
    assert store.read(f"{stem}_001", "label").max() == min(2, len(classes))


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layout_looks_like_another(tmp_path: Path, name: str) -> None:
    LAYOUTS[name].write(tmp_path)
    signs = {other: reader(other).evidence(tmp_path) for other in names("readers")}
    specificity = {other: sign[0] for other, sign in signs.items() if sign}
    highest = max(specificity.values())
    assert [other for other, value in specificity.items() if value == highest] == [name]


def test_every_reader_has_a_fake() -> None:
    assert {*LAYOUTS} == {*names("readers")} - {"folder"}


@pytest.mark.parametrize("name", names("readers"))
def test_every_reader_has_a_page_whose_commands_name_what_there_is(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8").replace("\\\n   ", "")
    assert f"({name}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)", page, re.MULTILINE) == SECTIONS
    assert re.search(r"^macl inspect .+\nmacl prepare ", page, re.MULTILINE)
    assert all(reader(wanted) for wanted in re.findall(r"--reader ([\w:]+)", page))
    for stage, recipe in re.findall(r"macl (pretrain|finetune) .*--recipe (\S+)", page):
        assert read_recipe(stage, recipe)
    for split, labels in re.findall(r"--split (\S+) --labels (\S+)", page):
        made = re.search(rf"^macl split .+ --out {split} --budgets {labels}$", page, re.MULTILINE)
        assert made or labels in read_split(split).budgets


@pytest.mark.parametrize(
    ("name", "part", "modality", "cases"),
    [
        ("mmwhs", "mr", "MR", 3),
        ("amos", "mr", "MR", 3),
        ("hvsmr", "axial_crop", "MR", 3),
        ("chaos", "t1dual", "MR", 3),
        ("chaos", "ct", "CT", 1),
        ("bids", "T2w", "MR", 1),
    ],
)
def test_another_part_is_read_where_asked_for_and_named_where_not(
    tmp_path: Path, name, part, modality, cases
) -> None:
    LAYOUTS[name].write(tmp_path / "data")
    assert f"--reader {name}:{part}" in " ".join(macl("inspect", tmp_path / "data").out.split())
    answer = macl(
        "prepare",
        tmp_path / "data",
        tmp_path / "store",
        "--reader",
        f"{name}:{part}",
        "--workers",
        1,
    )
    assert answer.code == 0, answer.err
    index = Store.open(tmp_path / "store").index
    assert (index.modality, len(index.cases)) == (modality, cases)
    wrong = macl("inspect", tmp_path / "data", "--reader", f"{name}:pet")
    assert (wrong.code, "has no part 'pet'" in wrong.err, part in wrong.err) == (1, True, True)


@pytest.mark.parametrize("name", ["chd", "chaos", "sunnybrook", "kits2019"])
def test_masks_are_scored_against_a_data_set_as_it_was_downloaded(
    tmp_path: Path, name: str
) -> None:
    LAYOUTS[name].write(tmp_path / "data")
    assert macl("prepare", tmp_path / "data", tmp_path / "store", "--workers", 1).code == 0
    store = Store.open(tmp_path / "store")
    values = np.asarray(store.index.label_values, dtype=np.int16)
    for case in store.index.cases:
        if case.labelled:
            mask = values[to_scan(store.read(case.name, "label"), case.orientation)]
            write_volume(tmp_path / "masks" / f"{case.name}.nii.gz", mask, case.geometry)
    answer = macl(
        "evaluate", tmp_path / "masks", tmp_path / "data", "--out", tmp_path / "cases.csv"
    )
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert {row["class"] for row in rows} == {*LAYOUTS[name].classes}
    assert {float(row["dice"]) for row in rows} == {1.0}
