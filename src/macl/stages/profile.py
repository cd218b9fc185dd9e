"""What pre-training costs on this machine, before a long run starts: time, memory, and for what."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from macl.config.settings import PretrainSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.data.store import Store
from macl.data.windows import select_volumes
from macl.engine.stepper import Stepper
from macl.engine.trainer import make_fabric
from macl.plugins import find
from macl.tasks.pretraining import Method, build_method
from macl.tasks.run_settings import pretrain_settings
from macl.utils.allocator import keep_freed_memory
from macl.utils.progress import progress
from macl.utils.text import format_size

WARM_UP_STEPS = 2


def profile(
    *,
    method: str = "macl",
    recipe: str | None = None,
    overrides: Iterable[str] = (),
    store: Path | None = None,
    channels: int = 1,
    patches: int | None = None,
    device: str = "auto",
    steps: int = 5,
) -> dict[str, Any]:
    """Time pre-training steps on random patches that lie on the device.

    Steps are timed twice. First uncompiled, waiting for the device around every part, which gives
    the shares of the parts: what comes before the passes through encoder and decoder (views), the
    passes, what comes after them (heads and losses), the backward pass and the optimiser. Then
    whole, as they run in training, compiled if the run would be.

    Args:
        method: its name.
        recipe: recipe by name or path; None: the method's own.
        overrides: `key=value` settings over the recipe's.
        store: whose channels and patches to take, instead of the next two.
        channels: of the images.
        patches: in an epoch, to estimate an epoch and the whole run; None: no estimate.
        device: "auto", "cpu", "cuda" or "mps".
        steps: number of steps to time.

    Returns:
        `parameters`, `ms_per_step`, `ms_per_patch`, `patches_per_second`, `peak_memory_mib`, the
        `share` of every part, and, if the number of patches is known, `epoch_seconds` and
        `run_hours`.

    Raises:
        MaclError: a setting does not fit, the store cannot be read, or the device is not there.
    """
    opened = Store.open(store) if store else None
    settings, plugin = pretrain_settings(recipe or method, overrides, method=method, store=opened)
    if opened:
        channels = len(opened.index.channels)
        volumes = select_volumes(opened, tuple(opened.cases), settings.minimum_content)
        patches = volumes.samples_per_epoch(settings.patch)
    keep_freed_memory()
    fabric = make_fabric(device, settings.training.precision)
    task = build_method(settings, plugin, find("models", settings.backbone), channels, seed=0)
    timer = _StepTimer(task, settings, channels, fabric)
    with progress("steps", 2 * (steps + WARM_UP_STEPS)) as advance:

        def repeat(measure: Callable[[], Any]) -> list[Any]:
            measured = []
            for _ in range(WARM_UP_STEPS + steps):
                measured.append(measure())
                advance()
            return measured[WARM_UP_STEPS:]

        parts = repeat(timer.parts)
        timer.stepper.compile(*_run_length(settings, patches or 0))
        seconds = statistics.median(repeat(timer.whole))
    medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    batch_size = settings.training.batch_size
    figures: dict[str, Any] = {
        "method": settings.method,
        "backbone": settings.backbone,
        "size": list(settings.patch),
        "batch_size": batch_size,
        "device": _device_name(fabric),
        "precision": str(fabric.strategy.precision.precision),
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "ms_per_step": 1000 * seconds,
        "ms_per_patch": 1000 * seconds / batch_size,
        "patches_per_second": batch_size / seconds,
        "peak_memory_mib": _peak_memory_mib(fabric),
        "share": {name: value / sum(medians.values()) for name, value in medians.items()},
    }
    if patches is not None:
        steps_per_epoch = max(1, patches // batch_size)
        epoch_seconds = seconds * steps_per_epoch
        run_hours = seconds * settings.training.total_steps(steps_per_epoch) / 3600
        figures |= {"epoch_seconds": epoch_seconds, "run_hours": run_hours}
    return figures


def render(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    memory = f"{figures['peak_memory_mib']:.0f} MiB"
    whole_process = "" if "cuda" in figures["device"] else " (of the whole process)"
    lines = [
        f"{figures['method']} on {figures['backbone']}, {figures['batch_size']} patches of "
        f"{format_size(figures['size'])}, {figures['precision']}, {figures['device']}",
        f"  parameters        {figures['parameters'] / 1e6:.3f} M",
        f"  time per step     {figures['ms_per_step']:.1f} ms",
        f"  time per patch    {figures['ms_per_patch']:.2f} ms",
        f"  throughput        {figures['patches_per_second']:.1f} patches/s",
        f"  peak memory       {memory}{whole_process}",
        *(f"  {name:<17} {100 * share:.0f} %" for name, share in figures["share"].items()),
    ]
    if "run_hours" in figures:
        lines.append(
            f"  an epoch takes about {figures['epoch_seconds']:.0f} s, the run "
            f"{figures['run_hours']:.2f} h"
        )
    return "\n".join(lines)


def _run_length(settings: PretrainSettings, patches: int) -> tuple[int, int]:
    """Steps and voxels of a run."""
    training = settings.training
    steps = training.total_steps(max(1, patches // training.batch_size))
    return steps, steps * training.batch_size * math.prod(settings.patch)


class _StepTimer:
    """Takes training steps on random patches and times them, whole or by parts."""

    def __init__(
        self, task: Method, settings: PretrainSettings, channels: int, fabric: Fabric
    ) -> None:
        self.device, training = fabric.device, settings.training
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.passes = {"encoder": task.network.encoder, "decoder": task.network.decoder}
        self.stepper, self.steps = Stepper(task, training, fabric), 0
        rng = SampleRng(0, 0, torch.arange(training.batch_size))
        self.images = rng.normal("image", (channels, *settings.patch)).to(self.device)
        self.centres = rng.uniform("centre", (3,)).to(self.device)
        self.samples = rng.samples.to(self.device)

    def _batch(self) -> Batch:
        self.steps += 1
        rng = SampleRng(0, torch.full((), self.steps, device=self.device), self.samples)
        return Batch(self.images, self.centres, rng, neighbours=self.images)

    def _wait(self) -> float:
        """The time once the device has finished its work, in seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def whole(self) -> float:
        """Seconds of one step."""
        start = self._wait()
        self.stepper(self._batch())
        return self._wait() - start

    def parts(self) -> dict[str, float]:
        """Seconds of every part of one step."""
        watch = _Stopwatch(self._wait, "views")
        hooks = []
        for name, part in self.passes.items():
            enter = part.register_forward_pre_hook(lambda *_, name=name: watch.enter(name))
            leave = part.register_forward_hook(lambda *_: watch.enter("heads and losses"))
            hooks += [enter, leave]
        loss = self.stepper.forward(self._batch()).loss
        for hook in hooks:
            hook.remove()
        watch.enter("backward")
        self.stepper.backward(loss)
        watch.enter("optimiser")
        self.stepper.update()
        watch.enter("")
        return dict(watch.spent)


class _Stopwatch:
    """Adds up the seconds spent in each part.

    Args:
        now: gives the time in seconds.
        part: the first part.
    """

    def __init__(self, now: Callable[[], float], part: str) -> None:
        self.now, self.part, self.start = now, part, now()
        self.spent: dict[str, float] = defaultdict(float)

    def enter(self, part: str) -> None:
        """End the present part and start the next."""
        now = self.now()
        self.spent[self.part] += now - self.start
        self.part, self.start = part, now


def _device_name(fabric: Fabric) -> str:
    if fabric.device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(fabric.device)}"
    return f"{fabric.device.type}, {torch.get_num_threads()} threads"


def _peak_memory_mib(fabric: Fabric) -> float:
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
