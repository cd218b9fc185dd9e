"""How the processes of a run that share its batches find each other, and who of them writes, speaks and fails for all."""

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

from macl.distributed import collectives, ranks
from macl.utils.errors import MaclError

T = TypeVar("T")


class _Stepping(nn.Module):
    """A task whose `forward` is its step, since DistributedDataParallel watches `forward` alone."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task
        # Looking for parameters without gradient, it warns if the first step, before any change of stage, has none.
        self.without_gradient = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Any) -> Any:
        return cast(Any, self.task).step(batch)


class _Shared(nn.Module):
    """A task whose step is taken by all processes."""

    def __init__(self, fabric: Fabric, task: nn.Module) -> None:
        super().__init__()
        collectives.synchronise_batch_norms(task.to(fabric.device), fabric.device)
        self.parallel = fabric.strategy.setup_module(_Stepping(task))

    def step(self, batch: Any) -> Any:
        return self.parallel(batch)


def set_up(fabric: Fabric, task: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Fabric's way of a task and its optimiser, on the device.

    Returns:
        A module with the task's `step`, after whose backward all processes hold the whole batch's gradients, and
        Fabric's optimiser, the task's own being `optimizer` in it.
    """
    if collectives.is_distributed():
        # Fabric's own wrapper would copy what `step` takes and gives, and does not take frozen dataclasses.
        return _Shared(fabric, task), fabric.setup_optimizers(optimiser)
    module, wrapped = fabric.setup(task, optimiser)
    module.mark_forward_method("step")
    return module, wrapped


def connect(accelerator: str, precision: Any) -> Fabric:
    """Lightning Fabric for this process among the several of its run, one device each.

    Raises:
        MaclError: the machine has fewer GPUs than processes.
    """
    here = ranks.place()
    if accelerator == "cuda" and torch.cuda.device_count() < here.local_world_size:
        raise MaclError(
            f"{here.local_world_size} processes were started on this machine, where PyTorch finds {torch.cuda.device_count()} "
            "GPU(s): start one process for each."
        )
    # Stages of a schedule leave parameters without gradient; buffers need not be sent around, as they never differ.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    send_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"find_unused_parameters": True, send_buffers: False}
    fabric = Fabric(
        accelerator=accelerator,
        strategy=DDPStrategy(**options),
        devices=here.local_world_size,
        num_nodes=here.ranks // here.local_world_size,
        precision=precision,
        plugins=[_environment()],
    )
    fabric.launch()
    return fabric


def _environment() -> ClusterEnvironment:
    try:
        return TorchElasticEnvironment() if ranks.launched_by_torchrun() else SLURMEnvironment()
    except RuntimeError as error:
        raise MaclError(f"SLURM's settings do not fit: {error}") from None


def launch_processes(count: int, words: Sequence[str]) -> None:
    """Leave `macl` with these words to `count` processes of this machine, as `torchrun` would, and exit when they have
    ended; nothing where one is enough, or this is one of several already."""
    if count == 1 or ranks.place().ranks > 1:
        return
    # PyTorch's report of who failed would bury the sentence that says why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="macl", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "macl", *words)
    except ChildFailedError:
        sys.exit(1)
    except SignalException as interrupted:
        sys.exit(128 + interrupted.sigval)
    sys.exit(0)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around a stage: its processes find each other at the start and wait for each other at the end.

    The first of them to fail says why; the others end without a word.

    Raises:
        MaclError: the processes do not find each other, or one of them was killed.
    """
    if ranks.place().ranks == 1 or dist.is_initialized():
        yield
        return
    _join()
    try:
        yield
        collectives.all_reduce_sum(torch.zeros(1))
    except Exception as error:
        if not _is_first_to_fail():
            ranks.leave(1)
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise MaclError(
                "Another process of this run ended before its time, killed perhaps: start the same command again, with "
                "--resume."
            ) from error
        raise
    dist.destroy_process_group()


def where(fabric: Fabric) -> str:
    """On what a run goes on, for messages and records: "cuda:0", or "4 × cuda"."""
    return str(fabric.device) if fabric.world_size == 1 else f"{fabric.world_size} × {fabric.device.type}"


def on_rank_zero(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them: for what only one may do, such as making a folder."""
    made: list[Any] = [make() if ranks.place().is_zero else None]
    if collectives.is_distributed():
        dist.broadcast_object_list(made)
    return made[0]


def _join() -> None:
    environment, here = _environment(), ranks.place()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    try:
        dist.init_process_group(rank=here.rank, world_size=here.ranks)
    except (dist.DistError, RuntimeError) as error:
        raise MaclError(
            f"The {here.ranks} processes of this run do not find each other at {environment.main_address}:"
            f"{environment.main_port} ({str(error).splitlines()[0]}): start all of them, with the same command."
        ) from None


def _is_first_to_fail() -> bool:
    try:
        return _get_default_store().add("macl/failures", 1) == 1
    except (dist.DistError, RuntimeError):
        return True
