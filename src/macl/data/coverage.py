"""Which few of many points stand for the rest: for choosing what to label.

"coverage" adds the point that lowers the mean distance to the nearest chosen point most (greedy
facility location; Nemhauser et al. 1978; among ways to choose labels, MaxHerding of Bae et al.
2024, arXiv 2407.12212). It begins with the most central point, and single odd ones count little.
"farthest" adds the point that lies farthest from all chosen ones (k-centre greedy, the core-set of
Sener & Savarese 2018, arXiv 1708.00489). It begins with the most central point too, then seeks the
odd ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Strategy = Literal["coverage", "farthest"]


def standardised(features: np.ndarray) -> np.ndarray:
    """(N, F) with mean 0 and deviation 1 over the points; without features that never change."""
    features = features.astype(np.float64)
    deviation = features.std(axis=0)
    changing = deviation > 1e-6 * np.abs(features).max(axis=0, initial=0.0)
    return (features - features.mean(axis=0))[:, changing] / deviation[changing]


def distances(features: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances between points (N, F)."""
    from scipy.spatial.distance import cdist

    if not features.shape[1]:
        return np.zeros((len(features), len(features)))
    return cdist(features, features)


def rank(
    apart: np.ndarray,
    count: int,
    strategy: Strategy,
    candidates: Sequence[int],
    chosen: Sequence[int] = (),
) -> list[int]:
    """The next points to choose, the most useful first; of equal ones the first.

    Args:
        apart: (N, N) distances.
        count: how many, at most as many as there are candidates.
        strategy: "coverage" or "farthest".
        candidates: points that may be chosen; all points are to be covered.
        chosen: points that are chosen already.
    """
    nearest = apart[:, list(chosen)].min(axis=1, initial=np.inf)
    closed = np.ones(len(apart), dtype=bool)
    closed[list(candidates)] = False
    order: list[int] = []
    for _ in range(count):
        if strategy == "coverage" or not (order or chosen):
            gain = -np.minimum(nearest[:, None], apart).mean(axis=0)
        else:
            gain = nearest.copy()
        gain[closed] = -np.inf
        best = int(gain.argmax())
        order.append(best)
        closed[best] = True
        nearest = np.minimum(nearest, apart[:, best])
    return order


def mean_distance(apart: np.ndarray, chosen: Sequence[int]) -> float:
    """The mean over all points of the distance to the nearest chosen one."""
    return float(apart[:, list(chosen)].min(axis=1).mean())
