"""The columns of a run's log: the order in which a page shows them, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from macl.records.runs import LoggedQuantity

ColumnGroup = Literal["loss", "diagnostic", "loop"]

LOOP_QUANTITIES = {
    "loss": LoggedQuantity(
        label="Loss", description="What is minimised: the weighted sum of its parts."
    ),
    "learning_rate": LoggedQuantity(label="Learning rate"),
    "patches_per_second": LoggedQuantity(label="Throughput", unit="patches/s"),
}
"""What the training loop logs whatever the task; a task describes its own values."""


@dataclass(frozen=True)
class LogColumn:
    """A column of the log.

    Attributes:
        name: its name in the log.
        group: the part of the page that shows it.
        quantity: what it is.
    """

    name: str
    group: ColumnGroup
    quantity: LoggedQuantity

    @property
    def title(self) -> str:
        """Label and unit."""
        unit = self.quantity.unit
        return f"{self.quantity.label}, {unit}" if unit else self.quantity.label


def log_columns(
    names: Iterable[str], quantities: Mapping[str, LoggedQuantity]
) -> tuple[LogColumn, ...]:
    """The columns to draw: described ones in the order of their description, then the others.

    Args:
        names: columns that the log has.
        quantities: the task's description of its values, as the run's record has it. A value that
            is not described is shown under its own name.
    """
    described = {**LOOP_QUANTITIES, **quantities}
    drawn = {name for name in names if name != "epoch"}
    ordered = [name for name in described if name in drawn] + sorted(drawn - described.keys())
    return tuple(
        LogColumn(name, _group(name), described.get(name) or _undescribed(name)) for name in ordered
    )


def _group(name: str) -> ColumnGroup:
    if name.startswith("loss"):
        return "loss"
    return "loop" if name in LOOP_QUANTITIES or name.endswith("_per_second") else "diagnostic"


def _undescribed(name: str) -> LoggedQuantity:
    return LoggedQuantity(label=name.replace("_", " ").capitalize())
