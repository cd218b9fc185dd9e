"""A few steps of every method, by one process or by one of two that share the batches, and all that
they lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from fakes.batches import centres
from fakes.networks import method, unet
from fakes.processes import COUNT
from macl.config.settings import FinetuneSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.distributed import collectives
from macl.distributed.launch import make_distributed_fabric, process_group, set_up_task
from macl.engine.task import StepOutput
from macl.methods.desd import Desd
from macl.plugins import names
from macl.tasks.segmentation import SegmentationTask, Segmenter
from macl.utils.errors import MaclError
from macl.utils.ranks import this_rank

WIDTH, SIDE, SIZE, RATE = 2, 64, 6, 0.05
HEADS = {"hidden": 8, "projection": 6}
SMALL: dict[str, dict[str, Any]] = {
    "byol": HEADS,
    "desd": {**HEADS, "prototypes": 10},
    "dira": {"queue": 7, "discriminator_width": 2},
    "masked": {"block": 24},
    "moco": {"queue": 7},
    "simsiam": HEADS,
    "simtriplet": HEADS,
    "swav": {**HEADS, "prototypes": 5, "queue": 9, "small_crops": 1},
    "wcl": HEADS,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, SMALL.get(name, {})) for name in names("methods")},
    "macl-plus": ("macl", {"standardised_regularisation": True, "shared_projection": True}),
    "macl-ema": ("macl", {"encoders": "ema"}),
    "macl-independent": ("macl", {"encoders": "independent"}),
    "macl-symmetric": ("macl", {"symmetric": True}),
    "macl-two-stages": ("macl", {"encoder_share": 0.5}),
    "macl-regularisation-alone": ("macl", {"weight_global": 0, "weight_dense": 0}),
    "gcl-original": ("gcl", {"original_form": True}),
    "swav-no-queue": ("swav", {**SMALL["swav"], "queue": 0}),
    "macl-volumes": ("macl", {"decoder_blocks": 1}),
    "pcl-volumes": ("pcl", {}),
}
FINETUNING = ("finetune", "finetune-volumes")
DONE = (0.0, 0.3, 0.9)
"""Before, between and after the changes of every schedule."""


def in_float64(task: nn.Module) -> nn.Module:
    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.double() if isinstance(value, Tensor) else value for value in inputs)

    task.double()
    if isinstance(task, Desd):
        task.centre = task.centre.float()  # as the scores that it follows are
    for module in task.modules():
        module.register_forward_pre_hook(widen)
    return task


def build(variant: str) -> nn.Module:
    torch.manual_seed(0)
    network: dict[str, Any] = {}
    if variant.endswith("-volumes"):
        network = {"dims": 3, "strides": ((1, 2, 2), (2, 2, 2))}
    if variant in FINETUNING:
        segmenter = Segmenter(unet(WIDTH, **network), classes=3)
        return in_float64(SegmentationTask(segmenter, FinetuneSettings(), ("row", "column")))
    name, own = VARIANTS[variant]
    return in_float64(method(name, own, WIDTH, **network))


def without_norms(task: nn.Module) -> nn.Module:
    """Every BatchNorm in eval mode, and there to stay."""
    for module in task.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.eval()
    return task


def whole_batch(step: int, patch: tuple[int, ...] = (SIDE, SIDE), **changes: Any) -> Batch:
    """SIZE random patches; the even ones, which one of two processes gets, show less of one
    class."""
    random = torch.Generator().manual_seed(step)
    images, neighbours = (torch.randn(SIZE, 1, *patch, generator=random) for _ in range(2))
    heights = torch.rand(SIZE, generator=random)
    labels = torch.randint(3, (SIZE, *patch), generator=random)
    labels[::2][labels[::2] == 2] = 1
    rng = SampleRng(0, step, torch.arange(SIZE))
    return Batch(
        images, centres(heights), rng, labels, neighbours=neighbours, progress=DONE[step], **changes
    )


def half(batch: Batch, rank: int, ranks: int = COUNT) -> Batch:
    """One process's share."""
    assert batch.labels is not None
    assert batch.neighbours is not None
    rows = slice(rank, None, ranks)
    return replace(
        batch,
        images=batch.images[rows],
        centres=batch.centres[rows],
        labels=batch.labels[rows],
        neighbours=batch.neighbours[rows],
        rng=replace(batch.rng, samples=batch.rng.samples[rows]),
    )


def train(
    variant: str, step_of: Callable[[nn.Module], Callable[[Batch], StepOutput]], **changes: Any
) -> dict[str, Tensor]:
    """Three steps of plain gradient descent; every loss, part, gradient and buffer on the way."""
    task, found, here = build(variant), {}, this_rank()
    step_of_task = step_of(task)
    patch = (4, 16, 16) if variant.endswith("-volumes") else (SIDE, SIDE)
    for number in range(len(DONE)):
        step = step_of_task(
            half(whole_batch(number, patch, **changes), here.index, here.world_size)
        )
        step.loss.backward()
        values = {"loss": step.loss.detach(), **step.logged}
        found |= {
            f"{number} {name}": collectives.all_reduce_mean(value.double())
            for name, value in values.items()
        }
        found |= {f"{number} buffer {name}": value.clone() for name, value in task.named_buffers()}
        for name, parameter in task.named_parameters():
            if parameter.grad is not None:
                found[f"{number} gradient of {name}"] = parameter.grad.clone()
                parameter.data -= RATE * parameter.grad
                parameter.grad = None
    return found


def shared(fabric: Fabric, task: nn.Module) -> Callable[[Batch], StepOutput]:
    """The step that both processes take."""
    return set_up_task(fabric, task, torch.optim.SGD(task.parameters()))[0].step


def train_together(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group():
        fabric = make_distributed_fabric("cpu", "32-true")
        for variant in (*FINETUNING, *VARIANTS):
            found = train(variant, lambda task: shared(fabric, task))
            save_file(found, folder / f"{variant}-{fabric.global_rank}.safetensors")
        found = train(
            "simclr", lambda task: shared(fabric, without_norms(task)), gather_negatives=False
        )
        save_file(found, folder / f"ungathered-{fabric.global_rank}.safetensors")
        norm = nn.BatchNorm1d(2)
        collectives.require_equal_across_ranks(norm)
        norm(torch.full((4, 2), float(fabric.global_rank)))
        try:
            collectives.require_equal_across_ranks(norm)
        except MaclError as error:
            (folder / f"differing-{fabric.global_rank}.txt").write_text(str(error))
