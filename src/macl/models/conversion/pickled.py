"""The weights files of other programs, which are pickles: tensors and plain values, nothing that
runs.

macl's own files are never pickles. Here alone one is written, for programs that read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from macl.utils.errors import MaclError
from macl.utils.files import atomic_path

_SCALAR = np.array(0.0)[()].__reduce__()[0]
_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""NumPy's numbers, which nnU-Net logs into its checkpoints."""


def read(path: Path) -> Any:
    """Read what a file holds beyond code: tensors, numbers, text, lists and mappings.

    Raises:
        MaclError: the file is missing or broken, or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MaclError(f"There is no {path}: check the path given to --init.") from None
    except Exception as error:  # broken bytes can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MaclError(
            f"{path} cannot be read as plain weights ({reason}): save the network's state_dict() "
            "alone and try again."
        ) from None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values as `torch.save` does, atomically."""
    with atomic_path(path) as aside:
        torch.save(dict(content), aside)
