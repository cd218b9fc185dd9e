"""The released MACL program's tensors and our U-Net's, renamed into each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError

_LEVELS = 4


def _names() -> Iterator[tuple[str, str]]:
    """How names begin there, and here."""
    for level in range(1, _LEVELS + 1):
        block = _LEVELS - level
        yield f"online_decoder.upscale{level + 1}.", f"decoder.blocks.{block}.up."
        for number, first in ((1, 0), (2, 3)):
            for part in (0, 1):
                own = f"{first + part}."
                yield (
                    f"share_encoder.contr_{level}_{number}.{part}.",
                    (f"encoder.levels.{level - 1}.{own}"),
                )
                yield (
                    f"online_decoder.expand_{level}_{number}.{part}.",
                    (f"decoder.blocks.{block}.convolutions.{own}"),
                )
    for part in (0, 2):
        yield f"share_encoder.center.{part}.", f"encoder.centre.{part}."


_OURS = dict(_names())
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def from_authors_names(tensors: Mapping[str, Tensor], decoder_blocks: int) -> dict[str, Tensor]:
    """Rename the authors' tensors to our U-Net: the encoder and the trained decoder blocks.

    Args:
        tensors: the released network's state, with or without a leading `module.`.
        decoder_blocks: N; the release saves all four blocks, but trains the deepest N alone.
    """
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in _renamed(bare, _OURS).items()
        if not name.startswith("decoder.") or int(name.split(".")[2]) < decoder_blocks
    }


def to_authors_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of our U-Net in 2D with four poolings to the authors' network."""
    return _renamed(tensors, _THEIRS)


def _renamed(tensors: Mapping[str, Tensor], beginnings: Mapping[str, str]) -> dict[str, Tensor]:
    """Those tensors whose names begin as stated, with the other beginning."""
    renamed = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if f"{stem}." in beginnings:
            renamed[beginnings[f"{stem}."] + kind] = tensor
    return renamed


def authors_checkpoint(content: Any, path: Path, decoder_blocks: int) -> Checkpoint:
    """What a weights file of the authors' program holds, under our names.

    Args:
        content: of the file.
        path: the file, for messages.
        decoder_blocks: N, which the file does not say.

    Raises:
        MaclError: it holds nothing of the released network.
    """
    for key in ("state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    named = {name: value for name, value in items if isinstance(value, Tensor)}
    tensors = from_authors_names(named, decoder_blocks)
    if not tensors:
        raise MaclError(
            f"{path} holds no tensor of the released MACL network "
            "(share_encoder.…, online_decoder.…), no checkpoint of nnU-Net (network_weights), and "
            "no DynUNet of MONAI's (input_block.…)."
        )
    about = {"kind": "pretrain", "method": "macl", "dims": 2, "decoder_blocks": decoder_blocks}
    return Checkpoint(tensors, about)
