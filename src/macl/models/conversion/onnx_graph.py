"""A segmenter as an ONNX graph, for programs that know neither macl nor PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from macl.utils.errors import MaclError
from macl.utils.files import atomic_path

ABOUT = "macl"
"""The entry of the graph's metadata that holds a description as JSON."""

OLDEST_TORCH = "2.9"
"""PyTorch 2.6 fails with onnxscript 0.5 to 0.7; versions between were not tried."""


def write(path: Path, segmenter: nn.Module, shape: Sequence[int], about: Mapping[str, Any]) -> None:
    """Write a graph that maps normalised `images` (B, C, *patch) to `logits` (B, K, *patch).

    Args:
        path: the file.
        segmenter: in eval mode, on the CPU.
        shape: (C, *patch); the batch may have any size.
        about: JSON-able description, for the graph's metadata.

    Raises:
        MaclError: the packages are missing, or PyTorch is too old.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise MaclError(
            f"ONNX is written by {' and '.join(missing)}, which is not installed: run "
            "pip install 'macl[onnx]', then the same command again."
        )
    if torch.__version__ < OLDEST_TORCH:  # as versions, not as texts
        raise MaclError(
            f"ONNX is written by PyTorch {OLDEST_TORCH} or newer, and this is {torch.__version__}: "
            "run pip install 'macl[onnx]', then the same command again."
        )
    with _quiet():
        program = torch.onnx.export(
            segmenter,
            (torch.zeros(2, *shape),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[ABOUT] = json.dumps(about, ensure_ascii=False)
    with atomic_path(path) as aside:
        program.save(str(aside))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
