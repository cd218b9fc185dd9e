"""What do the loop, its log and checkpoints cost beside the bare step, and what do slices in host memory or on disk?

    python benchmarks/pretrain_loop.py [--device cpu|cuda] [--slices 17525] [--size 512] [--batch 16] [--epochs 3] [--json FILE]

Writes a store of synthetic slices (17,525 of 512² are CHD's size) in a temporary folder, or uses the one of an earlier call
with --store, and pre-trains MACL on it for some epochs from each residence, after the bare step on batches that are ready on
the device. Times are taken between the first and the last line of the log, so that compiling is left out; the full job of
100 epochs is extrapolated from them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from common import MODES, Training, arguments_of, milliseconds, publish, synthetic_store
from lightning_fabric import Fabric

from macl.config import PretrainSettings, resolve
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache, Residence
from macl.data.store import Store
from macl.engine.trainer import fit, make_fabric
from macl.plugins import find
from macl.tasks.pretraining import Method, build_task

RESIDENCES: tuple[Residence, ...] = ("device", "host", "disk")
FULL_EPOCHS, BARE_STEPS, SLICES_A_CASE = 100, 20, 75


def task_of(settings: PretrainSettings) -> Method:
    """A fresh MACL."""
    return build_task(settings, find("methods", "macl"), find("backbones", "unet"), channels=1, seed=0)


def bare_ms_per_slice(settings: PretrainSettings, batches: Loader, fabric: Fabric) -> float:
    """The step alone, on batches that were made before."""
    mode = settings.training.compile
    training = Training(task_of(settings), settings.training, fabric, mode)
    ready = list(batches.between(0, min(4, batches.steps_per_epoch)))

    def some(count: int) -> None:
        for number in range(count):
            training(ready[number % len(ready)])

    some(3)
    return milliseconds(lambda: some(BARE_STEPS), fabric.device) / BARE_STEPS / batches.batch_size


def loop_ms_per_slice(settings: PretrainSettings, batches: Loader, fabric: Fabric, run: Path) -> float:
    """The training loop, between its first and its last line of log."""
    moments: list[tuple[int, float]] = []
    run.mkdir()
    fit(
        task_of(settings), batches, settings.training, run, fabric,
        watch=lambda step, _: moments.append((step, time.perf_counter())),
    )  # fmt: skip
    (first, start), (last, end) = moments[0], moments[-1]
    return 1000 * (end - start) / (last - first) / batches.batch_size


def main() -> None:
    parser = arguments_of(__doc__, slices=17_525, size=512, batch=16, width=32, epochs=3)
    parser.add_argument("--compile", choices=MODES, help="by default compiled on a GPU alone")
    parser.add_argument("--store", type=Path, help="where the synthetic store is, or is to be written and kept")
    parser.add_argument("--residences", nargs="+", choices=RESIDENCES, default=RESIDENCES)
    arguments = parser.parse_args()
    mode = arguments.compile or ("default" if arguments.device == "cuda" else "off")
    changes = {
        "batch_size": arguments.batch, "size": arguments.size, "epochs": arguments.epochs, "compile": f'"{mode}"',
    }  # fmt: skip
    overrides = [f"training.{name}={value}" for name, value in changes.items()]
    settings = resolve(PretrainSettings, {}, [*overrides, f"backbone_settings.width={arguments.width}"])
    fabric = make_fabric(arguments.device, settings.training.precision)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "synthetic.store"
        if not (folder / "store.json").is_file():
            synthetic_store(folder, max(2, arguments.slices // SLICES_A_CASE), SLICES_A_CASE, arguments.size)
        store = Store.open(folder)
        found: dict[str, float] = {}
        for residence in arguments.residences:
            bank = PatchCache(store, [case.name for case in store.index.cases], False, fabric.device, residence)
            batches = Loader(bank, arguments.batch, arguments.size, seed=0)
            if "bare_step" not in found:
                found["bare_step"] = bare_ms_per_slice(settings, batches, fabric)
            found[residence] = loop_ms_per_slice(settings, batches, fabric, Path(scratch) / residence)
            slices = len(bank)
            del bank, batches
            if fabric.device.type == "cuda":
                torch.cuda.empty_cache()
    publish(
        {
            "slices": slices, "size": arguments.size, "batch": arguments.batch, "width": arguments.width,
            "epochs": arguments.epochs, "compile": mode, "precision": str(fabric.strategy.precision.precision),
            "ms_per_slice": found,
            "beside_bare_step": {name: value / found["bare_step"] for name, value in found.items()},
            "minutes_for_100_epochs": {
                name: value * slices * FULL_EPOCHS / 60_000 for name, value in found.items()
            },
        },
        arguments.json, fabric.device,
    )  # fmt: skip


if __name__ == "__main__":
    main()
