"""The authors' weight files: renamed to our U-Net, and no code in them is ever run."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fakes.networks import unet
from macl.models.conversion.foreign import read_foreign
from macl.models.conversion.macl_release import from_authors_names
from macl.utils.errors import MaclError


class ReleasedEncoder(nn.Module):
    """The released encoder's modules by their names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [1, *(width * 2**level for level in range(4))]
        for level in range(1, 5):
            for number, before in ((1, widths[level - 1]), (2, widths[level])):
                convolution = nn.Conv2d(before, widths[level], 3, padding=1)
                block = nn.Sequential(convolution, nn.BatchNorm2d(widths[level]), nn.LeakyReLU())
                setattr(self, f"contr_{level}_{number}", block)
        deepest = 2 * widths[4]
        self.center = nn.Sequential(
            nn.Conv2d(widths[4], deepest, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(deepest, deepest, 3, padding=1),
            nn.ReLU(),
        )


class ReleasedDecoder(nn.Module):
    """The released decoder's modules by their names: upscale5, then expand_4, are the deepest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for level in range(4, 0, -1):
            out = width * 2 ** (level - 1)
            setattr(self, f"upscale{level + 1}", nn.ConvTranspose2d(2 * out, out, 2, stride=2))
            for number, before in ((1, 2 * out), (2, out)):
                block = nn.Sequential(
                    nn.Conv2d(before, out, 3, padding=1), nn.BatchNorm2d(out), nn.LeakyReLU()
                )
                setattr(self, f"expand_{level}_{number}", block)


class Released(nn.Module):
    """A network that saves what the released program saves."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.share_encoder = ReleasedEncoder(width)
        self.online_decoder = ReleasedDecoder(width)
        self.online_instance_projector = nn.Linear(4 * width, 8)


def released_state(prefix: str = "") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return OrderedDict((prefix + name, tensor) for name, tensor in Released().state_dict().items())


def our_names(blocks: int) -> dict[str, Tensor]:
    return unet(4, blocks=blocks).state_dict()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MaclError, match="There is no"):
        read_foreign(tmp_path / "w.pth", 2)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("blocks", [0, 1, 2, 4])
def test_the_released_layouts(tmp_path: Path, prefix: str, key: str | None, blocks: int) -> None:
    path = tmp_path / "best.pth"
    state = released_state(prefix)
    torch.save(state if key is None else {"epoch": 99, key: state, "loss": 1.5}, path)
    read = read_foreign(path, blocks)
    expected = our_names(blocks)
    assert set(read.tensors) == set(expected)
    for name, tensor in expected.items():
        assert read.tensors[name].shape == tensor.shape, name
    assert (read.about["method"], read.about["decoder_blocks"]) == ("macl", blocks)


def test_every_tensor_goes_to_its_own_place() -> None:
    released = released_state()
    renamed, counter = from_authors_names(released, 4), "num_batches_tracked"
    pairs = {
        "encoder.levels.0.0.weight": "share_encoder.contr_1_1.0.weight",
        "encoder.levels.3.4.running_var": "share_encoder.contr_4_2.1.running_var",
        "encoder.centre.2.bias": "share_encoder.center.2.bias",
        "decoder.blocks.0.up.weight": "online_decoder.upscale5.weight",
        "decoder.blocks.3.up.bias": "online_decoder.upscale2.bias",
        "decoder.blocks.0.convolutions.0.weight": "online_decoder.expand_4_1.0.weight",
        f"decoder.blocks.3.convolutions.4.{counter}": f"online_decoder.expand_1_2.1.{counter}",
    }
    for ours, theirs in pairs.items():
        assert renamed[ours] is released[theirs]
    assert len({id(tensor) for tensor in renamed.values()}) == len(renamed) == len(released) - 2


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    content = {"state_dict": released_state(), "callback": Bomb(tmp_path / "owned")}
    torch.save(content, tmp_path / "best.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        MaclError, match=r"cannot be read as plain weights.*save the network's state_dict\(\) alone"
    ):
        read_foreign(tmp_path / "best.pth", 2)
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "best.pth", weights_only=False)
    assert (tmp_path / "owned").exists(), "the test's pickle would have worked"


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "best.pth")
    with pytest.raises(MaclError, match="cannot be read as plain weights"):
        read_foreign(tmp_path / "best.pth", 2)


@pytest.mark.parametrize(
    "content", [{"a": torch.ones(2)}, [torch.ones(2)], {"state_dict": {}}, torch.ones(3), {}]
)
def test_another_networks_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(MaclError, match="holds no tensor of the released MACL network"):
        read_foreign(tmp_path / "best.pth", 2)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
def test_broken_bytes_are_a_sentence(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "best.pth"
    torch.save(
        {"share_encoder.contr_1_1.0.weight": torch.ones(4, 1, 3, 3)},
        path,
        _use_new_zipfile_serialization=new_format,
    )
    whole, chosen = path.read_bytes(), random.Random(0)
    broken = [b"", b"hello", b"PK\x03\x04", bytes(100)]
    broken += [whole[: chosen.randrange(len(whole))] for _ in range(60)]
    answers = []
    for _ in range(150):
        bits = bytearray(whole)
        bits[chosen.randrange(len(bits))] ^= 1 << chosen.randrange(8)
        broken.append(bytes(bits))
    for data in broken:
        path.write_bytes(data)
        try:
            read_foreign(path, 2)
        except MaclError as error:
            answers.append(str(error))
    assert len(answers) > 60
    assert not any("\n" in answer for answer in answers)
