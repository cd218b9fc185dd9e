"""Masks + truth → one row per case and class, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from macl.data.store import INDEX, Orientation, Store
from macl.io.geometry import Geometry
from macl.io.source import Scan, Source
from macl.io.volume import Volume, grid_difference, read_label
from macl.metrics import Convention, Score, empty_score, score_classes
from macl.plugins import readers
from macl.preprocessing.orientation import orient, plan, spacing_of, to_scan
from macl.preprocessing.source import recognise, survey
from macl.records.predictions import RECORD as PREDICTIONS_RECORD
from macl.records.predictions import list_masks, read_predictions
from macl.records.scores import ScoreRow, render, summarise, write_rows
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.files import write_json
from macl.utils.parallel import available_cores
from macl.utils.progress import progress, say


@dataclass(frozen=True)
class Label:
    """The truth of one case: (z, y, x) in the scan's own values, its grid, and how the case's slices lie in it."""

    array: np.ndarray
    geometry: Geometry
    orientation: Orientation


@dataclass(frozen=True)
class Truth:
    """Where the truth comes from.

    Attributes:
        names: the cases that have a label, sorted.
        classes: the scans' own label value → class name, background first; None where nobody names them.
        read: a case's label by name.
    """

    names: tuple[str, ...]
    classes: Mapping[int, str] | None
    read: Callable[[str], Label]


@dataclass(frozen=True)
class CaseScores:
    """One case: its classes' scores by label value, and what they were measured on."""

    case: str
    scores: Mapping[int, Score]
    spacing_known: bool
    slices: int


def evaluate(predictions: Path, truth: Path, out: Path, *, convention: Convention = "strict") -> list[ScoreRow]:
    """Score a folder of masks against the truth; write `out` (.csv) and `<out's stem>.summary.json` beside it.

    Args:
        predictions: folder of masks called `<case>.nii.gz` (or .nrrd, .mha, .png).
        truth: a store, a source in a known layout, or a folder of true masks, matched by case name.
        convention: see `macl.metrics.DEFINITIONS`.

    Raises:
        MaclError: nothing matches, a mask cannot be read, grids differ, or a label value is not among the classes.
    """
    if out.suffix != ".csv":
        raise MaclError(f"--out {out} should be a file that ends in .csv.")
    masks = list_masks(predictions)
    opened = open_truth(truth, predictions)
    cases = match(predictions, masks, truth, opened.names)
    scored = _score_cases({case: masks[case] for case in cases}, opened, convention)
    rows = to_rows(scored, opened.classes, convention)
    summary = summarise(rows, convention)
    if summary["unit"] == "mixed":
        say("The spacing of some cases is unknown: the table has distances in mm and in voxels, and no mean of them.")
    write_rows(out, rows)
    write_json(out.with_name(f"{out.stem}.summary.json"), summary)
    print(render(summary))
    say(f"Wrote {out} ({len(cases)} cases) and {out.stem}.summary.json beside it.")
    return rows


# ---------------------------------------------------------------- the truth


def open_truth(path: Path, predictions: Path) -> Truth:
    """Recognise a store, a source with labels, or else a folder of masks.

    Raises:
        MaclError: the path is none of these.
    """
    if (path / INDEX).is_file():
        return _store_truth(Store.open(path))
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise MaclError(f"{path} {what}: name a store, a folder of scans with labels, or a folder of true masks.")
    source = _recognise(path)
    labels = {case.name: (case.label, case.images[0]) for case in source.cases if case.label} if source else {}
    if source and labels:
        say(f"{path} is read as {source.reader}: {len(labels)} cases with a label.")
        return _files_truth(labels, source.classes or None)
    record = read_predictions(path) or read_predictions(predictions)
    classes = dict(zip(record.label_values, record.classes, strict=True)) if record else None
    return _files_truth({name: (mask, None) for name, mask in list_masks(path).items()}, classes)


def _recognise(path: Path) -> Source | None:
    """What the fitting reader finds in a folder; None where it is no source of images."""
    try:
        reader = recognise(path, readers())
        return survey(path, reader.read(path)).source
    except MaclError:
        return None


def _store_truth(store: Store) -> Truth:
    index = store.index
    values = np.asarray(index.label_values, dtype=np.int32)

    def read(name: str) -> Label:
        case = store.case(name)
        slices = store.read(name, "truth" if "truth" in case.arrays else "label")
        return Label(values[to_scan(slices, case.orientation)], case.geometry, case.orientation)

    labelled = sorted(case.name for case in index.cases if case.labelled)
    return Truth(tuple(labelled), dict(zip(index.label_values, index.classes, strict=True)), read)


def _files_truth(labels: Mapping[str, tuple[Scan, Scan | None]], classes: Mapping[int, str] | None) -> Truth:
    firsts: dict[str, int] = {}
    same = {value: firsts.setdefault(name, value) for value, name in (classes or {}).items()}

    def read(name: str) -> Label:
        volume = _read_mask(*labels[name])
        array = volume.array[0]
        for value in np.unique(array).tolist():
            if same.get(value, value) != value:
                array = np.where(array == value, same[value], array)
        return Label(array, volume.geometry, plan(volume.geometry))

    return Truth(tuple(sorted(labels)), classes and {value: name for name, value in firsts.items()}, read)


def _read_mask(path: Scan, image: Scan | None = None) -> Volume:
    try:
        return read_label(path, image)
    except RefusedCaseError as error:
        raise MaclError(f"The mask {path if isinstance(path, Path) else path.name} cannot be used: {error}.") from None


def match(predictions: Path, masks: Mapping[str, Path], truth: Path, labelled: Sequence[str]) -> list[str]:
    """The cases that have both a mask and a truth; those that lack one are named.

    Raises:
        MaclError: no case has both.
    """
    cases = sorted(set(masks) & set(labelled))
    if not cases:
        raise MaclError(
            f"No mask in {predictions} ({listed(sorted(masks)) or 'none'}) is called like a case with a label in {truth} "
            f"({listed(sorted(labelled)) or 'none'}): masks should be called <case>.nii.gz."
        )
    if untrue := sorted(set(masks) - set(labelled)):
        say(f"Not scored, {len(untrue)} predicted without a truth: {listed(untrue)}.")
    record = read_predictions(predictions)
    asked = set(labelled) if record is None else set(labelled) & set(record.cases)
    if unpredicted := sorted(asked - set(masks)):
        said = "" if record is None else f", though {PREDICTIONS_RECORD} says they were asked for"
        say(f"Not scored, {len(unpredicted)} with a truth but no prediction{said}: {listed(unpredicted)}.")
    return cases


# ---------------------------------------------------------------- scores


def _score_cases(masks: Mapping[str, Path], truth: Truth, convention: Convention) -> list[CaseScores]:
    with (
        progress("Scoring", len(masks)) as advance,
        ThreadPoolExecutor(min(available_cores(), len(masks))) as threads,
    ):
        waiting = [threads.submit(score_case, case, mask, truth, convention) for case, mask in masks.items()]
        scored: list[CaseScores] = []
        try:
            for one in waiting:
                scored.append(one.result())
                advance()
        finally:
            threads.shutdown(cancel_futures=True)
    return scored


def score_case(case: str, mask: Path, truth: Truth, convention: Convention) -> CaseScores:
    """Score every class of one case; where nobody names the classes, every value found in either mask.

    Raises:
        MaclError: the mask cannot be read, lies on another grid, or holds a value that is not among the classes.
    """
    label, predicted = truth.read(case), _read_mask(mask)
    if difference := grid_difference(predicted.geometry, label.geometry):
        raise MaclError(
            f"{mask} lies on another grid than the truth of the case {case!r} ({difference}): "
            "bring both onto one grid before scoring."
        )
    found = {f"the mask {mask}": values_of(predicted.array), f"the truth of the case {case!r}": values_of(label.array)}
    known = list(truth.classes) if truth.classes else [0, *sorted(set().union(*found.values()) - {0})]
    for where, values in found.items():
        if strange := sorted(values - set(known)):
            raise MaclError(f"The label values {strange} in {where} are not among the classes {known}: mend the mask.")
    pair = [_numbered(orient(array, label.orientation), known) for array in (label.array, predicted.array[0])]
    spacing = spacing_of(label.geometry, label.orientation) if label.geometry.spacing_known else (1.0, 1.0, 1.0)
    scores = score_classes(pair[0], pair[1], len(known) - 1, spacing, convention)
    return CaseScores(case, dict(zip(known[1:], scores, strict=True)), label.geometry.spacing_known, len(pair[0]))


def values_of(array: np.ndarray) -> set[int]:
    """The values in a label of any shape."""
    slices = array.reshape(-1, *array.shape[-2:])
    return set(reduce(np.union1d, (np.unique(one) for one in slices)).tolist())


def _numbered(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """The label with its values replaced by their places in `values`."""
    numbered = np.zeros(array.shape, dtype=np.min_scalar_type(len(values)))
    for number, value in enumerate(values[1:], start=1):
        numbered[array == value] = number
    return numbered


def to_rows(scored: Sequence[CaseScores], classes: Mapping[int, str] | None, convention: Convention) -> list[ScoreRow]:
    """One row per case and class, both in order."""
    values = list(classes)[1:] if classes else sorted({value for case in scored for value in case.scores})
    rows: list[ScoreRow] = []
    for case in scored:
        unit = "pixel" if convention == "paper" else "mm" if case.spacing_known else "voxel"
        for value in values:
            score = case.scores.get(value) or empty_score(convention)
            rows.append(
                ScoreRow(
                    case=case.case, class_name=classes[value] if classes else str(value), dice=score.dice,
                    jaccard=score.jaccard, hd95=score.hd95, asd=score.asd, unit=unit, outcome=score.outcome,
                    truth_voxels=score.truth_voxels, predicted_voxels=score.predicted_voxels,
                    shared_voxels=score.shared_voxels, slices=case.slices,
                )
            )  # fmt: skip
    return rows
