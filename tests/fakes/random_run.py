"""A finished run with weights drawn at random, for whatever needs features but no training."""

from __future__ import annotations

from pathlib import Path

import torch

from fakes.threshold_run import write_threshold_run
from macl.data.store import Store
from macl.plugins import find
from macl.records.runs import WEIGHTS, read_record
from macl.tasks.segmentation import build_segmenter, segmenter_settings
from macl.utils import checkpoint


def write_random_run(
    folder: Path, store: Store, *, size: int | tuple[int, ...], dims: int = 2
) -> Path:
    """Write a segmenter of width 4 that fits the store; its running statistics are random too."""
    write_threshold_run(
        folder, size=size, dims=dims, width=4, prepared=store.index.prepared,
        channels=store.index.channels,
    )  # fmt: skip
    record = read_record(folder)
    network = find("models", record.settings["backbone"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        segmenter = build_segmenter(
            segmenter_settings(record), network, len(record.channels), len(record.classes)
        )
        for name, tensor in segmenter.named_state().items():
            if name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape) / 4)
    checkpoint.write(folder / WEIGHTS, segmenter.named_state(), {"kind": "finetune"})
    return folder
