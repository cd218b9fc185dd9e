"""An array file from somebody else, with a function that Blosc2 would run as it opens the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np

FUNCTION = """
np.savetxt({target!r}, np.zeros(1))
def crafted(inputs, output, offset):
    output[:] = 1
"""


def write_array_that_runs(file: Path, like: np.ndarray, target: Path) -> None:
    """Write an array like another, with the function of a lazy array, which would write a file.

    Blosc2 4.0 runs it as the file is opened, and some other versions as it is read.
    """
    meta: dict[str, Any] = {"LazyArray": 1}
    file.unlink(missing_ok=True)
    values: Any = like
    crafted: Any = blosc2.asarray(values, urlpath=str(file), mode="w", meta=meta)
    crafted.schunk.vlmeta["_LazyArray"] = {
        "name": "crafted",
        "UDF": FUNCTION.format(target=str(target)),
        "operands": {},
    }
