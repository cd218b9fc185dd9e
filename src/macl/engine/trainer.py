"""The training loop, for every task, resumed exactly where it was killed.

Learning rates, the order of patches and their views are pure functions of the step. So the state to
save is the weights, the optimiser's moments, the moving average and the step. The loop waits for
the device only when it writes its log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from macl.config.settings import TrainingSettings
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.distributed.collectives import (
    all_reduce_sum,
    is_distributed,
    require_equal_across_ranks,
)
from macl.distributed.launch import make_distributed_fabric
from macl.engine.optimisation import (
    MovingAverage,
    learning_rate,
    load_optimiser_tensors,
    optimiser_tensors,
)
from macl.engine.precision import WantedPrecision, choose_precision
from macl.engine.stepper import Stepper
from macl.engine.task import StepOutput, Task
from macl.engine.training_log import TimeEstimate, TrainingLog
from macl.records.runs import LOG, STATE, identity
from macl.utils import checkpoint
from macl.utils.allocator import keep_freed_memory
from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError
from macl.utils.interruption import interruption_noted
from macl.utils.memory import is_out_of_memory, largest_that_fits, within_free_memory
from macl.utils.progress import progress, say
from macl.utils.ranks import this_rank
from macl.utils.text import format_size

MOST_VALIDATIONS = 50
"""Times that a run is scored on its validation cases; once more at its end, where it must be."""
SECONDS_BETWEEN_CHECKPOINTS = 120.0
"""The state is saved this often, besides every `checkpoint_every_steps`."""

LogCallback = Callable[[int, Mapping[str, float]], None]
"""Called with the step and its logged values after each log entry."""


@dataclass
class Validation:
    """Keeps the weights with the best score on the validation cases.

    Attributes:
        score: computes the score of the task as it is; higher is better.
        best_score: the highest so far.
        best_tensors: the task's tensors at that score.
    """

    score: Callable[[], float]
    best_score: float = -math.inf
    best_tensors: dict[str, Tensor] = field(default_factory=dict)


class Trained(NamedTuple):
    """The outcome of training.

    Attributes:
        tensors: the task's tensors to keep: the best on the validation cases, or else the last,
            averaged if the settings say so.
        steps: of the whole run.
        seconds: spent in the loop, over all resumptions.
    """

    tensors: dict[str, Tensor]
    steps: int
    seconds: float


def make_fabric(device: str, precision: WantedPrecision) -> Fabric:
    """Lightning Fabric with one device per process of the run.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: "fp32", "bf16", "fp16", or "auto"; see `choose_precision`.

    Raises:
        MaclError: there is no such device, or there are fewer GPUs than processes.
    """
    # On a GPU it would recommend matrix products of lower precision, which the losses cannot take.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = {"cuda": cuda, "mps": mps, "cpu": True}
    if device == "auto":
        device = next(name for name, exists in available.items() if exists)
    if device not in available:
        raise MaclError(f"There is no device {device!r}: name auto, cpu, cuda or mps.")
    if not available[device]:
        raise MaclError(f"PyTorch finds no {device} device on this machine: try --device cpu.")
    chosen = choose_precision(precision, device)
    mode: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[chosen]
    if this_rank().world_size > 1:
        return make_distributed_fabric(device, mode)
    return Fabric(accelerator=device, devices=1, precision=mode)


def fit(
    task: Task,
    loader: Loader,
    settings: TrainingSettings,
    run: Path,
    fabric: Fabric,
    *,
    on_log: LogCallback | None = None,
    validation: Validation | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Train to the end, from the start or from the run's saved state.

    Args:
        task: what to train; changed in place.
        loader: the batches.
        settings: how long and how.
        run: the run's folder, for log and state.
        fabric: device and precision.
        on_log: called after each log entry.
        validation: chooses the weights to keep; None: the last are kept.
        tensorboard: also write the log as TensorBoard reads it.

    Raises:
        MaclError: the loss is not finite, the memory is too small, or the saved state is not the
            run's.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the state of that step is saved.
    """
    keep_freed_memory()
    steps = settings.total_steps(loader.steps_per_epoch)
    state = _TrainingState(task, settings, fabric, validation)
    state.stepper.compile(steps, steps * loader.batch_size * math.prod(loader.patch))
    state.resume(run / STATE)
    log = TrainingLog(run / LOG, state.step, loader.batch_size, tensorboard)
    estimate = TimeEstimate(steps, fabric.device)
    schedule = _Schedule(settings, steps)
    start, seconds_before = time.perf_counter(), state.seconds
    with (
        progress(run.name, steps, state.step) as advance,
        interruption_noted() as interrupted,
        within_free_memory() if fabric.device.type == "cpu" else contextlib.nullcontext(),
    ):
        for batch in _batches(loader, state.step, steps):
            rate = learning_rate(settings, state.step, steps)
            with _memory_advice(state, batch):
                output = state.train_step(batch, rate)
            log.add(state.step, state.step / loader.steps_per_epoch, rate, output)
            estimate.after_step(state.step)
            if validation and schedule.validates(state.step):
                log.add_validation_score(state.validate(validation))
            due = schedule.due(state.step, interrupted())
            if due.log or due.save:
                count, values = log.flush()
                advance(count, f"loss {values['loss']:.3f}")
                estimate.after_log(state.step)
                if on_log:
                    on_log(state.step, values)
            if due.save:
                log.sync()
                state.seconds = seconds_before + time.perf_counter() - start
                state.save(run / STATE)
                schedule.saved()
            if due.end:
                say(f"The state after step {state.step} of {steps} is saved.")
                raise KeyboardInterrupt
    return Trained(state.tensors_to_keep(), steps, state.seconds)


class _Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    save: bool
    end: bool


class _Schedule:
    """Which steps of a run are followed by an entry in the log, a validation or a checkpoint."""

    def __init__(self, settings: TrainingSettings, steps: int) -> None:
        self.steps = steps
        self.log_every = settings.log_every_steps
        self.save_every = settings.checkpoint_every_steps or steps
        self.validate_every = math.ceil(steps / MOST_VALIDATIONS)
        self.saved()

    def saved(self) -> None:
        """Note that the state has been saved."""
        self.last_save = time.perf_counter()

    def validates(self, step: int) -> bool:
        return step == self.steps or step % self.validate_every == 0

    def due(self, step: int, interrupted: bool) -> _Due:
        """What is to be done after a step, the same in all processes.

        The clock and an interruption count once one of them notes it. Several processes ask each
        other only at entries in the log, since they wait for each other then.
        """
        is_last, logs = step == self.steps, step % self.log_every == 0
        late = ends = False
        if logs or not is_distributed():
            late = time.perf_counter() - self.last_save > SECONDS_BETWEEN_CHECKPOINTS
            late, ends = _in_any_process(late, interrupted)
        saves = is_last or step % self.save_every == 0 or late or ends
        return _Due(logs, saves, ends)


def _in_any_process(*facts: bool) -> list[bool]:
    """Which of these hold in this process or another that trains with it; all must ask at once."""
    return all_reduce_sum(torch.tensor(facts, dtype=torch.float32)).bool().tolist()


class _TrainingState:
    """Everything that an exact resume needs, and the step that changes it."""

    def __init__(
        self,
        task: Task,
        settings: TrainingSettings,
        fabric: Fabric,
        validation: Validation | None,
    ) -> None:
        self.task, self.validation = task, validation
        self.step, self.seconds = 0, 0.0
        self.stepper = Stepper(task, settings, fabric)
        self.average = MovingAverage(task, settings.ema_decay) if settings.ema_decay else None

    def train_step(self, batch: Batch, rate: float) -> StepOutput:
        self.stepper.set_learning_rate(rate)
        output = self.stepper(batch)
        self.step += 1
        if self.average:
            self.average.update(self.step)
        return output

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average else contextlib.nullcontext()

    def validate(self, validation: Validation) -> float:
        with self.averaged():
            self.task.eval()
            score = validation.score()
            self.task.train()
            if score > validation.best_score:
                validation.best_score = score
                validation.best_tensors = self._tensors()
        return score

    def tensors_to_keep(self) -> dict[str, Tensor]:
        if self.validation:
            return self.validation.best_tensors
        with self.averaged():
            return self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()}

    def save(self, path: Path) -> None:
        require_equal_across_ranks(self.task)
        if not this_rank().is_zero:
            return
        groups = {
            "task": self.task.state_dict(),
            "optimiser": optimiser_tensors(self.stepper.optimiser.optimizer),
            "average": self.average.average if self.average else {},
            "best": self.validation.best_tensors if self.validation else {},
        }
        tensors = {
            f"{group}/{name}": tensor
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        scaler = self.stepper.scaler
        about = {
            "run": identity(path.parent),
            "step": self.step,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler else {},
        }
        if self.validation and self.validation.best_tensors:
            about["best_score"] = self.validation.best_score
        checkpoint.write(path, tensors, about)

    def resume(self, path: Path) -> None:
        if not path.is_file():
            return
        saved = checkpoint.read(path)
        if saved.about.get("run", identity(path.parent)) != identity(path.parent):
            raise _foreign(path)
        try:
            self._load(saved)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise _foreign(path) from None
        say(f"Resuming after step {self.step}.")

    def _load(self, saved: Checkpoint) -> None:
        """Take over a saved state; an error of any kind if it is not of this task and optimiser."""
        groups: dict[str, dict[str, Tensor]] = {
            name: {} for name in ("task", "optimiser", "average", "best")
        }
        for name, tensor in saved.tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.task.load_state_dict(groups["task"])
        load_optimiser_tensors(self.stepper.optimiser.optimizer, groups["optimiser"])
        if self.average:
            for name, tensor in self.average.average.items():
                tensor.copy_(groups["average"][name])
        if self.validation and groups["best"]:
            self.validation.best_score = saved.about["best_score"]
            self.validation.best_tensors = groups["best"]
        # Empty if the run began on a device that needs no scaler.
        if self.stepper.scaler and saved.about["scaler"]:
            self.stepper.scaler.load_state_dict(saved.about["scaler"])
        self.step, self.seconds = saved.about["step"], saved.about["seconds"]


def _foreign(path: Path) -> MaclError:
    return MaclError(
        f"{path} is the state of another run: restore this run's own, or delete the file to train "
        "from the first step."
    )


def _batches(loader: Loader, first: int, steps: int) -> Iterator[Batch]:
    """The loader's batches; a MaclError if one cannot even be held."""
    try:
        yield from loader.between(first, steps)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MaclError(
            f"A batch of {loader.batch_size} patches of {format_size(loader.patch)} does not fit "
            "into memory, even before the network sees it: add --set training.batch_size=… or "
            "training.size=… with less."
        ) from None


@contextlib.contextmanager
def _memory_advice(state: _TrainingState, batch: Batch) -> Iterator[None]:
    """If the block runs out of memory, name the batch size that would fit, found by trying."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, where the error no longer keeps the tensors alive that did not fit.
    raise MaclError(
        f"A batch of {len(batch.images)} patches of {format_size(batch.images.shape[2:])} does not "
        f"fit into the device's memory: {_advice(state, batch)}."
    )


def _advice(state: _TrainingState, batch: Batch) -> str:
    if is_distributed():
        return "lower training.batch_size, which the processes share, or start more processes"

    def attempt(count: int) -> None:
        state.stepper.module.zero_grad(set_to_none=True)
        state.stepper.forward(batch.rows(slice(count))).loss.backward()

    count = largest_that_fits(attempt, len(batch.images), at_least=2)
    if count:
        return f"{count} would, so add --set training.batch_size={count}"
    return "not even 2 would, so add --set training.size=… with smaller sides"
