"""What every network promises: shapes, any number of channels, any size, decoders of any depth, and
the sizes that its paper names."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fakes.networks import SMALL, odd_patch, small_network
from macl.config.mistakes import validate
from macl.models.attention_unet import AttentionGate
from macl.models.layers import image_channels
from macl.models.rolling_unet import COLUMNS, ROWS, rolled
from macl.models.uctransnet import Settings as UCTransSettings
from macl.models.uctransnet import SkipAttention, Tokens
from macl.models.ukan import KanLayer, cubic_splines
from macl.plugins import find, names

EVERY = pytest.mark.parametrize(("name", "dims"), SMALL, ids=lambda value: f"{value}")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_every_network_is_tested_in_all_its_dimensions() -> None:
    found = {
        (name, dims) for name in names("models") for dims in find("models", name).supported_dims
    }
    assert found <= set(SMALL)


# ---------------------------------------------------------------- the contract


@EVERY
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_maps_have_the_channels_and_sizes_that_the_network_states(
    name: str, dims: int, channels: int
) -> None:
    network = small_network(name, dims, channels)
    patch = odd_patch(network, smallest=1 if channels == 3 else 3)
    features = network.encode(noise(2, channels, *patch))
    spans = accumulate(
        network.strides, lambda above, own: tuple(map(math.prod, zip(above, own, strict=True)))
    )
    assert network.strides[0] == (1,) * dims
    assert [tuple(maps.shape) for maps in features] == [
        (2, width, *(side // of for side, of in zip(patch, span, strict=True)))
        for width, span in zip(network.channels, spans, strict=True)
    ]
    decoded = network.decode(features)
    assert [tuple(maps.shape) for maps in decoded] == [
        (2, width, *maps.shape[2:])
        for width, maps in zip(network.decoder_channels, reversed(features), strict=True)
    ]
    assert decoded[0] is features[-1]
    assert image_channels(network.encoder) == channels
    assert all(maps.isfinite().all() for maps in (*features, *decoded))


@EVERY
def test_a_decoder_of_any_depth_is_the_deepest_part_of_the_whole(name: str, dims: int) -> None:
    whole = small_network(name, dims).eval()
    features = whole.encode(noise(1, 1, *odd_patch(whole, smallest=3)))
    maps, state, counts = whole.decode(features), whole.state_dict(), []
    for blocks in range(len(whole.strides)):
        part = small_network(name, dims, blocks=blocks, seed=1).eval()
        own = part.state_dict()
        assert {each: tensor.shape for each, tensor in own.items()}.items() <= {
            each: tensor.shape for each, tensor in state.items()
        }.items()
        part.load_state_dict({each: state[each] for each in own})
        for decoded in (part.decode(features), whole.decode(features, blocks)):
            assert len(decoded) == blocks + 1
            for ours, expected in zip(decoded, maps, strict=False):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        counts.append(sum(each.startswith("decoder.") for each in own))
    assert counts[0] == 0
    assert counts == sorted({*counts}), "every block has tensors of its own"
    assert len(part.state_dict()) == len(state)


@EVERY
def test_every_map_of_the_decoder_depends_on_the_skip_of_its_size(name: str, dims: int) -> None:
    network = small_network(name, dims).eval()
    features = network.encode(noise(1, 1, *odd_patch(network, smallest=3)))
    before = network.decode(features)
    for level in range(1, len(features) - 1):
        changed = [*features]
        changed[level] = features[level] + noise(*features[level].shape)
        after = network.decode(changed)[len(features) - 1 - level]
        assert not torch.allclose(after, before[len(features) - 1 - level], rtol=1e-3), level


@EVERY
def test_every_parameter_learns(name: str, dims: int) -> None:
    network = small_network(name, dims)
    network(noise(2, 1, *odd_patch(network, smallest=3))).square().mean().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any() or parameter.ndim == 1, parameter_name


# ---------------------------------------------------------------- sizes of the papers


@pytest.mark.parametrize(
    ("name", "settings", "side", "millions", "billions"),
    [
        ("uctransnet", {}, 224, 66.43, 38.58),
        ("rolling_unet", {"width": 16}, 256, 1.78, 2.07),
        ("rolling_unet", {"width": 32}, 256, 7.10, 8.22),
        ("rolling_unet", {"width": 64}, 256, 28.32, 32.74),
        ("ukan", {}, 256, 6.36, 2.65),
    ],
    ids=["uctransnet", "rolling_unet-S", "rolling_unet-M", "rolling_unet-L", "ukan"],
)
def test_parameters_and_products_at_full_width(
    name: str, settings: dict[str, Any], side: int, millions: float, billions: float
) -> None:
    """Of three channels and one class, in convolutions and matrix products."""
    plugin = find("models", name)
    with torch.device("meta"):
        network = plugin(validate(plugin.Settings, settings), 3)
        segmenter = nn.Sequential(network, nn.Conv2d(network.decoder_channels[-1], 1, 1))
        image = torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        segmenter(image)
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(billions, abs=0.005)


def test_parameters_of_the_papers_unet_as_pretrained() -> None:
    """The paper counts 8.63 M. Ours are 8.44 M: the release also holds the two decoder blocks that
    it does not train, and a convolution to its 512 `classes` that nothing uses."""
    unet, macl = find("models", "unet"), find("methods", "macl")
    with torch.device("meta"):
        whole, part = (unet(unet.Settings(), 1, decoder_blocks=blocks) for blocks in (None, 2))
        method = macl(macl.Settings(), part)
    ours, untrained = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (method, whole.decoder.blocks[2:])
    )
    assert ours / 1e6 == pytest.approx(8.44, abs=0.005)
    assert (ours + untrained + 32 * 512 + 512) / 1e6 == pytest.approx(8.63, abs=0.005)


# ---------------------------------------------------------------- their own parts


def test_rolled_is_a_roll_of_every_channel() -> None:
    maps = noise(2, 3, 5, 7)
    for axis in (ROWS, COLUMNS):
        for step in (1, -1):
            expected = [torch.roll(maps[..., c], c * step, axis) for c in range(maps.shape[-1])]
            assert torch.equal(rolled(maps, axis, step), torch.stack(expected, dim=-1))


def test_cubic_splines_are_b_splines_on_a_grid_of_five_pieces() -> None:
    piece = 0.4
    knots = -1 + piece * np.arange(-3, 9)
    x = np.linspace(-2.3, 2.3, 200)
    expected = [BSpline.basis_element(knots[k : k + 5], extrapolate=False)(x) for k in range(8)]
    actual = cubic_splines(torch.from_numpy(x)).double().numpy()
    np.testing.assert_allclose(actual, np.nan_to_num(expected).T, atol=1e-5)
    inside = np.abs(x) < 1
    np.testing.assert_allclose(actual[inside].sum(1), 1, atol=1e-5)


def test_a_kan_layer_has_a_curve_for_every_pair_of_channels() -> None:
    torch.manual_seed(0)
    layer, x = KanLayer(3), noise(4, 3)
    splines = cubic_splines(x)
    for out in range(3):
        curves = [
            layer.base[out, i] * nn.functional.silu(x[:, i])
            + layer.scale[out, i] * splines[:, i] @ layer.coefficients[out, i]
            for i in range(3)
        ]
        torch.testing.assert_close(layer(x)[:, out], torch.stack(curves).sum(0))


def test_positions_are_interpolated_to_the_tokens_at_hand() -> None:
    tokens = Tokens(channels=2, side=4, positions=3)
    nn.init.zeros_(tokens.patches.weight)
    nn.init.zeros_(tokens.patches.bias)
    with torch.no_grad():
        tokens.positions.copy_(noise(2, 3, 3))
    own = tokens(torch.zeros(1, 2, 12, 12))
    torch.testing.assert_close(own[0].T.reshape(2, 3, 3), tokens.positions)
    wide = tokens(torch.zeros(1, 2, 12, 24))[0].T.reshape(2, 3, 6)
    assert wide[:, :, 0].equal(tokens.positions[:, :, 0])
    assert wide[:, :, -1].equal(tokens.positions[:, :, -1])


def test_channels_attend_whatever_the_order_of_the_tokens() -> None:
    """Without positions, moving the content of all maps alike moves the result alike."""
    torch.manual_seed(0)
    settings = UCTransSettings(width=2, heads=2, layers=2, positions=3)
    attention = SkipAttention((4, 2), 2, settings).eval()
    maps = [noise(1, 4, 8, 8), noise(1, 2, 16, 16)]
    moved = [torch.roll(each, each.shape[2] // 2, 2) for each in maps]
    for before, after in zip(attention(maps, 2), attention(moved, 2), strict=True):
        torch.testing.assert_close(torch.roll(before, before.shape[2] // 2, 2), after)


def test_a_gate_scales_every_position_by_one_number_between_0_and_1() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(skip_channels=4, gate_channels=6, stride=(1, 2, 2))
    skip = noise(2, 4, 3, 8, 6)
    ratio = gate(skip, noise(2, 6, 3, 4, 3)) / skip
    assert 0 < ratio.min() < ratio.max() < 1
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_the_finest_skip_has_no_gate() -> None:
    network = small_network("attention_unet", 2)
    gated = [hasattr(block, "gate") for block in network.decoder.blocks]  # pyright: ignore
    assert gated == [True, True, False]
