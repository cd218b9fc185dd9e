"""Which few of many points stand for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from macl.data.coverage import Strategy, distances, mean_distance, rank, standardised

LINE = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [40.0]])


def test_coverage_begins_in_the_middle_and_farthest_seeks_the_odd_one() -> None:
    apart = distances(LINE)
    assert rank(apart, 1, "coverage", range(6)) in ([2], [3])
    assert rank(apart, 2, "farthest", range(6))[1] == 5


@pytest.mark.parametrize("strategy", ["coverage", "farthest"])
def test_each_pick_is_the_best_by_a_slow_search(strategy: Strategy) -> None:
    apart = distances(np.random.default_rng(3).normal(size=(23, 4)))
    known, barred = [4, 17], [0, 9]
    candidates = [point for point in range(23) if point not in (*known, *barred)]
    order = rank(apart, 6, strategy, candidates, known)
    assert len({*order, *known}) == 8
    assert {*order} <= {*candidates}
    for position, pick in enumerate(order):
        before = [*known, *order[:position]]
        others = [point for point in candidates if point not in before]
        if strategy == "coverage":
            best = min(mean_distance(apart, [*before, point]) for point in others)
            assert mean_distance(apart, [*before, pick]) == pytest.approx(best)
        else:
            farthest = max(min(apart[point, chosen] for chosen in before) for point in others)
            assert apart[pick, before].min() == pytest.approx(farthest)


def test_a_longer_choice_begins_like_a_shorter_one() -> None:
    apart = distances(np.random.default_rng(0).normal(size=(15, 3)))
    everybody = rank(apart, 15, "coverage", range(15))
    assert everybody[:4] == rank(apart, 4, "coverage", range(15))
    assert sorted(everybody) == list(range(15))


def test_features_count_alike_whatever_their_scale_and_dead_ones_not_at_all() -> None:
    random = np.random.default_rng(0).normal(size=(9, 2))
    features = np.column_stack([random[:, 0], 1000 * random[:, 1] + 5, np.full(9, 0.3)])
    told_apart = standardised(features)
    assert told_apart.shape == (9, 2)
    np.testing.assert_allclose(told_apart.std(axis=0), 1)
    np.testing.assert_allclose(told_apart, standardised(random), atol=1e-9)
