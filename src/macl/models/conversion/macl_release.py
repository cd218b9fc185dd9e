"""The released MACL program's weight files, read safely and renamed to our U-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError

_NAMES = (
    (
        r"share_encoder\.contr_([1-4])_1\.([01])\.",
        lambda match: f"encoder.levels.{int(match[1]) - 1}.{match[2]}.",
    ),
    (
        r"share_encoder\.contr_([1-4])_2\.([01])\.",
        lambda match: f"encoder.levels.{int(match[1]) - 1}.{int(match[2]) + 3}.",
    ),
    (r"share_encoder\.center\.([02])\.", lambda match: f"encoder.centre.{match[1]}."),
    (r"online_decoder\.upscale([2-5])\.", lambda match: f"decoder.blocks.{5 - int(match[1])}.up."),
    (
        r"online_decoder\.expand_([1-4])_1\.([01])\.",
        lambda match: f"decoder.blocks.{4 - int(match[1])}.convolutions.{match[2]}.",
    ),
    (
        r"online_decoder\.expand_([1-4])_2\.([01])\.",
        lambda match: f"decoder.blocks.{4 - int(match[1])}.convolutions.{int(match[2]) + 3}.",
    ),
)


def from_authors_names(tensors: Mapping[str, Tensor], decoder_blocks: int) -> dict[str, Tensor]:
    """Rename the authors' tensors to our U-Net: the encoder and the trained decoder blocks.

    Args:
        tensors: the released network's state, with or without a leading `module.`.
        decoder_blocks: N; the release saves all four blocks, but trains the deepest N alone.
    """
    renamed = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("module.")
        for pattern, rename in _NAMES:
            match = re.match(pattern, bare)
            if match:
                ours = rename(match) + bare[match.end() :]
                if not ours.startswith("decoder.") or int(ours.split(".")[2]) < decoder_blocks:
                    renamed[ours] = tensor
    return renamed


def read_authors(path: Path, decoder_blocks: int) -> Checkpoint:
    """Read a weights file of the authors' program (`.pth`), tensors only.

    Args:
        path: the file.
        decoder_blocks: N, which the file does not say.

    Raises:
        MaclError: the file is missing, holds more than tensors, or none of the released network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MaclError(f"There is no {path}: check the path given to --init.") from None
    except Exception as error:  # broken bytes can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MaclError(
            f"{path} cannot be read as plain weights ({reason}): save the network's state_dict() "
            "alone and try again."
        ) from None
    for key in ("state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    named = {name: value for name, value in items if isinstance(value, Tensor)}
    tensors = from_authors_names(named, decoder_blocks)
    if not tensors:
        raise MaclError(
            f"{path} holds no tensor of the released MACL network "
            "(share_encoder.…, online_decoder.…)."
        )
    about = {"kind": "pretrain", "method": "macl", "dims": 2, "decoder_blocks": decoder_blocks}
    return Checkpoint(tensors, about)
