"""What does a patch cost in pre-training, method by method, each with its own recipe?

    python benchmarks/methods_cost.py STORE [--device cpu|cuda] [--batch 32] [--size 64]
        [--width 8] [--dims 2] [--turns 4]

Methods take turns, so that a busy machine slows all alike. The turns are spread evenly over a run,
since some methods do more in its later part. On the CPU the figure is processor time on one thread,
which other work on the machine hardly changes; on a GPU it is wall time. Views, loss, gradients and
optimiser are included, reading patches is not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import add_dims, make_parser, make_stepper

from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.store import Store
from macl.engine.trainer import make_fabric
from macl.plugins import find, names
from macl.tasks.pretraining import build_method, pretraining_sampler
from macl.tasks.run_settings import pretrain_settings


def make_step(
    method: str, cache: PatchCache, arguments: argparse.Namespace
) -> tuple[Callable[[int, float], None], int]:
    """A function that takes a step, given its number and the run's progress; and parameters."""
    changes = {
        "dims": arguments.dims,
        "training.batch_size": arguments.batch,
        "training.size": arguments.size,
        "backbone_settings.width": arguments.width,
    }
    overrides = [f"{name}={value}" for name, value in changes.items()]
    settings, plugin = pretrain_settings(method, overrides, method=method, store=cache.store)
    task = build_method(settings, plugin, find("models", settings.backbone), cache.channels, seed=0)
    fabric = make_fabric(arguments.device, settings.training.precision)
    stepper = make_stepper(task, settings.training, fabric, "off")
    sampler = pretraining_sampler(settings, cache.volumes, seed=0)
    loader = Loader(cache, sampler, neighbours=plugin.needs_neighbours)
    batches = list(loader.between(0, arguments.turns + 1))

    def step(number: int, progress: float) -> None:
        stepper(replace(batches[number], progress=progress))

    learned = (parameter for parameter in task.parameters() if parameter.requires_grad)
    return step, sum(parameter.numel() for parameter in learned)


def main() -> None:
    parser = make_parser(__doc__, batch=32, size=64, width=8, turns=4)
    add_dims(parser)
    parser.add_argument("store", type=Path)
    arguments = parser.parse_args()

    on_gpu = arguments.device == "cuda"
    torch.set_num_threads(1)
    clock = time.perf_counter if on_gpu else time.process_time
    store = Store.open(arguments.store)
    cache = PatchCache(store, tuple(store.cases), False, torch.device(arguments.device))
    methods = ["macl", *(name for name in names("methods") if name != "macl")]
    steps = {method: make_step(method, cache, arguments) for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
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
                mib = torch.cuda.max_memory_allocated() / 2**20
                peak[method] = max(peak.get(method, 0.0), mib)
            if turn >= 0:
                times[method].append(1000.0 * (clock() - start) / arguments.batch)
    reference = statistics.mean(times["macl"])
    memory_head, memory_rule = (" peak MiB |", "---|") if on_gpu else ("", "")
    print(f"| method | learned parameters | ms per patch | beside MACL |{memory_head}")
    print(f"|---|---|---|---|{memory_rule}")
    for method in methods:
        mean, millions = statistics.mean(times[method]), steps[method][1] / 1e6
        memory = f" {peak[method]:.0f} |" if on_gpu else ""
        ratio = mean / reference
        print(f"| {method} | {millions:.2f} M | {mean:.2f} | {ratio:.2f} × |{memory}")


if __name__ == "__main__":
    main()
