"""How a batch is split over processes; what they compute together is tested with the methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from macl.distributed import collectives
from macl.distributed.collectives import require_even_shards
from macl.utils.errors import MaclError


@pytest.mark.parametrize(
    ("size", "patches", "world_size", "better"),
    [(7, 99, 4, 8), (6, 99, 4, 4), (5, 99, 4, 4), (1, 99, 4, 4), (7, 7, 4, 4), (99, 10, 3, 9)],
)
def test_the_nearest_even_batch_is_named(
    size: int, patches: int, world_size: int, better: int
) -> None:
    with pytest.raises(MaclError, match=f"training.batch_size={better}\\."):
        require_even_shards(size, patches, world_size)
    require_even_shards(better, patches, world_size)


def test_a_shard_of_one_patch_is_not_contrasted_by_itself() -> None:
    require_even_shards(4, 99, 4)
    require_even_shards(8, 99, 4, gather_negatives=False)
    with pytest.raises(MaclError, match="gather_negatives=true"):
        require_even_shards(4, 99, 4, gather_negatives=False)


def test_too_few_patches_for_the_processes() -> None:
    with pytest.raises(MaclError, match="3 patches, which 4 processes cannot share"):
        require_even_shards(16, 3, 4)


def test_one_process_gathers_and_sums_its_own_values() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    for function in (
        collectives.all_gather,
        collectives.local_shard,
        collectives.all_reduce_sum,
        collectives.all_reduce_mean,
    ):
        assert function(values) is values
    collectives.require_equal_across_ranks(nn.BatchNorm1d(2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_synchronised_norm_of_one_process_is_a_plain_one(dims: int) -> None:
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    plain, synchronised = kinds[dims](3), kinds[dims](3)
    collectives.synchronise_batch_norms(synchronised, torch.device("cpu"))
    assert isinstance(synchronised, collectives.SyncBatchNormCPU)
    maps = torch.randn(4, 3, *(5,) * dims)
    assert torch.equal(synchronised(maps), plain(maps))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(synchronised.state_dict()[name], tensor)
