"""What makes a step fast on a device without changing the method: memory format, fused optimiser, compiled step."""

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
from macl.engine.optimisation import make_optimiser
from macl.engine.task import StepOutput
from macl.utils.progress import say

RECORDED = "reduce-overhead"
COMPILING_PAYS_FROM_PIXELS = 5e10
"""Compiling takes a minute or two, so that it is left out of runs shorter than 200,000 slices of 512². An estimate."""


def to_device_layout(module: nn.Module, device: torch.device) -> None:
    """On the device, channels last in memory as fast convolutions want it; on CUDA each shape gets cuDNN's fastest way.

    It comes before the optimiser is made, whose moments lie where the parameters lie then.
    """
    torch.backends.cudnn.benchmark = True
    module.to(device)
    if device.type in ("cuda", "cpu"):
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def build_optimiser_for(
    settings: TrainingSettings, module: nn.Module, device: torch.device, scaled: bool
) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused where the device can; `scaled`: gradients are scaled for fp16."""
    # A fused optimiser undoes the scale by itself, too late for a gradient that is to be clipped.
    fused = device.type in ("cuda", "cpu") and not (scaled and settings.gradient_clip)
    return make_optimiser(settings, module, fused)


def compile_mode(settings: TrainingSettings, device: torch.device, pixels: float) -> str | None:
    """How `torch.compile` is to treat the step of a run over this many pixels in all; None: not at all.

    "default" fuses what stands between the convolutions; "reduce-overhead" also records the kernels in a CUDA graph, for
    small batches whose launches take longer than their work. "auto" compiles long runs on a GPU; on a CPU compiling was
    measured to be slower.
    """
    if settings.compile == "off":
        return None
    if settings.compile != "auto":
        return settings.compile
    pays = device.type == "cuda" and pixels >= COMPILING_PAYS_FROM_PIXELS
    return "default" if pays and _can_compile() else None


def compiled(step: Callable[[Batch], StepOutput], mode: str) -> Callable[[Batch], StepOutput]:
    """The step compiled at its first call; as it was, and said so, where compiling fails."""
    say(f"The step is compiled by torch.compile ({mode}), which makes the first one take a minute or two.")
    # Else a backward pass that cannot be compiled would fail when it is too late to go on without.
    if hasattr(functorch_config, "force_non_lazy_backward_lowering"):
        functorch_config.force_non_lazy_backward_lowering = True
    chosen: Callable[[Batch], StepOutput] = torch.compile(step, mode=mode)

    def run(batch: Batch) -> StepOutput:
        nonlocal chosen
        if mode == RECORDED:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return _kept(chosen(batch)) if mode == RECORDED else chosen(batch)
        except TorchDynamoException as error:
            say(
                f"Compiling failed ({type(error).__name__}), so the step runs uncompiled; training.compile=off says so."
            )
            chosen = step
            return step(batch)

    return run


def _kept(outcome: StepOutput) -> StepOutput:
    # The next replay of a recorded graph overwrites what this one gave, which the log still needs.
    return StepOutput(outcome.loss, {name: value.clone() for name, value in outcome.logged.items()})


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory did not suffice; not every device and library has a type of its own for it."""
    signs, text = ("out of memory", "can't allocate memory", "alloc_failed"), str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)


def _can_compile() -> bool:
    compiler = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    return compiler and importlib.util.find_spec("triton") is not None
