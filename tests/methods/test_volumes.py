"""Every method on volumes: a step trains what it hands to fine-tuning; MACL's branches meet
whatever the strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes.batches import batch
from fakes.networks import method, unet
from macl.methods.macl import Macl, Settings
from macl.models.network import decoder_stride, total_stride
from macl.plugins import find, names
from macl.utils.errors import MaclError

HEADS = {"hidden": 8, "projection": 8}
SMALL: dict[str, dict[str, Any]] = {
    "byol": HEADS,
    "desd": {**HEADS, "prototypes": 8},
    "dira": {"queue": 8, "discriminator_width": 2},
    "gcl": {"decoder_blocks": 1, "region_side": 2, "regions": 3},
    "macl": {"decoder_blocks": 1},
    "masked": {"block": 4},
    "moco": {"queue": 8},
    "simsiam": HEADS,
    "simtriplet": HEADS,
    "swav": {**HEADS, "prototypes": 8, "queue": 8, "small_crops": 1},
    "wcl": HEADS,
}
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))


@pytest.mark.parametrize("name", names("methods"))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_on_volumes_moves_all_that_is_transferred(name: str, channels: int) -> None:
    torch.manual_seed(0)
    task = method(name, SMALL.get(name, {}), 2, in_channels=channels, dims=3, strides=STRIDES)
    task.train()
    multiple = task.patch_multiple(task.settings, task.network.strides)
    patch = tuple(max(side, 16) for side in multiple)
    for progress in (0.0, 0.9):  # both stages of methods that have two
        step = task.step(batch(3, side=patch, dims=3, channels=channels, progress=progress))
        step.loss.backward()
        assert step.loss.isfinite()
        assert step.logged.keys() == task.quantities.keys()
    for name, parameter in task.network.named_parameters():
        if name.startswith(task.transferable_prefixes):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", names("methods"))
def test_every_logged_value_is_described(name: str) -> None:
    task = method(name, SMALL.get(name, {}), 2)
    side = task.patch_multiple(task.settings, task.network.strides)[0]
    assert task.step(batch(3, side=2 * side)).logged.keys() == task.quantities.keys()


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("strides", [(2, 2, 2), STRIDES, ((1, 2, 2), (1, 2, 2), (2, 2, 2))])
def test_the_branches_meet_at_the_bottleneck(blocks: int, strides: Any) -> None:
    network = unet(2, blocks=blocks, dims=3, strides=strides)
    task = Macl(Settings(decoder_blocks=blocks), network).eval()
    patch = Macl.patch_multiple(task.settings, network.strides)
    image = torch.randn(2, 1, *patch)
    outputs = task(image, image, image, image)
    bottleneck = [s // t for s, t in zip(patch, total_stride(network.strides), strict=True)]
    assert outputs.dense.auxiliary.shape == outputs.dense.dominant.shape
    assert list(outputs.dense.dominant.shape[2:]) == bottleneck
    down = decoder_stride(network.strides, blocks)
    smaller = [s // d for s, d in zip(bottleneck, down, strict=True)]
    assert list(outputs.bottlenecks.dominant.shape[2:]) == smaller
    assert outputs.dense.dominant.shape[1] == network.decoder_channels[blocks]


def test_in_two_dimensions_the_dominant_branch_is_smaller_by_two_to_the_number_of_blocks() -> None:
    strides = unet(2).strides
    for blocks in range(5):
        settings = Settings(decoder_blocks=blocks)
        assert Macl.patch_multiple(settings, strides) == (16 * 2**blocks,) * 2


def test_a_volume_of_equal_slices_is_contrasted_as_its_slice_is() -> None:
    """With kernels that do not look along z, and no pooling along it, 3D is 2D at every height."""
    torch.manual_seed(0)
    flat = Macl(Settings(decoder_blocks=1), unet(2, blocks=1, strides=(2, 2))).eval()
    deep = Macl(
        Settings(decoder_blocks=1), unet(2, blocks=1, dims=3, strides=((1, 2, 2), (1, 2, 2)))
    ).eval()
    state = flat.state_dict()
    for name, tensor in deep.state_dict().items():
        source = state[name]
        if tensor.ndim == 5:
            tensor.zero_()
            tensor[:, :, tensor.shape[2] // 2] = source
        else:
            tensor.copy_(source)
    image = torch.randn(3, 1, 16, 16)
    volume = image[:, :, None].expand(-1, -1, 2, -1, -1)
    positions = torch.tensor([[0.1], [0.15], [0.8]])
    expected = flat.losses(flat(image, image, image, image), positions).logged
    found = deep.losses(deep(volume, volume, volume, volume), positions.expand(-1, 3)).logged
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_positives_are_near_on_every_axis() -> None:
    task = find("methods", "pcl")(
        find("methods", "pcl").Settings(threshold=(0.1, 0.3, 0.3)), unet(2, dims=3)
    )
    positions = torch.tensor(
        [[0.5, 0.5, 0.5], [0.55, 0.7, 0.5], [0.65, 0.5, 0.5], [0.5, 0.5, 0.85]]
    )
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(task.positives(positions), expected)
    assert torch.equal(task.positives(positions[:, :1])[0], torch.tensor([True, True, False, True]))


def test_more_decoder_blocks_than_the_network_has_are_refused() -> None:
    from macl.config.recipes import resolve
    from macl.config.settings import PretrainSettings
    from macl.tasks.pretraining import resolve_pretraining

    settings = resolve(
        PretrainSettings, {}, ["dims=3", "training.size=16", "method_settings.decoder_blocks=3"]
    )
    with pytest.raises(
        MaclError, match=r"decoder_blocks is 3, but the network has 2 decoder blocks"
    ):
        resolve_pretraining(settings, find("methods", "macl"), find("models", "unet"))
