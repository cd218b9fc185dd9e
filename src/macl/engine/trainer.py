"""The one loop: fit(task, batches) for any task with step(batch) → Step, resumed exactly wherever it was killed.

Learning rates, orders and views are pure functions of the step, so the state to save is the weights, the optimiser's
moments, the moving average and the step. The loop waits for the device only where it logs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from macl.config import TrainingSettings
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.distributed.collectives import is_distributed, require_equal_across_ranks
from macl.distributed.launch import connect, set_up
from macl.distributed.ranks import place
from macl.engine.compiling import build_optimiser_for, compile_mode, compiled, out_of_memory, to_device_layout
from macl.engine.optimisation import MovingAverage, learning_rate, load_optimiser_tensors, optimiser_tensors
from macl.engine.task import StepOutput, Task
from macl.engine.training_log import TimeEstimate, TrainingLog
from macl.records.runs import LOG, STATE
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.progress import progress, say

VALIDATIONS_A_RUN = 50




Watch = Callable[[int, Mapping[str, float]], None]
"""Called with step and logged values wherever the loop writes its log."""


@dataclass
class Validation:
    """Chooses the weights to keep by a score on validation people, higher being better."""

    score: Callable[[], float]
    best_score: float = -math.inf
    best_tensors: dict[str, Tensor] = field(default_factory=dict)


def make_fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric on one device for each process of the run.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto" (bf16 on GPUs that have it, fp16 on older ones, fp32 elsewhere), "fp32", "bf16" or "fp16".

    Raises:
        MaclError: the device is not there, or there are fewer of them than processes.
    """
    # On a GPU it would advise coarser matrix products, which the losses must not have.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if not available[device]:
        raise MaclError(f"PyTorch finds no {device} device on this machine: try --device cpu.")
    if precision == "auto":
        # Older GPUs only emulate bf16, slowly.
        half = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        precision = half if device == "cuda" else "fp32"
    mode: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision]
    return connect(device, mode) if place().ranks > 1 else Fabric(accelerator=device, devices=1, precision=mode)


def fit(
    task: Task,
    batches: Loader,
    settings: TrainingSettings,
    run: Path,
    fabric: Fabric,
    watch: Watch | None = None,
    validation: Validation | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Train from wherever the run's state stands to the end.

    Args:
        task: what to train; changed in place.
        batches: what to train on.
        settings: for how long and how.
        run: the run's folder, where log and state are written.
        fabric: device and precision.
        watch: told of what is logged.
        validation: chooses the weights, where validation people were set aside; else the last ones are kept.

    Returns:
        The task's tensors to keep (averaged where the settings ask for it), and seconds spent over all resumptions.

    Raises:
        MaclError: the loss is not finite, or the device's memory does not suffice.
    """
    steps = settings.epochs * batches.steps_per_epoch
    state = _State(cast(nn.Module, task), settings, fabric, validation)
    state.compile(steps * batches.batch_size * math.prod(batches.patch))
    state.resume(run / STATE)
    log, outlook = TrainingLog(run / LOG, state.step), TimeEstimate(steps, fabric.device)
    started, seconds_before = time.perf_counter(), state.seconds
    first = state.step
    with progress(run.name, steps, first) as advance:
        for batch in batches.between(first, steps):
            rate = learning_rate(settings, state.step, steps, batches.steps_per_epoch)
            with _memory_advice(state, batch):
                step = state.train_step(batch, rate)
            log.add(state.step, state.step / batches.steps_per_epoch, rate, step)
            outlook.after_step(state.step)
            last = state.step == steps
            saving = last or state.step % settings.checkpoint_every_steps == 0
            if saving or state.step % settings.log_every_steps == 0:
                taken = time.perf_counter() - started
                count, values = log.flush((state.step - first) * batches.batch_size / taken)
                advance(count, f"loss {values['loss']:.3f}")
                outlook.after_log(state.step)
                if watch:
                    watch(state.step, values)
            if validation and (last or state.step % max(1, steps // VALIDATIONS_A_RUN) == 0):
                state.validate(validation)
            if saving:
                state.seconds = seconds_before + time.perf_counter() - started
                state.save(run / STATE)
    return state.tensors_to_keep(), state.seconds


class _State:
    """Everything an exact resume needs, and the step that moves it."""

    def __init__(
        self, task: nn.Module, settings: TrainingSettings, fabric: Fabric, validation: Validation | None
    ) -> None:
        self.task, self.settings, self.fabric, self.validation = task, settings, fabric, validation
        self.step, self.seconds = 0, 0.0
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        to_device_layout(task, fabric.device)
        optimiser = build_optimiser_for(settings, task, fabric.device, scaled=self.scaler is not None)
        self.module, self.optimiser = set_up(fabric, task, optimiser)
        self.average = MovingAverage(task, settings.ema_decay) if settings.ema_decay else None
        task.train()

    def compile(self, pixels: float) -> None:
        """Compile the step if that pays for a run over this many pixels."""
        mode = compile_mode(self.settings, self.fabric.device, pixels)
        if mode and is_distributed():
            say(
                "The step is not compiled: with several processes, which exchange tensors amid it, that is not tried yet."
            )
        elif mode:
            self.task.step = compiled(cast(Task, self.task).step, mode)  # pyright: ignore[reportArgumentType]

    def train_step(self, batch: Batch, rate: float) -> StepOutput:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        step = self.forward(batch)
        self.fabric.backward(step.loss)
        if self.settings.gradient_clip:
            self.fabric.clip_gradients(
                self.module, self.optimiser, max_norm=self.settings.gradient_clip, error_if_nonfinite=False
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        if self.average:
            self.average.update(self.step)
        return step

    def forward(self, batch: Batch) -> StepOutput:
        # Fabric enters its precision only in `forward`, not in the methods marked as such.
        with self.fabric.autocast():
            return self.module.step(batch)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average else contextlib.nullcontext()

    def validate(self, validation: Validation) -> None:
        with self.averaged():
            self.task.eval()
            score = validation.score()
            self.task.train()
            if score > validation.best_score:
                validation.best_score = score
                validation.best_tensors = {k: v.detach().clone() for k, v in self.task.state_dict().items()}

    def tensors_to_keep(self) -> dict[str, Tensor]:
        if self.validation:
            return self.validation.best_tensors
        with self.averaged():
            return {name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()}

    def save(self, path: Path) -> None:
        require_equal_across_ranks(self.task)
        if not place().is_zero:
            return
        groups = {
            "task": self.task.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser.optimizer),
            "average": self.average.average if self.average else {},
            "best": self.validation.best_tensors if self.validation else {},
        }
        tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        about = {"step": self.step, "seconds": self.seconds, "scaler": self.scaler.state_dict() if self.scaler else {}}
        if self.validation and self.validation.best_tensors:
            about["best_score"] = self.validation.best_score
        checkpoint.write(path, tensors, about)

    def resume(self, path: Path) -> None:
        if not path.is_file():
            return
        saved = checkpoint.read(path)
        groups: dict[str, dict[str, Tensor]] = {"task": {}, "optimiser": {}, "average": {}, "best": {}}
        for name, tensor in saved.tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.task.load_state_dict(groups["task"])
        load_optimiser_tensors(self.optimiser.optimizer, groups["optimiser"])
        if self.average:
            for name, tensor in self.average.average.items():
                tensor.copy_(groups["average"][name])
        if self.validation and groups["best"]:
            self.validation.best_score = saved.about["best_score"]
            self.validation.best_tensors = groups["best"]
        # Without one where the run began on a device that needs none.
        if self.scaler and saved.about["scaler"]:
            self.scaler.load_state_dict(saved.about["scaler"])
        self.step, self.seconds = saved.about["step"], saved.about["seconds"]
        say(f"Going on after step {self.step}.")


@contextlib.contextmanager
def _memory_advice(state: _State, batch: Batch) -> Iterator[None]:
    """Answer running out of memory with the batch size that would fit, found by trying."""
    try:
        yield
        return
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    count, sides = len(batch.images), " × ".join(map(str, batch.images.shape[2:]))
    raise MaclError(
        f"A batch of {count} patches of {sides} does not fit into the device's memory: "
        f"{_fitting_batch(state, batch)}."
    )


def _fitting_batch(state: _State, batch: Batch) -> str:
    if is_distributed():
        return "lower training.batch_size, which the processes share, or start more of them"
    size = len(batch.images) // 2
    while size >= 2:
        state.module.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with contextlib.suppress(RuntimeError):
            state.forward(_first(batch, size)).loss.backward()
            return f"{size} would, so add --set training.batch_size={size}"
        size //= 2
    return "not even 2 would, so add --set training.size=… with a smaller side"


def _first(batch: Batch, size: int) -> Batch:
    rng = replace(batch.rng, samples=batch.rng.samples[:size])
    labels = None if batch.labels is None else batch.labels[:size]
    neighbours = None if batch.neighbours is None else batch.neighbours[:size]
    return replace(batch, images=batch.images[:size], centres=batch.centres[:size], rng=rng, labels=labels, neighbours=neighbours)
