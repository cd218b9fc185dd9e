"""One training step, as loop, profile and benchmarks take it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fakes.batches import batch
from macl.config.settings import TrainingSettings
from macl.data.batch import Batch
from macl.engine.stepper import Stepper
from macl.engine.task import StepOutput, Task
from macl.engine.trainer import make_fabric


class Mean(Task):
    """Moves a scale until the scaled mean of a batch is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def step(self, batch: Batch) -> StepOutput:
        loss = (self.scale * (1 + 0 * batch.images.mean()) - 1).square()
        return StepOutput(loss, {"scale": self.scale.detach().clone()})


def stepper(**changes: object) -> Stepper:
    values = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, **changes}
    return Stepper(Mean(), TrainingSettings(**values), make_fabric("cpu", "fp32"))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_moves_the_weights_and_clears_the_gradients(dims: int) -> None:
    one = stepper()
    output = one(batch(3, side=4, dims=dims))
    assert output.loss.item() == 1.0
    assert one.task.scale.item() == pytest.approx(2.0 - 0.1 * 2.0)
    assert one.task.scale.grad is None


def test_the_parts_of_a_step_are_the_step() -> None:
    whole, apart = stepper(gradient_clip=0.5), stepper(gradient_clip=0.5)
    whole(batch(3, side=4))
    apart.backward(apart.forward(batch(3, side=4)).loss)
    apart.update()
    assert whole.task.scale.item() == apart.task.scale.item() == pytest.approx(2.0 - 0.1 * 0.5)


def test_the_learning_rate_is_that_of_the_next_step() -> None:
    one = stepper()
    one.set_learning_rate(0.2)
    one(batch(3, side=4))
    assert one.task.scale.item() == pytest.approx(2.0 - 0.2 * 2.0)


@pytest.mark.parametrize(("mode", "compiles"), [("off", False), ("auto", False), ("default", True)])
def test_the_step_is_compiled_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, mode: str, compiles: bool
) -> None:
    def eagerly(step, mode):
        return lambda batch: step(batch)

    monkeypatch.setattr("macl.engine.compiling.torch.compile", eagerly)
    one = stepper(compile=mode)
    assert one.compile(steps=1, voxels=1e12) is compiles
    assert ("step" in vars(one.task)) is compiles
    assert one(batch(3, side=4)).loss.item() == 1.0
