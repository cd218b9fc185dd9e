"""What a benchmark's scores allow to be said: methods in pairs, by rank, and over the labels.

Everything here is about the Dice of people (`dice_of_people`), scored by the convention `strict`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from macl.records import runs
from macl.records.scores import ScoreRow, read_rows
from macl.statistics import (
    SIGNIFICANCE,
    bootstrap_interval,
    critical_difference,
    crossed_bootstrap_interval,
    friedman_p,
    holm,
    mean_ranks,
    people_needed,
    signed_rank_p,
)
from macl.utils.text import counted
from macl.workflows.benchmark.grid import BenchmarkCell, name_of_recipe
from macl.workflows.benchmark.plan import BenchmarkPlan

Interval = tuple[float, float]


@dataclass(frozen=True)
class BenchmarkMethod:
    """What is compared at equal labels."""

    start: str
    training: str
    recipe: str


@dataclass(frozen=True)
class MethodScores:
    """The scores of a method with one label budget.

    Attributes:
        dice: (seed, draw) → person → Dice in per cent.
        missed: (seed, draw) → structures that are there and were not found at all.
        invented: (seed, draw) → structures that were found and are not there.
    """

    dice: dict[tuple[int, int | None], dict[str, float]]
    missed: dict[tuple[int, int | None], int]
    invented: dict[tuple[int, int | None], int]

    def table(self, repeats: Sequence[tuple[int, int | None]], people: Sequence[str]) -> np.ndarray:
        """Dice as (people, repeats)."""
        return np.array([[self.dice[repeat][person] for repeat in repeats] for person in people])


@dataclass(frozen=True)
class PairedComparison:
    """A method against the reference with the same labels, over the repeats that both have.

    Attributes:
        difference: mean Dice minus the reference's, in points.
        interval: of the difference, over people; None for one person.
        crossed_interval: of the difference, over people and repeats; None for one repeat.
        p: of Wilcoxon's signed-rank test over people.
        p_holm: corrected for all comparisons of the benchmark.
        comparisons: number of them.
        people_ahead: people with a higher mean than under the reference.
        repeats_ahead: repeats with a higher mean than the reference.
        missed, reference_missed: mean number per repeat of structures not found at all.
        invented, reference_invented: mean number per repeat of structures that are not there.
    """

    labels: str
    method: BenchmarkMethod
    reference: BenchmarkMethod
    difference: float
    interval: Interval | None
    crossed_interval: Interval | None
    p: float
    p_holm: float
    comparisons: int
    people: int
    people_ahead: int
    repeats: int
    repeats_ahead: int
    missed: float
    reference_missed: float
    invented: float
    reference_invented: float

    @property
    def verdict(self) -> str:
        """ "ahead", "behind" or "no conclusion"."""
        if self.interval is None or self.p_holm >= SIGNIFICANCE:
            return "no conclusion"
        low, high = self.interval
        return "ahead" if low > 0 else "behind" if high < 0 else "no conclusion"

    @property
    def sentence(self) -> str:
        """What the numbers allow to be said."""
        decided = self.verdict != "no conclusion"
        points = f"{abs(self.difference) if decided else self.difference:.1f} points"
        low, high = self.interval or (math.nan, math.nan)
        of_verdict = -1 if self.verdict == "behind" else 1
        low, high = sorted((of_verdict * low, of_verdict * high))
        facts = [
            f"{self.verdict} by {points}" if decided else f"no conclusion: {points}",
            *([f"95 % interval {low:.1f} to {high:.1f}"] if self.interval else []),
            f"{format_p(self.p_holm)} after Holm",
            counted(self.people, "person", "people"),
            f"{self.repeats} repeats, ahead in {self.repeats_ahead}"
            if self.repeats > 1
            else "one repeat: nothing is known of other seeds",
        ]
        crossed = self.crossed_interval
        if decided and crossed and crossed[0] <= 0 <= crossed[1]:
            facts.append("other seeds or other labelled people may reverse it")
        if not decided and self.people < people_needed(self.comparisons):
            facts.append(f"too few people for any conclusion{_needed(self.comparisons)}")
        return ", ".join(facts).replace("-", "−")


@dataclass(frozen=True)
class Ranking:
    """Methods by their mean rank over people, with one label budget.

    Attributes:
        recipe: the recipe that all share; empty where recipes are compared.
        ranks: method → mean rank, best first; 1 is the best.
        critical_difference: ranks that lie this far apart differ (Nemenyi's test).
        p: of Friedman's test that all are alike.
    """

    labels: str
    recipe: str
    ranks: Mapping[BenchmarkMethod, float]
    critical_difference: float
    p: float
    people: int
    repeats: int


@dataclass(frozen=True)
class CurvePoint:
    """The mean Dice of a method with one label budget, in per cent.

    Attributes:
        labelled_people: whose labels were used.
        interval: over people and repeats, or over people where there is one repeat; None for one
            person.
    """

    labels: str
    labelled_people: int
    mean: float
    interval: Interval | None
    people: int
    repeats: int


@dataclass(frozen=True)
class Findings:
    """All comparisons of a benchmark.

    Attributes:
        scores: label budget → method → what is compared.
        curves: recipe → method → its points, with few labels first.
    """

    scores: Mapping[str, Mapping[BenchmarkMethod, MethodScores]]
    comparisons: tuple[PairedComparison, ...]
    rankings: tuple[Ranking, ...]
    curves: Mapping[str, Mapping[BenchmarkMethod, tuple[CurvePoint, ...]]]


def compare_methods(plan: BenchmarkPlan, folders: Mapping[BenchmarkCell, Path]) -> Findings:
    """Compare the methods of a benchmark.

    Args:
        plan: the benchmark.
        folders: finished cell → its folder, with its table of scores.
    """
    scores = _read_scores(folders, plan.groups)
    return Findings(
        scores=scores,
        comparisons=_with_holm(_comparisons(plan, scores)),
        rankings=tuple(_rankings(plan, scores)),
        curves=_curves(plan, scores),
    )


def format_p(p: float) -> str:
    """ "p = 0.02", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count_comparisons(plan: BenchmarkPlan) -> int:
    """How many comparisons the finished benchmark will make."""
    methods: dict[str, set[BenchmarkMethod]] = defaultdict(set)
    if "strict" in plan.grid.conventions:
        for cell in plan.specifications:
            methods[cell.labels].add(_method_of(cell))
    return sum(len([*_pairs(plan, of_labels)]) for of_labels in methods.values())


def _needed(comparisons: int) -> str:
    among = f" among {comparisons} comparisons" if comparisons > 1 else ""
    return f"{among}: {people_needed(comparisons)} are needed"


def reference_of(method: BenchmarkMethod, plan: BenchmarkPlan) -> BenchmarkMethod:
    """The method with which another is compared."""
    named, grid = plan.grid.reference, plan.grid
    networks = {start.name: start.network for start in grid.start}
    scratch = [start.name for start in grid.start if start.method is None]
    alike = [name for name in scratch if networks[name] == networks[method.start]]
    return BenchmarkMethod(
        start=named.start or (*alike, *scratch, grid.start[0].name)[0],
        training=named.training or grid.training[0].name,
        recipe=named.recipe or method.recipe,
    )


def title_of(method: BenchmarkMethod, plan: BenchmarkPlan) -> str:
    """A method's name, with training and recipe where they tell methods apart."""
    parts = [method.start]
    if len(plan.grid.training) > 1:
        parts.append(method.training)
    if plan.grid.reference.recipe is not None:
        parts.append(method.recipe)
    return ", ".join(parts)


Scores = Mapping[str, Mapping[BenchmarkMethod, MethodScores]]
"""Label budget → method → scores."""


def _read_scores(folders: Mapping[BenchmarkCell, Path], groups: Mapping[str, str]) -> Scores:
    scores: dict[str, dict[BenchmarkMethod, MethodScores]] = defaultdict(dict)
    for cell, folder in folders.items():
        rows = read_rows(folder / runs.SCORES)
        repeat = (cell.seed, cell.draw)
        own = scores[cell.labels].setdefault(_method_of(cell), MethodScores({}, {}, {}))
        own.dice[repeat] = dice_of_people(rows, groups)
        own.missed[repeat] = sum(row.outcome == "missed" for row in rows)
        own.invented[repeat] = sum(row.outcome == "invented" for row in rows)
    return scores


def dice_of_people(rows: Iterable[ScoreRow], groups: Mapping[str, str]) -> dict[str, float]:
    """Person → Dice in per cent: the mean over their scans of the mean over the classes.

    A class that neither mask has is left out. A scan that has no structure, and in which none was
    found, counts as 100: under a method that finds one there it counts as 0, and all methods must
    be compared over the same people.
    """
    of_case: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        of_case[row.case] += [] if math.isnan(row.dice) else [100 * row.dice]
    of_person: dict[str, list[float]] = defaultdict(list)
    for case, values in of_case.items():
        of_person[groups[case]].append(fmean(values or [100.0]))
    return {person: fmean(values) for person, values in sorted(of_person.items())}


def _shared(methods: Iterable[MethodScores]) -> tuple[list[tuple[int, int | None]], list[str]]:
    """The repeats that all methods have, and the people who are scored in all of them."""
    listed = list(methods)
    repeats = [
        repeat for repeat in listed[0].dice if all(repeat in scores.dice for scores in listed)
    ]
    people = [set(scores.dice[repeat]) for scores in listed for repeat in repeats]
    return repeats, sorted(set.intersection(*people)) if people else []


def _method_of(cell: BenchmarkCell) -> BenchmarkMethod:
    return BenchmarkMethod(cell.start.name, cell.training.name, cell.recipe_name)


def _pairs(
    plan: BenchmarkPlan, methods: Collection[BenchmarkMethod]
) -> Iterator[tuple[BenchmarkMethod, BenchmarkMethod]]:
    """Methods that are compared, each with its reference, of those with the same labels."""
    for method in methods:
        reference = reference_of(method, plan)
        if method != reference and reference in methods:
            yield method, reference


def _comparisons(plan: BenchmarkPlan, scores: Scores) -> Iterable[PairedComparison]:
    for labels, methods in scores.items():
        for method, reference in _pairs(plan, methods):
            own, other = methods[method], methods[reference]
            repeats, people = _shared((own, other))
            if not people:
                continue
            table = own.table(repeats, people) - other.table(repeats, people)
            of_people, of_repeats = table.mean(axis=1), table.mean(axis=0)
            p = signed_rank_p(of_people)
            yield PairedComparison(
                labels=labels,
                method=method,
                reference=reference,
                difference=float(table.mean()),
                interval=bootstrap_interval(of_people) if len(people) > 1 else None,
                crossed_interval=_crossed(table),
                p=p,
                p_holm=p,
                comparisons=1,
                people=len(people),
                people_ahead=int((of_people > 0).sum()),
                repeats=len(repeats),
                repeats_ahead=int((of_repeats > 0).sum()),
                missed=fmean(own.missed[repeat] for repeat in repeats),
                reference_missed=fmean(other.missed[repeat] for repeat in repeats),
                invented=fmean(own.invented[repeat] for repeat in repeats),
                reference_invented=fmean(other.invented[repeat] for repeat in repeats),
            )


def _crossed(table: np.ndarray) -> Interval | None:
    return crossed_bootstrap_interval(table) if min(table.shape) > 1 else None


def _with_holm(comparisons: Iterable[PairedComparison]) -> tuple[PairedComparison, ...]:
    listed = list(comparisons)
    corrected = holm([comparison.p for comparison in listed])
    return tuple(
        replace(comparison, p_holm=p, comparisons=len(listed))
        for comparison, p in zip(listed, corrected, strict=True)
    )


def _groups(
    plan: BenchmarkPlan, scores: Scores
) -> Iterable[tuple[str, str, dict[BenchmarkMethod, MethodScores]]]:
    """(labels, recipe, methods that are compared); recipe is empty where recipes are compared."""
    for labels, methods in scores.items():
        if plan.grid.reference.recipe is not None:
            yield labels, "", dict(methods)
            continue
        for recipe in map(name_of_recipe, plan.grid.recipes):
            own = {method: each for method, each in methods.items() if method.recipe == recipe}
            if own:
                yield labels, recipe, own


def _rankings(plan: BenchmarkPlan, scores: Scores) -> Iterable[Ranking]:
    for labels, recipe, methods in _groups(plan, scores):
        repeats, people = _shared(methods.values())
        if len(methods) < 3 or len(people) < 2:
            continue
        table = np.stack(
            [each.table(repeats, people).mean(axis=1) for each in methods.values()], axis=1
        )
        ranks = dict(zip(methods, mean_ranks(table), strict=True))
        yield Ranking(
            labels=labels,
            recipe=recipe,
            ranks=dict(sorted(ranks.items(), key=lambda item: item[1])),
            critical_difference=critical_difference(len(methods), len(people)),
            p=friedman_p(table),
            people=len(people),
            repeats=len(repeats),
        )


def _curves(
    plan: BenchmarkPlan, scores: Scores
) -> dict[str, dict[BenchmarkMethod, tuple[CurvePoint, ...]]]:
    curves: dict[str, dict[BenchmarkMethod, list[CurvePoint]]] = {}
    for labels, recipe, methods in _groups(plan, scores):
        for method, each in methods.items():
            repeats, people = _shared([each])
            if not people:
                continue
            table = each.table(repeats, people)
            interval = _crossed(table)
            if interval is None and len(people) > 1:
                interval = bootstrap_interval(table.mean(axis=1))
            count = plan.labelled_people[labels]
            point = CurvePoint(
                labels, count, float(table.mean()), interval, len(people), len(repeats)
            )
            curves.setdefault(recipe, {}).setdefault(method, []).append(point)
    return {
        recipe: {
            method: tuple(sorted(points, key=lambda point: point.labelled_people))
            for method, points in own.items()
        }
        for recipe, own in curves.items()
    }
