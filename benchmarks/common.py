"""What the benchmarks share: a training step as the loop makes it, a clock that waits for the device, synthetic slices, figures."""

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
from torch import nn

from macl.config import PrepareSettings, TrainingSettings
from macl.data.batch import Batch
from macl.data.store import Normalisation, Slicing, Store, StoredCase, StoreIndex, write_array, write_index
from macl.engine.compiling import build_optimiser_for, compiled, to_device_layout
from macl.io.geometry import Geometry

MODES = ("off", "default", "reduce-overhead")


def arguments_of(description: str | None, **numbers: int) -> argparse.ArgumentParser:
    """A parser with --device, --json and these whole numbers with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


def publish(figures: Mapping[str, Any], file: Path | None, device: torch.device) -> None:
    """Print the figures, with device and versions, and write them to the file if there is one."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    text = json.dumps({"device": name, "torch": torch.__version__, **figures}, indent=1)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return 1000.0 * (time.perf_counter() - start)


class PeakMemory:
    """The device's peak memory inside the block, in MiB; None on the CPU, where PyTorch does not count it."""

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


class Training:
    """A task and its optimiser, one step a call, as the training loop makes it but without log and checkpoints.

    Args:
        task: a module with a step.
        settings: of the optimiser.
        fabric: device and precision.
        mode: of `torch.compile`; "off" compiles nothing.
    """

    def __init__(self, task: Any, settings: TrainingSettings, fabric: Fabric, mode: str = "off") -> None:
        assert isinstance(task, nn.Module)
        self.fabric, self.clip = fabric, settings.gradient_clip
        to_device_layout(task, fabric.device)
        scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.module, self.optimiser = fabric.setup(task, build_optimiser_for(settings, task, fabric.device, scaled))
        self.step = task.step if mode == "off" else compiled(task.step, mode)
        task.train()

    def __call__(self, batch: Batch) -> None:
        with self.fabric.autocast():
            loss = self.step(batch).loss
        self.fabric.backward(loss)
        if self.clip:
            self.fabric.clip_gradients(self.module, self.optimiser, max_norm=self.clip, error_if_nonfinite=False)
        self.optimiser.step()
        self.optimiser.zero_grad()


def synthetic_store(folder: Path, cases: int, slices: int, size: int) -> Store:
    """Write and open a store of smooth noise in int16, so many slices a case of size², labelled 0…3 by brightness."""
    random = np.random.default_rng(0)
    stored = []
    for number in range(cases):
        coarse = random.normal(300, 120, (slices, 1, size // 8, size // 8))
        image = np.kron(coarse, np.ones((8, 8))) + random.normal(0, 5, (slices, 1, size, size))
        values = {"image": image.astype(np.int16), "label": np.digitize(image[:, 0], (300, 400, 500)).astype(np.uint8)}
        name = f"case{number:04d}"
        grid = (size, size, slices)
        stored.append(
            StoredCase(
                name=name, patient=name, slices=slices, channels=1, size=(size, size), spacing_mm=(1.0, 1.0, 1.0),
                geometry=Geometry(
                    size=grid, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
                    spacing_known=True,
                ),
                slicing=Slicing(
                    plane="axial", permutation=(0, 1, 2), flipped=(False, False, False), scanned_size=(size, size)
                ),
                normalisation=Normalisation(low=(0,), high=(600,), mean=(300,), deviation=(120,)),
                arrays={kind: write_array(folder, name, kind, array) for kind, array in values.items()},
            )
        )  # fmt: skip
    index = StoreIndex(
        reader="folder", modality="MR", channels=("image",), classes=("background", "dark", "grey", "bright"),
        label_values=(0, 1, 2, 3), prepared=PrepareSettings(normalisation="zscore"), cases=tuple(stored),
    )  # fmt: skip
    write_index(folder, index)
    return Store.open(folder)
