"""What a way to pre-train costs on this machine, before a long run starts: time, memory, and where the time goes."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from macl.config import PretrainSettings, read_recipe, resolve
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.data.store import Store
from macl.engine.compiling import build_optimiser_for, compile_mode, compiled, to_device_layout
from macl.engine.task import StepOutput
from macl.engine.trainer import make_fabric
from macl.plugins import find
from macl.tasks.networks import by
from macl.tasks.pretraining import Method, build_method, resolve_pretraining
from macl.utils.progress import progress

WARM_UP_STEPS = 2


def profile(
    *,
    method: str = "macl",
    recipe: str | None = None,
    overrides: Iterable[str] = (),
    store: Path | None = None,
    channels: int = 1,
    slices: int | None = None,
    device: str = "auto",
    steps: int = 5,
) -> dict[str, Any]:
    """Time pre-training steps on random slices that lie on the device.

    Whole steps are timed as they run, compiled where the run would be; then as many are timed again, uncompiled and with a
    wait for the device around every part, which tells the parts' shares. A part is what happens before, inside and after the passes through encoder and decoder
    (views, encoder, decoder, heads and losses), the backward pass, and the optimiser.

    Args:
        method, recipe, overrides: as in `pretrain`.
        store: whose channels and slices to take, instead of the next two.
        channels: of the images.
        slices: of a data set, to estimate an epoch and the whole run.
        device: "auto", "cpu", "cuda" or "mps".
        steps: steps to time.

    Returns:
        `parameters`, `ms_per_step`, `ms_per_slice`, `slices_per_second`, `peak_memory_mib`, `share` of every part, and with
        `slices` also `epoch_seconds` and `run_hours`.

    Raises:
        MaclError: a setting does not fit, the store cannot be read, or the device is not there.
    """
    settings = resolve(PretrainSettings, {**read_recipe("pretrain", recipe or method), "method": method}, overrides)
    if store is not None:
        opened = Store.open(store)
        channels = len(opened.index.channels)
        slices = sum(len(opened.slices_with_content(name, settings.minimum_content)) for name in opened.cases)
    plugin, network = find("methods", settings.method), find("models", settings.backbone)
    settings = resolve_pretraining(settings, plugin, network)
    fabric = make_fabric(device, settings.training.precision)
    task = build_method(settings, plugin, network, channels, seed=0)
    step = _Steps(task, settings, channels, slices or 0, fabric)
    with progress("steps", 2 * steps + WARM_UP_STEPS) as advance:
        for _ in range(WARM_UP_STEPS):
            step.whole()
            advance()
        whole = [_advancing(step.whole, advance) for _ in range(steps)]
        parts: dict[str, list[float]] = defaultdict(list)
        for _ in range(steps):
            for name, seconds in _advancing(step.by_parts, advance).items():
                parts[name].append(seconds)
    seconds = statistics.median(whole)
    batch = settings.training.batch_size
    medians = {name: statistics.median(values) for name, values in parts.items()}
    found: dict[str, Any] = {
        "method": settings.method, "backbone": settings.backbone, "size": list(settings.patch), "batch_size": batch,
        "device": _device_name(fabric), "precision": str(fabric.strategy.precision.precision),
        "parameters": sum(parameter.numel() for parameter in cast(nn.Module, task).parameters()),
        "ms_per_step": 1000 * seconds, "ms_per_slice": 1000 * seconds / batch, "slices_per_second": batch / seconds,
        "peak_memory_mib": _peak_memory_mib(fabric),
        "share": {name: value / sum(medians.values()) for name, value in medians.items()},
    }  # fmt: skip
    if slices is not None:
        epoch = seconds * (slices // batch)
        found |= {"epoch_seconds": epoch, "run_hours": epoch * settings.training.epochs / 3600}
    return found


def render(found: Mapping[str, Any]) -> str:
    """The figures as lines for a person."""
    memory = found["peak_memory_mib"]
    lines = [
        f"{found['method']} on {found['backbone']}, {found['batch_size']} patches of {by(found['size'])}, "
        f"{found['precision']}, {found['device']}",
        f"  parameters        {found['parameters'] / 1e6:.3f} M",
        f"  a step            {found['ms_per_step']:.1f} ms, {found['ms_per_slice']:.2f} ms a slice",
        f"  throughput        {found['slices_per_second']:.1f} slices a second",
        f"  peak memory       {memory:.0f} MiB" + ("" if "cuda" in found["device"] else " (of the whole process)"),
        *(f"  {name:<17} {100 * share:.0f} %" for name, share in found["share"].items()),
    ]
    if "run_hours" in found:
        lines.append(f"  an epoch takes about {found['epoch_seconds']:.0f} s, the run {found['run_hours']:.2f} h")
    return "\n".join(lines)


def _advancing(work: Callable[[], Any], advance: Callable[[], None]) -> Any:
    result = work()
    advance()
    return result


class _Steps:
    """Steps on random slices, timed whole or by parts."""

    def __init__(
        self, task: Method, settings: PretrainSettings, channels: int, slices: int, fabric: Fabric
    ) -> None:
        module, training = cast(nn.Module, task), settings.training
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)
        to_device_layout(module, fabric.device)
        scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.fabric, self.number, self.plain_step = fabric, 0, task.step
        _, self.optimiser = fabric.setup(module, build_optimiser_for(training, module, fabric.device, scaled))
        mode = compile_mode(training, fabric.device, training.epochs * slices * math.prod(settings.patch))
        self.step = compiled(task.step, mode) if mode else task.step
        self.passes = {"encoder": task.network.encoder, "decoder": task.network.decoder}
        samples = torch.arange(training.batch_size)
        shape = (training.batch_size, channels, *settings.patch)
        images = SampleRng(0, 0, samples).normal("image", shape[1:])
        self.images = images.to(fabric.device)
        self.centres = SampleRng(0, 0, samples).uniform("centre", (3,)).to(fabric.device)
        self.samples = samples.to(fabric.device)

    def _batch(self) -> Batch:
        self.number += 1
        rng = SampleRng(0, torch.full((), self.number, device=self.samples.device), self.samples)
        return Batch(self.images, self.centres, rng, neighbours=self.images)

    def _wait(self) -> float:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        elif self.fabric.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def whole(self) -> float:
        """Seconds of one step."""
        start = self._wait()
        self._finish(self._loss(self.step))
        return self._wait() - start

    def _loss(self, step: Callable[[Batch], StepOutput]) -> Tensor:
        with self.fabric.autocast():
            return step(self._batch()).loss

    def _finish(self, loss: Tensor) -> None:
        self.fabric.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def by_parts(self) -> dict[str, float]:
        """Seconds of every part of one step."""
        watch = _Stopwatch(self._wait, "views")
        hooks = []
        for name, part in self.passes.items():
            hooks.append(part.register_forward_pre_hook(lambda *_, name=name: watch.enter(name)))
            hooks.append(part.register_forward_hook(lambda *_: watch.enter("heads and losses")))
        loss = self._loss(self.plain_step)
        for hook in hooks:
            hook.remove()
        watch.enter("backward")
        self.fabric.backward(loss)
        watch.enter("optimiser")
        self.optimiser.step()
        self.optimiser.zero_grad()
        watch.enter("")
        return dict(watch.spent)


class _Stopwatch:
    """Adds up the seconds between one part and the next."""

    def __init__(self, now: Callable[[], float], part: str) -> None:
        self.now, self.part, self.since = now, part, now()
        self.spent: dict[str, float] = defaultdict(float)

    def enter(self, part: str) -> None:
        """The part so far ends here and `part` begins."""
        now = self.now()
        self.spent[self.part] += now - self.since
        self.part, self.since = part, now


def _device_name(fabric: Fabric) -> str:
    if fabric.device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(fabric.device)}"
    return f"{fabric.device.type}, {torch.get_num_threads()} threads"


def _peak_memory_mib(fabric: Fabric) -> float:
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
