"""Whether and how a training step is compiled, and how its tensors lie in memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config

from macl.config import TrainingSettings
from macl.data.batch import Batch
from macl.engine.task import StepOutput
from macl.utils.progress import say, warn

CUDA_GRAPHS = "reduce-overhead"
COMPILING_PAYS_FROM_VOXELS = 5e10
"""Shorter runs do not earn back the minute or two that compiling takes. An estimate: 200,000 slices
of 512 × 512."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_device_layout(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device, with weights in the memory format of fast convolutions.

    Call it before the optimiser is made: its moments take the memory format of the parameters.
    """
    torch.backends.cudnn.benchmark = True
    module.to(device)
    if device.type in ("cuda", "cpu"):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim in _CHANNELS_LAST:
                tensor.data = tensor.data.to(memory_format=_CHANNELS_LAST[tensor.ndim])


def compile_mode(settings: TrainingSettings, device: torch.device, voxels: float) -> str | None:
    """The mode of `torch.compile` for the step of a run; None: not compiled.

    "default" fuses what lies between the convolutions. "reduce-overhead" also records the kernels
    in a CUDA graph, which helps small batches, whose kernels take longer to launch than to run.
    "auto" compiles long runs on a GPU; on a CPU, compiled steps were measured to be slower.

    Args:
        settings: the run's; `compile` is the mode, "auto" or "off".
        device: where it trains.
        voxels: of all batches of the run.
    """
    if settings.compile == "off":
        return None
    if settings.compile != "auto":
        return settings.compile
    pays = device.type == "cuda" and voxels >= COMPILING_PAYS_FROM_VOXELS
    return "default" if pays and _can_compile() else None


def compiled(step: Callable[[Batch], StepOutput], mode: str) -> Callable[[Batch], StepOutput]:
    """The step, compiled at its first call; the plain step, with a message, if compiling fails."""
    say(f"Compiling the step with torch.compile ({mode}): the first step takes a minute or two.")
    # Otherwise a backward pass that cannot be compiled fails when the plain step is out of reach.
    if hasattr(functorch_config, "force_non_lazy_backward_lowering"):
        functorch_config.force_non_lazy_backward_lowering = True
    chosen: Callable[[Batch], StepOutput] = torch.compile(step, mode=mode)

    def run(batch: Batch) -> StepOutput:
        nonlocal chosen
        if mode == CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return _clone(chosen(batch)) if mode == CUDA_GRAPHS else chosen(batch)
        except TorchDynamoException as error:
            warn(
                f"Compiling failed ({type(error).__name__}), so the step runs uncompiled; "
                "--set training.compile=off skips the attempt."
            )
            chosen = step
            return step(batch)

    return run


def _clone(output: StepOutput) -> StepOutput:
    # The next replay of a CUDA graph overwrites this output, which the log still needs.
    return StepOutput(output.loss, {name: value.clone() for name, value in output.logged.items()})


def _can_compile() -> bool:
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    has_compiler = any(shutil.which(name) for name in compilers)
    return has_compiler and importlib.util.find_spec("triton") is not None
