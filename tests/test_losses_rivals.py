"""Losses of the compared methods against slow loops in float64, their properties, and their
gradients at the edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from macl.losses import (
    centred_codes,
    contrastive_per_pair,
    contrastive_with_queue,
    cross_entropy_with_codes,
    negative_cosine,
    positives_by_partition,
    same_component,
    sinkhorn,
)

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


# ---------------------------------------------------------------- slow references


def slow_per_pair(anchors, positives, temperature: float) -> float:
    losses = []
    for i in range(len(anchors)):
        for j in range(len(anchors)):
            if i == j or not positives[i, j]:
                continue
            own = math.exp(cosine(anchors[i], anchors[j]) / temperature)
            against = sum(
                math.exp(cosine(anchors[i], anchors[k]) / temperature)
                for k in range(len(anchors))
                if k != i and not positives[i, k]
            )
            losses.append(-math.log(own / (own + against)))
    return sum(losses) / len(losses) if losses else 0.0


def test_per_pair_leaves_other_positives_out():
    anchors, part = random(9, 5), torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 2])
    positives = part[:, None] == part[None]
    ours = contrastive_per_pair(anchors, positives, 0.2)
    assert float(ours) == pytest.approx(slow_per_pair(anchors, positives, 0.2), rel=1e-9)


def test_contrast_with_a_queue():
    queries, keys, queue = random(4, 6), random(4, 6, seed=1), random(7, 6, seed=2)
    losses = []
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(cosine(query, key) / 0.3)
        losses.append(
            -math.log(own / (own + sum(math.exp(cosine(query, other) / 0.3) for other in queue)))
        )
    assert float(contrastive_with_queue(queries, keys, queue, 0.3)) == pytest.approx(
        sum(losses) / 4, rel=1e-9
    )


def test_negative_cosine():
    first, second = random(5, 3), random(5, 3, seed=1)
    slow = -sum(cosine(a, b) for a, b in zip(first, second, strict=True)) / 5
    assert float(negative_cosine(first, second)) == pytest.approx(slow, rel=1e-9)
    assert float(negative_cosine(first, 3 * first)) == pytest.approx(-1.0, rel=1e-9)


def test_sinkhorn():
    scores = random(6, 4).tanh()
    codes = [[math.exp(float(score) / 0.1) for score in row] for row in scores]
    for _ in range(3):
        columns = [sum(row[k] for row in codes) for k in range(4)]
        codes = [[value / columns[k] for k, value in enumerate(row)] for row in codes]
        codes = [[value / sum(row) for value in row] for row in codes]
    torch.testing.assert_close(
        sinkhorn(scores, 0.1, 3), torch.tensor(codes, dtype=torch.float64), **TIGHT
    )


def test_sinkhorn_uses_every_prototype_equally():
    codes = sinkhorn(random(12, 4).tanh(), 0.5, 200)
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(
        codes.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_sinkhorn_does_not_overflow():
    codes = sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), 1e-3, 3)
    assert torch.isfinite(codes).all()


def test_cross_entropy_with_codes_and_a_centre():
    scores, teacher, centre = random(3, 5), random(3, 5, seed=1), random(5, seed=2)
    total = 0.0
    for student, other in zip(scores, teacher, strict=True):
        weights = [math.exp(float(other[k] - centre[k]) / 0.05) for k in range(5)]
        total_student = sum(math.exp(float(score) / 0.1) for score in student)
        for k in range(5):
            total -= (
                weights[k]
                / sum(weights)
                * math.log(math.exp(float(student[k]) / 0.1) / total_student)
            )
    ours = cross_entropy_with_codes(scores, centred_codes(teacher, centre, 0.05), 0.1)
    assert float(ours) == pytest.approx(total / 3, rel=1e-9)


def slow_components(features: torch.Tensor) -> list[list[bool]]:
    count = len(features)
    neighbours = {i: set() for i in range(count)}
    for i in range(count):
        nearest = max(
            (j for j in range(count) if j != i), key=lambda j: cosine(features[i], features[j])
        )
        neighbours[i].add(nearest)
        neighbours[nearest].add(i)
    rows = []
    for i in range(count):
        seen, waiting = {i}, [i]
        while waiting:
            for other in neighbours[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        rows.append([j in seen for j in range(count)])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_components_of_the_nearest_neighbour_graph(seed):
    features = random(17, 3, seed=seed)
    assert same_component(features).tolist() == slow_components(features)


def test_components_follow_a_chain_to_its_end():
    """Each point's nearest lies further along the chain, so that one path joins all of them."""
    angles = (
        torch.cumsum(torch.tensor([0.5 * 0.9**k for k in range(16)], dtype=torch.float64), 0) * 0.5
    )
    features = torch.stack((angles.cos(), angles.sin()), 1)
    assert same_component(features).all()


@pytest.mark.parametrize("slices", [4, 7, 8, 10, 100])
def test_partitions_are_equal_parts_of_a_volume(slices):
    positions = (torch.arange(slices) + 1) / slices
    part = [math.ceil(4 * (index + 1) / slices - 1e-9) - 1 for index in range(slices)]
    expected = [[a == b for b in part] for a in part]
    assert positives_by_partition(positions[:, None], 4).tolist() == expected


# ---------------------------------------------------------------- properties


def test_order_and_length_of_features_do_not_matter():
    anchors, part = random(8, 5), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    positives = part[:, None] == part[None]
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    length = torch.linspace(0.5, 40, 8, dtype=torch.float64)[:, None]
    ours = contrastive_per_pair(anchors, positives, 0.1)
    torch.testing.assert_close(
        contrastive_per_pair(anchors[order], positives[order][:, order], 0.1), ours, **TIGHT
    )
    torch.testing.assert_close(
        contrastive_per_pair(length * anchors, positives, 0.1), ours, **TIGHT
    )
    queries, keys, queue = random(8, 5, seed=3), random(8, 5, seed=4), random(6, 5, seed=5)
    ours = contrastive_with_queue(queries, keys, queue, 0.1)
    torch.testing.assert_close(
        contrastive_with_queue(queries[order], keys[order], queue.flip(0), 0.1), ours, **TIGHT
    )
    torch.testing.assert_close(
        contrastive_with_queue(queries * length, keys, 9 * queue, 0.1), ours, **TIGHT
    )
    assert torch.equal(same_component(anchors * length), same_component(anchors))


def test_cosines_forget_order_and_length():
    first, second = random(5, 3), random(5, 3, seed=1)
    length = torch.logspace(-3, 3, 5, dtype=torch.float64)[:, None]
    ours = negative_cosine(first, second)
    torch.testing.assert_close(negative_cosine(first.flip(0), second.flip(0)), ours, **TIGHT)
    torch.testing.assert_close(negative_cosine(length * first, 7 * second), ours, **TIGHT)


def test_codes_follow_the_order_of_samples_and_prototypes():
    scores, rows, columns = (
        random(6, 4).tanh(),
        torch.tensor([3, 0, 5, 1, 2, 4]),
        torch.tensor([2, 0, 3, 1]),
    )
    codes = sinkhorn(scores, 0.1, 3)
    torch.testing.assert_close(
        sinkhorn(scores[rows][:, columns], 0.1, 3), codes[rows][:, columns], **TIGHT
    )
    torch.testing.assert_close(sinkhorn(scores + random(1, 4, seed=1), 0.1, 3), codes, **TIGHT)
    torch.testing.assert_close(sinkhorn(3 * scores, 0.3, 3), codes, **TIGHT)


def test_cross_entropy_with_codes_forgets_order_and_shift():
    scores, teacher, centre = random(6, 4), random(6, 4, seed=1), random(4, seed=2)
    codes, columns = centred_codes(teacher, centre, 0.05), torch.tensor([2, 0, 3, 1])
    ours = cross_entropy_with_codes(scores, codes, 0.1)
    torch.testing.assert_close(codes.sum(1), torch.ones(6, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(centred_codes(teacher + 5, centre + 2, 0.05), codes, **TIGHT)
    torch.testing.assert_close(
        cross_entropy_with_codes(scores.flip(0), codes.flip(0), 0.1), ours, **TIGHT
    )
    torch.testing.assert_close(
        cross_entropy_with_codes(scores[:, columns], codes[:, columns], 0.1), ours, **TIGHT
    )
    torch.testing.assert_close(
        cross_entropy_with_codes(scores + random(6, 1), codes, 0.1), ours, **TIGHT
    )


def test_components_follow_the_order_of_samples():
    features, order = random(9, 3), torch.tensor([5, 2, 8, 0, 1, 6, 3, 4, 7])
    assert torch.equal(same_component(features[order]), same_component(features)[order][:, order])


# ---------------------------------------------------------------- gradients


def test_gradients_equal_finite_differences():
    features, other, queue = random(4, 3), random(4, 3, seed=1), random(5, 3, seed=2)
    part = torch.tensor([0, 1, 0, 1])
    losses = [
        lambda x: contrastive_per_pair(x, part[:, None] == part[None], 0.5),
        lambda x: contrastive_with_queue(x, other, queue, 0.5),
        lambda x: negative_cosine(x, other),
        lambda x: cross_entropy_with_codes(x, other.softmax(1), 0.5),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (features.clone().requires_grad_(),))


# ---------------------------------------------------------------- gradients at the edges


def features_for(case: str) -> torch.Tensor:
    if case == "a batch of one":
        return torch.randn(1, 8)
    if case == "identical features":
        return torch.ones(6, 8)
    if case == "fp16 extremes":
        size = torch.tensor([6e4, 6e4, 6e4, 1e-3, 1e-3, 1.0])[:, None]
        return (size * torch.rand(6, 8, generator=torch.Generator().manual_seed(0))).half()
    if case == "zero features":
        return torch.zeros(6, 8)
    if case == "smallest fp16 numbers":
        signs = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).sign()
        return (torch.finfo(torch.float16).tiny * signs).half()
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


CASES = [
    "a batch of one",
    "identical features",
    "zero features",
    "fp16 extremes",
    "smallest fp16 numbers",
    "all positives",
    "no positives",
]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_finite(case):
    features = features_for(case).requires_grad_()
    count = len(features)
    positives = torch.ones(count, count, dtype=torch.bool)
    if case == "no positives":
        positives = torch.zeros(count, count, dtype=torch.bool)
    other, queue = features.detach().flip(0), F.normalize(torch.randn(5, 8), dim=1)
    scores = features.detach()
    losses = {
        "codes of raw scores": cross_entropy_with_codes(features, sinkhorn(scores, 0.05, 3), 0.1),
        "centred raw scores": cross_entropy_with_codes(
            features, centred_codes(scores, scores.mean(0), 0.04), 0.1
        ),
        "per pair": contrastive_per_pair(features, positives, 0.1),
        "queue": contrastive_with_queue(features, other, queue, 0.1),
        "cosine": negative_cosine(features, other),
        "codes": cross_entropy_with_codes(
            F.normalize(features.float(), dim=1),
            sinkhorn(F.normalize(other.float(), dim=1), 0.05, 3),
            0.1,
        ),
        "centred": cross_entropy_with_codes(
            F.normalize(features.float(), dim=1),
            centred_codes(F.normalize(other.float(), dim=1), queue[0], 0.04),
            0.1,
        ),
    }
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
        (gradient,) = torch.autograd.grad(loss, features, retain_graph=True)
        assert torch.isfinite(gradient).all(), name
    assert same_component(features).shape == (count, count)
