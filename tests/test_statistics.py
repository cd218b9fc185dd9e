"""Against slow references, written out by hand."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from macl.statistics import (
    RESAMPLES,
    bootstrap_interval,
    critical_difference,
    crossed_bootstrap_interval,
    friedman_p,
    holm,
    mean_ranks,
    people_needed,
    signed_rank_p,
    smallest_signed_rank_p,
)

DIFFERENCES = [1.2, -0.4, 3.1, 0.8, 2.2, -1.5, 0.6, 4.0, 1.9, 0.3]


def test_a_bootstrap_interval_is_that_of_a_slow_loop() -> None:
    draws = random.Random(5)
    means = sorted(
        sum(draws.choice(DIFFERENCES) for _ in DIFFERENCES) / len(DIFFERENCES)
        for _ in range(RESAMPLES)
    )
    low, high = bootstrap_interval(DIFFERENCES)
    assert low == pytest.approx(means[int(0.025 * RESAMPLES)], abs=0.05)
    assert high == pytest.approx(means[int(0.975 * RESAMPLES)], abs=0.05)
    assert bootstrap_interval(DIFFERENCES) == (low, high), "seeded"
    assert bootstrap_interval(DIFFERENCES, seed=1) != (low, high)


def test_a_crossed_interval_is_that_of_a_slow_loop() -> None:
    table = np.add.outer(DIFFERENCES, [-2.0, 0.0, 1.0, 2.5])
    table[3, 1] += 4
    draws = random.Random(6)
    means = []
    for _ in range(4000):
        people = [draws.randrange(10) for _ in range(10)]
        repeats = [draws.randrange(4) for _ in range(4)]
        means.append(sum(table[p, r] for p in people for r in repeats) / 40)
    low, high = crossed_bootstrap_interval(table)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.1)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.1)
    of_people = bootstrap_interval(table.mean(axis=1))
    assert high - low > 1.3 * (of_people[1] - of_people[0]), "repeats differ, and that counts"


def test_the_signed_rank_test_counts_all_signs() -> None:
    ranks = stats.rankdata(np.abs(DIFFERENCES))
    found = sum(rank for rank, value in zip(ranks, DIFFERENCES, strict=True) if value > 0)
    sums = [
        sum(rank for rank, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    middle = sum(ranks) / 2
    extreme = sum(abs(total - middle) >= abs(found - middle) for total in sums)
    assert signed_rank_p(DIFFERENCES) == pytest.approx(extreme / len(sums))


@pytest.mark.parametrize("seed", range(4))
def test_ties_and_zeros_are_tested_as_scipy_tests_them(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-2, 4, size=9)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_no_difference_is_no_evidence() -> None:
    assert signed_rank_p([0.0, 0.0, 1e-15]) == 1.0
    assert signed_rank_p([0.3]) == 1.0
    assert friedman_p(np.full((5, 3), 70.0)) == 1.0


@pytest.mark.parametrize("people", [1, 4, 5, 6, 12])
def test_the_smallest_p_is_that_of_a_method_ahead_for_everybody(people: int) -> None:
    assert signed_rank_p(np.arange(1, people + 1)) == pytest.approx(smallest_signed_rank_p(people))


@pytest.mark.parametrize(("comparisons", "people"), [(1, 6), (2, 7), (6, 8), (7, 9)])
def test_more_comparisons_need_more_people(comparisons: int, people: int) -> None:
    assert people_needed(comparisons) == people
    smallest = [smallest_signed_rank_p(people)] * comparisons
    assert max(holm(smallest)) < 0.05
    assert min(holm([2 * p for p in smallest])) >= 0.05


def test_holm_by_hand() -> None:
    # Smallest first: 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1, and none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_ranks_and_their_critical_difference() -> None:
    scores = np.array([[90.0, 80.0, 70.0], [60.0, 60.0, 50.0], [10.0, 30.0, 20.0]])
    assert mean_ranks(scores) == pytest.approx([(1 + 1.5 + 3) / 3, (2 + 1.5 + 1) / 3, 8 / 3])
    # Demšar 2006, table 5(a): q of 5 % is 2.343 for three methods and 2.569 for four.
    assert critical_difference(3, 30) == pytest.approx(2.343 * (12 / 180) ** 0.5, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(2.569 * (20 / 84) ** 0.5, abs=1e-3)
    assert friedman_p(scores) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
