"""The fine-tuning task: a full U-shaped network with a head, its augmentation and its losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macl import checkpoint
from macl.acceleration import lay_out
from macl.config import FinetuneSettings, validate
from macl.data.runs import WEIGHTS, RunRecord, read_record
from macl.errors import MaclError
from macl.heads import initialise_convolutions
from macl.losses import soft_dice
from macl.plugins import Backbone, BackboneModule, Batch, Step
from macl.views import change_intensity, resample, resample_labels, sampling_grid

Axis = Literal["row", "column"]


class Segmenter(nn.Module):
    """A backbone with all its decoder blocks and a 1×1 convolution; its tensors bear the backbone's own names."""

    def __init__(self, backbone: BackboneModule, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.channels[0], classes, 1).apply(initialise_convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), sides multiples of 16 → logits (B, K, H, W)."""
        return self.head(self.backbone(images))

    def named_state(self) -> dict[str, Tensor]:
        """The live tensors, named as in a backbone: `encoder.…`, `decoder.…`, `head.…`."""
        return backbone_names(self.state_dict())


def backbone_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a state without the leading `backbone.`."""
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


class SegmentationTask(nn.Module):
    """Augment, segment, compare."""

    def __init__(self, segmenter: Segmenter, settings: FinetuneSettings, mirror_axes: tuple[Axis, ...]) -> None:
        super().__init__()
        self.segmenter, self.settings, self.mirror_axes = segmenter, settings, mirror_axes

    def step(self, batch: Batch) -> Step:
        """Cross-entropy, with soft Dice where the settings say so, on an augmented view of the batch."""
        assert batch.labels is not None
        images, labels = self.augment(batch)
        logits = self.segmenter(images)
        cross_entropy = F.cross_entropy(logits.float(), labels)
        parts = {"loss_cross_entropy": cross_entropy.detach()}
        loss = cross_entropy
        if self.settings.loss == "cross_entropy_dice":
            dice = soft_dice(logits, labels)
            parts["loss_dice"] = dice.detach()
            loss = loss + dice
        return Step(loss, parts)

    @torch.no_grad()
    def augment(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) and labels (B, S, S) under one draw of geometry; images with a draw of intensity too."""
        assert batch.labels is not None
        settings = self.settings.augmentation
        rows, columns = batch.images.shape[-2:]
        grid = sampling_grid(batch.draws, "view", settings.spatial, rows, columns, self.mirror_axes)
        images = resample(batch.images, grid, settings.spatial.interpolation)
        return change_intensity(images, batch.draws, settings.intensity), resample_labels(batch.labels, grid)


def mirror_axes(settings: FinetuneSettings, classes: tuple[str, ...], plane: str) -> tuple[Axis, ...]:
    """The axes that may be mirrored: as set, or both, but not one that would swap a left and a right class.

    In axial and coronal slices left and right lie along the columns; in sagittal ones they lie across the slices. Where
    slices are turned upside down too, mirrored rows would amount to mirrored columns.
    """
    if settings.mirror_axes != "auto":
        return settings.mirror_axes
    sided = any(re.search(r"(?<![a-z])(left|right|l|r)(?![a-z])", name.lower()) for name in classes)
    if not sided or plane == "sagittal":
        return ("row", "column")
    spatial = settings.augmentation.spatial
    return () if spatial.deform > 0 and spatial.rotation_degrees > 90 else ("row",)


def build_segmenter(settings: FinetuneSettings, backbone: Backbone, channels: int, classes: int) -> Segmenter:
    """A segmenter with fresh weights."""
    chosen = validate(backbone.Settings, settings.backbone_settings, where="backbone_settings")
    return Segmenter(backbone.build(chosen, channels), classes)


def load_segmenter(run: Path, backbone: Backbone, device: torch.device) -> Segmenter:
    """The segmenter of a finished fine-tuning run, in eval mode.

    Args:
        run: the run's folder.
        backbone: the plug-in that the run's settings name.
        device: where to put it.

    Raises:
        MaclError: the run is not a finished fine-tuning run, or its weights are missing or do not fit.
    """
    record = read_record(run)
    require_segmenter(run, record)
    settings = validate(FinetuneSettings, record.settings)
    segmenter = build_segmenter(settings, backbone, len(record.channels), len(record.classes))
    saved = checkpoint.read(run / WEIGHTS)
    own = segmenter.named_state()
    if set(saved.tensors) != set(own) or any(saved.tensors[name].shape != own[name].shape for name in own):
        raise MaclError(f"{run / WEIGHTS} does not fit the settings in {run}: train again.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved.tensors[name])
    lay_out(segmenter, device)
    return segmenter.eval()


def require_segmenter(run: Path, record: RunRecord) -> None:
    """MaclError unless the run is a finished fine-tuning run."""
    if record.kind != "finetune":
        raise MaclError(f"{run} is a pre-training run, which has no classes: fine-tune it and name that run.")
    if not record.finished:
        raise MaclError(f"{run} is not finished: go on with `macl finetune … --out {run} --resume`.")


def weights_to_write(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A task's tensors as they stand in `weights.safetensors`."""
    prefix = "segmenter."
    return backbone_names({name.removeprefix(prefix): tensor for name, tensor in state.items()})
