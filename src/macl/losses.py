"""Losses as pure functions: tensors in, scalar out; which pairs attract is an argument.

Symbols as in the MACL paper (arXiv 2309.11876): B slices a batch, so A = 2B anchors; D channels; τ temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positives_by_position(positions: Tensor, threshold: float) -> Tensor:
    """(B,) slice positions p → (B, B) bool: |p_i − p_j| < t, and every slice with itself (PCL; MACL §3.2)."""
    near = (positions[:, None] - positions[None, :]).abs() < threshold
    return near | torch.eye(len(positions), dtype=torch.bool, device=positions.device)


def for_both_branches(positives: Tensor) -> Tensor:
    """(B, B) pairs of slices → (2B, 2B) pairs of anchors, for anchors stacked branch after branch."""
    return positives.repeat(2, 2)


def contrastive(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """InfoNCE with any positives (MACL eqs. 9 and 10; form of supervised contrastive learning, Khosla et al. 2020).

    For every anchor, minus the mean over its positives of log(exp(sim/τ) / Σ_{k≠i} exp(sim/τ)), sim the cosine; then
    the mean over anchors, and over positions where there are any.

    Args:
        anchors: (A, D), or (P, A, D) where each of P positions is contrasted by itself; normalised here.
        positives: (A, A) bool; the diagonal does not count. An anchor without positives is left out of the mean.
        temperature: τ.

    Returns:
        Scalar, in float32 or wider; 0 where no anchor has a positive.
    """
    wide = anchors if anchors.dtype == torch.float64 else anchors.float()
    unit = F.normalize(wide, dim=-1)
    similarity = unit @ unit.mT / temperature
    itself = torch.eye(anchors.shape[-2], dtype=torch.bool, device=anchors.device)
    normaliser = similarity.masked_fill(itself, -torch.inf).logsumexp(-1, keepdim=True)
    weights = (positives & ~itself).to(wide.dtype)
    count = weights.sum(-1)
    # Without other anchors the normaliser is −inf; such rows have weight 0, and 0 · inf must not make them NaN.
    log_probability = torch.where(weights > 0, similarity - normaliser, 0.0)
    per_anchor = -(log_probability * weights).sum(-1) / count.clamp(min=1)
    counted = (count > 0).to(wide.dtype)
    return (per_anchor * counted).sum(-1).mean() / counted.sum().clamp(min=1)


def dense_contrastive(first: Tensor, second: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """`contrastive` at each position of two maps by itself, then the mean over positions (MACL eq. 10).

    Args:
        first, second: (B, D, h, w), one map of each branch.
        positives: (B, B) bool, pairs of slices.
        temperature: τ.
    """
    anchors = torch.cat((first, second)).flatten(2).permute(2, 0, 1)
    return contrastive(anchors, for_both_branches(positives), temperature)


def spread(features: Tensor) -> Tensor:
    """How far normalised features (B, D) lie apart: 0 where all are equal, 1 where they fill the sphere evenly."""
    unit = F.normalize(features.detach().float(), dim=-1)
    return (1.0 - unit.mean(0).square().sum()).clamp(min=0).sqrt()


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 − soft Dice over the batch, mean over the classes but background (Drozdzal et al. 2016).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64, 0 background.
    """
    probabilities = logits.float().softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(probabilities.dtype)
    overlap = (probabilities * truth).sum((0, 2, 3))
    total = probabilities.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    smooth = 1e-5
    return 1.0 - ((2.0 * overlap + smooth) / (total + smooth))[1:].mean()
