"""How long does a pre-training step of MACL take, and what does the batched dense loss save?

    python benchmarks/pretrain_step.py [--device cpu|cuda] [--batch 16] [--size 512] [--width 32]
        [--dims 2] [--compile MODE] [--json FILE]

Two steps run in one process, turn by turn: ours, and a baseline with the same network and the same
views, uncompiled, that differs only in a Python loop over positions for the dense loss, as in the
released code. Views and optimiser are included; data lies on the device. Figures are medians over
the turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from common import MODES, PeakMemory, add_dims, make_parser, make_stepper, milliseconds, publish
from torch import Tensor

import macl.methods.macl as macl_method
from macl.config.settings import PretrainSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.stepper import Stepper
from macl.engine.trainer import make_fabric
from macl.losses import (
    contrastive,
    dense_contrastive,
    pairs_of_both_branches,
    positives_by_position,
)
from macl.methods.macl import Macl
from macl.models.unet import UNet
from macl.tasks.pretraining import build_method, resolve_pretraining


def looped_dense_contrastive(
    first: Tensor, second: Tensor, positives: Tensor, temperature: float
) -> Tensor:
    """The dense loss position by position, in Python."""
    anchors = torch.cat((first, second)).flatten(2)
    pairs = pairs_of_both_branches(positives)
    losses = [contrastive(anchors[..., s], pairs, temperature) for s in range(anchors.shape[-1])]
    return torch.stack(losses).mean()


LOSSES: dict[str, Callable] = {"ours": dense_contrastive, "baseline": looped_dense_contrastive}


def main() -> None:
    parser = make_parser(__doc__, batch=16, size=512, width=32, turns=5)
    add_dims(parser)
    parser.add_argument(
        "--compile", choices=MODES, help="of our step; default: compiled on a GPU alone"
    )
    arguments = parser.parse_args()
    mode = arguments.compile or ("default" if arguments.device == "cuda" else "off")
    fabric = make_fabric(arguments.device, "auto")
    device, batch = fabric.device, arguments.batch
    settings = PretrainSettings.model_validate(
        {
            "dims": arguments.dims,
            "training": {"size": arguments.size},
            "backbone_settings": {"width": arguments.width},
        }
    )
    settings = resolve_pretraining(settings, Macl, UNet)
    own = settings.method_settings
    assert isinstance(own, macl_method.Settings)

    def stepper_for(mode: str) -> Stepper:
        task = build_method(settings, Macl, UNet, channels=1, seed=0)
        return make_stepper(task, settings.training, fabric, mode)

    steppers = {"ours": stepper_for(mode), "baseline": stepper_for("off")}
    images = torch.randn(batch, 1, *settings.patch, device=device)
    centres, samples = torch.rand(batch, 3, device=device), torch.arange(batch, device=device)
    batches = [
        Batch(
            images,
            centres,
            SampleRng(0, torch.full((), turn, device=device), samples),
            progress=turn / (arguments.turns + 2),
        )
        for turn in range(arguments.turns + 2)
    ]
    positives = positives_by_position(batches[0].positions, own.threshold)
    task = steppers["ours"].task
    assert isinstance(task, Macl)
    with torch.no_grad(), fabric.autocast():
        dense = task(images, images, None, None).dense.dominant
    memory_format = torch.channels_last if arguments.dims == 2 else torch.channels_last_3d
    maps = [  # as the network yields them
        torch.randn_like(dense.float()).to(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    ]

    def step(name: str, turn: int) -> None:
        macl_method.dense_contrastive = LOSSES[name]
        steppers[name](batches[turn])

    def dense_alone(name: str) -> None:
        with fabric.autocast():
            loss = LOSSES[name](*maps, positives, own.temperature)
        loss.backward()

    steps: dict[str, list[float]] = {name: [] for name in LOSSES}
    losses: dict[str, list[float]] = {name: [] for name in LOSSES}
    peak: dict[str, float | None] = {}
    for turn in range(-2, arguments.turns):  # the first two warm up
        for name in LOSSES:
            with PeakMemory(device) as memory:
                taken = milliseconds(lambda name=name, turn=turn: step(name, turn + 2), device)
            dense_alone(name)  # into memory that a whole step has just left, then timed
            alone = milliseconds(lambda name=name: dense_alone(name), device)
            peak[name] = memory.mib
            if turn >= 0:
                steps[name].append(taken)
                losses[name].append(alone)
    ours, baseline = (statistics.median(steps[name]) for name in LOSSES)
    loss, looped = (statistics.median(losses[name]) for name in LOSSES)
    figures = {
        "batch": batch,
        "patch": list(settings.patch),
        "width": arguments.width,
        "turns": arguments.turns,
        "compile": mode,
        "precision": str(fabric.strategy.precision.precision),
        "ours_ms_per_patch": ours / batch,
        "baseline_ms_per_patch": baseline / batch,
        "ratio": baseline / ours,
        "dense_loss_ours_ms": loss,
        "dense_loss_baseline_ms": looped,
        "dense_loss_ratio": looped / loss,
        "peak_memory_mib": peak["ours"],
        "baseline_peak_memory_mib": peak["baseline"],
    }
    publish(figures, arguments.json, device)


if __name__ == "__main__":
    main()
