"""Fine-tuned runs side by side, and the caveats of such a comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from macl.pages.charts import DotChart, dot_charts
from macl.pages.reported_run import ReportedRun, RunScores, Spread

FEW_CASES = 20


@dataclass(frozen=True)
class ComparisonRow:
    """One evaluated run.

    Attributes:
        scores: the scores of `run`.
        dice: class → spread of Dice over the cases, or pooled.
        mean_dice, mean_hd95, mean_asd: over the classes.
        against_scratch: mean Dice minus that of the run from scratch that is alike in everything
            else; None where there is no such run.
    """

    run: ReportedRun
    scores: RunScores
    title: str
    dice: dict[str, Spread]
    mean_dice: Spread
    mean_hd95: Spread
    mean_asd: Spread
    missed: int
    invented: int
    against_scratch: float | None


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


def titles_of(runs: Sequence[ReportedRun]) -> list[str]:
    """A unique title for every run; dimensions, recipe, seed and folder appear only if needed."""
    titles = [run.title for run in runs]
    for addition in (
        lambda run: f"{run.dims}D",
        lambda run: f"{run.record.recipe} recipe" if run.record.recipe else "",
        lambda run: f"seed {run.record.seed}",
        lambda run: run.path.name,
        lambda run: str(run.path),
    ):
        additions = [addition(run) for run in runs]
        pairs = list(zip(titles, additions, strict=True))
        titles = [
            f"{title}, {added}" if added and len({a for t, a in pairs if t == title}) > 1 else title
            for title, added in pairs
        ]
    return titles


def compare(runs: Sequence[ReportedRun], titles: Sequence[str]) -> Comparison:
    """Compare the evaluated runs among `runs`, in their order."""
    rows = tuple(
        _row(run, run.scores, title, runs)
        for run, title in zip(runs, titles, strict=True)
        if run.scores
    )
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
        test = (record.store_checksum, tuple(sorted(record.test_cases)), row.scores.convention)
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
    if min(Counter(_protocol(row.run) for row in rows).values()) == 1:
        sentences.append(
            "One seed per row: another seed would move every number, so a small difference between "
            "two rows means nothing. Repeat with several seeds to know (macl benchmark)."
        )
    sentences += _about_cases(rows)
    sentences += _about_distances(comparison.unit)
    unlike = {
        "tested on different cases": {tuple(sorted(row.run.record.test_cases)) for row in rows},
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
    sentences = [f"The test holds {number} cases{few}."]
    conventions = {row.scores.convention for row in rows}
    if "strict" in conventions:
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


def _row(
    run: ReportedRun, scores: RunScores, title: str, runs: Sequence[ReportedRun]
) -> ComparisonRow:
    mean = scores.mean("dice")
    scratch = next(
        (other.scores for other in runs if other.start == "scratch" and _alike(run, other)), None
    )
    against = scratch.mean("dice").mean if scratch and run.start != "scratch" else None
    return ComparisonRow(
        run=run,
        scores=scores,
        title=title,
        dice={name: scores.spread("dice", name) for name in scores.classes},
        mean_dice=mean,
        mean_hd95=scores.mean("hd95"),
        mean_asd=scores.mean("asd"),
        missed=scores.count("missed"),
        invented=scores.count("invented"),
        against_scratch=None if mean.mean is None or against is None else mean.mean - against,
    )


def _alike(run: ReportedRun, other: ReportedRun) -> bool:
    """Whether two runs differ in their start alone."""
    same_seed = run.record.seed == other.record.seed
    return other.record.is_segmenter and same_seed and _protocol(run)[1:] == _protocol(other)[1:]


def _protocol(run: ReportedRun) -> tuple[object, ...]:
    """What a run's numbers depend on: its start, and everything else but its seed."""
    record = run.record
    convention = run.scores.convention if run.scores else ""
    return (
        run.start, run.dims, record.labels, record.recipe, record.store_checksum,
        tuple(sorted(record.test_cases)), convention,
    )  # fmt: skip


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
