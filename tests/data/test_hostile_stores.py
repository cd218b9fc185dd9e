"""A store is input: damaged arrays are noticed, and a store from somebody else runs nothing.

MACL_FUZZ_FLIPS sets the number of flipped bits, MACL_FUZZ_MUTATIONS that of changed JSON and TOML
files, MACL_FUZZ_SEED which they are.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from fakes.command import macl
from fakes.crafted import write_array_that_runs
from fakes.loading import make_loader
from fakes.scans import anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.config.recipes import resolve_recipe
from macl.config.settings import FinetuneSettings, PretrainSettings
from macl.data.patch_cache import PatchCache
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.data.store_index import ArrayKind
from macl.stages.split import split
from macl.utils.errors import MaclError
from macl.workflows.benchmark.grid import read_grid
from macl.workflows.benchmark.plan import plan

FLIPS = int(os.environ.get("MACL_FUZZ_FLIPS", "60"))
MUTATIONS = int(os.environ.get("MACL_FUZZ_MUTATIONS", "60"))
SEED = int(os.environ.get("MACL_FUZZ_SEED", "0"))
LONGEST_SECONDS = 10


# ---------------------------------------------------------------- bits of arrays


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as `macl prepare` writes it, of two labelled scans."""
    folder = tmp_path_factory.mktemp("prepared")
    for number in range(2):
        image, label = anatomy(number)[:2]
        write_nifti(folder / "scans" / f"p{number}" / "image.nii.gz", image)
        write_nifti(folder / "scans" / f"p{number}" / "label.nii.gz", label)
    answer = macl("prepare", folder / "scans", folder / "store", "--workers", 1)
    assert answer.code == 0, answer.err
    return folder / "store"


def store_with(kind: ArrayKind, folder: Path, prepared: Path, with_file_sha256: bool) -> Path:
    """A copy of the store; without the checksums of files, as older stores have none."""
    shutil.copytree(prepared, folder)
    index = json.loads((folder / "store.json").read_text())
    assert all(kind in case["arrays"] for case in index["cases"])
    if not with_file_sha256:
        for case in index["cases"]:
            for array in case["arrays"].values():
                assert array.pop("file_sha256")
        (folder / "store.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("with_file_sha256", [True, False])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_flipped_bit_is_never_read_in_silence(
    kind: ArrayKind, with_file_sha256: bool, prepared: Path, tmp_path: Path
) -> None:
    folder = store_with(kind, tmp_path / "store", prepared, with_file_sha256)
    draw = random.Random(SEED)
    name, case = next(iter(Store.open(folder).cases.items()))
    file = folder / case.arrays[kind].file
    good = file.read_bytes()
    right = Store.open(folder).read(name, kind)
    silent = []
    for _ in range(FLIPS):
        data, bit = bytearray(good), draw.randrange(8 * len(good))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            read = Store.open(folder).read(name, kind, (slice(0, 1), None, None))
        except MaclError as error:
            assert file.name in str(error)  # noqa: PT017
            continue
        # What an older store cannot tell from its array's contents does not change them.
        if with_file_sha256 or not np.array_equal(read, right[..., :1, :, :]):
            silent.append(bit)
    assert silent == []


def test_an_array_is_verified_once_or_not_at_all(prepared: Path, tmp_path: Path) -> None:
    folder = store_with("image", tmp_path / "store", prepared, True)
    name, case = next(iter(Store.open(folder).cases.items()))
    file = folder / case.arrays["image"].file
    opened = Store.open(folder)
    right = opened.read(name)
    other = right + 1
    file.unlink()
    blosc2.asarray(other, urlpath=str(file), mode="w")
    np.testing.assert_array_equal(opened.read(name), other, "verified before it was changed")
    with pytest.raises(MaclError, match="has changed since it was written"):
        Store.open(folder).read(name)
    np.testing.assert_array_equal(Store.open(folder, verify=False).read(name), other)


def test_check_names_what_is_wrong(prepared: Path, tmp_path: Path) -> None:
    folder = store_with("image", tmp_path / "store", prepared, True)
    answer = macl("check", folder)
    assert (answer.code, answer.out) == (
        0,
        f"{folder} is as it was written: 4 arrays of 2 cases.\n",
    )
    first, second = Store.open(folder).index.cases
    data = bytearray((folder / first.arrays["label"].file).read_bytes())
    data[-1] ^= 1
    (folder / first.arrays["label"].file).write_bytes(data)
    (folder / second.arrays["image"].file).unlink()
    (folder / "cases" / "notes.txt").write_text("mine")
    answer = macl("check", folder)
    assert answer.code == 1
    assert f"{first.name}.label.b2nd of the case {first.name!r} cannot be read" in answer.err
    assert f"{second.name}.image.b2nd of the case {second.name!r} cannot be read" in answer.err
    assert "notes.txt does not belong to the store" in answer.err
    assert f"3 things are wrong in {folder}" in answer.err
    answer = macl("check", tmp_path)
    assert (answer.code, "neither a finished store nor a run" in answer.err) == (1, True)


# ---------------------------------------------------------------- a store that would run code


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_store_from_somebody_else_runs_nothing(kind: ArrayKind, tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2, side=32)
    made = tmp_path / "the function has run"
    for name, case in store.cases.items():
        array = store.read(name, kind)
        write_array_that_runs(tmp_path / "store" / case.arrays[kind].file, array, made)
    pretraining = ("pretrain", tmp_path / "store", "--out", tmp_path / "run", "--device", "cpu")
    for words in (pretraining, ("check", tmp_path / "store"))[kind == "label" :]:
        answer = macl(*words)
        assert answer.code == 1
        assert "more than a plain array, such as a function that would run" in answer.err
        assert not made.exists()


def test_arrays_in_other_containers_are_refused(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path / "store", patients=2, side=32)
    name, case = next(iter(store.cases.items()))
    array, file = store.read(name), tmp_path / "store" / case.arrays["image"].file
    changes: list[dict[str, Any]] = [
        {"meta": {"proxy-source": {"local_abspath": "/etc/passwd"}}},
        {"meta": {"b2o": {"kind": "x"}}},
        {"contiguous": False},
    ]
    for change in changes:
        file.unlink()
        blosc2.asarray(array, urlpath=str(file), mode="w", **change)
        with pytest.raises(MaclError, match="cannot be read"):
            Store.open(tmp_path / "store", verify=False).read(name)
        if file.is_dir():
            shutil.rmtree(file)
            file.touch()


# ---------------------------------------------------------------- an index without sense


def change_case(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        for path, value in values.items():
            *groups, last = path.split("__")
            target = index["cases"][1]
            for group in groups:
                target = target[group]
            target[last] = value

    return change


def twice(index: dict[str, Any]) -> None:
    index["cases"].append(index["cases"][0])


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "spacing NaN": (change_case(spacing_mm=[1.0, float("nan"), 1.0]), "the spacing"),
    "spacing 0": (change_case(spacing_mm=[1.0, 0.0, 1.0]), "the spacing"),
    "a billion slices": (change_case(size=[10**9, 64, 64]), "the size|shape"),
    "negative size": (change_case(size=[-6, 64, 64]), "the size"),
    "other size": (change_case(size=[5, 64, 64]), "the image's shape"),
    "no normalisation": (change_case(normalisation__mean=[]), "the normalisation"),
    "deviation 0": (change_case(normalisation__deviation=[0.0]), "the normalisation"),
    "deviation infinite": (change_case(normalisation__deviation=[float("inf")]), "normalisation"),
    "limits swapped": (change_case(normalisation__low=[1e9]), "the normalisation"),
    "case twice": (twice, "'patient001', its name is there twice"),
    "no permutation": (change_case(orientation__permutation=[0, 1, 1]), "the permutation"),
    "other permutation": (change_case(orientation__permutation=[1, 0, 2]), "the permutation"),
    "other flip": (change_case(orientation__flipped=[True, False, False]), "the flips"),
    "grid not finite": (change_case(geometry__origin=[float("nan"), 0.0, 0.0]), "scan's grid"),
    "channels": (change_case(channels=2), "2 channels, not the store's 1"),
    "rescale": (change_case(rescale=[[0.0, 1.0]]), "the rescaling"),
    "content": (change_case(content=[0.5]), "the content of its slices"),
    "counts": (change_case(class_voxels=[1, 2, 3]), "the voxels of its classes"),
    "objects": (change_case(arrays__image__dtype="object"), "the image's type"),
    "no image": (lambda index: index["cases"][1]["arrays"].pop("image"), "an array is missing"),
    "label values": (lambda index: index["label_values"].pop(), "3 classes, but 2 label values"),
    "value twice": (lambda index: index.update(label_values=[0, 1, 1]), "is there twice"),
    "no cases": (lambda index: index.update(cases=[]), "no channels or no cases"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_index_without_sense_is_refused_on_opening(name: str, tmp_path: Path) -> None:
    change, words = CONTRADICTIONS[name]
    write_toy_store(tmp_path / "store", patients=2)
    index = json.loads((tmp_path / "store" / "store.json").read_text())
    change(index)
    (tmp_path / "store" / "store.json").write_text(json.dumps(index))
    with pytest.raises(MaclError, match=words):
        Store.open(tmp_path / "store")


# ---------------------------------------------------------------- changed files


ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 10**9, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "x",
    "../x", "nan", [], {}, [[]], {"a": {"b": [1]}}, [0, 0, 0], [1.0], ["x", "x"],
]  # fmt: skip


def mutate(value: Any, draw: random.Random) -> Any:
    """The JSON value with one odd change somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        changed = dict(value)
        match draw.randrange(12):
            case 0:
                del changed[key]
            case 1:
                changed["odd"] = changed.pop(key)
            case _:
                changed[key] = mutate(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        match draw.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], mutate(value[place], draw), *value[place + 1 :]]
    return draw.choice(ODD)


def damage(text: str, draw: random.Random) -> bytes:
    """The text of a JSON file changed in its values, or cut, or nested deeply, or not UTF-8."""
    match draw.randrange(8):
        case 0:
            return text[: draw.randrange(len(text))].encode()
        case 1:
            return b"[" * 50_000 + b"]" * 50_000
        case 2:
            data = bytearray(text.encode())
            data[draw.randrange(len(data))] = draw.randrange(256)
            return bytes(data)
        case _:
            return json.dumps(mutate(json.loads(text), draw)).encode()


def damage_toml(text: str, draw: random.Random) -> bytes:
    """Likewise of a TOML file."""
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    key, equals, _ = lines[place].partition("=")
    match draw.randrange(5):
        case 0:
            return text[: draw.randrange(len(text))].encode()
        case 1:
            data = bytearray(text.encode())
            data[draw.randrange(len(data))] = draw.randrange(256)
            return bytes(data)
        case 2:
            del lines[place]
        case _ if equals:
            odd = json.dumps(draw.choice([value for value in ODD if value is not None]))
            lines[place] = f"{key}={odd.replace('NaN', 'nan').replace('Infinity', 'inf')}"
    return "\n".join(lines).encode()


@contextmanager
def at_most_seconds(seconds: int) -> Iterator[None]:
    """AssertionError if the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


GRID = """store = "store"
split = "split.json"
labels = ["2"]
recipes = ["strong"]
seeds = [0, 1]

[[start]]
name = "scratch"

[[start]]
name = "macl"
method = "macl"
set = ["training.epochs=1", "training.size=64"]

[finetune]
set = ["training.epochs=1", "training.size=64"]
"""
RECIPE = """dims = 2
backbone = "unet"
[training]
epochs = 3
batch_size = 4
size = 64
optimiser = "adamw"
learning_rate = 0.001
gradient_clip = 1.0
[backbone_settings]
width = 8
"""


def use_store(folder: Path) -> None:
    """What training does with a store before and in its first step, and the other commands."""
    store = Store.open(folder / "store")
    resolved = resolve_split(read_split(str(folder / "split.json")), store)
    cases = resolved.pretraining_cases
    cache = PatchCache(store, cases, labelled="some", device=torch.device("cpu"))
    for patch in ((32, 32), (4, 32, 32)):
        next(iter(make_loader(cache, 2, patch, seed=0).between(0, 1)))
    for words in (("inspect", folder / "store"), ("split", folder / "store", "--out")):
        out = (folder / "new.json",) if words[-1] == "--out" else ()
        answer = macl(*words, *out)
        assert answer.code in (0, 1), answer.err
        if answer.code:
            raise MaclError(answer.err)


def use_split(folder: Path) -> None:
    resolve_split(read_split(str(folder / "split.json")), Store.open(folder / "store"))


def use_grid(folder: Path) -> None:
    plan(read_grid(folder / "grid.toml"))


def use_recipe(folder: Path) -> None:
    for kind in (PretrainSettings, FinetuneSettings):
        resolve_recipe(kind, str(folder / "recipe.toml"))


USES: dict[str, tuple[Callable[[Path], None], Callable[[str, random.Random], bytes]]] = {
    "store/store.json": (use_store, damage),
    "split.json": (use_split, damage),
    "grid.toml": (use_grid, damage_toml),
    "recipe.toml": (use_recipe, damage_toml),
}


@pytest.mark.parametrize("name", USES)
def test_a_changed_file_is_used_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    write_toy_store(tmp_path / "store", patients=4, side=40, unlabelled=1)
    split(tmp_path / "store", tmp_path / "split.json", test="1", budgets="2")
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    use, damaged = USES[name]
    use(tmp_path)
    text = (tmp_path / name).read_text()
    draw, refused = random.Random(SEED), 0
    for number in range(MUTATIONS):
        (tmp_path / name).write_bytes(damaged(text, draw))
        try:
            with at_most_seconds(LONGEST_SECONDS):
                use(tmp_path)
        except MaclError as error:
            refused += len(str(error)) > 20
        except BaseException as error:
            shutil.copy(tmp_path / name, tmp_path / f"{number}-{Path(name).name}")
            raise AssertionError(f"change {number} of {name}: {error!r}") from error
    assert refused > MUTATIONS // 4
