"""What do loop, log and checkpoints add to the bare step, and slices in host memory or on disk?

    python benchmarks/pretrain_loop.py [--device cpu|cuda] [--slices 17525] [--size 512]
        [--batch 16] [--epochs 3] [--json FILE]

Writes a store of synthetic slices (17,525 of 512 × 512, as many as CHD has) to a temporary folder,
or uses an earlier one with --store. Pre-trains MACL on it for some epochs from each residence,
after the bare step on batches that are ready on the device. Times are taken between the first and
the last log entry, so that compiling is left out; the full job of 100 epochs is extrapolated.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from common import MODES, make_parser, make_stepper, milliseconds, publish, synthetic_store
from lightning_fabric import Fabric

from macl.config.recipes import resolve
from macl.config.settings import PretrainSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache, Residence
from macl.data.sampling import EpochSampler
from macl.data.store import Store
from macl.engine.trainer import fit, make_fabric
from macl.methods.macl import Macl
from macl.models.unet import UNet
from macl.tasks.pretraining import Method, build_method, resolve_pretraining

RESIDENCES: tuple[Residence, ...] = ("device", "host", "disk")
FULL_EPOCHS, BARE_STEPS, SLICES_PER_CASE = 100, 20, 75


def make_task(settings: PretrainSettings) -> Method:
    """MACL with fresh weights."""
    return build_method(settings, Macl, UNet, channels=1, seed=0)


def bare_ms_per_slice(settings: PretrainSettings, loader: Loader, fabric: Fabric) -> float:
    """The step alone, on batches that were made before."""
    training = settings.training
    stepper = make_stepper(make_task(settings), training, fabric, training.compile)
    ready = list(loader.between(0, min(4, loader.steps_per_epoch)))

    def take(steps: int) -> None:
        for number in range(steps):
            stepper(ready[number % len(ready)])

    take(3)
    return milliseconds(lambda: take(BARE_STEPS), fabric.device) / BARE_STEPS / loader.batch_size


def loop_ms_per_slice(
    settings: PretrainSettings, loader: Loader, fabric: Fabric, run: Path
) -> float:
    """The training loop, between its first and its last log entry."""
    entries: list[tuple[int, float]] = []
    run.mkdir()
    fit(
        make_task(settings),
        loader,
        settings.training,
        run,
        fabric,
        on_log=lambda step, _: entries.append((step, time.perf_counter())),
    )
    (first, start), (last, end) = entries[0], entries[-1]
    return 1000 * (end - start) / (last - first) / loader.batch_size


def main() -> None:
    parser = make_parser(__doc__, slices=17_525, size=512, batch=16, width=32, epochs=3)
    parser.add_argument("--compile", choices=MODES, help="default: compiled on a GPU alone")
    parser.add_argument("--store", type=Path, help="of an earlier call, or to be written and kept")
    parser.add_argument("--residences", nargs="+", choices=RESIDENCES, default=RESIDENCES)
    arguments = parser.parse_args()
    mode = arguments.compile or ("default" if arguments.device == "cuda" else "off")
    changes = {
        "training.batch_size": arguments.batch,
        "training.size": arguments.size,
        "training.epochs": arguments.epochs,
        "training.compile": f'"{mode}"',
        "backbone_settings.width": arguments.width,
    }
    overrides = [f"{name}={value}" for name, value in changes.items()]
    settings = resolve_pretraining(resolve(PretrainSettings, {}, overrides), Macl, UNet)
    fabric = make_fabric(arguments.device, settings.training.precision)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "synthetic.store"
        if not (folder / "store.json").is_file():
            cases = max(2, arguments.slices // SLICES_PER_CASE)
            synthetic_store(folder, cases, SLICES_PER_CASE, arguments.size)
        store = Store.open(folder)
        slices = sum(case.slices for case in store.index.cases)
        ms_per_slice: dict[str, float] = {}
        for residence in arguments.residences:
            cache = PatchCache(store, tuple(store.cases), False, fabric.device, residence)
            sampler = EpochSampler(cache.volumes, settings.patch, arguments.batch, seed=0)
            loader = Loader(cache, sampler)
            if "bare_step" not in ms_per_slice:
                ms_per_slice["bare_step"] = bare_ms_per_slice(settings, loader, fabric)
            run = Path(scratch) / residence
            ms_per_slice[residence] = loop_ms_per_slice(settings, loader, fabric, run)
            del cache, loader
            if fabric.device.type == "cuda":
                torch.cuda.empty_cache()
    bare = ms_per_slice["bare_step"]
    figures = {
        "slices": slices,
        "size": arguments.size,
        "batch": arguments.batch,
        "width": arguments.width,
        "epochs": arguments.epochs,
        "compile": mode,
        "precision": str(fabric.strategy.precision.precision),
        "ms_per_slice": ms_per_slice,
        "ratio_to_bare_step": {name: value / bare for name, value in ms_per_slice.items()},
        "minutes_for_100_epochs": {
            name: value * slices * FULL_EPOCHS / 60_000 for name, value in ms_per_slice.items()
        },
    }
    publish(figures, arguments.json, fabric.device)


if __name__ == "__main__":
    main()
