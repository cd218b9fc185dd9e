"""Weights and training state on disk: safetensors with a JSON description in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from macl.utils.errors import MaclError
from macl.utils.failures import cannot
from macl.utils.files import atomic_path


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
    with atomic_path(path) as aside:
        aside.write_bytes(save(ready, metadata={"macl": json.dumps(about, allow_nan=False)}))


def read(path: Path) -> Checkpoint:
    """Read a file that `write` wrote.

    Raises:
        MaclError: it is missing, broken, or was not written by macl.
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
    if about is None:
        raise MaclError(
            f"{path} was not written by macl: name a run, a weights file of macl, or the MACL "
            "authors' .pth file."
        )
    return Checkpoint(tensors, about)
