"""Masks + truth → one row per case and class, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np

from macl.data.store import Store
from macl.data.store_index import INDEX, Orientation
from macl.io.geometry import Geometry, grid_difference
from macl.io.source import ScanPath, Source
from macl.io.volume import Volume, read_label, read_scan
from macl.metrics import DEFINITIONS, Convention, Score, empty_score, score_classes
from macl.plugins import readers
from macl.preprocessing.orientation import (
    PlaneSetting,
    choose_orientation,
    orient,
    spacing_of,
    to_scan,
)
from macl.preprocessing.source import (
    LOSSY_LABELS,
    UnknownLayoutError,
    recognise,
    scan_source,
)
from macl.records.predictions import PREDICTIONS_RECORD, list_masks, read_predictions
from macl.records.scores import ScoreRow, summarise, write_rows
from macl.utils.errors import MaclError, RefusedCaseError, listed
from macl.utils.files import AnyPath, clear_unfinished_copies, write_json
from macl.utils.parallel import available_cores
from macl.utils.progress import progress, say, warn
from macl.utils.text import counted


@dataclass(frozen=True)
class Label:
    """The true label of one case.

    Attributes:
        array: (z, y, x) in the scan's own values.
        geometry: the scan's own grid.
        orientation: which of its axes the slices lie along.
    """

    array: np.ndarray
    geometry: Geometry
    orientation: Orientation


@dataclass(frozen=True)
class Truth:
    """Where the true labels come from.

    Attributes:
        names: the labelled cases, sorted.
        classes: label value, as in the scans → class name, background first; None: unknown.
        read: the label of a case by name.
        merged: label value → the value in `classes` of the same class, where they differ.
    """

    names: tuple[str, ...]
    classes: Mapping[int, str] | None
    read: Callable[[str], Label]
    merged: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: its name.
        scores: label value → score.
        spacing_known: distances are in mm; otherwise in voxels.
        slices: of the scan.
    """

    case: str
    scores: Mapping[int, Score]
    spacing_known: bool
    slices: int


def evaluate(
    predictions: AnyPath, truth: AnyPath, out: AnyPath, *, convention: Convention = "strict"
) -> list[ScoreRow]:
    """Score a folder of masks against the truth, on the grid of each scan.

    Writes the table `out` and its means `<stem of out>.summary.json` beside it.

    Args:
        predictions: folder of masks called `<case>.nii.gz` (or .nrrd, .mha, .png).
        truth: a store, a source in a known layout, or a folder of true masks; matched by case name.
        out: table to write (.csv).
        convention: see `macl.metrics.DEFINITIONS`.

    Returns:
        One row per case and class.

    Raises:
        MaclError: nothing matches, a mask cannot be read, grids differ, or a label value is not
            among the classes.
    """
    if convention not in DEFINITIONS:
        raise MaclError(f"convention={convention!r} is unknown: name one of {listed(DEFINITIONS)}.")
    predictions, truth, out = Path(predictions), Path(truth), Path(out)
    if out.suffix != ".csv":
        raise MaclError(f"--out {out} should be a file that ends in .csv.")
    masks = list_masks(predictions)
    opened = open_truth(truth, predictions)
    cases = match(predictions, masks, truth, opened.names)
    scored = _score_cases({case: masks[case] for case in cases}, opened, convention)
    rows = to_rows(scored, opened.classes, convention)
    summary = summarise(rows, convention)
    if summary["unit"] == "mixed":
        warn(
            "The spacing of some cases is unknown: the table has distances in mm and in voxels, "
            "and no mean of them."
        )
    means = out.with_name(f"{out.stem}.summary.json")
    for path in (out, means):
        clear_unfinished_copies(path)
    write_rows(out, rows)
    write_json(means, summary)
    say(f"Wrote {out} ({counted(len(cases), 'case')}) and {means.name} beside it.")
    return rows


# ---------------------------------------------------------------- the truth


def open_truth(path: Path, predictions: Path) -> Truth:
    """Open a store, a source with labels, or else a folder of masks.

    Args:
        path: any of these.
        predictions: folder whose record names the classes where `path` does not.

    Raises:
        MaclError: the path is none of these.
    """
    if (path / INDEX).is_file():
        return _store_truth(Store.open(path))
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise MaclError(
            f"{path} {what}: name a store, a folder of scans with labels, or a folder of true "
            "masks."
        )
    source = _read_source(path)
    cases = source.cases if source else ()
    labels = {case.name: (case.label, case.images[0]) for case in cases if case.label}
    if source and labels:
        say(f"Read {path} as {source.reader}: {len(labels)} labelled cases.")
        return _files_truth(labels, source.classes or None, source.plane)
    for note in source.notes if source else ():
        if LOSSY_LABELS in note:
            warn(note)
    record = read_predictions(path) or read_predictions(predictions)
    classes = dict(zip(record.label_values, record.classes, strict=True)) if record else None
    return _files_truth({name: (mask, None) for name, mask in list_masks(path).items()}, classes)


def _read_source(path: Path) -> Source | None:
    """A folder as the best reader lists it; None if it is not a source of images."""
    try:
        layout = recognise(path, readers())
    except UnknownLayoutError:
        return None
    if layout.name == "folder":
        # Masks under their cases' names are scans in nobody's layout.
        try:
            return scan_source(path, layout.read(path)).source
        except MaclError:
            return None
    return scan_source(path, layout.read(path)).source


def _store_truth(store: Store) -> Truth:
    index = store.index
    values = np.asarray(index.label_values, dtype=np.int32)

    def read(name: str) -> Label:
        case = store.case(name)
        label = store.read(name, "truth" if "truth" in case.arrays else "label")
        return Label(values[to_scan(label, case.orientation)], case.geometry, case.orientation)

    labelled = sorted(case.name for case in index.cases if case.labelled)
    classes = dict(zip(index.label_values, index.classes, strict=True))
    return Truth(tuple(labelled), classes, read)


def _files_truth(
    labels: Mapping[str, tuple[ScanPath, ScanPath | None]],
    classes: Mapping[int, str] | None,
    plane: PlaneSetting = "auto",
) -> Truth:
    # Values that share a name are one class, which the first of them stands for.
    first_values: dict[str, int] = {}
    merged = {
        value: first
        for value, name in (classes or {}).items()
        if (first := first_values.setdefault(name, value)) != value
    }

    def read(name: str) -> Label:
        label, image = labels[name]
        volume = _read_mask(label, image)
        geometry = volume.geometry
        if image is not None and not geometry.spacing_known:
            geometry = _read_image(image).geometry  # of label pictures, which have no spacing
        array = _with_merged(volume.array[0], merged)
        return Label(array, geometry, choose_orientation(geometry, plane))

    named = classes and {value: name for name, value in first_values.items()}
    return Truth(tuple(sorted(labels)), named, read, merged)


def _with_merged(array: np.ndarray, merged: Mapping[int, int]) -> np.ndarray:
    """A label or a mask (z, y, x) with one value for each class."""
    for value in values_of(array) & merged.keys():
        array = np.where(array == value, merged[value], array)
    return array


def _read_mask(path: ScanPath, image: ScanPath | None = None) -> Volume:
    try:
        return read_label(path, image)
    except RefusedCaseError as error:
        raise _cannot_be_used("mask", path, error) from None


def _read_image(path: ScanPath) -> Volume:
    try:
        return read_scan((path,))
    except RefusedCaseError as error:
        raise _cannot_be_used("image", path, error) from None


def _cannot_be_used(what: str, path: ScanPath, error: RefusedCaseError) -> MaclError:
    name = path if isinstance(path, Path) else path.name
    return MaclError(f"The {what} {name} cannot be used: {error}.")


def match(
    predictions: Path, masks: Mapping[str, Path], truth: Path, labelled: Sequence[str]
) -> list[str]:
    """The cases that have both a mask and a true label; prints those that lack one.

    Raises:
        MaclError: no case has both.
    """
    cases = sorted(set(masks) & set(labelled))
    if not cases:
        raise MaclError(
            f"No mask in {predictions} ({listed(sorted(masks)) or 'none'}) has the name of a "
            f"labelled case in {truth} ({listed(sorted(labelled)) or 'none'}): masks should be "
            "called <case>.nii.gz."
        )
    if without_truth := sorted(set(masks) - set(labelled)):
        warn(f"Masks without a truth are not scored: {listed(without_truth)}.")
    record = read_predictions(predictions)
    asked = set(labelled) if record is None else set(labelled) & set(record.cases)
    if without_mask := sorted(asked - set(masks)):
        asked_for = f" that {PREDICTIONS_RECORD} lists" if record else ""
        warn(f"Cases{asked_for} without a mask are not scored: {listed(without_mask)}.")
    return cases


# ---------------------------------------------------------------- scores


def _score_cases(
    masks: Mapping[str, Path], truth: Truth, convention: Convention
) -> list[CaseScores]:
    with (
        progress("Scoring", len(masks)) as advance,
        ThreadPoolExecutor(min(available_cores(), len(masks))) as threads,
    ):
        futures = [
            threads.submit(score_case, case, mask, truth, convention)
            for case, mask in masks.items()
        ]
        scored: list[CaseScores] = []
        try:
            for future in futures:
                scored.append(future.result())
                advance()
        finally:
            threads.shutdown(cancel_futures=True)
    return scored


def score_case(case: str, mask: Path, truth: Truth, convention: Convention) -> CaseScores:
    """Score every class of one case.

    Where the classes are unknown, every value of the mask and of the label is one.

    Raises:
        MaclError: the mask cannot be read, lies on another grid, or holds a value that is not among
            the classes.
    """
    label, predicted = truth.read(case), _read_mask(mask)
    predicted_array = _with_merged(predicted.array[0], truth.merged)
    if difference := grid_difference(predicted.geometry, label.geometry):
        raise MaclError(
            f"{mask} lies on another grid than the truth of the case {case!r} ({difference}): "
            "resample one to the other's grid before scoring."
        )
    values_in = {
        f"the mask {mask}": values_of(predicted_array),
        f"the truth of the case {case!r}": values_of(label.array),
    }
    known = (
        list(truth.classes)
        if truth.classes
        else [0, *sorted(set().union(*values_in.values()) - {0})]
    )
    for where, values in values_in.items():
        if unknown := sorted(values - set(known)):
            raise MaclError(
                f"The label values {unknown} in {where} are not among the classes {known}: correct "
                "the mask."
            )
    true_classes, predicted_classes = (
        _as_indices(orient(array, label.orientation), known)
        for array in (label.array, predicted_array)
    )
    spacing_known = label.geometry.spacing_known
    spacing = spacing_of(label.geometry, label.orientation) if spacing_known else (1.0, 1.0, 1.0)
    scores = score_classes(true_classes, predicted_classes, len(known) - 1, spacing, convention)
    by_value = dict(zip(known[1:], scores, strict=True))
    return CaseScores(case, by_value, spacing_known, len(true_classes))


def values_of(array: np.ndarray) -> set[int]:
    """The values in a label of any shape, with a single slice sorted at a time."""
    slices = array.reshape(-1, *array.shape[-2:])
    return set(reduce(np.union1d, (np.unique(plane) for plane in slices)).tolist())


def _as_indices(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """A label with each value replaced by its index in `values`."""
    indices = np.zeros(array.shape, dtype=np.min_scalar_type(len(values)))
    for index, value in enumerate(values[1:], start=1):
        indices[array == value] = index
    return indices


def to_rows(
    scored: Sequence[CaseScores], classes: Mapping[int, str] | None, convention: Convention
) -> list[ScoreRow]:
    """One row per case and class, both in order."""
    if classes:
        values = list(classes)[1:]
    else:
        values = sorted({value for case in scored for value in case.scores})
    rows: list[ScoreRow] = []
    for case in scored:
        unit = "pixel" if convention == "paper" else "mm" if case.spacing_known else "voxel"
        for value in values:
            score = case.scores.get(value) or empty_score(convention)
            rows.append(
                ScoreRow(
                    case=case.case,
                    class_name=classes[value] if classes else str(value),
                    dice=score.dice,
                    jaccard=score.jaccard,
                    hd95=score.hd95,
                    asd=score.asd,
                    unit=unit,
                    outcome=score.outcome,
                    truth_voxels=score.truth_voxels,
                    predicted_voxels=score.predicted_voxels,
                    shared_voxels=score.shared_voxels,
                    slices=case.slices,
                )
            )
    return rows
