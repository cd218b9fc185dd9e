"""What does a slice cost in pre-training, method by method, each at its own recipe?

    python benchmarks/methods_cost.py STORE [--device cpu|cuda] [--batch 32] [--size 64] [--width 8] [--turns 4]

Methods take turns, so that a busy machine slows all alike; the turns fall evenly over a run, since some methods do more in
its later part. On the CPU the figure is processor time on one thread, which other work on the machine hardly changes; on a
GPU it is wall time. Views, loss, gradients and optimiser are included, reading slices is not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import Training

from macl.config import PretrainSettings, read_recipe, resolve
from macl.data.batch import Batch
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.store import Store
from macl.engine.trainer import make_fabric
from macl.plugins import find, names
from macl.tasks.pretraining import build_task, settle


def make_step(method: str, bank: PatchCache, arguments: argparse.Namespace) -> tuple[Callable[[int, float], None], int]:
    """A function that does one step, given its number and the share of the run that is done; and parameters that learn."""
    changes = {"batch_size": arguments.batch, "size": arguments.size}
    overrides = [f"training.{name}={value}" for name, value in changes.items()]
    settings = resolve(
        PretrainSettings, read_recipe("pretrain", method), [*overrides, f"backbone_settings.width={arguments.width}"]
    )
    plugin, backbone = find("methods", method), find("backbones", settings.backbone)
    settings = settle(settings, plugin, backbone)
    task = build_task(settings, plugin, backbone, bank.channels, seed=0)
    training = Training(task, settings.training, make_fabric(arguments.device, settings.training.precision))
    batches = Loader(bank, arguments.batch, settings.training.size, seed=0, neighbours=plugin.neighbours)
    given: list[Batch] = list(batches.between(0, arguments.turns + 1))

    def step(number: int, done: float) -> None:
        training(replace(given[number], done=done))

    return step, sum(parameter.numel() for parameter in training.module.parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()

    on_gpu = arguments.device == "cuda"
    torch.set_num_threads(1)
    clock = time.perf_counter if on_gpu else time.process_time
    store = Store.open(arguments.store)
    bank = PatchCache(store, [case.name for case in store.index.cases], False, torch.device(arguments.device))
    methods = ["macl", *(name for name in names("methods") if name != "macl")]
    steps = {method: make_step(method, bank, arguments) for method in methods}
    taken: dict[str, list[float]] = {method: [] for method in methods}
    peak: dict[str, float] = {}
    for turn in range(-1, arguments.turns):  # turn −1 warms up
        for method, (step, _) in steps.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = clock()
            step(turn + 1, max(0.0, (turn + 0.5) / arguments.turns))
            if on_gpu:
                torch.cuda.synchronize()
                peak[method] = max(peak.get(method, 0.0), torch.cuda.max_memory_allocated() / 2**20)
            if turn >= 0:
                taken[method].append(1000.0 * (clock() - start) / arguments.batch)
    reference = statistics.mean(taken["macl"])
    print("| method | learned parameters | ms a slice | beside MACL |" + (" peak MiB |" if on_gpu else ""))
    print("|---|---|---|---|" + ("---|" if on_gpu else ""))
    for method in methods:
        mean = statistics.mean(taken[method])
        memory = f" {peak[method]:.0f} |" if on_gpu else ""
        print(f"| {method} | {steps[method][1] / 1e6:.2f} M | {mean:.2f} | {mean / reference:.2f} × |{memory}")


if __name__ == "__main__":
    main()
