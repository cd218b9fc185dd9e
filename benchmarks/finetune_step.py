"""How long does a fine-tuning step take, and does compiling it or recording its kernels pay?

    python benchmarks/finetune_step.py [--device cpu|cuda] [--batch 10] [--size 224] [--width 32]
        [--dims 2] [--json FILE]

For both recipes, each in its own precision, every mode of `torch.compile`, turn by turn in one
process, beside the plain step.
Augmentation and optimiser are included; data lies on the device. Figures are medians over the
turns; the first call, which compiles, is given apart in seconds.
"""

from __future__ import annotations

import statistics

import torch
from common import MODES, PeakMemory, add_dims, make_parser, make_stepper, milliseconds, publish
from lightning_fabric import Fabric

from macl.config.recipes import read_recipe, resolve
from macl.config.settings import FinetuneSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.stepper import Stepper
from macl.engine.trainer import make_fabric
from macl.plugins import find
from macl.tasks.segmentation import (
    SegmentationTask,
    build_segmenter,
    mirror_axes,
    resolve_finetuning,
)

CLASSES = ("background", "one", "two", "three")


def main() -> None:
    parser = make_parser(__doc__, batch=10, size=224, width=32, turns=20)
    add_dims(parser)
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, help="default: all on a GPU, off on the CPU"
    )
    arguments = parser.parse_args()
    device, batch, dims = torch.device(arguments.device), arguments.batch, arguments.dims
    modes = arguments.modes or (MODES if device.type == "cuda" else ("off",))
    unet, figures = find("models", "unet"), {}

    for recipe in ("paper", "strong"):
        changes = {
            "dims": dims,
            "training.size": arguments.size,
            "backbone_settings.width": arguments.width,
        }
        overrides = [f"{name}={value}" for name, value in changes.items()]
        settings = resolve(FinetuneSettings, read_recipe("finetune", recipe), overrides)
        settings = resolve_finetuning(settings, unet)
        fabric = make_fabric(arguments.device, settings.training.precision)
        images = torch.randn(batch, 1, *settings.patch, device=device)
        labels = torch.randint(0, len(CLASSES), (batch, *settings.patch), device=device)
        centres, samples = torch.rand(batch, 3, device=device), torch.arange(batch, device=device)

        def stepper_for(
            mode: str, settings: FinetuneSettings = settings, fabric: Fabric = fabric
        ) -> Stepper:
            torch.manual_seed(0)
            segmenter = build_segmenter(settings, unet, 1, len(CLASSES))
            axes = mirror_axes(settings, CLASSES, "axial")
            task = SegmentationTask(segmenter, settings, axes)
            return make_stepper(task, settings.training, fabric, mode)

        def batch_of(
            turn: int, images=images, centres=centres, samples=samples, labels=labels
        ) -> Batch:
            rng = SampleRng(0, torch.full((), turn, device=device), samples)
            return Batch(images, centres, rng, labels)

        steppers = {mode: stepper_for(mode) for mode in modes}
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        first, peak = {}, {}
        for turn in range(-3, arguments.turns):  # the first three compile, record and warm up
            for mode, stepper in steppers.items():
                batch_now = batch_of(turn + 3)
                with PeakMemory(device) as memory:
                    taken = milliseconds(
                        lambda stepper=stepper, batch_now=batch_now: stepper(batch_now), device
                    )
                times[mode].append(taken)
                peak[mode] = memory.mib
                if turn == -3:
                    first[mode] = taken / 1000
        medians = {mode: statistics.median(values[3:]) for mode, values in times.items()}
        figures[recipe] = {"precision": str(fabric.strategy.precision.precision)} | {
            mode: {
                "ms_per_step": medians[mode],
                "ratio_to_off": medians.get("off", float("nan")) / medians[mode],
                "first_call_s": first[mode],
                "peak_memory_mib": peak[mode],
            }
            for mode in modes
        }
    about = {
        "batch": batch,
        "patch": list(settings.patch),
        "width": arguments.width,
        "turns": arguments.turns,
    }
    publish({**about, **figures}, arguments.json, device)


if __name__ == "__main__":
    main()
