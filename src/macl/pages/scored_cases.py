"""Every scored test case: its scores in all runs, and its volume while the page has room."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from macl.data.store import Store
from macl.pages.comparison import ComparisonRow
from macl.pages.overlays import colour_of, read_prediction
from macl.pages.volumes import PackedVolume, pack
from macl.utils.errors import MaclError
from macl.utils.progress import progress

MOST_BYTES = 6_000_000
"""Of all volumes on a page, compressed; as text they take a third more."""


@dataclass(frozen=True)
class ScoredCase:
    """A test case.

    Attributes:
        rows: those of the comparison that were tested on it.
        volume: None where it is not on the page.
        predicted: titles of the rows whose predictions `volume` holds, in its order.
    """

    name: str
    rows: tuple[ComparisonRow, ...]
    volume: PackedVolume | None = None
    predicted: tuple[str, ...] = ()

    def for_page(self) -> dict[str, Any]:
        """What the page's scripts know of the case, for JSON.

        A score is the run, the class, Dice in % and HD95, null where undefined, and the outcome.
        """
        structures = self.rows[0].run.record.classes[1:]
        volume = self.volume
        return {
            "name": self.name,
            "scores": [
                [row.title, score.class_name, _number(100 * score.dice, 1),
                 _number(score.hd95, 2), score.outcome.replace("_", " ")]
                for row in self.rows
                for score in row.scores.rows
                if score.case == self.name
            ],
            "volume": volume and {
                "size": volume.size,
                "affine": volume.affine,
                "across": volume.across,
                "thinned": volume.thinned,
                "spacing_known": volume.spacing_known,
                "classes": [[name, colour_of(label)] for label, name in enumerate(structures, 1)],
                "runs": self.predicted,
                "data": base64.b64encode(volume.data).decode(),
            },
        }  # fmt: skip


def scored_cases(rows: Sequence[ComparisonRow], most_bytes: int = MOST_BYTES) -> list[ScoredCase]:
    """The cases of all rows, those with the lowest mean Dice over the runs first.

    Volumes are packed from the first case on, until one would exceed `most_bytes` in total. Cases
    that cannot be read go without.
    """
    cases = _ranked(rows)
    left = most_bytes
    if not most_bytes:
        return cases
    with progress("volumes", len(cases)) as advance:
        for place, case in enumerate(cases):
            packed = _packed(case)
            if packed.volume and len(packed.volume.data) > left:
                break
            if packed.volume:
                left -= len(packed.volume.data)
            cases[place] = packed
            advance()
    return cases


def about_volumes(cases: Sequence[ScoredCase]) -> str:
    """Whose volumes the page holds, in a sentence."""
    held = [case.volume for case in cases if case.volume]
    if not held:
        return "The page holds no volumes."
    size = sum(len(volume.data) for volume in held) / 1e6
    which = "all test cases"
    if len(held) < len(cases):
        which = f"{len(held)} of {len(cases)} test cases, those with the lowest Dice"
    return (
        f"The page holds the volumes of {which} ({max(size, 0.1):.1f} MB, cut to the structures)."
    )


def _ranked(rows: Sequence[ComparisonRow]) -> list[ScoredCase]:
    found: dict[tuple[str, str], dict[str, tuple[ComparisonRow, float]]] = {}
    for row in rows:
        means = row.scores.dice_by_case()
        for case in dict.fromkeys(score.case for score in row.scores.rows):
            key = (row.run.record.store_checksum, case)
            found.setdefault(key, {})[row.title] = (row, means.get(case, math.nan))

    def mean(key: tuple[str, str]) -> float:
        values = [value for _, value in found[key].values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.inf

    return [
        ScoredCase(key[1], tuple(row for row, _ in found[key].values()))
        for key in sorted(found, key=lambda key: (mean(key), key[1]))
    ]


def _packed(case: ScoredCase) -> ScoredCase:
    stores = (row.tester(case.name).store for row in case.rows)
    store = next((store for store in stores if store), None)
    if store is None:
        return case
    predictions = {
        row.title: labels
        for row in case.rows
        if (labels := _prediction(row, store, case.name)) is not None
    }
    try:
        volume = pack(store, case.name, [*predictions.values()])
    except MaclError:
        return case
    return replace(case, volume=volume, predicted=tuple(predictions))


def _prediction(row: ComparisonRow, store: Store, case: str) -> np.ndarray | None:
    run = row.tester(case)
    mask = run.mask(case)
    if not mask.is_file():
        return None
    try:
        return read_prediction(store, case, mask, run.record.label_values)
    except MaclError:
        return None


def _number(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
