"""What the benchmarks share: arguments, a clock that waits for the device, synthetic data."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from macl.config.settings import PrepareSettings, TrainingSettings
from macl.data.store import Store, write_array
from macl.data.store_index import (
    ArrayKind,
    Normalisation,
    Orientation,
    StoredCase,
    StoreIndex,
    write_index,
)
from macl.engine.stepper import Stepper
from macl.engine.task import Task
from macl.io.geometry import Geometry

MODES = ("off", "default", "reduce-overhead")


def make_parser(description: str | None, **numbers: int) -> argparse.ArgumentParser:
    """A parser with --device, --json, and these whole numbers with their defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    return parser


def add_dims(parser: argparse.ArgumentParser) -> None:
    """Add --dims to a parser with --size: patches are then squares or cubes."""
    parser.add_argument("--dims", type=int, default=2, choices=(2, 3), help="2: slices, 3: volumes")


def publish(figures: Mapping[str, Any], file: Path | None, device: torch.device) -> None:
    """Print the figures, with device and versions, and write them to the file if there is one."""
    on_gpu = device.type == "cuda"
    cpu = f"cpu, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if on_gpu else cpu
    text = json.dumps({"device": name, "torch": torch.__version__, **figures}, indent=1)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, including the work of the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return 1000.0 * (time.perf_counter() - start)


class PeakMemory:
    """The device's peak memory inside the block, in MiB; None on the CPU, which has no count."""

    mib: float | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self.device) / 2**20


def make_stepper(task: Task, settings: TrainingSettings, fabric: Fabric, mode: str) -> Stepper:
    """A training step as the loop takes it, with this mode of `torch.compile`."""
    stepper = Stepper(task, settings.model_copy(update={"compile": mode}), fabric)
    stepper.compile(steps=0, voxels=0)
    return stepper


def synthetic_store(folder: Path, cases: int, slices: int, size: int) -> Store:
    """Write and open a store of smooth noise in int16, with labels 0…3 by brightness.

    Args:
        folder: where to write it.
        cases: number of cases.
        slices: of a case.
        size: side of a slice in pixels.
    """
    random = np.random.default_rng(0)
    stored = []
    for number in range(cases):
        coarse = random.normal(300, 120, (1, slices, size // 8, size // 8))
        noise = random.normal(0, 5, (1, slices, size, size))
        image = np.kron(coarse, np.ones((8, 8))) + noise
        label = np.digitize(image[0], (300, 400, 500)).astype(np.uint8)
        arrays: dict[ArrayKind, np.ndarray] = {"image": image.astype(np.int16), "label": label}
        name = f"case{number:04d}"
        stored.append(
            StoredCase(
                name=name,
                patient=name,
                channels=1,
                size=(slices, size, size),
                spacing_mm=(1.0, 1.0, 1.0),
                geometry=Geometry(
                    size=(size, size, slices),
                    spacing=(1, 1, 1),
                    origin=(0, 0, 0),
                    direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
                    spacing_known=True,
                ),
                orientation=Orientation(
                    plane="axial",
                    permutation=(0, 1, 2),
                    flipped=(False, False, False),
                    scanned_size=(slices, size, size),
                ),
                normalisation=Normalisation(low=(0,), high=(600,), mean=(300,), deviation=(120,)),
                arrays={
                    kind: write_array(folder, name, kind, array) for kind, array in arrays.items()
                },
            )
        )
    index = StoreIndex(
        reader="folder",
        modality="MR",
        channels=("image",),
        classes=("background", "dark", "grey", "bright"),
        label_values=(0, 1, 2, 3),
        prepared=PrepareSettings(normalisation="zscore"),
        cases=tuple(stored),
    )
    write_index(folder, index)
    return Store.open(folder)
