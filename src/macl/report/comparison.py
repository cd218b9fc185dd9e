"""Fine-tuned runs side by side, and what must be said about such a comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from macl.report.charts import DotChart, dot_charts
from macl.report.facts import Run, Scores, Spread

FEW_CASES = 20


@dataclass(frozen=True)
class Row:
    """One evaluated run.

    Attributes:
        dice: class → spread of Dice over the cases, or pooled.
        cases: how many were scored.
        mean_dice, mean_hd95, mean_asd: over the classes.
        against_scratch: difference of mean Dice to the run from scratch that is alike in all else; None where there is none.
    """

    run: Run
    title: str
    dice: dict[str, Spread]
    cases: int
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
        best: the title of the run with the highest mean Dice, None with fewer than two.
        charts: Dice of every case, a chart for each class.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    unit: str
    best: str | None
    charts: tuple[DotChart, ...]


def titles_of(runs: Sequence[Run]) -> list[str]:
    """A title for every run, each unlike the others: recipe, seed and folder are added only where they are needed."""
    titles = [run.title for run in runs]
    for addition in (
        lambda run: f"{run.record.recipe} recipe" if run.record.recipe else "",
        lambda run: f"seed {run.record.seed}",
        lambda run: run.path.name,
        lambda run: str(run.path),
    ):
        counts = Counter(titles)
        alike = {title: {addition(r) for r, t in zip(runs, titles, strict=True) if t == title} for title in counts}
        titles = [
            f"{title}, {addition(run)}" if len(alike[title]) > 1 and addition(run) else title
            for run, title in zip(runs, titles, strict=True)
        ]
    return titles


def compare(runs: Sequence[Run], titles: Sequence[str]) -> Comparison:
    """The evaluated runs among `runs`, in their order."""
    rows = tuple(
        _row(run, title, run.scores, runs) for run, title in zip(runs, titles, strict=True) if run.scores is not None
    )
    classes = tuple(dict.fromkeys(name for row in rows for name in row.dice))
    means = {row.title: row.mean_dice.mean for row in rows if row.mean_dice.mean is not None}
    return Comparison(
        rows=rows,
        classes=classes,
        unit=", ".join(dict.fromkeys(row.run.scores.unit for row in rows if row.run.scores and row.run.scores.unit)),
        best=max(means, key=lambda title: means[title]) if len(means) > 1 else None,
        charts=_charts(rows, classes),
    )


def caveats(runs: Sequence[Run], comparison: Comparison) -> list[str]:
    """What a reader must know before believing the numbers, in sentences."""
    found = [row.run for row in comparison.rows]
    if not found:
        return []
    seeds = Counter(_cell(run) for run in found)
    said = []
    if min(seeds.values()) == 1:
        said.append(
            "One seed per row: another seed would move every number, so a small difference between two rows means nothing. "
            "The way to know is to repeat with several seeds (macl benchmark)."
        )
    said += _about_cases(sorted({run.scores.cases for run in found if run.scores}), found)
    said += _about_distances(comparison.unit)
    if len({tuple(sorted(run.record.test_cases)) for run in found}) > 1:
        said.append("Not like for like: the runs were tested on different cases.")
    if len({run.record.store_checksum for run in found}) > 1:
        said.append("Not like for like: the runs were trained on different stores.")
    if len({run.scores.convention for run in found if run.scores}) > 1:
        said.append("Not like for like: the runs were scored by different conventions.")
    if any(run.record.overlap_allowed for run in runs):
        said.append("Overlap was allowed: test people may stand in the data that a run was pre-trained on.")
    if not all(run.record.finished for run in found):
        said.append("At least one run in the table is not finished.")
    return said


def _about_cases(counts: Sequence[int], found: Sequence[Run]) -> list[str]:
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    said = [f"The test holds {number} cases" + (": few, so the means are uncertain." if counts[0] < FEW_CASES else ".")]
    conventions = {run.scores.convention for run in found if run.scores}
    if "strict" in conventions:
        said.append("The ± is the standard deviation over test cases, not over seeds or trainings.")
    if "paper" in conventions:
        said.append("By the paper's convention Dice and Jaccard are pooled over all slices of all cases and have no ±.")
    return said


def _about_distances(unit: str) -> list[str]:
    said = []
    if "mixed" in unit:
        said.append(
            "Some scans' spacing is unknown: distances are in mm for some cases, in voxels for others, and have no mean."
        )
    if "voxel" in unit:
        said.append("The scans' spacing is unknown, so distances are in voxels and say nothing in millimetres.")
    if "pixel" in unit:
        said.append(
            "Distances are per slice and in pixels: they cannot be compared with distances in 3D or in millimetres."
        )
    said.append(
        "Missed: the structure is there and the prediction has none of it. Invented: the other way round. By the strict "
        "convention either counts as Dice 0 and, as a distance, as the scan's diagonal."
    )
    return said


def _row(run: Run, title: str, scores: Scores, runs: Sequence[Run]) -> Row:
    mean = scores.mean("dice")
    scratch = next((other.scores for other in runs if other.start == "scratch" and _alike(run, other)), None)
    against = scratch.mean("dice").mean if scratch and run.start != "scratch" else None
    return Row(
        run=run,
        title=title,
        dice={name: scores.spread("dice", name) for name in scores.classes},
        cases=scores.cases,
        mean_dice=mean,
        mean_hd95=scores.mean("hd95"),
        mean_asd=scores.mean("asd"),
        missed=scores.count("missed"),
        invented=scores.count("invented"),
        against_scratch=mean.mean - against if mean.mean is not None and against is not None else None,
    )


def _alike(run: Run, other: Run) -> bool:
    """Whether two runs differ in their start alone."""
    return other.record.kind == "finetune" and (*_cell(run)[1:], run.record.seed) == (
        *_cell(other)[1:], other.record.seed,
    )  # fmt: skip


def _cell(run: Run) -> tuple[object, ...]:
    """What a run is, but for its seed."""
    record = run.record
    scored = run.scores.convention if run.scores else ""
    return run.start, record.labels, record.recipe, record.store_checksum, tuple(sorted(record.test_cases)), scored


def _charts(rows: Sequence[Row], classes: Sequence[str]) -> tuple[DotChart, ...]:
    def cases(row: Row, name: str) -> dict[str, float]:
        scores = row.run.scores.rows if row.run.scores else ()
        return {one.case: 100 * one.dice for one in scores if one.class_name == name and not math.isnan(one.dice)}

    return dot_charts(
        {name: [(row.title, row.run.start != "scratch", cases(row, name)) for row in rows] for name in classes},
        top=100.0,
    )
