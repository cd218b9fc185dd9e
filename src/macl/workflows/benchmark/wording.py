"""What the results of a benchmark say in sentences: how far it is, and how to read its numbers."""

from __future__ import annotations

from collections.abc import Iterable

from macl.data.splits import ALL
from macl.statistics import people_needed
from macl.utils.text import counted
from macl.workflows.benchmark.comparisons import Findings, count_comparisons
from macl.workflows.benchmark.plan import BenchmarkPlan
from macl.workflows.benchmark.results import CellRecord

HOW_RANKED = (
    "Mean rank over people; 1 is best. Methods whose ranks lie less than the critical difference "
    "(CD, Nemenyi's test at 5 %) apart are not told apart. p is of Friedman's test that all are "
    "alike."
)


def unfinished(plan: BenchmarkPlan, finished: int) -> str:
    """How many cells are finished; nothing where all are."""
    cells = len(plan.specifications)
    return "" if finished == cells else f"{finished} of {cells} cells are finished."


def what_values_are(plan: BenchmarkPlan, cells: Iterable[CellRecord]) -> str:
    """What the tables of means hold."""
    if len({(cell.seed, cell.draw) for cell in cells}) > 1:
        redrawn = len(plan.splits) > 1 and {*plan.grid.labels} != {ALL}
        drawn = " and its own draw of the labelled people" if redrawn else ""
        values = f"the mean ± standard deviation over repeats, each with its own seed{drawn}"
    else:
        values = "of one repeat"
    return f"Every value is {values}. Minutes are the mean training time, pre-training included."


def what_was_run(plan: BenchmarkPlan, cells: Iterable[CellRecord]) -> list[str]:
    """The data, the hardware and the software of the finished cells, one "name: value" each."""
    listed = list(cells)
    devices = dict.fromkeys(cell.device for cell in listed)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in cell.versions.items()) for cell in listed
    )
    commits = dict.fromkeys(cell.commit for cell in listed if cell.commit)
    return [
        f"store: {plan.grid.store.name}",
        f"split: {plan.grid.split_name}",
        f"test people: {plan.test_people}",
        *(f"device: {device}" for device in devices),
        *(f"versions: {texts}" for texts in versions),
        *(f"commit: {commit}" for commit in commits),
    ]


def how_compared(findings: Findings, complete: bool) -> str:
    """How the sentences against the reference came about."""
    several = any(each.repeats > 1 for each in findings.comparisons)
    paired, mean, crossed, more = (
        (
            "the same repeats and the same test people",
            ", and of a person the mean over the repeats is taken",
            ", and once more over people and repeats",
            ": for that see the interval over people and repeats",
        )
        if several
        else ("the same test people, in one repeat", "", "", "")
    )
    return (
        f"Methods are compared in pairs, over {paired}. A person's Dice is the mean over their "
        f"scans of the mean over the classes, by the strict convention{mean}. Intervals (95 %) are "
        f"bootstrapped over people{crossed}; p is from Wilcoxon's signed-rank test over people, "
        f"{_correction(len(findings.comparisons), complete)}. Ahead or behind: p < 0.05 after the "
        "correction, and an interval over people without 0. The test asks whether the difference "
        f"would hold for other people, and not for other seeds or other labelled people{more}."
    )


def _correction(comparisons: int, complete: bool) -> str:
    if not complete:
        so_far = f"the {comparisons} comparisons" if comparisons > 1 else "the one comparison"
        return f"corrected for {so_far} so far by Holm's method"
    if comparisons == 1:
        return "which Holm's method leaves as it is for the one comparison of this benchmark"
    return f"corrected for all {comparisons} comparisons of this benchmark by Holm's method"


def how_drawn(findings: Findings) -> str:
    """What the points and bars of the figures of Dice are."""
    repeats = {
        point.repeats
        for methods in findings.curves.values()
        for points in methods.values()
        for point in points
    }
    if repeats == {1}:
        return "Points are means over the test people; bars are 95 % intervals over people."
    alone = ", for one repeat over people alone" if 1 in repeats else ""
    return (
        "Points are means over repeats and test people; bars are 95 % intervals over people and "
        f"repeats{alone}."
    )


def too_few_people(plan: BenchmarkPlan) -> str | None:
    """A warning where no comparison of the benchmark can come to a conclusion."""
    comparisons, people = count_comparisons(plan), plan.test_people
    if not comparisons or people >= people_needed(comparisons):
        return None
    advice = f"Let the split test {people_needed(comparisons)} people or more"
    if people >= people_needed(1):
        advice += ", or name fewer starts, trainings, label budgets or recipes"
    return (
        "Warning: no conclusion is possible: with "
        f"{counted(people, 'test person', 'test people')} and "
        f"{counted(comparisons, 'comparison')}, no p can fall below 0.05 after Holm's correction. "
        f"{advice}."
    )
