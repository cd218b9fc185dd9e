"""How long does a fine-tuning step take, and does compiling it or recording its kernels pay?

    python benchmarks/finetune_step.py [--device cpu|cuda] [--batch 10] [--size 224] [--width 32] [--json FILE]

For both recipes, every mode of `torch.compile` turn by turn in one process, beside the plain step. Augmentation and
optimiser are included; data lies on the device. Figures are medians over the turns; the first call, which compiles, is
given apart in seconds.
"""

from __future__ import annotations

import statistics

import torch
from common import MODES, PeakMemory, Training, arguments_of, milliseconds, publish

from macl.config import FinetuneSettings, read_recipe, resolve
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.trainer import make_fabric
from macl.plugins import find
from macl.tasks.segmentation import SegmentationTask, build_segmenter, mirror_axes

CLASSES = ("background", "one", "two", "three")


def main() -> None:
    parser = arguments_of(__doc__, batch=10, size=224, width=32, turns=20)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all on a GPU, off on the CPU")
    arguments = parser.parse_args()
    fabric = make_fabric(arguments.device, "auto")
    device, batch, size = fabric.device, arguments.batch, arguments.size
    modes = arguments.modes or (MODES if device.type == "cuda" else ("off",))
    images = torch.randn(batch, 1, size, size, device=device)
    labels = torch.randint(0, len(CLASSES), (batch, size, size), device=device)
    samples = torch.arange(batch, device=device)
    unet, figures = find("backbones", "unet"), {}

    for recipe in ("paper", "strong"):
        width = f"backbone_settings.width={arguments.width}"
        settings = resolve(FinetuneSettings, read_recipe("finetune", recipe), [width])

        def training(mode: str, settings: FinetuneSettings = settings) -> Training:
            torch.manual_seed(0)
            segmenter = build_segmenter(settings, unet, 1, len(CLASSES))
            task = SegmentationTask(segmenter, settings, mirror_axes(settings, CLASSES, "axial"))
            return Training(task, settings.training, fabric, mode)

        def step(training: Training, number: int) -> None:
            rng = SampleRng(0, torch.full((), number, device=device), samples)
            training(Batch(images, samples.float(), rng, labels))

        trainings = {mode: training(mode) for mode in modes}
        taken: dict[str, list[float]] = {mode: [] for mode in modes}
        first, peak = {}, {}
        for turn in range(-3, arguments.turns):  # the first three compile, record and warm up
            for mode, one in trainings.items():
                with PeakMemory(device) as memory:
                    taken[mode].append(milliseconds(lambda one=one, turn=turn: step(one, turn + 3), device))
                peak[mode] = memory.mib
                if turn == -3:
                    first[mode] = taken[mode][0] / 1000
        medians = {mode: statistics.median(values[3:]) for mode, values in taken.items()}
        figures[recipe] = {
            mode: {
                "ms_per_step": medians[mode], "ratio_to_off": medians.get("off", float("nan")) / medians[mode],
                "first_call_s": first[mode], "peak_memory_mib": peak[mode],
            }
            for mode in modes
        }  # fmt: skip
    about = {"batch": batch, "size": size, "width": arguments.width, "turns": arguments.turns}
    publish({**about, "precision": str(fabric.strategy.precision.precision), **figures}, arguments.json, device)


if __name__ == "__main__":
    main()
