"""Two processes with half of a batch each: losses, logged parts, gradients and buffers are those of
one with the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fakes.processes import COUNT, run_in_two
from fakes.shared_steps import FINETUNING, VARIANTS, half, train, train_together, without_norms
from macl.data.batch import Batch
from macl.distributed import collectives
from macl.engine.task import StepOutput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    assert run_in_two(train_together, folder) == [0] * COUNT
    return folder


def scales(values: dict[str, Tensor]) -> dict[str, float]:
    """For every value what its error is measured by: all gradients, or all buffers, of its step, or
    itself.

    The bias before a norm has a gradient of 0 but for rounding, which would tell nothing by itself.
    """
    groups: dict[str, float] = {}
    for name, value in values.items():
        group = " ".join(name.split()[:2])
        groups[group] = max(
            groups.get(group, 0.0), value.abs().max().item() if value.numel() else 0.0
        )
    return {name: groups[" ".join(name.split()[:2])] for name in values}


@pytest.mark.parametrize("variant", [*FINETUNING, *VARIANTS])
def test_two_processes_take_the_steps_of_one(folder: Path, variant: str) -> None:
    alone = train(variant, lambda task: task.step)
    scale = scales(alone)
    for rank in range(COUNT):
        shared = load_file(folder / f"{variant}-{rank}.safetensors")
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            # Networks and losses are in float64, but some values pass through float32.
            tolerance = (1e-6 if "gradient" in name or "buffer" in name else 1e-5) * scale[name]
            error = (shared[name].double() - value.double()).abs()
            assert error.numel() == 0 or error.max() <= tolerance, name


def test_ungathered_each_process_has_the_loss_of_its_half(folder: Path) -> None:
    def halves(task: nn.Module) -> Callable[[Batch], StepOutput]:
        def step(batch: Batch) -> StepOutput:
            first, second = (task.step(half(batch, rank)) for rank in range(COUNT))
            return StepOutput(0.5 * (first.loss + second.loss), {})

        return step

    # Without norms the halves meet nowhere.
    alone = train("simclr", lambda task: halves(without_norms(task)))
    shared = load_file(folder / "ungathered-0.safetensors")
    for name, value in alone.items():
        if "buffer" not in name:
            torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=1e-12)
    gathered = load_file(folder / "simclr-0.safetensors")
    assert (gathered["0 loss"] - shared["0 loss"]).abs() > 0.1


def test_statistics_of_a_share_alone_are_not_kept_in_silence(folder: Path) -> None:
    for rank in range(COUNT):
        said = (folder / f"differing-{rank}.txt").read_text()
        assert said.startswith("The processes of this run hold different values of running_mean: ")


def test_norms_keep_their_names_and_what_they_do_alone() -> None:
    """As they are loaded, saved and followed by others; with one process they are PyTorch's own."""
    torch.manual_seed(0)
    images, vectors = torch.randn(4, 3, 5, 5), torch.randn(4, 3)
    for norm, values in (
        (nn.BatchNorm2d(3), images),
        (nn.BatchNorm1d(3, affine=False), vectors),
        (nn.BatchNorm1d(3, momentum=None), vectors),
    ):
        plain, module = copy.deepcopy(norm), nn.Sequential(norm)
        parameters = list(module.parameters())
        collectives.synchronise_batch_norms(module, torch.device("cpu"))
        assert type(module[0]) is collectives.SyncBatchNormCPU
        assert all(
            ours is before for ours, before in zip(module.parameters(), parameters, strict=True)
        )
        for training in (True, False):
            plain.train(training)
            module.train(training)
            assert torch.equal(module(values), plain(values))
        assert module[0].state_dict().keys() == plain.state_dict().keys()
        for name, value in plain.state_dict().items():
            assert torch.equal(module[0].state_dict()[name], value)
