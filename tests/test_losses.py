"""Losses against slow loops in float64, their symmetries, and their edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from macl.losses import (
    contrastive,
    dense_contrastive,
    pairs_of_both_branches,
    positives_by_position,
    soft_dice,
    spread,
)


def slow_contrastive(anchors: Tensor, positives: Tensor, temperature: float) -> float:
    """Equation 9 of the paper, anchor by anchor in Python's own numbers; anchors without positives
    are left out."""
    vectors = [[float(x) for x in row] for row in anchors]
    lengths = [math.sqrt(sum(x * x for x in row)) for row in vectors]
    count = len(vectors)

    def similarity(i: int, k: int) -> float:
        dot = sum(a * b for a, b in zip(vectors[i], vectors[k], strict=True))
        return dot / (lengths[i] * lengths[k]) / temperature

    losses = []
    for i in range(count):
        pairs = [j for j in range(count) if j != i and positives[i, j]]
        if pairs:
            total = sum(math.exp(similarity(i, k)) for k in range(count) if k != i)
            losses.append(
                -sum(math.log(math.exp(similarity(i, j)) / total) for j in pairs) / len(pairs)
            )
    return sum(losses) / len(losses) if losses else 0.0


def random_anchors(count: int, channels: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(
        count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def random_pairs(count: int, share: float, seed: int = 0) -> Tensor:
    pairs = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)) < share
    return pairs | pairs.T


@pytest.mark.parametrize("slices", [2, 5, 8])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.35, 2.0])
def test_contrastive_equals_the_loop(slices: int, temperature: float, threshold: float) -> None:
    positions = torch.rand(slices, generator=torch.Generator().manual_seed(slices))
    positives = pairs_of_both_branches(positives_by_position(positions[:, None], threshold))
    anchors = random_anchors(2 * slices, seed=slices)
    expected = slow_contrastive(anchors, positives, temperature)
    assert contrastive(anchors, positives, temperature).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
def test_anchors_without_positives_are_left_out(share: float) -> None:
    anchors, pairs = random_anchors(9), random_pairs(9, share, seed=3)
    lonely = (pairs & ~torch.eye(9, dtype=torch.bool)).sum(1) == 0
    assert lonely.any()
    assert contrastive(anchors, pairs, 0.1).item() == pytest.approx(
        slow_contrastive(anchors, pairs, 0.1), rel=1e-9
    )


def test_one_positive_pair_by_hand() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    pairs = torch.zeros(3, 3, dtype=torch.bool)
    pairs[0, 2] = pairs[2, 0] = True
    expected = math.log(1 + math.exp(-1 / 0.5))
    assert contrastive(anchors, pairs, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_the_order_of_slices_does_not_matter() -> None:
    positions = torch.rand(6, generator=torch.Generator().manual_seed(1))
    anchors = random_anchors(12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    both = torch.cat((order, order + 6))
    before = contrastive(
        anchors, pairs_of_both_branches(positives_by_position(positions[:, None], 0.2)), 0.1
    )
    after = contrastive(
        anchors[both],
        pairs_of_both_branches(positives_by_position(positions[order][:, None], 0.2)),
        0.1,
    )
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_the_branches_may_be_swapped() -> None:
    positives = pairs_of_both_branches(
        positives_by_position(torch.linspace(0.1, 1, 5)[:, None], 0.3)
    )
    anchors = random_anchors(10)
    swapped = torch.cat((anchors[5:], anchors[:5]))
    torch.testing.assert_close(
        contrastive(swapped, positives, 0.1), contrastive(anchors, positives, 0.1)
    )


def test_the_length_of_features_does_not_matter() -> None:
    positives = pairs_of_both_branches(
        positives_by_position(torch.linspace(0.1, 1, 5)[:, None], 0.3)
    )
    anchors = random_anchors(10)
    scales = torch.logspace(-6, 6, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        contrastive(scales * anchors, positives, 0.1), contrastive(anchors, positives, 0.1)
    )


@pytest.mark.parametrize("slices", [2, 4, 16])
def test_equal_features_give_the_uniform_value(slices: int) -> None:
    positives = pairs_of_both_branches(torch.eye(slices, dtype=torch.bool))
    anchors = torch.ones(2 * slices, 8, dtype=torch.float64)
    assert contrastive(anchors, positives, 0.1).item() == pytest.approx(
        math.log(2 * slices - 1), rel=1e-12
    )


def test_dense_equals_a_loop_over_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(4, 6, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    positives = positives_by_position(torch.tensor([0.1, 0.15, 0.6, 0.95])[:, None], 0.1)
    losses = [
        slow_contrastive(
            torch.cat((first[:, :, y, x], second[:, :, y, x])),
            pairs_of_both_branches(positives),
            0.1,
        )
        for y in range(3)
        for x in range(5)
    ]
    expected = sum(losses) / len(losses)
    assert dense_contrastive(first, second, positives, 0.1).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_dense_depends_on_neither_order_nor_length() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(4, 6, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    positions = torch.tensor([0.1, 0.15, 0.6, 0.95])
    expected = dense_contrastive(first, second, positives_by_position(positions[:, None], 0.1), 0.1)

    def same(first: Tensor, second: Tensor, positions: Tensor = positions) -> None:
        changed = dense_contrastive(
            first, second, positives_by_position(positions[:, None], 0.1), 0.1
        )
        torch.testing.assert_close(changed, expected, rtol=1e-9, atol=0)

    order = torch.tensor([2, 0, 3, 1])
    same(first[order], second[order], positions[order])
    same(second, first)
    same(first.flip(2, 3), second.flip(2, 3))
    same(1e3 * first, second * torch.rand(4, 1, 3, 5, generator=generator, dtype=torch.float64))


def test_positives_are_near_and_always_oneself() -> None:
    positives = positives_by_position(torch.tensor([0.25, 0.5, 0.625])[:, None], 0.25)
    assert positives.tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert torch.equal(
        positives_by_position(torch.tensor([0.5, 0.5])[:, None], 0.0),
        torch.eye(2, dtype=torch.bool),
    )


def edge_cases() -> dict[str, tuple[Tensor, Tensor]]:
    lone = torch.eye(1, dtype=torch.bool)
    zeros, whole = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    half = torch.finfo(torch.float16)
    large = torch.full((8, 4), half.max, dtype=torch.float16)
    large[::2] *= -1
    return {
        "a batch of one": (random_anchors(2).float(), pairs_of_both_branches(lone)),
        "a single anchor": (random_anchors(1).float(), lone),
        "all positives": (random_anchors(8).float(), whole),
        "no positives": (random_anchors(8).float(), zeros),
        "identical features": (torch.ones(8, 4), whole),
        "opposite features": (torch.cat((torch.ones(4, 4), -torch.ones(4, 4))), whole),
        "zero features": (torch.zeros(8, 4), whole),
        "largest half-precision numbers": (large, whole),
        "smallest half-precision numbers": (
            torch.full((8, 4), half.tiny, dtype=torch.float16),
            whole,
        ),
    }


@pytest.mark.parametrize("case", edge_cases())
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_losses_and_gradients_are_finite_at_the_edges(case: str, temperature: float) -> None:
    features, positives = edge_cases()[case]
    anchors = features.clone().requires_grad_()
    loss = contrastive(anchors, positives, temperature)
    loss.backward()
    assert loss.isfinite()
    assert loss >= -1e-6
    assert anchors.grad is not None
    assert anchors.grad.isfinite().all()


@pytest.mark.parametrize("case", sorted(edge_cases().keys() - {"a single anchor"}))
def test_dense_gradients_are_finite_at_the_edges(case: str) -> None:
    features, positives = edge_cases()[case]
    slices = len(features) // 2
    maps = features[:, :, None, None].expand(-1, -1, 2, 3).clone().requires_grad_()
    loss = dense_contrastive(maps[:slices], maps[slices:], positives[:slices, :slices], 0.1)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_without_positives_the_loss_is_zero_and_so_is_its_gradient() -> None:
    anchors = random_anchors(6).requires_grad_()
    loss = contrastive(anchors, torch.zeros(6, 6, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not anchors.grad.any()


def test_gradients_equal_finite_differences() -> None:
    positives = pairs_of_both_branches(
        positives_by_position(torch.tensor([0.2, 0.3, 0.9])[:, None], 0.15)
    )
    anchors = random_anchors(6, channels=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: contrastive(a, positives, 0.5), (anchors,))


def test_similarities_stay_in_full_precision_under_autocast() -> None:
    positives = pairs_of_both_branches(torch.eye(8, dtype=torch.bool))
    anchors = random_anchors(16, channels=128).float()
    expected = contrastive(anchors, positives, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive(anchors, positives, 0.1), expected)
    half = contrastive(anchors.bfloat16(), positives, 0.1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0)


def test_spread_is_0_for_equal_and_1_for_opposite_features() -> None:
    assert spread(torch.ones(5, 3) * torch.arange(1, 6)[:, None]).item() == pytest.approx(
        0, abs=1e-3
    )
    assert spread(torch.cat((torch.eye(4), -torch.eye(4)))).item() == pytest.approx(1)
    assert not spread(torch.randn(4, 3, requires_grad=True)).requires_grad


def test_spread_equals_a_loop_and_forgets_order_and_length() -> None:
    features = random_anchors(6)
    units = [
        [float(x) / math.sqrt(sum(float(y) ** 2 for y in row)) for x in row] for row in features
    ]
    means = [sum(row[channel] for row in units) / 6 for channel in range(7)]
    expected = math.sqrt(1 - sum(mean * mean for mean in means))
    assert spread(features).item() == pytest.approx(expected, rel=1e-9)
    assert spread(features.flip(0) * torch.logspace(-3, 3, 6)[:, None]).item() == pytest.approx(
        expected, rel=1e-9
    )
    assert spread(torch.full((1, 4), 6e4, dtype=torch.float16)).item() == pytest.approx(0, abs=1e-3)


def slow_soft_dice(logits: Tensor, labels: Tensor) -> float:
    batch, classes, rows, columns = logits.shape
    overlap, volumes = [0.0] * classes, [0.0] * classes
    for b, y, x in itertools.product(range(batch), range(rows), range(columns)):
        weights = [math.exp(float(logits[b, k, y, x])) for k in range(classes)]
        for k in range(classes):
            share, true = weights[k] / sum(weights), float(labels[b, y, x] == k)
            overlap[k] += share * true
            volumes[k] += share + true
    scores = [(2 * overlap[k] + 1e-5) / (volumes[k] + 1e-5) for k in range(1, classes)]
    return 1 - sum(scores) / len(scores)


def test_soft_dice_equals_a_loop_and_forgets_order() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (3, 5, 2), generator=generator)
    loss = soft_dice(logits, labels)
    assert loss.item() == pytest.approx(slow_soft_dice(logits, labels), rel=1e-9)
    for axis in (0, 1, 2):
        turned = soft_dice(logits.flip(axis if axis == 0 else axis + 1), labels.flip(axis))
        torch.testing.assert_close(turned, loss, rtol=1e-9, atol=0)
    shift = torch.randn(3, 1, 5, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(soft_dice(logits + shift, labels), loss, rtol=1e-9, atol=0)


def test_soft_dice_by_hand() -> None:
    labels = torch.tensor([[[0, 1], [1, 2]]])
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]]
    )
    logits = probabilities.log().T.reshape(1, 3, 2, 2)
    first = 2 * (0.6 + 0.4) / ((0.2 + 0.6 + 0.4 + 0.1) + 2)
    second = 2 * 0.8 / ((0.1 + 0.2 + 0.1 + 0.8) + 1)
    assert soft_dice(logits, labels).item() == pytest.approx(1 - (first + second) / 2, abs=1e-5)


def test_soft_dice_is_over_the_whole_batch_and_ignores_background() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, :2] = 1
    sure = 50.0 * F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    assert soft_dice(sure, labels).item() == pytest.approx(0, abs=1e-5)
    wrong = sure.flip(1)
    assert soft_dice(wrong, labels).item() == pytest.approx(1, abs=1e-5)
    absent = torch.zeros_like(labels)
    assert soft_dice(
        50.0 * F.one_hot(absent, 2).permute(0, 3, 1, 2).float(), absent
    ).item() == pytest.approx(0)


def test_soft_dice_has_finite_gradients_for_extreme_logits() -> None:
    logits = (
        torch.tensor([6e4, -6e4], dtype=torch.float16)
        .reshape(1, 2, 1, 1)
        .expand(1, 2, 4, 4)
        .clone()
    )
    logits.requires_grad_()
    soft_dice(logits, torch.ones(1, 4, 4, dtype=torch.long)).backward()
    assert logits.grad.isfinite().all()
