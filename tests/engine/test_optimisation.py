"""Learning rates, optimisers and the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from macl.config.settings import TrainingSettings
from macl.engine.optimisation import (
    MovingAverage,
    learning_rate,
    load_optimiser_tensors,
    make_optimiser,
    optimiser_tensors,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU(), nn.Conv2d(3, 1, 3))


def steps(module: nn.Module, optimiser: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        module(images).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_the_cosine_by_hand() -> None:
    settings = TrainingSettings(learning_rate=0.1)
    rates = [learning_rate(settings, step, 8) for step in range(8)]
    assert rates[0] == 0.1
    assert rates[4] == pytest.approx(0.05)
    assert rates[2] == pytest.approx(0.1 * (1 + math.sqrt(0.5)) / 2)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(settings, 8, 8) == pytest.approx(0)


def test_the_cosine_ends_at_the_floor() -> None:
    settings = TrainingSettings(learning_rate=5e-4, learning_rate_floor=5e-6)
    assert learning_rate(settings, 500, 1000) == pytest.approx((5e-4 + 5e-6) / 2)
    assert learning_rate(settings, 999, 1000) == pytest.approx(5e-6, rel=0.01)


def test_warm_up_rises_in_a_line_to_the_full_rate() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup_share=0.15)
    rates = [learning_rate(settings, step, 40) for step in range(40)]
    assert rates[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    assert max(rates) == 1
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimiser_is_as_the_settings_say(name: str, kind: type) -> None:
    module = network()
    module[0].bias.requires_grad_(False)
    settings = TrainingSettings(optimiser=name, learning_rate=0.3, weight_decay=0.02, momentum=0.8)
    optimiser = make_optimiser(settings, module)
    (group,) = optimiser.param_groups
    assert type(optimiser) is kind
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.02)
    assert group.get("momentum", 0.8) == 0.8
    assert [id(p) for p in group["params"]] == [
        id(p) for p in module.parameters() if p.requires_grad
    ]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_moments_survive_being_named_tensors(name: str) -> None:
    settings = TrainingSettings(optimiser=name, learning_rate=0.01)
    module = network()
    optimiser = make_optimiser(settings, module)
    steps(module, optimiser, 3)
    kept = {key: value.clone() for key, value in optimiser_tensors(optimiser).items()}
    weights = {key: value.clone() for key, value in module.state_dict().items()}
    assert kept
    steps(module, optimiser, 3, first=3)

    again = network(seed=1)
    again.load_state_dict(weights)
    other = make_optimiser(settings, again)
    load_optimiser_tensors(other, kept)
    steps(again, other, 3, first=3)
    for ours, theirs in zip(again.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_moments_of_an_optimiser_that_has_not_moved() -> None:
    optimiser = make_optimiser(TrainingSettings(), network())
    assert optimiser_tensors(optimiser) == {}
    load_optimiser_tensors(optimiser, {})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_optimisers_take_gradients_that_come_later(name: str, momentum: float) -> None:
    """Methods of two stages train the encoder first and the decoder later."""
    settings = TrainingSettings(
        optimiser=name, learning_rate=0.01, momentum=momentum, weight_decay=0.1
    )
    modules = [
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 1, 3)) for _ in range(2)
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    for module, fused in zip(modules, (False, True), strict=True):
        optimiser = make_optimiser(settings, module, fused)
        for learning in (module[0], module[2], module[0]):
            for layer in (module[0], module[2]):
                layer.requires_grad_(layer is learning)
            steps(module, optimiser, 2)
    for apart, fused in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(fused, apart)


def test_the_moving_average_by_hand() -> None:
    module = nn.BatchNorm1d(1)
    average = MovingAverage(module, decay=0.5)
    expected, running = 1.0, 0.0
    for step, value in enumerate([3.0, -1.0, 4.0, 2.0], start=1):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(10 * value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        running = decay * running + (1 - decay) * 10 * value
    assert average.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert average.average["running_mean"].item() == pytest.approx(running, rel=1e-6)
    assert "num_batches_tracked" not in average.average


def test_the_average_is_lent_and_taken_back() -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average = MovingAverage(module, decay=0.9)
    optimiser = make_optimiser(TrainingSettings(), module)
    steps(module, optimiser, 2)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def lent() -> None:
        with average.applied():
            for name, tensor in module.state_dict().items():
                assert torch.equal(
                    tensor, before[name] if tensor.is_floating_point() else own[name]
                )
            raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError, match="patience"):
        lent()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    assert not torch.equal(own["0.weight"], before["0.weight"])
