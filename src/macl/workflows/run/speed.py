"""How fast this machine trains and predicts with a network and a patch: a few steps, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from macl.config.recipes import resolve_recipe
from macl.config.settings import FinetuneSettings, NetworkRunSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.stepper import Stepper
from macl.engine.task import Task
from macl.engine.trainer import make_fabric
from macl.inference.sliding_window import default_batch_size
from macl.plugins import find
from macl.preprocessing.resampling import Spacing
from macl.tasks.pretraining import build_method
from macl.tasks.run_settings import pretrain_settings
from macl.tasks.segmentation import SegmentationTask, build_segmenter, resolve_finetuning
from macl.utils.memory import is_out_of_memory, within_free_memory
from macl.utils.progress import quietly

SELFTRAINING_COST = 2.2
"""A step of self-training, in steps of fine-tuning with as many labelled patches."""

LOADING = 1.1
"""A step of a run, in steps on a batch that lies in memory."""

FEWEST_STEPS = 2


@dataclass(frozen=True)
class NetworkDesign:
    """A network, its patches, and the spacing of what it sees.

    Attributes:
        dims: 2 or 3.
        width: channels of the finest level.
        spacing_mm: of the store; as in `PrepareSettings`.
        pretrain_recipe, finetune_recipe: their names.
        pretrain_set: further settings of pre-training.
        pretrain_size, finetune_size: sides of the patches in voxels.
        pretrain_batch, finetune_batch: patches per step.
        channels: of the images.
        classes: of the labels, with background; 0: there are no labels.
        mirrors: how many mirror images a prediction is averaged over, with the image itself.
        oriented: whether views keep the anatomy's orientation.
    """

    dims: Literal[2, 3]
    width: int
    spacing_mm: float | Spacing | None
    pretrain_recipe: str
    pretrain_set: tuple[str, ...]
    finetune_recipe: str
    pretrain_size: tuple[int, ...]
    finetune_size: tuple[int, ...]
    pretrain_batch: int
    finetune_batch: int
    channels: int
    classes: int
    mirrors: int
    oriented: bool

    @property
    def cost(self) -> int:
        """What a step costs at least, relative to other designs."""
        return self.width * math.prod(self.finetune_size if self.classes else self.pretrain_size)


@dataclass(frozen=True)
class DesignSpeed:
    """What was measured.

    Attributes:
        pretrain, finetune, selftrain: seconds of a step.
        window: seconds to predict one window.
        parameters: of the network that is pre-trained.
        pretrain_size, finetune_size: the patches as the network takes them.
    """

    pretrain: float
    finetune: float
    selftrain: float
    window: float
    parameters: int
    pretrain_size: tuple[int, ...]
    finetune_size: tuple[int, ...]


def has_gpu(device: str) -> bool:
    """Whether a run on this device, or on the best there is, uses a GPU of NVIDIA's or AMD's."""
    return device in ("auto", "cuda") and torch.cuda.is_available()


def measure(design: NetworkDesign, device: str, seconds: float) -> DesignSpeed | None:
    """Time a few steps of a design.

    Args:
        design: the network and its patches.
        device: "auto", "cpu", "cuda" or "mps".
        seconds: to time each kind of step for; at least two are taken.

    Returns:
        The speed; None if the memory is too small.
    """
    try:
        with quietly(), nullcontext() if has_gpu(device) else within_free_memory():
            return _measure(design, device, seconds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _measure(design: NetworkDesign, device: str, seconds: float) -> DesignSpeed:
    network_settings = (
        f"dims={design.dims}",
        f"backbone_settings.width={design.width}",
        f"anatomy={'oriented' if design.oriented else 'free'}",
    )
    settings, plugin = pretrain_settings(
        design.pretrain_recipe,
        (
            *network_settings,
            f"training.size={list(design.pretrain_size)}",
            f"training.batch_size={design.pretrain_batch}",
            *design.pretrain_set,
        ),
        method=None,
        store=None,
    )
    fabric = make_fabric(device, settings.training.precision)
    network = find("models", settings.backbone)
    method = build_method(settings, plugin, network, design.channels, seed=0)
    parameters = sum(parameter.numel() for parameter in method.network.parameters())
    pretrain = _seconds_per_step(method, settings, fabric, design, seconds)
    if not design.classes:
        return DesignSpeed(pretrain, 0.0, 0.0, 0.0, parameters, settings.patch, settings.patch)
    del method
    finetune_settings = resolve_recipe(
        FinetuneSettings,
        design.finetune_recipe,
        (
            *network_settings,
            f"training.size={list(design.finetune_size)}",
            f"training.batch_size={design.finetune_batch}",
        ),
    )
    finetune_settings = resolve_finetuning(finetune_settings, network)
    segmenter = build_segmenter(finetune_settings, network, design.channels, design.classes)
    task = SegmentationTask(segmenter, finetune_settings, ())
    finetune = _seconds_per_step(task, finetune_settings, fabric, design, seconds)
    window = _seconds_per_window(segmenter.eval(), finetune_settings.patch, design, fabric, seconds)
    return DesignSpeed(
        pretrain,
        finetune,
        SELFTRAINING_COST * finetune,
        window,
        parameters,
        settings.patch,
        finetune_settings.patch,
    )


def _seconds_per_step(
    task: Task,
    settings: NetworkRunSettings,
    fabric: Fabric,
    design: NetworkDesign,
    seconds: float,
) -> float:
    stepper = Stepper(task, settings.training, fabric)
    rng = SampleRng(0, 0, torch.arange(settings.training.batch_size))
    images = rng.normal("image", (design.channels, *settings.patch)).to(fabric.device)
    centres = rng.uniform("centre", (3,)).to(fabric.device)
    labels = (images[:, 0] > 0).long() if design.classes else None
    samples = rng.samples.to(fabric.device)

    def step(number: int) -> None:
        own = SampleRng(0, torch.full((), number, device=fabric.device), samples)
        stepper(Batch(images, centres, own, labels=labels, neighbours=images))

    return float(f"{LOADING * _mean_seconds(step, fabric, seconds):.3g}")


@torch.inference_mode()
def _seconds_per_window(
    segmenter: Any,
    patch: tuple[int, ...],
    design: NetworkDesign,
    fabric: Fabric,
    seconds: float,
) -> float:
    count = default_batch_size(patch)
    windows = torch.zeros(count, design.channels, *patch, device=fabric.device)

    def predict(number: int) -> None:
        for _ in range(design.mirrors):
            segmenter(windows).softmax(1).cpu()

    return _mean_seconds(predict, fabric, seconds / 2) / count


def _mean_seconds(work: Callable[[int], None], fabric: Fabric, seconds: float) -> float:
    """Mean time of a piece of work, without the first, which is slow."""
    work(0)
    start, done = _now(fabric), 0
    while done < FEWEST_STEPS or _now(fabric) - start < seconds:
        done += 1
        work(done)
    return (_now(fabric) - start) / done


def _now(fabric: Fabric) -> float:
    """The time once the device has finished its work, in seconds."""
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    elif fabric.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
