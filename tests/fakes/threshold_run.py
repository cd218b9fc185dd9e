"""A fine-tuned run whose U-Net looks at single voxels, so that the right mask of any scan is known.

Its weights pass the image through unchanged (up to BatchNorm's epsilon). The head then says class 0
below the mean of the normalised scan, class 1 up to one deviation above it, and class 2 beyond.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from macl.augmentation.geometry import AXES
from macl.config.settings import FinetuneSettings, PrepareSettings, TrainingSettings
from macl.plugins import find
from macl.records.runs import WEIGHTS, RunRecord, write_record
from macl.tasks.segmentation import Segmenter, build_segmenter, resolve_finetuning
from macl.utils import checkpoint

LABEL_VALUES = (0, 3, 9)
BRIGHTNESS = np.asarray([0, 60, 300], dtype=np.int16)


def write_threshold_run(
    folder: Path,
    *,
    size: int | tuple[int, ...] = 32,
    dims: int = 2,
    width: int = 2,
    prepared: PrepareSettings | None = None,
    **fields: Any,
) -> Path:
    """Write the run; `fields` replace those of its record."""
    settings = FinetuneSettings(
        dims=dims,  # pyright: ignore[reportArgumentType]
        backbone_settings={"width": width},
        mirror_averaging=True,
        training=TrainingSettings(size=size),
    )
    network = find("models", settings.backbone)
    settings = resolve_finetuning(settings, network)
    record = RunRecord(
        kind="finetune",
        finished=True,
        seed=0,
        device="cpu",
        versions={},
        store="store",
        store_checksum="",
        reader="folder",
        modality="MR",
        settings=settings.model_dump(mode="json"),
        channels=("image",),
        prepared=prepared or PrepareSettings(normalisation="zscore"),
        classes=("background", "ring", "core"),
        label_values=LABEL_VALUES,
        mirror_axes=AXES[-dims:],
    ).model_copy(update=fields)
    segmenter = build_segmenter(settings, network, len(record.channels), len(record.classes)).eval()
    with torch.no_grad():
        for name, tensor in segmenter.named_state().items():
            if not name.endswith(("running_var", "num_batches_tracked")):
                tensor.zero_()
        _pass_through(segmenter)
        head: Any = segmenter.head
        head.weight[1, 0], head.weight[2, 0], head.bias[2] = 1.0, 2.0, -1.0
    folder.mkdir(parents=True)
    write_record(folder, record)
    checkpoint.write(folder / WEIGHTS, segmenter.named_state(), {"kind": "finetune"})
    return folder


def _pass_through(segmenter: Segmenter) -> None:
    """Send channel 0 of the image along the topmost skip connection."""
    network: Any = segmenter.network
    finest, last = network.encoder.levels[0], network.decoder.blocks[-1].convolutions
    middle = (1,) * network.dims
    for block, source in ((finest, 0), (last, finest[0].out_channels)):
        for module in block:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight[0] = 1.0
        block[0].weight[(0, source, *middle)] = 1.0
        block[3].weight[(0, 0, *middle)] = 1.0


def known_case(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image (z, y, x) and its label in `LABEL_VALUES`, with nothing symmetric about it."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.uint8)
    for value, share in ((1, 0.6), (2, 0.35)):
        start = [int(random.integers(0, max(1, int(side * 0.3)))) for side in shape]
        box = (
            slice(a, a + max(1, int(side * share))) for a, side in zip(start, shape, strict=True)
        )
        label[tuple(box)] = value
    return BRIGHTNESS[label], np.asarray(LABEL_VALUES, dtype=np.uint8)[label]
