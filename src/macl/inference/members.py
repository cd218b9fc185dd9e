"""Finished runs → the segmenters that they trained, ready to predict together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from macl.engine.precision import predicts_in_bf16
from macl.engine.trainer import make_fabric
from macl.inference.scans import prepared_settings
from macl.inference.sliding_window import SegmenterMember
from macl.models.network import Network
from macl.records.runs import RunRecord, read_record
from macl.tasks.segmentation import load_segmenter, require_segmenter, segmenter_settings
from macl.utils.errors import MaclError


def read_members(runs: Sequence[Path]) -> list[RunRecord]:
    """Read the records of an ensemble's runs.

    Raises:
        MaclError: one is not a finished segmenter, or they do not fit each other.
    """
    records = [read_record(run) for run in runs]
    first = records[0]
    for run, record in zip(runs, records, strict=True):
        require_segmenter(run, record)
        for what, ours, theirs in (
            (
                "classes",
                (record.classes, record.label_values),
                (first.classes, first.label_values),
            ),
            ("channels", record.channels, first.channels),
            (
                "settings of prepare",
                prepared_settings(record.prepared),
                prepared_settings(first.prepared),
            ),
        ):
            if ours != theirs:
                raise MaclError(
                    f"{run} and {runs[0]} differ in their {what}, so they cannot be averaged: "
                    f"{ours}, {theirs}."
                )
    return records


def load_member(
    run: Path, record: RunRecord, network: type[Network], device: str
) -> SegmenterMember:
    """The segmenter of a run, with its windows, mirror axes and precision.

    It computes in bf16 where the device has it, unless the run was told to be in fp32.

    Args:
        run: the run's folder.
        record: the run's.
        network: the plug-in that its settings name.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        MaclError: as for `load_segmenter`, or there is no such device.
    """
    return place_member(run, record, network, make_fabric(device, "fp32").device)


def place_member(
    run: Path, record: RunRecord, network: type[Network], device: torch.device
) -> SegmenterMember:
    """As `load_member`, on a device that is chosen already."""
    settings = segmenter_settings(record)
    segmenter = load_segmenter(run, network, device)
    mirror_axes = record.mirror_axes if settings.mirror_averaging else ()
    bf16 = predicts_in_bf16(settings.training.precision, device.type)
    return SegmenterMember(segmenter, settings.patch, mirror_axes, bf16)
