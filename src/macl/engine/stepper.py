"""One training step: forward pass in the run's precision, backward pass, clipping, update."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from macl.config.settings import TrainingSettings
from macl.data.batch import Batch
from macl.distributed.collectives import is_distributed
from macl.distributed.launch import set_up_task
from macl.engine.compiling import CompiledStep, compile_mode, to_device_layout
from macl.engine.optimisation import make_optimiser
from macl.engine.task import StepOutput, Task
from macl.utils.progress import say


class Stepper:
    """A task on its device together with its optimiser.

    Args:
        task: what to train; moved to the device.
        settings: optimiser, gradient clipping and compiling.
        fabric: device and precision.

    Attributes:
        module: what wraps the task for the device and for several processes.
        optimiser: Fabric's wrapper of the optimiser, which is its `.optimizer`.
        scaler: scales the gradients in fp16; None in other precisions.
    """

    def __init__(self, task: Task, settings: TrainingSettings, fabric: Fabric) -> None:
        self.task, self.settings, self.fabric = task, settings, fabric
        device = fabric.device
        to_device_layout(task, device)
        # Batches of a run are equally large, so that the fastest kernels are looked for once.
        torch.backends.cudnn.benchmark = True
        self.compiled: CompiledStep | None = None
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        # A fused optimiser undoes the scale by itself, too late for a gradient to be clipped.
        clips_scaled = self.scaler is not None and settings.gradient_clip is not None
        fused = device.type in ("cuda", "cpu") and not clips_scaled
        self.module, self.optimiser = set_up_task(
            fabric, task, make_optimiser(settings, task, fused)
        )
        task.train()

    def compile(self, steps: int, voxels: float) -> bool:
        """Compile the step if the settings say so, or if it pays for a run of so many steps and
        voxels."""
        mode = compile_mode(self.settings, self.fabric.device, steps, voxels)
        if mode and is_distributed():
            say(
                "The step is not compiled: with several processes, which exchange tensors within "
                "it, compiling is untested."
            )
            return False
        if mode:
            self.compiled = CompiledStep(self.task.step, mode)
            self.task.step = self.compiled  # pyright: ignore
        return mode is not None

    def set_learning_rate(self, rate: float) -> None:
        """Use this rate from the next step on."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def forward(self, batch: Batch) -> StepOutput:
        """Loss and logged values of a batch, in the run's precision."""
        # Fabric enters its precision only in `forward`, not in the methods marked as such.
        with self.fabric.autocast():
            return self.module.step(batch)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, averaged over all processes."""
        self.fabric.backward(loss)

    def update(self) -> None:
        """Clip the gradients, move the weights, and clear the gradients."""
        clip = self.settings.gradient_clip
        if clip:
            self.fabric.clip_gradients(
                self.module, self.optimiser, max_norm=clip, error_if_nonfinite=False
            )
        self.optimiser.step()
        self.optimiser.zero_grad()

    def __call__(self, batch: Batch) -> StepOutput:
        """Take one training step."""
        output = self.forward(batch)
        try:
            self.backward(output.loss)
        except Exception as error:
            if self.compiled is None or not self.compiled.gives_up(error):
                raise
            self.optimiser.zero_grad()
            output = self.forward(batch)
            self.backward(output.loss)
        if self.compiled:
            self.compiled.proven = True
        self.update()
        return output
