"""Weights and training state on disk: safetensors with a JSON description in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from macl.utils.errors import MaclError, listed
from macl.utils.failures import cannot
from macl.utils.files import atomic_path

DIGEST = "sha256"
"""The entry of the description that holds the checksum of all else."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and the description that was saved with them."""

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description to one file, atomically."""
    ready = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    described = {**about, DIGEST: _digest(ready, about)}
    # One entry, since safetensors writes several in any order.
    metadata = {"macl": json.dumps(described, allow_nan=False)}
    with atomic_path(path) as aside:
        aside.write_bytes(save(ready, metadata=metadata))


def read(path: Path) -> Checkpoint:
    """Read a file that `write` wrote.

    Raises:
        MaclError: it is missing, broken, changed since, or was not written by macl.
    """
    try:
        # The library says of a file that may not be read that it is not there.
        path.open("rb").close()
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("macl", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MaclError(f"There is no {path}: check the path, or train first.") from None
    except PermissionError as error:
        raise MaclError(cannot("read", path, error)) from None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise MaclError(f"{path} cannot be read as weights ({error}): train again.") from None
    if not isinstance(about, dict):
        raise MaclError(
            f"{path} was not written by macl: name a run, a weights file of macl, or the MACL "
            "authors' .pth file."
        )
    digest = about.pop(DIGEST, None)
    if digest is not None and digest != _digest(tensors, about):
        raise MaclError(f"{path} has changed since it was written: restore it, or train again.")
    return Checkpoint(tensors, about)


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 over a description, and every tensor's name, type, shape and values."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with values that are not numbers.

    Raises:
        MaclError: `path` names the file in the message.
    """
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise MaclError(
            f"The weights of {path} hold NaN or infinity ({listed(broken)}), so that nothing can "
            "be computed with them: train again, with a lower training.learning_rate or with "
            "training.precision=fp32."
        )
