"""What the log's columns are called on a page, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["loss", "diagnostic", "loop"]


@dataclass(frozen=True)
class Word:
    """A column of the log: where it is shown, its label, and what it tells."""

    group: Group
    label: str
    meaning: str = ""


_WORDS = {
    "loss": Word("loss", "Loss", "What is minimised: the weighted sum of the parts."),
    "loss_global": Word(
        "loss",
        "Global loss",
        "Image level: whole slices at similar height attract, all others repel. With every feature alike "
        "it stays at ln(2B − 1), times its factor.",
    ),
    "loss_dense": Word("loss", "Dense loss", "Pixel level: the same contrast at every position of the two maps."),
    "loss_regularisation": Word(
        "loss", "Equivariant loss", "Feature level: how far the two bottlenecks differ. Small also if they merely shrink."
    ),
    "loss_cross_entropy": Word("loss", "Cross-entropy", "Of the predicted classes, per pixel."),
    "loss_dice": Word("loss", "Soft Dice loss", "1 − soft Dice of the batch."),
    "feature_spread": Word(
        "diagnostic",
        "Feature spread",
        "How far the normalised features lie apart: 0 means collapsed to one point, 1 spread evenly over the sphere.",
    ),
    "bottleneck_size": Word(
        "diagnostic",
        "Bottleneck size",
        "Mean magnitude at the bottleneck. If it falls towards 0, the equivariant loss falls for nothing.",
    ),
    "positives_per_anchor": Word(
        "diagnostic",
        "Positives per anchor",
        "Features that each feature is drawn to, its twin included. At 1 there is only the twin.",
    ),
    "learning_rate": Word("loop", "Learning rate"),
    "slices_per_second": Word("loop", "Throughput, slices/s"),
}  # fmt: skip

_ORDER = tuple(_WORDS)


def word_for(column: str) -> Word:
    """The words for a column of the log; an unknown one goes by its own name."""
    known = _WORDS.get(column)
    if known:
        return known
    group: Group = "loss" if column.startswith("loss") else "diagnostic"
    return Word(group, column.replace("_", " ").capitalize())


def in_order(columns: list[str]) -> list[str]:
    """Known columns first, in the order of reading; `epoch` and `seconds` are not shown."""
    shown = [column for column in columns if column not in ("epoch", "seconds")]
    return sorted(shown, key=lambda column: (_ORDER.index(column) if column in _ORDER else len(_ORDER), column))
