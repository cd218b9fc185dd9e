"""MACL: the branches' shapes, its size, and what moves what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fakes.batches import centres
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.losses import contrastive, pairs_of_both_branches
from macl.methods.macl import Macl, Settings
from macl.models.unet import UNet


def build(blocks: int = 2, width: int = 4, channels: int = 1, **changes: Any) -> Macl:
    torch.manual_seed(0)
    settings = Settings(decoder_blocks=blocks, **changes)
    network = UNet(
        UNet.Settings(width=width), channels, decoder_blocks=Macl.trained_decoder_blocks(settings)
    )
    return Macl(settings, network)


def batch(side: int = 64, slices: int = 3, channels: int = 1, step: int = 0) -> Batch:
    images = torch.randn(slices, channels, side, side, generator=torch.Generator().manual_seed(1))
    positions = torch.linspace(0.1, 1.0, slices).tolist()
    return Batch(images, centres(positions), SampleRng(0, step, torch.arange(slices)))


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 4])
def test_shapes_of_the_paper(blocks: int, channels: int) -> None:
    side, slices, width = 16 * 2**blocks, 2, 4
    method = build(blocks, width, channels).eval()
    view = torch.randn(slices, channels, side, side)
    outputs = method(view, view, view, view)
    small, large = side // 16 // 2**blocks, side // 16
    dense = 16 * width // 2**blocks
    shapes = [tuple(part.shape) for part in (*outputs.bottlenecks, *outputs.dense)]
    assert shapes == [
        (slices, 16 * width, large, large),
        (slices, 16 * width, small, small),
        (slices, dense, large, large),
        (slices, dense, large, large),
    ]
    assert [part.shape for part in outputs.projections] == [(slices, 128)] * 2


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4])
def test_every_depth_trains(blocks: int) -> None:
    method = build(blocks)
    side = 2 * Macl.patch_multiple(method.settings, method.network.strides)[0]
    step = method.step(batch(side))
    step.loss.backward()
    assert step.loss.isfinite()
    assert side == 2 * 16 * 2**blocks
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_size_of_the_paper() -> None:
    count = sum(parameter.numel() for parameter in build(2, width=32).parameters())
    assert round(count / 1e6, 3) == 8.437


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    method = build(weight_global=0.3, weight_dense=0.7, weight_regularisation=2.0)
    step = method.step(batch())
    parts = step.logged
    expected = (
        0.3 * parts["loss_global"] + 0.7 * parts["loss_dense"] + 2.0 * parts["loss_regularisation"]
    )
    torch.testing.assert_close(step.loss.detach(), expected)
    assert not any(value.requires_grad for value in parts.values())
    assert list(parts)[:3] == ["loss_global", "loss_dense", "loss_regularisation"]


def test_the_released_factor_scales_the_contrasts_and_nothing_else() -> None:
    with_factor, without = (build(released_factor=on).step(batch()).logged for on in (True, False))
    for name in ("loss_global", "loss_dense"):
        torch.testing.assert_close(with_factor[name], without[name] * 0.1 / 0.07)
    assert torch.equal(with_factor["loss_regularisation"], without["loss_regularisation"])


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_no_gradient_is_stopped_in_either_branch(weights: tuple[float, float, float]) -> None:
    """Every loss reaches both branches' own inputs."""
    names = ("weight_global", "weight_dense", "weight_regularisation")
    method = build(**dict(zip(names, weights, strict=True)))
    views = {name: torch.randn(3, 1, 64, 64).requires_grad_() for name in ("i1", "i2", "v1", "v2")}
    method.losses(method(**views), torch.tensor([[0.1], [0.5], [1.0]])).loss.backward()
    reached = {
        name for name, view in views.items() if view.grad is not None and view.grad.abs().sum() > 0
    }
    assert reached == ({"v1", "v2"} if weights[0] else {"i1", "i2"})


def test_the_branches_share_the_encoder_and_only_the_encoder() -> None:
    method = build()
    views = [torch.randn(3, 1, 64, 64) for _ in range(4)]
    method(*views).dense.auxiliary.sum().backward()
    moved = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("network.encoder") for name in moved)
    assert not any(name.startswith("network.decoder") for name in moved)


def test_batch_norm_sees_every_view_by_itself() -> None:
    method = build()
    norm = next(
        module for module in method.network.encoder.modules() if isinstance(module, nn.BatchNorm2d)
    )
    seen: list[torch.Size] = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    method.step(batch())
    assert sorted(shape[-1] for shape in seen) == [16, 16, 64, 64], (
        "two at full size, two downsampled"
    )
    assert {shape[0] for shape in seen} == {3}, "no two views in one pass"
    assert norm.num_batches_tracked == 4

    views = [torch.randn(3, 1, 64, 64) for _ in range(4)]
    first = build()(*views).bottlenecks.auxiliary
    views[2] = 100 * views[2]
    assert torch.equal(build()(*views).bottlenecks.auxiliary, first)


def test_twins_are_always_positive() -> None:
    method = build(threshold=0.0, released_factor=False)
    outputs = method(*(torch.randn(3, 1, 64, 64) for _ in range(4)))
    step = method.losses(outputs, torch.full((3, 1), 0.5))
    anchors = torch.cat((outputs.projections.dominant, outputs.projections.auxiliary))
    expected = contrastive(anchors, pairs_of_both_branches(torch.eye(3, dtype=torch.bool)), 0.1)
    torch.testing.assert_close(step.logged["loss_global"], expected.detach())
    assert step.logged["positives_per_anchor"] == 1


def test_positives_are_counted() -> None:
    method = build(threshold=0.15)
    outputs = method(*(torch.randn(3, 1, 64, 64) for _ in range(4)))
    parts = method.losses(outputs, torch.tensor([[0.1], [0.2], [0.9]])).logged
    # The first two slices attract each other: twin, neighbour, neighbour's twin; the third has its
    # twin alone.
    assert parts["positives_per_anchor"].item() == pytest.approx((3 + 3 + 1) / 3)


def test_regularisation_compares_the_bottlenecks() -> None:
    method = build().eval()
    outputs = method(*(torch.randn(2, 1, 128, 128) for _ in range(4)))
    target = outputs.bottlenecks.auxiliary
    corners = target[..., ::7, ::7]
    expected = (outputs.bottlenecks.dominant - corners).abs().mean()
    parts = method.losses(outputs, torch.tensor([[0.1], [0.9]])).logged
    torch.testing.assert_close(parts["loss_regularisation"], expected.detach())


def test_a_step_is_a_pure_function_of_the_batch() -> None:
    first, second, later = (build().step(batch(step=step)) for step in (4, 4, 5))
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.logged["loss_global"], later.logged["loss_global"])
    assert torch.equal(first.logged["loss_dense"], later.logged["loss_dense"]), (
        "I1 = I2 is the slice, unaltered"
    )


def test_the_value_at_collapse() -> None:
    method = build()
    uniform = method.uniform_losses(16)
    value = uniform["loss_global"]
    assert round(value, 3) == round(uniform["loss_dense"], 3) == 4.906
    flat = [torch.zeros(16, 1, 64, 64)] * 4
    method.eval()
    for projector in (method.dominant_global_projector, method.auxiliary_global_projector):
        nn.init.zeros_(projector[-1].weight)
        nn.init.ones_(projector[-1].bias)
    parts = method.losses(method(*flat), torch.linspace(0.1, 1, 16)[:, None]).logged
    assert parts["loss_global"].item() == pytest.approx(value, rel=1e-5)
    assert parts["feature_spread"].item() == pytest.approx(0, abs=1e-3)


def test_what_is_handed_on_is_the_encoder_and_the_trained_blocks() -> None:
    method = build(blocks=2)
    names = [
        name
        for name in method.network.state_dict()
        if name.startswith(method.transferable_prefixes)
    ]
    assert names == list(method.network.state_dict())
    assert {name.split(".")[2] for name in names if name.startswith("decoder")} == {"0", "1"}


def test_the_loss_falls() -> None:
    method = build(width=4)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(25):
        outcome = method.step(batch(slices=4, step=step))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        losses.append(outcome.loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
