"""What paired scores allow to be said: intervals, tests, corrections and ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
RESAMPLES = 10_000
MOST_SIGNS = 13
"""Differences up to whose number a test looks at every way in which their signs could fall."""


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean over people, by resampling them (percentile bootstrap).

    Args:
        values: one per person, at least one.
        seed: of the resampling.
    """
    scores = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(scores), size=(RESAMPLES, len(scores)))
    return _percentiles(scores[chosen].mean(axis=1))


def crossed_bootstrap_interval(table: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean over people and repeats, by resampling both, independently.

    Args:
        table: (people, repeats).
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    people, repeats = (
        random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
        for count in table.shape
    )
    return _percentiles(((people @ table) * repeats).sum(axis=1))


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 where no difference is left.

    Exact for up to `MOST_SIGNS` differences that are not 0, ties or not, where SciPy's test would
    loop over all their signs.
    """
    from scipy.stats import rankdata, wilcoxon

    # Differences that are equal but for the order of a sum must tie.
    rounded = np.round(np.asarray(differences, dtype=np.float64), 12)
    rounded = rounded[rounded != 0]
    if len(rounded) > MOST_SIGNS:
        return float(wilcoxon(rounded).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    ranks = rankdata(np.abs(rounded))
    signs = 1 - 2 * (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1)
    return float((np.abs(signs @ ranks) >= abs(np.sign(rounded) @ ranks)).mean())


def smallest_signed_rank_p(people: int) -> float:
    """The smallest p that Wilcoxon's two-sided test can give with so many people."""
    return min(1.0, 2.0 ** (1 - people))


def people_needed(comparisons: int) -> int:
    """The fewest people with whom Holm's correction for so many comparisons can leave a p below
    `SIGNIFICANCE`."""
    return next(
        people
        for people in itertools.count(1)
        if comparisons * smallest_signed_rank_p(people) < SIGNIFICANCE
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method, in the same order."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mean_ranks(scores: np.ndarray) -> list[float]:
    """The mean rank of each method over people; the highest score has rank 1, ties share theirs.

    Args:
        scores: (people, methods).
    """
    from scipy.stats import rankdata

    return rankdata(-np.round(scores, 12), axis=1).mean(axis=0).tolist()


def friedman_p(scores: np.ndarray) -> float:
    """The p of Friedman's test that all methods, three or more, are alike; scores as above."""
    from scipy.stats import friedmanchisquare

    rounded = np.round(scores, 12)
    if (rounded == rounded[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*rounded.T).pvalue)


def critical_difference(methods: int, people: int) -> float:
    """Mean ranks that lie at least this far apart differ, by Nemenyi's test."""
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(1 - SIGNIFICANCE, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * people)))
