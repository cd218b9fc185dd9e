"""The U-Net of the paper: shapes, sizes, and where its numbers start."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from macl.models.unet import Settings, UNet


def build(channels: int = 1, blocks: int | None = None, width: int = 4) -> UNet:
    torch.manual_seed(0)
    return UNet(Settings(width=width), channels, decoder_blocks=blocks)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_encoders_maps(channels: int) -> None:
    network = build(channels)
    maps = network.encode(torch.randn(2, channels, 32, 48))
    assert network.channels == (4, 8, 16, 32, 64)
    expected = [(2, 4 * 2**level, 32 // 2**level, 48 // 2**level) for level in range(5)]
    assert [tuple(one.shape) for one in maps] == expected


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4])
def test_every_block_doubles_the_side_and_halves_the_channels(blocks: int) -> None:
    network = build(blocks=blocks)
    assert network(torch.randn(1, 1, 64, 64)).shape == (
        1,
        64 // 2**blocks,
        4 * 2**blocks,
        4 * 2**blocks,
    )
    assert len(network.decoder.blocks) == blocks


def test_all_blocks_by_default() -> None:
    assert build()(torch.randn(1, 1, 32, 32)).shape == (1, 4, 32, 32)


def test_fewer_blocks_are_the_deepest_of_all() -> None:
    whole, part = build().state_dict(), build(blocks=2).state_dict()
    assert set(part) < set(whole)
    assert all(tensor.shape == whole[name].shape for name, tensor in part.items())
    assert {name.split(".")[2] for name in part if name.startswith("decoder")} == {"0", "1"}


def test_a_decoder_block_sees_its_own_skip() -> None:
    network = build().eval()
    features = network.encode(torch.randn(1, 1, 32, 32))
    before = network.decode(features)[-1]
    for level in range(5):
        changed = [one + (number == level) for number, one in enumerate(features)]
        assert not torch.equal(network.decode(changed)[-1], before), level
    part = build(blocks=1).eval()
    for level, matters in ((4, True), (3, True), (2, False), (0, False)):
        changed = [one + (number == level) for number, one in enumerate(features)]
        assert torch.equal(part.decode(changed)[-1], part.decode(features)[-1]) != matters


def test_parameters_of_the_paper() -> None:
    """Counted by hand: 9·in·out + out for a convolution, 2·out for its norm, 4·in·out + out for an
    upsampling."""
    widths = [1, 32, 64, 128, 256]

    def two(before: int, after: int) -> int:
        return sum(9 * first * after + after + 2 * after for first in (before, after))

    encoder = sum(two(before, after) for before, after in pairwise(widths))
    encoder += 9 * 256 * 512 + 512 + 9 * 512 * 512 + 512
    decoder = sum(
        4 * 2 * width * width + width + two(2 * width, width) for width in (256, 128, 64, 32)
    )
    network = build(width=32)
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in network.decoder.parameters()) == decoder


def test_weights_start_as_kaiming_normal_and_biases_at_zero() -> None:
    network = build(width=32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight.shape[1] * module.weight[0, 0].numel()
            deviation = (2 / (1 + 0.01**2) / fan_in) ** 0.5
            assert module.bias.abs().max() == 0
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(deviation, rel=0.03)
                kurtosis = (module.weight / module.weight.std()).pow(4).mean().item()
                assert kurtosis == pytest.approx(3, abs=0.3), "normal, not uniform"


def test_the_centre_has_no_norm_and_leaks_nothing() -> None:
    network = build()
    kinds = [type(module) for module in network.encoder.centre]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU]
    assert network.encode(torch.randn(1, 1, 32, 32))[-1].min() >= 0
    assert network.encode(torch.randn(1, 1, 32, 32))[0].min() < 0


def test_every_parameter_learns() -> None:
    network = build()
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
