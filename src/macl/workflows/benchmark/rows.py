"""The rows of a benchmark's tables for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from macl.workflows.benchmark.comparisons import Findings


class DifferenceRow(NamedTuple):
    """A method against its reference."""

    labels: str
    start: str
    training: str
    recipe: str
    reference_start: str
    reference_training: str
    reference_recipe: str
    dice_points: float
    low: float | None
    high: float | None
    low_over_repeats_too: float | None
    high_over_repeats_too: float | None
    p: float
    p_holm: float
    people: int
    people_ahead: int
    repeats: int
    repeats_ahead: int
    missed: float
    reference_missed: float
    invented: float
    reference_invented: float
    conclusion: str
    sentence: str


class RankRow(NamedTuple):
    """A method's mean rank with one label budget."""

    labels: str
    start: str
    training: str
    recipe: str
    mean_rank: float
    critical_difference: float
    friedman_p: float
    people: int
    repeats: int


class PersonRow(NamedTuple):
    """The Dice of one person in one cell."""

    start: str
    training: str
    labels: str
    recipe: str
    seed: int
    draw: int | None
    person: str
    dice_percent: float


class CurveRow(NamedTuple):
    """The mean Dice of a method with one label budget."""

    labels: str
    labelled_people: int
    start: str
    training: str
    recipe: str
    dice_percent: float
    low: float | None
    high: float | None
    people: int
    repeats: int


def comparison_rows(findings: Findings) -> Iterator[DifferenceRow]:
    """One row for every comparison."""
    for each in findings.comparisons:
        low, high = each.interval or (None, None)
        crossed_low, crossed_high = each.crossed_interval or (None, None)
        yield DifferenceRow(
            labels=each.labels,
            start=each.method.start,
            training=each.method.training,
            recipe=each.method.recipe,
            reference_start=each.reference.start,
            reference_training=each.reference.training,
            reference_recipe=each.reference.recipe,
            dice_points=each.difference,
            low=low,
            high=high,
            low_over_repeats_too=crossed_low,
            high_over_repeats_too=crossed_high,
            p=each.p,
            p_holm=each.p_holm,
            people=each.people,
            people_ahead=each.people_ahead,
            repeats=each.repeats,
            repeats_ahead=each.repeats_ahead,
            missed=each.missed,
            reference_missed=each.reference_missed,
            invented=each.invented,
            reference_invented=each.reference_invented,
            conclusion=each.verdict,
            sentence=each.sentence,
        )


def rank_rows(findings: Findings) -> Iterator[RankRow]:
    """One row for every method of every ranking, best first."""
    for each in findings.rankings:
        for method, rank in each.ranks.items():
            yield RankRow(
                labels=each.labels,
                start=method.start,
                training=method.training,
                recipe=method.recipe,
                mean_rank=rank,
                critical_difference=each.critical_difference,
                friedman_p=each.p,
                people=each.people,
                repeats=each.repeats,
            )


def person_rows(findings: Findings) -> Iterator[PersonRow]:
    """One row for every test person in every cell."""
    for labels, methods in findings.scores.items():
        for method, scores in methods.items():
            for (seed, draw), of_people in scores.dice.items():
                for person, dice in of_people.items():
                    yield PersonRow(
                        start=method.start,
                        training=method.training,
                        labels=labels,
                        recipe=method.recipe,
                        seed=seed,
                        draw=draw,
                        person=person,
                        dice_percent=dice,
                    )


def curve_rows(findings: Findings) -> Iterator[CurveRow]:
    """One row for every point of the curves."""
    for methods in findings.curves.values():
        for method, points in methods.items():
            for point in points:
                low, high = point.interval or (None, None)
                yield CurveRow(
                    labels=point.labels,
                    labelled_people=point.labelled_people,
                    start=method.start,
                    training=method.training,
                    recipe=method.recipe,
                    dice_percent=point.mean,
                    low=low,
                    high=high,
                    people=point.people,
                    repeats=point.repeats,
                )
