"""Weights files of other programs, recognised by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from macl.models.conversion import pickled
from macl.models.conversion.macl_release import authors_checkpoint
from macl.models.conversion.monai import monai_checkpoint
from macl.models.conversion.nnunet import NETWORK_WEIGHTS, nnunet_checkpoint
from macl.utils.checkpoint import Checkpoint


def read_foreign(path: Path, decoder_blocks: int) -> Checkpoint:
    """Read a checkpoint of nnU-Net or nnssl, or weights of MONAI's DynUNet or of MACL's authors
    (`.pth`, `.pt`), tensors only.

    Args:
        path: the file.
        decoder_blocks: N of an authors' file, which does not say.

    Raises:
        MaclError: the file is missing, holds more than tensors and plain values, or none of these
            networks.
    """
    content = pickled.read(path)
    if isinstance(content, Mapping) and isinstance(content.get(NETWORK_WEIGHTS), Mapping):
        return nnunet_checkpoint(content, path)
    return monai_checkpoint(content, path) or authors_checkpoint(content, path, decoder_blocks)
