"""Fine-tuned runs side by side, and the caveats of such a comparison."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from macl.pages.charts import DotChart, dot_charts
from macl.pages.reported_run import ReportedRun, RunScores, Spread, joined
from macl.utils.errors import listed

FEW_CASES = 20


class Conditions(NamedTuple):
    """What a run's numbers depend on, besides its start, its seed and the people it drew.

    Attributes:
        labels: the label budget, or the number of labelled people.
        settings: all of them, network and dimensions among them, as JSON.
        test_cases: of a cross-validation, those of all folds.
    """

    labels: str
    kind: str
    recipe: str | None
    settings: str
    store_checksum: str
    convention: str
    test_cases: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonRow:
    """An evaluated run, or the evaluated folds of a cross-validation.

    Attributes:
        runs: the run, or one for each fold.
        scores: of all their test cases.
        dice: class → spread of Dice over the cases, or pooled.
        mean_dice, mean_hd95, mean_asd: over the classes.
        against_scratch: mean Dice minus that of the run from scratch that is alike in everything
            else; None where there is no such run.
    """

    runs: tuple[ReportedRun, ...]
    scores: RunScores
    title: str
    dice: dict[str, Spread]
    mean_dice: Spread
    mean_hd95: Spread
    mean_asd: Spread
    missed: int
    invented: int
    against_scratch: float | None = None

    @property
    def run(self) -> ReportedRun:
        """The first of its runs, which stands for what they share."""
        return self.runs[0]

    @property
    def test_cases(self) -> tuple[str, ...]:
        """Everything that is tested, sorted."""
        return tuple(sorted(case for run in self.runs for case in run.record.test_cases))

    @property
    def scored(self) -> tuple[str, ...]:
        """The cases that have scores, sorted."""
        return tuple(sorted({row.case for row in self.scores.rows}))

    @property
    def conditions(self) -> Conditions:
        """What its numbers depend on, besides its start and seed."""
        return _conditions(self.run)._replace(test_cases=self.scored)

    def tester(self, case: str) -> ReportedRun:
        """The run that tests a case; of a case that is no test, the first."""
        return next((run for run in self.runs if case in run.record.test_cases), self.run)


@dataclass(frozen=True)
class Comparison:
    """All evaluated runs.

    Attributes:
        unit: unit of the distances.
        best: titles of the runs with the highest mean Dice among runs with as many labels, the same
            test and the same convention; a run that is alone among its like is none.
        charts: Dice of every case, one chart per class.
    """

    rows: tuple[ComparisonRow, ...]
    classes: tuple[str, ...]
    unit: str
    best: frozenset[str]
    charts: tuple[DotChart, ...]

    def title_of(self, run: ReportedRun) -> str:
        """Title of the row that holds a run; empty where none does."""
        return next((row.title for row in self.rows if any(own is run for own in row.runs)), "")


def titles_of(groups: Sequence[Sequence[ReportedRun]]) -> list[str]:
    """A unique title for every run, or for the folds of a cross-validation.

    Dimensions, recipe, seed and folder appear only if needed.
    """
    return told_apart(
        [_title(group) for group in groups],
        [group[0] for group in groups],
        *DIFFERENCES,
        lambda run: f"seed {run.record.seed}",
        lambda run: run.path.name,
        lambda run: str(run.path),
    )


DIFFERENCES: tuple[Callable[[ReportedRun], str], ...] = (
    lambda run: f"{run.dims}D",
    lambda run: f"{run.record.recipe} recipe" if run.record.recipe else "",
    lambda run: run.backbone,
)
"""What a title names where it tells a run from others."""


def told_apart(
    titles: Sequence[str],
    runs: Sequence[ReportedRun],
    *additions: Callable[[ReportedRun], str],
) -> list[str]:
    """Titles of runs, with those additions, in turn, that tell runs of the same title apart."""
    titles = [*titles]
    for addition in additions:
        pairs = list(zip(titles, map(addition, runs), strict=True))
        titles = [
            f"{title}, {added}" if added and len({a for t, a in pairs if t == title}) > 1 else title
            for title, added in pairs
        ]
    return titles


def _title(runs: Sequence[ReportedRun]) -> str:
    """Method of a pre-training; start and labels of a fine-tuning, or of all its folds."""
    record = runs[0].record
    if record.kind == "pretrain":
        return f"Pre-training with {record.settings.get('method', 'an unnamed method')}"
    labelled = record.labels
    if not labelled or not labelled.isdecimal():
        people = _range([len(run.record.people) for run in runs])
        labelled = f"{people} {'person' if people == '1' else 'people'} ({labelled})"
    unlabelled = _range([len(run.record.unlabelled_patients) for run in runs])
    more = f" + {unlabelled} unlabelled" if unlabelled != "0" else ""
    folds = f", {len(runs)} folds" if len(runs) > 1 else ""
    return f"From {runs[0].start}, {labelled} labelled{more}{folds}"


def _range(counts: Sequence[int]) -> str:
    """The counts in words: "3", or "2 to 3"."""
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def compare(runs: Sequence[ReportedRun]) -> Comparison:
    """Compare the evaluated runs among `runs`, in their order; folds share a row."""
    groups = _with_folds_together([run for run in runs if run.scores])
    titles = titles_of(groups)
    rows = [_row(group, title) for group, title in zip(groups, titles, strict=True)]
    rows = tuple(replace(row, against_scratch=_against_scratch(row, rows)) for row in rows)
    classes = tuple(dict.fromkeys(name for row in rows for name in row.dice))
    return Comparison(
        rows=rows,
        classes=classes,
        unit=", ".join(dict.fromkeys(row.scores.unit for row in rows if row.scores.unit)),
        best=_best(rows),
        charts=_charts(rows, classes),
    )


def _best(rows: Sequence[ComparisonRow]) -> frozenset[str]:
    groups: dict[tuple[object, ...], dict[str, float]] = {}
    for row in rows:
        record = row.run.record
        budget = record.labels or len(record.people)
        test = (record.store_checksum, row.scored, row.scores.convention)
        if row.mean_dice.mean is not None:
            groups.setdefault((budget, *test), {})[row.title] = row.mean_dice.mean
    return frozenset(
        max(means, key=means.__getitem__) for means in groups.values() if len(means) > 1
    )


def caveats(runs: Sequence[ReportedRun], comparison: Comparison) -> list[str]:
    """What a reader must know before trusting the numbers, in sentences."""
    rows = comparison.rows
    if not rows:
        return []
    sentences = []
    if min(Counter((row.run.start, row.conditions) for row in rows).values()) == 1:
        sentences.append(
            "One seed per row: another seed would move every number, so a small difference between "
            "two rows means nothing. Repeat with several seeds to know (macl benchmark)."
        )
    if any(len(row.runs) > 1 for row in rows):
        sentences.append(
            "A row of several folds is one cross-validation: every case is tested by the run that "
            "was not trained on it, and the means are over the cases of all folds."
        )
    sentences += _about_cases(rows)
    sentences += _about_distances(comparison.unit)
    unlike = {
        "tested on different cases": {row.scored for row in rows},
        "trained on different stores": {row.run.record.store_checksum for row in rows},
        "scored by different conventions": {row.scores.convention for row in rows},
    }
    networks = {(row.run.dims, row.run.network) for row in rows}
    if len(networks) > len({dims for dims, _ in networks}):
        sentences.append("Not like for like: the runs have different networks.")
    sentences += [
        f"Not like for like: the runs were {difference}."
        for difference, values in unlike.items()
        if len(values) > 1
    ]
    if any(run.record.overlap_allowed for run in runs):
        sentences.append(
            "Overlap was allowed: a run may have been pre-trained on scans of test people."
        )
    if not all(row.run.record.finished for row in rows):
        sentences.append("At least one run in the table is not finished.")
    return sentences


def _about_cases(rows: Sequence[ComparisonRow]) -> list[str]:
    counts = sorted({row.scores.cases for row in rows})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    few = ": few, so the means are uncertain" if counts[0] < FEW_CASES else ""
    sentences = [f"The test holds {number} {'case' if counts[-1] == 1 else 'cases'}{few}."]
    for row in rows:
        if lacking := sorted({*row.test_cases} - {*row.scored}):
            sentences.append(
                f"{row.title}: {len(lacking)} of {len(row.test_cases)} test cases have no scores "
                f"({listed(lacking)}), so its means leave them out."
            )
    conventions = {row.scores.convention for row in rows}
    if "strict" in conventions and counts[-1] > 1:
        sentences.append(
            "The ± is the standard deviation over test cases, not over seeds or trainings."
        )
    if "paper" in conventions:
        sentences.append(
            "By the paper's convention Dice and Jaccard are pooled over all slices of all cases "
            "and have no ±."
        )
    return sentences


def _about_distances(unit: str) -> list[str]:
    sentences = []
    if "mixed" in unit:
        sentences.append(
            "The spacing of some scans is unknown: distances are in mm for some cases and in "
            "voxels for others, so they have no mean."
        )
    if "voxel" in unit:
        sentences.append(
            "The spacing of the scans is unknown: distances are in voxels and cannot be compared "
            "with millimetres."
        )
    if "pixel" in unit:
        sentences.append(
            "Distances are per slice and in pixels: they cannot be compared with distances in 3D "
            "or in millimetres."
        )
    sentences.append(
        "Missed: the structure is there and the prediction has none of it. Invented: the "
        "prediction has a structure that is not there. By the strict convention either counts as "
        "Dice 0, and as a distance equal to the scan's diagonal."
    )
    return sentences


def _with_folds_together(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, ...]]:
    """Evaluated runs, with the folds of each cross-validation together.

    Folds differ in nothing but whom they train on and test, and test nobody twice.
    """
    alike: dict[tuple[object, ...], list[ReportedRun]] = {}
    for run in runs:
        key = (run.start, run.record.seed, _conditions(run))
        alike.setdefault(key, []).append(run)
    groups: list[tuple[ReportedRun, ...]] = []
    for group in alike.values():
        tested = [case for run in group for case in run.record.test_cases]
        are_folds = len(tested) == len({*tested}) and all(run.record.test_cases for run in group)
        groups += [tuple(group)] if are_folds else [(run,) for run in group]
    order = [run.path for run in runs]
    return sorted(groups, key=lambda group: order.index(group[0].path))


def _row(runs: Sequence[ReportedRun], title: str) -> ComparisonRow:
    scores = joined([run.scores for run in runs if run.scores])
    return ComparisonRow(
        runs=tuple(runs),
        scores=scores,
        title=title,
        dice={name: scores.spread("dice", name) for name in scores.classes},
        mean_dice=scores.mean("dice"),
        mean_hd95=scores.mean("hd95"),
        mean_asd=scores.mean("asd"),
        missed=scores.count("missed"),
        invented=scores.count("invented"),
    )


def _against_scratch(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> float | None:
    """Mean Dice minus that of the row that differs in its start alone, which is scratch."""
    likeness = (row.run.record.seed, row.conditions)
    scratch = next(
        (
            other.mean_dice.mean
            for other in rows
            if other.run.start == "scratch"
            and (other.run.record.seed, other.conditions) == likeness
        ),
        None,
    )
    if row.run.start == "scratch" or scratch is None or row.mean_dice.mean is None:
        return None
    return row.mean_dice.mean - scratch


def _conditions(run: ReportedRun) -> Conditions:
    """Those of one run, whatever it tests."""
    record = run.record
    return Conditions(
        labels=record.labels or str(len(record.people)),
        kind=record.kind,
        recipe=record.recipe,
        settings=json.dumps(record.settings, sort_keys=True),
        store_checksum=record.store_checksum,
        convention=run.scores.convention if run.scores else "",
        test_cases=(),
    )


def _charts(rows: Sequence[ComparisonRow], classes: Sequence[str]) -> tuple[DotChart, ...]:
    def dice_by_case(row: ComparisonRow, name: str) -> dict[str, float]:
        return {
            score.case: 100 * score.dice
            for score in row.scores.rows
            if score.class_name == name and not math.isnan(score.dice)
        }

    return dot_charts(
        {
            name: [(row.title, row.run.start != "scratch", dice_by_case(row, name)) for row in rows]
            for name in classes
        },
    )
