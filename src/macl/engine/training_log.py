"""What a run writes while it trains: one line of `log.jsonl` per step, and a time estimate."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from macl.distributed.collectives import all_reduce_mean
from macl.engine.task import StepOutput
from macl.records.runs import read_log
from macl.utils.errors import MaclError
from macl.utils.files import write_text
from macl.utils.progress import say
from macl.utils.ranks import this_rank
from macl.utils.text import format_duration

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHORTEST_ESTIMATE_SECONDS = 60.0


def require_tensorboard() -> None:
    """MaclError unless TensorBoard's event files can be written."""
    if find_spec("tensorboard") is None:
        raise MaclError(
            "TensorBoard is not installed: run pip install 'macl[tensorboard]', or leave out "
            "--tensorboard; log.jsonl is written in any case."
        )


class TrainingLog:
    """`log.jsonl`, with every step once. Values stay on the device until they are written.

    Args:
        path: the file; lines of later steps than `after_step` are dropped from it.
        after_step: the step that training resumes from.
        batch_size: patches in a step's batch, for the throughput.
        tensorboard: also write TensorBoard's event files beside it.
    """

    def __init__(
        self, path: Path, after_step: int, batch_size: int, tensorboard: bool = False
    ) -> None:
        self.path, self.batch_size = path, batch_size
        self.flushed = time.perf_counter()
        self.events: SummaryWriter | None = None
        self.pending: list[tuple[dict[str, float], Mapping[str, Tensor]]] = []
        kept = [line for line in read_log(path.parent) if line["step"] <= after_step]
        if this_rank().is_zero:
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.events = SummaryWriter(path.parent, purge_step=after_step + 1)

    def add(self, step: int, epoch: float, rate: float, output: StepOutput) -> None:
        """Add the line of a step."""
        values = {"loss": output.loss.detach().clone(), **output.logged}
        line = {"step": step, "epoch": round(epoch, 4), "learning_rate": rate}
        self.pending.append((line, values))

    def add_validation_score(self, score: float) -> None:
        """Add a score to the line of the last step."""
        self.pending[-1][0]["validation_score"] = score

    def sync(self) -> None:
        """Bring the written lines to the disk, so that no saved state is ahead of them."""
        if this_rank().is_zero:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def flush(self) -> tuple[int, dict[str, float]]:
        """Write the pending lines, with the throughput since the last flush in the last one.

        Returns:
            The number of lines and the last of them.

        Raises:
            MaclError: the loss of a step is not finite; nothing is written.
        """
        names = list(self.pending[0][1])
        table = torch.stack(
            [torch.stack([values[name].float() for name in names]) for _, values in self.pending]
        )
        lines = [
            {**line, **dict(zip(names, values, strict=True))}
            for (line, _), values in zip(self.pending, all_reduce_mean(table).tolist(), strict=True)
        ]
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise MaclError(
                    f"The loss became {line['loss']} at step {line['step']}: start again in "
                    "another --out with a lower training.learning_rate, or with "
                    "training.precision=fp32."
                )
        before, self.flushed = self.flushed, time.perf_counter()
        throughput = len(lines) * self.batch_size / (self.flushed - before)
        lines[-1]["patches_per_second"] = round(throughput, 2)
        if this_rank().is_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        if self.events:
            for line in lines:
                for name in line.keys() - {"step"}:
                    self.events.add_scalar(name, line[name], line["step"])
            self.events.flush()
        self.pending.clear()
        return len(lines), lines[-1]


class TimeEstimate:
    """Prints once, as early as possible, how long a run will take and how much memory it needs.

    The first step does not count: compiling and choosing kernels make it slow.

    Args:
        steps: of the whole run.
        device: where it trains.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.start: tuple[int, float] | None = None
        self.printed = False

    def after_step(self, step: int) -> None:
        """Start the clock after the first step of this process."""
        if self.start is None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.start = step, time.perf_counter()

    def after_log(self, step: int) -> None:
        """Print the estimate; the log has just waited for the device."""
        if self.printed or self.start is None or step == self.start[0]:
            return
        self.printed = True
        first, start = self.start
        steps_left = self.steps - step
        seconds = (time.perf_counter() - start) / (step - first) * steps_left
        if seconds > SHORTEST_ESTIMATE_SECONDS:
            end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
            say(
                f"The remaining {steps_left} steps take about {format_duration(seconds)}, "
                f"until {end}{self._memory()}."
            )

    def _memory(self) -> str:
        if self.device.type != "cuda":
            return ""
        used = torch.cuda.max_memory_reserved(self.device) / 2**30
        available = torch.cuda.mem_get_info(self.device)[1] / 2**30
        return f", and {used:.1f} GiB of the device's {available:.0f} GiB"
