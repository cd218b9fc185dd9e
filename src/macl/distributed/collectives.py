"""Several processes that train one model, to the result that one process would have reached.

All processes hold the same weights, and rank r of R has the rows r, r + R, … of every batch. A loss
is either the mean over a process's own rows or, where rows are compared with each other, the loss
of the whole batch, which every process computes from gathered rows. DistributedDataParallel
averages the gradients. So the gradient of a gathered row, and of a sum, is added up over the
processes: the average is then the gradient of the mean of all processes' losses in both cases.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from macl.utils.errors import MaclError

# ---------------------------------------------------------------- shards of a batch


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return dist.is_initialized() and dist.get_world_size() > 1


def all_gather(rows: Tensor) -> Tensor:
    """(b, …) rows of this process → (B, …) rows of the whole batch, in the batch's order.

    Gradients flow back to the process that a row came from. Half-precision rows become float32,
    since their gradients are added up over the processes. One process gets its rows back.
    """
    return cast(Tensor, _Gather.apply(_widen(rows))) if is_distributed() else rows


def local_shard(rows: Tensor) -> Tensor:
    """(B, …) rows of the whole batch → (b, …) rows of this process; inverts `all_gather`."""
    return rows[dist.get_rank() :: dist.get_world_size()] if is_distributed() else rows


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of `values` over all processes, the same shape in each; gradients flow back to all."""
    return cast(Tensor, _Sum.apply(_widen(values))) if is_distributed() else values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Mean of `values` over all processes: that of the whole batch, from the shards' means."""
    return all_reduce_sum(values) / dist.get_world_size() if is_distributed() else values


def require_even_shards(
    batch_size: int, patches: int, world_size: int, gather_negatives: bool = True
) -> None:
    """Check that the processes can split every batch evenly.

    Args:
        batch_size: patches in a batch, over all processes.
        patches: patches in an epoch; a batch holds no more.
        world_size: number of processes.
        gather_negatives: whether patches are contrasted over all processes. If not, each process
            needs two patches at least.

    Raises:
        MaclError: they cannot; the message names a batch size that works.
    """
    size = min(batch_size, patches)
    if size == world_size > 1 and not gather_negatives:
        raise MaclError(
            f"A batch of {size} patches leaves each of {world_size} processes one, with nothing to "
            "contrast it with: raise training.batch_size, start fewer processes, or add "
            "--set training.gather_negatives=true."
        )
    if size % world_size == 0:
        return
    if patches < world_size:
        raise MaclError(
            f"There are {patches} patches, which {world_size} processes cannot share: start fewer "
            "processes."
        )
    below = size // world_size * world_size
    above = below + world_size
    above_is_nearer = below == 0 or (size - below > world_size / 2 and above <= patches)
    nearest = above if above_is_nearer else below
    raise MaclError(
        f"{world_size} processes cannot share a batch of {size} patches evenly: start another "
        f"number of processes, or add --set training.batch_size={nearest}."
    )


def require_even_parts(labelled: int, unlabelled: int, world_size: int) -> None:
    """MaclError unless the processes can share so many labelled and so many unlabelled patches."""
    if labelled % world_size or unlabelled % world_size:
        raise MaclError(
            f"{world_size} processes cannot share {labelled} labelled and {unlabelled} unlabelled "
            "patches evenly: set training.batch_size and unlabelled_batch_size to multiples of "
            f"{world_size}."
        )


def _widen(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        shards = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(shards, rows)
        return torch.stack(shards, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        return local_shard(_reduce(gradient))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduce(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        return _reduce(gradient)


def _reduce(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


# ---------------------------------------------------------------- norms


class SyncBatchNormCPU(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with the moments of the whole batch; `nn.SyncBatchNorm` has none for the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …) → the same shape; running statistics follow the whole batch."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        axes, shape = (0, *range(2, input.ndim)), (1, -1, *(1,) * (input.ndim - 2))
        wide = _widen(input)
        own = torch.stack(torch.var_mean(wide, axes, correction=0))
        variances, averages = all_gather(own[None]).unbind(1)
        average = averages.mean(0)
        variance = variances.mean(0) + (averages - average).square().mean(0)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        self._update_statistics(average.detach(), variance.detach() * (count / max(1, count - 1)))
        normed = (wide - average.reshape(shape)) * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            normed = normed * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, average: Tensor, variance: Tensor) -> None:
        if (
            self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(average.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronise_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm in `module` use the moments of the whole batch; names stay the same."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            # They have the same tensors and settings, and differ in `forward` alone.
            child.__class__ = SyncBatchNormCPU  # pyright: ignore[reportAttributeAccessIssue]
    return module


def require_equal_across_ranks(module: nn.Module) -> None:
    """Check that all processes hold the same tensors in `module`.

    They differ where a statistic, a queue or a prototype was moved by one process's shard alone.

    Raises:
        MaclError: some tensors differ; the first of them are named.
    """
    if not is_distributed():
        return
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.numel()}
    sums = torch.stack([tensor.double().abs().sum() for tensor in state.values()])
    largest, smallest = sums.clone(), sums.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    differing = (largest - smallest > 1e-3 * largest).tolist()
    names = [name for name, differs in zip(state, differing, strict=True) if differs]
    if names:
        raise MaclError(
            f"The processes of this run hold different values of {', '.join(names[:3])}: train in "
            "one process, or let the method gather what it keeps (macl.distributed.collectives)."
        )
