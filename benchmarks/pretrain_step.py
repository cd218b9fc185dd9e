"""How long does a pre-training step of MACL take, and how much of it does the batched dense loss save?

    python benchmarks/pretrain_step.py [--device cpu|cuda] [--batch 16] [--size 512] [--width 32] [--compile MODE] [--json FILE]

Both steps run in one process, turn by turn: ours, and a baseline of the same network and the same views, uncompiled, that
differs only in a Python loop over positions for the dense loss, as in the released code. Views and optimiser are included;
data lies on the device. Figures are medians over the turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from common import MODES, PeakMemory, Training, arguments_of, milliseconds, publish
from torch import Tensor

import macl.methods.macl as macl_method
from macl.config import TrainingSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.trainer import make_fabric
from macl.losses import contrastive, dense_contrastive, pairs_of_both_branches, positives_by_position
from macl.plugins import find


def looped_dense_contrastive(first: Tensor, second: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """The dense loss position by position, in Python."""
    anchors = torch.cat((first, second)).flatten(2)
    pairs = pairs_of_both_branches(positives)
    return torch.stack([contrastive(anchors[..., s], pairs, temperature) for s in range(anchors.shape[-1])]).mean()


WAYS: dict[str, Callable] = {"ours": dense_contrastive, "baseline": looped_dense_contrastive}


def main() -> None:
    parser = arguments_of(__doc__, batch=16, size=512, width=32, turns=5)
    parser.add_argument("--compile", choices=MODES, help="of our step; by default compiled on a GPU alone")
    arguments = parser.parse_args()
    mode = arguments.compile or ("default" if arguments.device == "cuda" else "off")
    fabric = make_fabric(arguments.device, "auto")
    device, batch = fabric.device, arguments.batch
    unet, macl = find("backbones", "unet"), find("methods", "macl")
    settings = macl.Settings()

    def training(mode: str) -> Training:
        torch.manual_seed(0)
        network = unet.build(unet.Settings(width=arguments.width), 1, macl.decoder_blocks(settings))
        return Training(macl.build(settings, network), TrainingSettings(), fabric, mode)

    trainings = {"ours": training(mode), "baseline": training("off")}
    images = torch.randn(batch, 1, arguments.size, arguments.size, device=device)
    positions = torch.rand(batch, device=device)
    positives = positives_by_position(positions, settings.threshold)
    side, channels = arguments.size // 16, 4 * arguments.width
    random = (torch.randn(batch, channels, side, side, device=device) for _ in range(2))
    maps = [one.to(memory_format=torch.channels_last).requires_grad_() for one in random]  # as the network yields them

    def step(way: str, number: int) -> None:
        macl_method.dense_contrastive = WAYS[way]
        step_number = torch.full((), number, device=device)
        trainings[way](Batch(images, positions, SampleRng(0, step_number, torch.arange(batch, device=device))))

    def dense_alone(way: str) -> None:
        with fabric.autocast():
            loss = WAYS[way](*maps, positives, settings.temperature)
        loss.backward()

    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    peak: dict[str, float | None] = {}
    for turn in range(-2, arguments.turns):  # the first two warm up
        for way in WAYS:
            with PeakMemory(device) as memory:
                taken = milliseconds(lambda way=way, turn=turn: step(way, turn + 2), device)
            dense_alone(way)  # into memory that a whole step has just left, then timed
            alone = milliseconds(lambda way=way: dense_alone(way), device)
            peak[way] = memory.mib
            if turn >= 0:
                steps[way].append(taken)
                losses[way].append(alone)
    ours, baseline = (statistics.median(steps[way]) for way in WAYS)
    loss, looped = (statistics.median(losses[way]) for way in WAYS)
    figures = {
        "batch": batch, "size": arguments.size, "width": arguments.width, "turns": arguments.turns, "compile": mode,
        "precision": str(fabric.strategy.precision.precision),
        "ours_ms_per_slice": ours / batch, "baseline_ms_per_slice": baseline / batch, "ratio": baseline / ours,
        "dense_loss_ours_ms": loss, "dense_loss_baseline_ms": looped, "dense_loss_ratio": looped / loss,
        "peak_memory_mib": peak["ours"], "baseline_peak_memory_mib": peak["baseline"],
    }  # fmt: skip
    publish(figures, arguments.json, device)


if __name__ == "__main__":
    main()
