"""How the processes that train one model start, find each other, and fail together."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from macl.distributed import collectives
from macl.utils.errors import MaclError
from macl.utils.ranks import exit_rank, launched_by_torchrun, this_rank

T = TypeVar("T")


class _StepAsForward(nn.Module):
    """A task whose `forward` is its step, since DistributedDataParallel only hooks `forward`."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task
        # DistributedDataParallel warns if it was asked to find parameters without a gradient and
        # the first step has none; this one never has a gradient.
        self.without_gradient = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Any) -> Any:
        return cast(Any, self.task).step(batch)


class _DistributedTask(nn.Module):
    """A task whose step all processes take together."""

    def __init__(self, fabric: Fabric, task: nn.Module) -> None:
        super().__init__()
        collectives.synchronise_batch_norms(task.to(fabric.device), fabric.device)
        self.parallel = fabric.strategy.setup_module(_StepAsForward(task))

    def step(self, batch: Any) -> Any:
        return self.parallel(batch)


def set_up_task(
    fabric: Fabric, task: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """Put a task and its optimiser on the device, for one process or several.

    Returns:
        A module with the task's `step`, after whose backward pass every process holds the
        gradients of the whole batch, and Fabric's optimiser, which wraps `optimiser` as
        `.optimizer`.
    """
    if collectives.is_distributed():
        # Fabric's own wrapper copies the batch and the output, and cannot copy frozen dataclasses.
        return _DistributedTask(fabric, task), fabric.setup_optimizers(optimiser)
    module, wrapped = fabric.setup(task, optimiser)
    module.mark_forward_method("step")
    return module, wrapped


def make_distributed_fabric(accelerator: str, precision: Any) -> Fabric:
    """Lightning Fabric for this rank, with one device per process.

    Raises:
        MaclError: the machine has fewer GPUs than processes.
    """
    rank = this_rank()
    gpus = torch.cuda.device_count()
    if accelerator == "cuda" and gpus < rank.local_world_size:
        raise MaclError(
            f"{rank.local_world_size} processes were started on this machine, but PyTorch finds "
            f"{gpus} GPU(s): start one process per GPU."
        )
    # Some stages of a schedule leave parameters without a gradient. Buffers never differ between
    # the processes, so that broadcasting them would be a waste.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    send_buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )
    options: dict[str, Any] = {"find_unused_parameters": True, send_buffers: False}
    fabric = Fabric(
        accelerator=accelerator,
        strategy=DDPStrategy(**options),
        devices=rank.local_world_size,
        num_nodes=rank.world_size // rank.local_world_size,
        precision=precision,
        plugins=[_environment()],
    )
    fabric.launch()
    return fabric


def _environment() -> ClusterEnvironment:
    try:
        return TorchElasticEnvironment() if launched_by_torchrun() else SLURMEnvironment()
    except RuntimeError as error:
        raise MaclError(f"SLURM's settings do not fit: {error}") from None


def launch_processes(count: int, words: Sequence[str]) -> None:
    """Run `macl` with these words in `count` processes of this machine, then exit.

    Does nothing if `count` is 1 or this process is one of several already.
    """
    if count == 1 or this_rank().world_size > 1:
        return
    # PyTorch's report of a failure or a signal would bury the sentence that says what happened.
    for name in ("", ".agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="macl",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "macl", *words)
    except ChildFailedError:
        sys.exit(1)
    except SignalException as interrupted:
        sys.exit(128 + interrupted.sigval)
    sys.exit(0)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes of a run while a stage runs; they wait for each other at its end.

    The first process that fails prints why; the others exit silently.

    Raises:
        MaclError: the processes cannot connect, or one of them was killed.
    """
    if this_rank().world_size == 1 or dist.is_initialized():
        yield
        return
    _connect()
    try:
        yield
        collectives.all_reduce_sum(torch.zeros(1))
    except Exception as error:
        if not _is_first_to_fail():
            exit_rank(1)
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise MaclError(
                "Another process of this run stopped too early, perhaps killed: run the same "
                "command again with --resume."
            ) from error
        raise
    dist.destroy_process_group()


def describe_device(fabric: Fabric) -> str:
    """What a run computes on, for messages and records: "cpu", or "4 × cuda in bf16"."""
    several = f"{fabric.world_size} × {fabric.device.type}"
    device = str(fabric.device) if fabric.world_size == 1 else several
    precision = {"bf16-mixed": " in bf16", "16-mixed": " in fp16"}
    return device + precision.get(str(fabric.strategy.precision.precision), "")


def on_rank_zero(make: Callable[[], T]) -> T:
    """Call `make` in rank 0 alone, such as to create a folder, and return its result in all."""
    made: list[Any] = [make() if this_rank().is_zero else None]
    if collectives.is_distributed():
        dist.broadcast_object_list(made)
    return made[0]


def _connect() -> None:
    environment, rank = _environment(), this_rank()
    address, port = environment.main_address, str(environment.main_port)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, port
    try:
        dist.init_process_group(rank=rank.index, world_size=rank.world_size)
    except (dist.DistError, RuntimeError) as error:
        raise MaclError(
            f"The {rank.world_size} processes of this run cannot connect at {address}:{port} "
            f"({str(error).splitlines()[0]}): start all of them, with the same command."
        ) from None


def _is_first_to_fail() -> bool:
    try:
        return _get_default_store().add("macl/failures", 1) == 1
    except (dist.DistError, RuntimeError):
        return True
