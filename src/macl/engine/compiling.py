"""Whether and how a training step is compiled, and how its tensors lie in memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config

from macl.config.settings import TrainingSettings
from macl.data.batch import Batch
from macl.engine.task import StepOutput
from macl.utils.memory import is_out_of_memory
from macl.utils.progress import say, warn

CUDA_GRAPHS = "reduce-overhead"
COMPILING_SECONDS = 120.0
SECONDS_SAVED_PER_STEP, SECONDS_SAVED_PER_VOXEL = 5e-3, 2.4e-9
"""Estimates, not measured: of small batches, whose steps take as long as it takes to launch some
2,000 kernels one by one, and of large ones, 0.6 ms a slice of 512 × 512 less to read and write."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_device_layout(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device, with weights in the memory format of fast convolutions.

    Call it before the optimiser is made: its moments take the memory format of the parameters.
    """
    module.to(device)
    if device.type in ("cuda", "cpu"):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim in _CHANNELS_LAST:
                tensor.data = tensor.data.to(memory_format=_CHANNELS_LAST[tensor.ndim])


def compile_mode(
    settings: TrainingSettings, device: torch.device, steps: int, voxels: float
) -> str | None:
    """The mode of `torch.compile` for the step of a run; None: not compiled.

    "default" fuses what lies between the convolutions. "reduce-overhead" also records the kernels
    in a CUDA graph, which helps small batches, whose kernels take longer to launch than to run.
    "auto" compiles on a GPU where a run should save more time than compiling takes; on a CPU,
    compiled steps were measured to be slower.

    Args:
        settings: the run's; `compile` is the mode, "auto" or "off".
        device: where it trains.
        steps: of the run.
        voxels: of all its batches.
    """
    if settings.compile == "off":
        return None
    if settings.compile != "auto":
        return settings.compile
    saved = max(steps * SECONDS_SAVED_PER_STEP, voxels * SECONDS_SAVED_PER_VOXEL)
    if device.type != "cuda" or saved < COMPILING_SECONDS:
        return None
    if missing := _missing_for_compiling():
        say(f"The step is not compiled, though it would pay: there is no {missing}.")
        return None
    return "default"


class CompiledStep:
    """A task's step, compiled at its first call; from then on plain, with a message, if that fails.

    Kernels are launched for the first time in the first step, and some only in its backward pass.
    So any failure of that step counts, except one for lack of memory.

    Args:
        step: the plain step.
        mode: of `torch.compile`.
    """

    def __init__(self, step: Callable[[Batch], StepOutput], mode: str) -> None:
        say(
            f"Compiling the step with torch.compile ({mode}): the first step takes a minute or two."
        )
        # Otherwise the backward pass would only be compiled when the plain step is out of reach.
        if hasattr(functorch_config, "force_non_lazy_backward_lowering"):
            functorch_config.force_non_lazy_backward_lowering = True
        self.plain, self.mode = step, mode
        self.chosen: Callable[[Batch], StepOutput] = torch.compile(step, mode=mode)
        self.proven = False

    def __call__(self, batch: Batch) -> StepOutput:
        """Loss and logged values of a batch."""
        try:
            if self.mode != CUDA_GRAPHS:
                return self.chosen(batch)
            torch.compiler.cudagraph_mark_step_begin()
            return _clone(self.chosen(batch))
        except Exception as error:
            if not self.gives_up(error):
                raise
        return self.plain(batch)

    def gives_up(self, error: Exception) -> bool:
        """Whether the step runs plain from now on, because of an error in it or after it."""
        is_new = self.chosen is not self.plain and not self.proven and not is_out_of_memory(error)
        if not is_new and not isinstance(error, TorchDynamoException):
            return False
        warn(
            f"Compiling failed ({type(error).__name__}), so the step runs uncompiled; "
            "--set training.compile=off skips the attempt."
        )
        self.chosen = self.plain
        return True


def _clone(output: StepOutput) -> StepOutput:
    # The next replay of a CUDA graph overwrites this output, which the log still needs.
    return StepOutput(output.loss, {name: value.clone() for name, value in output.logged.items()})


def _missing_for_compiling() -> str | None:
    """What the kernels of a GPU cannot be compiled without; None: nothing is missing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "C compiler"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.is_file() else f"{header} (install Python's development files)"
