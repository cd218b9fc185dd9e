"""The contract of a training task: `Task.step(batch) → StepOutput`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from macl.data.batch import Batch


@dataclass(frozen=True)
class Quantity:
    """Describes a logged value to people who read the log.

    Attributes:
        label: its name on a page, such as "Dense loss".
        description: what it tells, in a sentence or two.
        unit: such as "nats"; empty for a plain number.
    """

    label: str
    description: str
    unit: str = ""


@dataclass(frozen=True)
class StepOutput:
    """The result of one training step.

    Attributes:
        loss: scalar to minimise.
        logged: values for the log by name, the parts of the loss first; scalars, detached, still
            on the device.
    """

    loss: Tensor
    logged: Mapping[str, Tensor]


class Task(nn.Module, ABC):
    """A module with a training step.

    Attributes:
        quantities: describes every value that `step` logs, by its name in the log.
    """

    quantities: Mapping[str, Quantity] = {}

    @abstractmethod
    def step(self, batch: Batch) -> StepOutput:
        """Loss and logged values of one batch."""
