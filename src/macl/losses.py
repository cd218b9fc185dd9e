"""Losses, and the codes and statistics of features that go into them, as functions of tensors.

Symbols as in the MACL paper (arXiv 2309.11876): B slices a batch, so A = 2B anchors; D channels; K
keys or prototypes; τ temperature. Losses are in float32 or wider, whatever the features are in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from macl.distributed import collectives

RELEASED_BASE_TEMPERATURE = 0.07


def released_factor(temperature: float, applied: bool) -> float:
    """τ / 0.07, by which this family's released code multiplies its contrastive losses, or 1."""
    return temperature / RELEASED_BASE_TEMPERATURE if applied else 1.0


ROUNDING = 1e-6
SMALLEST_VARIANCE = 1e-5


def positives_by_position(positions: Tensor, threshold: float | Sequence[float]) -> Tensor:
    """(B, axes) positions p → (B, B) bool: |p_i − p_j| < t on every axis, and every patch with
    itself (PCL; MACL §3.2).

    Args:
        positions: of the patches' centres, as shares of their volumes' extents.
        threshold: t, one for all axes or one for each.
    """
    # Slices exactly t apart, as neighbours among ten at t = 0.1, are no positives, however their
    # float32 is rounded.
    limits = (
        [threshold] * positions.shape[1] if isinstance(threshold, int | float) else list(threshold)
    )
    near = torch.eye(len(positions), dtype=torch.bool, device=positions.device)
    apart = (positions[:, None] - positions[None, :]).abs()
    together = torch.ones_like(near)
    for axis, limit in zip(apart.unbind(-1), limits[: positions.shape[1]], strict=True):
        together = together & (axis < limit - ROUNDING)
    return near | together


def positives_by_partition(positions: Tensor, partitions: int) -> Tensor:
    """(B, axes) positions p in (0, 1] → (B, B) bool: both in the same of `partitions` equal parts
    along z (GCL)."""
    # The smallest float above k/S must not fall into part k + 1 where k/S itself was meant.
    part = (positions[:, 0] * partitions - 1e-4).floor().clamp(0, partitions - 1)
    return part[:, None] == part[None, :]


def pairs_of_both_branches(positives: Tensor) -> Tensor:
    """(B, B) pairs of slices → (2B, 2B) pairs of anchors, for anchors stacked branch after
    branch."""
    return positives.repeat(2, 2)


def contrastive(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """InfoNCE with any positives (MACL eqs. 9 and 10; form of supervised contrastive learning,
    Khosla et al. 2020).

    For every anchor, minus the mean over its positives of log(exp(sim/τ) / Σ_{k≠i} exp(sim/τ)), sim
    the cosine; then the mean over anchors, and over positions where there are any.

    Args:
        anchors: (A, D), or (P, A, D) where each of P positions is contrasted by itself; normalised
            here.
        positives: (A, A) bool; the diagonal does not count. An anchor without positives is left out
            of the mean.
        temperature: τ.

    Returns:
        Scalar, in float32 or wider; 0 where no anchor has a positive.
    """
    unit = _unit(anchors)
    if (
        unit.shape[-2] == 1
    ):  # nothing to be contrasted with, and a logsumexp over nothing has no gradient
        return 0.0 * unit.sum()
    similarity = _products(unit, unit) / temperature
    itself = torch.eye(unit.shape[-2], dtype=torch.bool, device=anchors.device)
    normaliser = similarity.masked_fill(itself, -torch.inf).logsumexp(-1)
    weights = (positives & ~itself).to(unit.dtype)
    count = weights.sum(-1, keepdim=True)
    # The mean of log-probabilities over positives is the mean of similarities less the normaliser.
    per_anchor = normaliser - (similarity * (weights / count.clamp(min=1))).sum(-1)
    counted = (count[:, 0] > 0).to(unit.dtype)
    return (per_anchor * counted).sum(-1).mean() / counted.sum().clamp(min=1)


def contrastive_per_pair(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """InfoNCE in which a positive pair meets negatives only: other positives are left out of its
    denominator (GCL).

    −log( e^s_ij / (e^s_ij + Σ_{k negative} e^s_ik) ), s = sim/τ, averaged over all ordered positive
    pairs (i, j).

    Args:
        anchors: (A, D), normalised here.
        positives: (A, A) bool; the diagonal does not count; every other pair is negative.
        temperature: τ.

    Returns:
        Scalar; 0 where there is no positive pair.
    """
    unit = _unit(anchors)
    similarity = _products(unit, unit) / temperature
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    negatives = similarity.masked_fill(positives | itself, -torch.inf)
    # Rows without negatives are refilled first: the gradient of a logsumexp over nothing would be
    # NaN.
    some = torch.isfinite(negatives).any(-1, keepdim=True)
    against = torch.where(some, negatives, 0.0).logsumexp(-1, keepdim=True)
    loss = torch.where(some, F.softplus(against - similarity), 0.0)
    pairs = (positives & ~itself).to(unit.dtype)
    return (loss * pairs).sum() / pairs.sum().clamp(min=1)


def contrastive_with_queue(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float
) -> Tensor:
    """InfoNCE of queries (B, D) with their own keys (B, D) against a queue of other keys (K, D)
    (MoCo, eq. 1)."""
    unit, own, others = _unit(queries), _unit(keys), _unit(queue)
    positive = (unit * own).sum(-1, keepdim=True)
    logits = torch.cat((positive, _products(unit, others.to(unit.dtype))), dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """−cos of (B, D) predictions with their targets, mean over the batch (SimSiam, eq. 1); −1 where
    they agree."""
    return -(_unit(predictions) * _unit(targets)).sum(-1).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, sharpness: float, rounds: int) -> Tensor:
    """Codes that use every prototype equally (SwAV, § 3.1; Cuturi 2013): (B, K) scores → (B, K),
    rows summing to 1.

    Args:
        scores: cosines with the prototypes.
        sharpness: ε; the smaller, the nearer to one prototype a sample.
        rounds: how often columns and rows are normalised in turn.
    """
    # In logarithms, where nothing overflows at small ε.
    codes = _wide(scores) / sharpness
    for _ in range(rounds):
        codes = codes - codes.logsumexp(0, keepdim=True)
        codes = codes - codes.logsumexp(1, keepdim=True)
    return codes.exp()


def cross_entropy_with_codes(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """−Σ_k q_k log softmax(scores/τ)_k, mean over the batch; scores and codes (B, K) (SwAV, eq. 2;
    DINO, eq. 2)."""
    return -(codes * (_wide(scores) / temperature).log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def centred_codes(scores: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((scores − c)/τ): a teacher's scores (B, K), centred by c (K,) and sharpened by τ
    (DINO)."""
    return ((_wide(scores) - centre) / temperature).softmax(-1)


@torch.no_grad()
def same_component(features: Tensor) -> Tensor:
    """(B, D) features → (B, B) bool: which are joined in the graph that links each with its nearest
    by cosine (WCL)."""
    count = len(features)
    itself = torch.eye(count, dtype=torch.bool, device=features.device)
    unit = _unit(features)
    nearest = F.one_hot(
        _products(unit, unit).masked_fill(itself, -torch.inf).argmax(1), count
    ).bool()
    reached = nearest | nearest.mT | itself
    for _ in range(max(1, count - 1).bit_length()):
        reached = (reached.float() @ reached.float()) > 0
    return reached


def dense_contrastive(
    first: Tensor, second: Tensor, positives: Tensor, temperature: float
) -> Tensor:
    """`contrastive` at each position of two maps by itself, then the mean over positions (MACL eq.
    10).

    Args:
        first, second: (B, D, h, w), one map of each branch.
        positives: (B, B) bool, pairs of slices.
        temperature: τ.
    """
    anchors = torch.cat((first, second)).flatten(2).permute(2, 0, 1)
    # Maps with channels last are right as they lie; others are turned over once instead of at every
    # step below.
    anchors = anchors if anchors.stride(-1) == 1 else anchors.contiguous()
    return contrastive(anchors, pairs_of_both_branches(positives), temperature)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(_wide(features), dim=-1)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """All inner products (…, A, D), (…, K, D) → (…, A, K) in full precision, under autocast too."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT


def standardise(maps: Tensor) -> Tensor:
    """Bring every channel of (B, C, *size) maps to mean 0 and deviation 1 over positions and the
    batch, of all processes; a constant channel becomes 0."""
    maps = _wide(maps)
    axes = (0, *range(2, maps.ndim))
    own_variance, own_mean = torch.var_mean(maps, axes, correction=0, keepdim=True)
    mean = collectives.all_reduce_mean(own_mean)
    variance = collectives.all_reduce_mean(own_variance + (own_mean - mean).square())
    return (maps - mean) * torch.rsqrt(variance + SMALLEST_VARIANCE)


def spread(features: Tensor) -> Tensor:
    """How far normalised features (B, D) of all processes lie apart: 0 where all are equal, 1 where
    they fill the sphere evenly."""
    unit = _unit(features.detach())
    return (1.0 - collectives.all_reduce_mean(unit.mean(0)).square().sum()).clamp(min=0).sqrt()


def soft_dice(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """1 − soft Dice over the whole batch, mean over the classes but background (Drozdzal et al.
    2016).

    Where processes share the batch, overlaps and volumes are added up over all of them.

    Args:
        logits: (B, K, *patch).
        labels: (B, *patch) int64, 0 background.
        counted: (B, *patch) bool, which voxels count; None: all.
    """
    positions = (0, *range(2, logits.ndim))
    probabilities = _wide(logits).softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    if counted is not None:
        probabilities, truth = probabilities * counted[:, None], truth * counted[:, None]
    overlap = collectives.all_reduce_sum((probabilities * truth).sum(positions))
    volumes = collectives.all_reduce_sum(probabilities.sum(positions) + truth.sum(positions))
    smooth = 1e-5
    return 1.0 - ((2.0 * overlap + smooth) / (volumes + smooth))[1:].mean()
