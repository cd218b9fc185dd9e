"""The fine-tuning task: a full U-shaped network with a head, its augmentation and its losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macl.augmentation.geometry import AXES, leaves_plane, resample, resample_labels, sampling_grid
from macl.augmentation.intensity import change_intensity
from macl.config.mistakes import validate
from macl.config.settings import (
    ArrayAxis,
    AugmentationSettings,
    FinetuneSettings,
    SelftrainSettings,
)
from macl.data.batch import Batch
from macl.data.store import Store
from macl.engine.compiling import to_device_layout
from macl.engine.task import Quantity, StepOutput, Task
from macl.io.geometry import AnatomicalAxes, array_axis
from macl.losses import soft_dice
from macl.models.layers import conv, initialise_convolutions
from macl.models.network import Network, total_stride
from macl.records.runs import WEIGHTS, RunRecord, read_record, read_weights, require_finished
from macl.tasks.networks import (
    fitted_patch,
    plugin_settings,
    require_bottleneck,
    resolve_network,
)
from macl.utils.errors import MaclError

Chosen = TypeVar("Chosen", bound=FinetuneSettings)


class Segmenter(nn.Module):
    """A network with all its decoder blocks and a convolution of kernel 1; its tensors bear the
    network's own names.

    Args:
        network: with all its decoder blocks.
        classes: number of classes, background included.
        deep_supervision: whether the decoder's coarser maps have heads too, for training.
    """

    def __init__(self, network: Network, classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        self.network = network
        *coarser, last = network.decoder_channels[1:]
        self.head = conv(network.dims, last, classes, 1).apply(initialise_convolutions)
        if deep_supervision:
            self.deep_heads = nn.ModuleList(
                conv(network.dims, channels, classes, 1) for channels in coarser
            ).apply(initialise_convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *patch), sides multiples of the total stride → logits (B, K, *patch)."""
        return self.head(self.network(images))

    def logits_by_scale(self, images: Tensor) -> list[Tensor]:
        """(B, C, *patch) → the logits of `forward` and, with deep supervision, those of the coarser
        decoder maps, finest first: (B, K, *smaller)."""
        _, *coarser, last = self.network.decode(self.network.encode(images))
        heads = self.deep_heads if self.has_deep_heads else ()
        deep = [head(maps) for head, maps in zip(heads, coarser, strict=False)]
        return [self.head(last), *reversed(deep)]

    @property
    def has_deep_heads(self) -> bool:
        """Whether the coarser decoder maps have heads."""
        return hasattr(self, "deep_heads")

    def named_state(self) -> dict[str, Tensor]:
        """The live tensors, named as in a network: `encoder.…`, `decoder.…`, `head.…`."""
        return network_names(self.state_dict())


def network_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a state without the leading `network.`."""
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


HEADS = ("head", "deep_heads")
"""The parts of a segmenter that depend on its classes."""


class SegmentationTask(Task):
    """Augment, segment, compare."""

    quantities = {
        "loss_cross_entropy": Quantity(
            "Cross-entropy", "Of the predicted classes, per voxel.", "nats"
        ),
        "loss_dice": Quantity("Soft Dice loss", "1 − soft Dice of the batch."),
        "loss_deep": Quantity(
            "Deep supervision",
            "The same losses at the decoder's coarser maps, averaged with their weights.",
        ),
    }

    def __init__(
        self,
        segmenter: Segmenter,
        settings: FinetuneSettings,
        mirror_axes: tuple[ArrayAxis, ...],
    ) -> None:
        super().__init__()
        self.segmenter, self.settings, self.mirror_axes = segmenter, settings, mirror_axes

    def step(self, batch: Batch) -> StepOutput:
        """Cross-entropy, with soft Dice where the settings say so, on an augmented view of the
        batch; with deep supervision at every scale of the decoder."""
        images, labels = self.augment(batch)
        finest, *coarser = self.segmenter.logits_by_scale(images)
        output = self.compare(finest, labels)
        if not coarser:
            return output
        deep = [self.compare(logits, at_size(labels, logits.shape[2:])).loss for logits in coarser]
        weights = [0.5 ** (number + 1) for number in range(len(deep))]
        total = torch.stack([by * each for by, each in zip(weights, deep, strict=True)]).sum()
        logged = {**output.logged, "loss_deep": total.detach() / sum(weights)}
        return StepOutput((output.loss + total) / (1 + sum(weights)), logged)

    def compare(self, logits: Tensor, labels: Tensor) -> StepOutput:
        """The loss of logits (B, K, *size) against labels (B, *size)."""
        loss = F.cross_entropy(logits.float(), labels)
        parts = {"loss_cross_entropy": loss.detach()}
        if self.settings.loss == "cross_entropy_dice":
            dice = soft_dice(logits, labels)
            parts["loss_dice"] = dice.detach()
            loss = loss + dice
        return StepOutput(loss, parts)

    def augment(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels as they are trained on; see `augment`."""
        return augment(batch, self.settings.augmentation, self.mirror_axes)


@torch.no_grad()
def augment(
    batch: Batch, settings: AugmentationSettings, mirror_axes: tuple[ArrayAxis, ...]
) -> tuple[Tensor, Tensor]:
    """Images (B, C, *patch) and labels (B, *patch) under one draw of geometry; images with a draw
    of intensity too."""
    assert batch.labels is not None
    patch = batch.images.shape[2:]
    grid = sampling_grid(batch.rng, "view", settings.spatial, patch, mirror_axes)
    images = resample(batch.images, grid, settings.spatial.interpolation)
    return change_intensity(images, batch.rng, settings.intensity), resample_labels(
        batch.labels, grid
    )


def at_size(labels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *patch) → (B, *size): the label in the middle of every block of voxels."""
    for axis, side in enumerate(size, start=1):
        block = labels.shape[axis] // side
        middles = torch.arange(block // 2, labels.shape[axis], block, device=labels.device)
        labels = labels.index_select(axis, middles)
    return labels


def mirror_axes(
    settings: FinetuneSettings, classes: tuple[str, ...], along: AnatomicalAxes
) -> tuple[ArrayAxis, ...]:
    """The axes of the patch that may be mirrored: as set, or all that do not swap classes.

    Unless they are set, oriented anatomy is not mirrored at all. If a class is called left or
    right, the left-right axis is not mirrored. Nor is another axis if the augmentation's half turns
    make the two the same: in a slice that is turned upside down, mirrored rows are mirrored
    columns.

    Args:
        settings: resolved, so that the patch is the one to train on.
        classes: names of the classes.
        along: which anatomical axes slices, rows and columns follow.

    Raises:
        MaclError: the settings name an axis that a slice lacks.
    """
    axes = AXES[-settings.dims :]
    if settings.mirror_axes != "auto":
        chosen: list[ArrayAxis] = []
        for name in settings.mirror_axes:
            axis = array_axis(name, along)
            if axis not in axes:
                raise MaclError(
                    f"mirror_axes names {name}, along which these slices have no extent: "
                    "leave it out, or train on volumes (dims=3)."
                )
            if axis not in chosen:
                chosen.append(axis)
        return tuple(chosen)
    if settings.anatomy == "oriented":
        return ()
    if not any(re.search(r"(?<![a-z])(left|right|l|r)(?![a-z])", name.lower()) for name in classes):
        return axes
    left_right = array_axis("left-right", along)
    return tuple(
        axis for axis in axes if axis != left_right and not _half_turn(settings, {axis, left_right})
    )


def _half_turn(settings: FinetuneSettings, axes: set[ArrayAxis]) -> bool:
    """Whether two views of a patch can be a half turn apart, in the plane of two axes."""
    spatial = settings.augmentation.spatial
    tilt = spatial.tilt_degrees if leaves_plane(settings.patch) else 0.0
    largest = tilt if "slice" in axes else spatial.rotation_degrees
    return spatial.deform > 0 and largest > 90


def resolve_finetuning(
    settings: Chosen, network: type[Network], spacing_mm: tuple[float, ...] | None = None
) -> Chosen:
    """Settings with the network's own filled in as a typed object, and a patch that it can take.

    Args:
        settings: as read from recipe and overrides.
        network: the plug-in that the settings name.
        spacing_mm: of the store along the patch's axes; chooses strides in 3D. None: unknown.

    Raises:
        MaclError: a setting of the network does not fit.
    """
    chosen, strides = resolve_network(
        network, settings.backbone_settings, settings.patch, spacing_mm
    )
    patch = fitted_patch(settings.patch, total_stride(strides), "the network")
    require_bottleneck(network, patch, strides)
    deep = False if settings.stage == "selftrain" else settings.deep_supervision
    return settings.with_patch(patch).model_copy(
        update={
            "backbone_settings": chosen,
            "deep_supervision": network.deep_supervision(chosen) if deep is None else deep,
        }
    )


def build_segmenter(
    settings: FinetuneSettings, network: type[Network], channels: int, classes: int
) -> Segmenter:
    """A segmenter with fresh weights."""
    chosen = plugin_settings(network, settings.backbone_settings, "backbone_settings")
    deep = bool(settings.deep_supervision)
    return Segmenter(network(chosen, channels, dims=settings.dims), classes, deep)


def fresh_segmenter(
    store: Store, settings: FinetuneSettings, network: type[Network], seed: int
) -> Segmenter:
    """A segmenter of a store's classes, with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, classes = len(store.index.channels), len(store.index.classes)
        return build_segmenter(settings, network, channels, classes)


def segmenter_settings(record: RunRecord) -> FinetuneSettings:
    """The settings of a run that trained a segmenter."""
    kind = SelftrainSettings if record.kind == "selftrain" else FinetuneSettings
    return validate(kind, record.settings)


def load_segmenter(run: Path, network: type[Network], device: torch.device) -> Segmenter:
    """The segmenter of a finished fine-tuning or self-training run, in eval mode.

    Args:
        run: the run's folder.
        network: the plug-in that the run's settings name.
        device: where to put it.

    Raises:
        MaclError: the run is not finished or has no segmenter, or its weights are missing or do not
            fit.
    """
    record = read_record(run)
    require_segmenter(run, record)
    settings = segmenter_settings(record)
    segmenter = build_segmenter(settings, network, len(record.channels), len(record.classes))
    saved = read_weights(run, record)
    own = segmenter.named_state()
    if set(saved.tensors) != set(own) or any(
        saved.tensors[name].shape != own[name].shape for name in own
    ):
        raise MaclError(f"{run / WEIGHTS} does not fit the settings in {run}: train again.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved.tensors[name])
    to_device_layout(segmenter, device)
    return segmenter.eval()


def require_segmenter(run: Path, record: RunRecord) -> None:
    """MaclError unless the run has trained a segmenter to the end."""
    if not record.is_segmenter:
        raise MaclError(
            f"{run} is a pre-training run, which has no classes: fine-tune it and name that run."
        )
    require_finished(run, record)


def segmenter_weights(state: Mapping[str, Tensor], prefix: str = "segmenter.") -> dict[str, Tensor]:
    """Those of a task's tensors whose names begin with `prefix`, as they stand in
    `weights.safetensors`."""
    return {
        segmenter_name(name.removeprefix(prefix)): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def segmenter_name(name: str) -> str:
    """The name in `weights.safetensors` of a task's tensor."""
    return name.removeprefix("segmenter.").removeprefix("network.")
