"""How long does a pre-training step of MACL take, and how much of it does the batched dense loss save?

    python benchmarks/pretrain_step.py [--device cpu|cuda] [--batch 16] [--size 512] [--width 32] [--json FILE]

Both steps run in one process, turn by turn: ours, and a baseline of the same network and the same views that differs only
in a Python loop over positions for the dense loss, as in the released code. Views and optimiser are included; data lies on
the device. Figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import macl.methods.macl as macl_method
from macl.config import TrainingSettings
from macl.data.draws import Draws
from macl.losses import contrastive, dense_contrastive, for_both_branches, positives_by_position
from macl.optimisation import make_optimiser
from macl.plugins import Batch, find
from macl.training import make_fabric


def looped_dense_contrastive(first: Tensor, second: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """The dense loss position by position, in Python."""
    anchors = torch.cat((first, second)).flatten(2)
    pairs = for_both_branches(positives)
    return torch.stack([contrastive(anchors[..., s], pairs, temperature) for s in range(anchors.shape[-1])]).mean()


def milliseconds(work: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000.0 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()

    fabric = make_fabric(arguments.device, "auto")
    device = fabric.device
    unet, macl = find("backbones", "unet"), find("methods", "macl")
    settings = macl.Settings()
    torch.manual_seed(0)
    task = macl.build(settings, unet.build(unet.Settings(width=arguments.width), 1, macl.decoder_blocks(settings)))
    if device.type == "cuda":
        task.to(memory_format=torch.channels_last)
    module, optimiser = fabric.setup(task, make_optimiser(TrainingSettings(), task))
    module.mark_forward_method("step")
    images = torch.randn(arguments.batch, 1, arguments.size, arguments.size, device=device)
    positions = torch.rand(arguments.batch, device=device)

    def step(number: int, dense: Callable) -> None:
        macl_method.dense_contrastive = dense
        draws = Draws(0, number, torch.arange(arguments.batch, device=device))
        with fabric.autocast():
            outcome = module.step(Batch(images, positions, draws))
        fabric.backward(outcome.loss)
        optimiser.step()
        optimiser.zero_grad()

    side = arguments.size // 16
    channels = 4 * arguments.width
    maps = [torch.randn(arguments.batch, channels, side, side, device=device, requires_grad=True) for _ in range(2)]
    positives = positives_by_position(positions, settings.threshold)

    def dense_alone(dense: Callable) -> None:
        with fabric.autocast():
            loss = dense(*maps, positives, settings.temperature)
        loss.backward()

    ways = {"ours": dense_contrastive, "baseline": looped_dense_contrastive}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    peak = {}
    for turn in range(-1, arguments.turns):  # turn −1 warms up
        for name, dense in ways.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            taken = milliseconds(lambda dense=dense, turn=turn: step(turn + 1, dense), device)
            alone = milliseconds(lambda dense=dense: dense_alone(dense), device)
            if device.type == "cuda":
                peak[name] = torch.cuda.max_memory_allocated(device) / 2**20
            if turn >= 0:
                steps[name].append(taken)
                losses[name].append(alone)
    ours, baseline = (statistics.median(steps[name]) for name in ways)
    figures = {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "batch": arguments.batch,
        "size": arguments.size,
        "width": arguments.width,
        "turns": arguments.turns,
        "ours_ms_per_slice": ours / arguments.batch,
        "baseline_ms_per_slice": baseline / arguments.batch,
        "ratio": baseline / ours,
        "dense_loss_ours_ms": statistics.median(losses["ours"]),
        "dense_loss_baseline_ms": statistics.median(losses["baseline"]),
        "dense_loss_ratio": statistics.median(losses["baseline"]) / statistics.median(losses["ours"]),
        "peak_memory_mib": peak.get("ours"),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text + "\n")


if __name__ == "__main__":
    main()
