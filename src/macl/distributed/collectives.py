"""Several processes that train one model, each on its share of every batch, to what one process would have come to.

Every process holds the same weights, and rank r of R has the rows r, r + R, … of a batch. A loss is either the mean over a
process's own rows, or, where rows are compared with each other, the whole batch's, computed alike by all from gathered rows.
DistributedDataParallel averages the gradients. The gradient of a gathered row and of a sum is therefore added up over the
processes: what is averaged is then the gradient of the mean of all processes' losses, whichever of the two they are.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from macl.utils.errors import MaclError

# ---------------------------------------------------------------- tensors of all processes


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return dist.is_initialized() and dist.get_world_size() > 1


def all_gather(rows: Tensor) -> Tensor:
    """(b, …) rows of this process's share → (B, …) rows of the whole batch, in the batch's own order.

    Gradients flow back to the process that a row came from. Rows of less than float32 are widened, since their gradients
    are added up over the processes. With one process the rows themselves.
    """
    return cast(Tensor, _Gather.apply(_wide(rows))) if is_distributed() else rows


def local_shard(rows: Tensor) -> Tensor:
    """(B, …) rows of the whole batch → (b, …) rows of this process's share: the inverse of `whole`."""
    return rows[dist.get_rank() :: dist.get_world_size()] if is_distributed() else rows


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes of each one's values of the same shape; gradients flow back to all."""
    return cast(Tensor, _Sum.apply(_wide(values))) if is_distributed() else values


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over all processes of each one's values: the whole batch's, where each has its share's mean."""
    return all_reduce_sum(values) / dist.get_world_size() if is_distributed() else values


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        shares = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, rows.contiguous())
        return torch.stack(shares, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return local_shard(_summed(gradient))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


# ---------------------------------------------------------------- norms


class SyncBatchNormCPU(nn.modules.batchnorm._BatchNorm):
    """BatchNorm by the moments of the whole batch, on the CPU, for which `nn.SyncBatchNorm` does not work."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …) → the same shape; the running statistics follow the whole batch's."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        axes, shape = (0, *range(2, input.ndim)), (1, -1, *(1,) * (input.ndim - 2))
        wide = _wide(input)
        own = torch.stack(torch.var_mean(wide, axes, correction=0))
        variances, averages = all_gather(own[None]).unbind(1)
        average = averages.mean(0)
        variance = variances.mean(0) + (averages - average).square().mean(0)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        self._remember(average.detach(), variance.detach() * (count / max(1, count - 1)))
        normed = (wide - average.reshape(shape)) * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            normed = normed * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def _remember(self, average: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(average.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronise_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm in `module` take its moments from the whole batch; names and tensors stay as they are."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            # They have the same tensors and settings, and differ in `forward` alone.
            child.__class__ = SyncBatchNormCPU  # pyright: ignore[reportAttributeAccessIssue]
    return module


def require_equal_across_ranks(module: nn.Module) -> None:
    """MaclError if the tensors of `module` are not the same in all processes, as they are where a statistic, a queue or
    a prototype was moved by a process's own share of the batch."""
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
            f"The processes of this run have come to hold different values of {', '.join(names[:3])}: "
            "train in one process, or let the method gather what it keeps (macl.distributed.collectives)."
        )
