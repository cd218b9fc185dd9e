"""What a run tells of itself while it trains: a line of `log.jsonl` for every step, and early on how long it will take."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from macl.distributed.collectives import all_reduce_mean
from macl.distributed.ranks import place
from macl.engine.task import StepOutput
from macl.records.runs import read_log
from macl.utils.errors import MaclError
from macl.utils.files import write_text
from macl.utils.progress import say

WORTH_TELLING_SECONDS = 60.0


class TrainingLog:
    """`log.jsonl`: every step once. Values stay on the device until they are written."""

    def __init__(self, path: Path, after_step: int) -> None:
        self.path = path
        self.waiting: list[tuple[dict[str, float], Mapping[str, Tensor]]] = []
        kept = [line for line in read_log(path.parent) if line["step"] <= after_step]
        if place().is_zero:
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, epoch: float, rate: float, outcome: StepOutput) -> None:
        """Take in what a step yielded."""
        parts = {"loss": outcome.loss.detach().clone(), **outcome.logged}
        self.waiting.append(({"step": step, "epoch": round(epoch, 4), "learning_rate": rate}, parts))

    def flush(self, slices_per_second: float) -> tuple[int, dict[str, float]]:
        """Write what waits; the last line also says the throughput. Returns the number of lines and the last one."""
        names = list(self.waiting[0][1])
        table = torch.stack([torch.stack([parts[name].float() for name in names]) for _, parts in self.waiting])
        lines = [
            {**where, **dict(zip(names, values, strict=True))}
            for (where, _), values in zip(self.waiting, all_reduce_mean(table).tolist(), strict=True)
        ]
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise MaclError(
                    f"The loss became {line['loss']} at step {line['step']}: start again in another --out with a lower "
                    "training.learning_rate, or with training.precision=fp32."
                )
        lines[-1]["slices_per_second"] = round(slices_per_second, 2)
        if place().is_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        self.waiting.clear()
        return len(lines), lines[-1]


class TimeEstimate:
    """Says once, as soon as it can be told, how long a run will take and how much memory it needs.

    The first step is not counted: it is slow for reasons of its own.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.since: tuple[int, float] | None = None
        self.told = False

    def after_step(self, step: int) -> None:
        """Begin to count after the first step that this process made."""
        if self.since is None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.since = step, time.perf_counter()

    def after_log(self, step: int) -> None:
        """Tell, where the device has just been waited for."""
        if self.told or self.since is None or step == self.since[0]:
            return
        self.told = True
        done, since = self.since
        seconds = (time.perf_counter() - since) / (step - done) * (self.steps - step)
        if seconds > WORTH_TELLING_SECONDS:
            until = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
            say(f"The {self.steps - step} steps to come take about {in_words(seconds)}, until {until}{self._memory()}.")

    def _memory(self) -> str:
        if self.device.type != "cuda":
            return ""
        used, there = torch.cuda.max_memory_reserved(self.device), torch.cuda.mem_get_info(self.device)[1]
        return f", and {used / 2**30:.1f} GiB of the device's {there / 2**30:.0f} GiB"


def in_words(seconds: float) -> str:
    """A length of time as one would say it: "3 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
