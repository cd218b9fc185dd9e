"""A finished run → the segmenter that it trained, ready to predict."""

from __future__ import annotations

from pathlib import Path

from macl.engine.precision import predicts_in_bf16
from macl.engine.trainer import make_fabric
from macl.inference.sliding_window import SegmenterMember
from macl.models.network import Network
from macl.records.runs import RunRecord
from macl.tasks.segmentation import load_segmenter, segmenter_settings


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
    settings = segmenter_settings(record)
    place = make_fabric(device, "fp32").device
    segmenter = load_segmenter(run, network, place)
    mirror_axes = record.mirror_axes if settings.mirror_averaging else ()
    bf16 = predicts_in_bf16(settings.training.precision, place.type)
    return SegmenterMember(segmenter, settings.patch, mirror_axes, bf16)
