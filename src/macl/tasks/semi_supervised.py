"""Self-training: a slowly moving copy of the segmenter labels unlabelled patches.

    labelled x, y      ── view ─────────────── segmenter θ ── CE + Dice against y          ╮
    unlabelled u       ── view, box of u' ──── segmenter θ ── CE + Dice where confident ── ┴ loss
               ╰─ as it is ── teacher θ' ── the same view ──╯

The teacher is θ' ← α·θ' + (1 − α)·θ, running statistics included, and is what a run keeps
(Tarvainen & Valpola 2017, arXiv 1703.01780). It sees the patch as prediction does; its
probabilities are moved like the student's view, and mixed like it, box by box, with those of
another patch (CutMix; French et al. 2020, arXiv 1906.01916). Voxels of which it is not sure do not
count (FixMatch; UniMatch, arXiv 2208.09910); the limit can follow each class's mean confidence
(FreeMatch, arXiv 2205.07246).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from macl.augmentation.geometry import resample, resample_labels, sampling_grid
from macl.augmentation.intensity import change_intensity
from macl.augmentation.regions import random_box
from macl.config.settings import ArrayAxis, SelftrainSettings
from macl.data.batch import Batch
from macl.distributed import collectives
from macl.engine.task import Quantity, StepOutput
from macl.losses import soft_dice
from macl.models.heads import kept_uncompiled, momentum_copy
from macl.tasks.segmentation import SegmentationTask, Segmenter
from macl.utils.progress import warn

UNSURE = 255
"""In pseudo-labels, a voxel of which their teacher was not sure."""

BOX_SIDES = (0.25, 0.75)
"""The least and the largest side of a box that shows another patch, as a share of the patch's."""

CONFIDENCE_MEMORY = 0.02
"""Weight of a step in the running means of the teacher's confidence and class proportions."""

VANISHED = 0.05
"""A class has vanished where the teacher predicts less than this share of the labels' voxels."""

FOREGROUND_FACTOR = 3.0
"""How far the teacher's share of foreground may be from that of the labels before a warning."""


class Taught(NamedTuple):
    """A view of unlabelled patches and what the teacher says of it.

    Attributes:
        images: (B, C, *patch).
        labels: (B, *patch) int64, the most probable classes.
        confidence: (B, *patch), their probabilities; 0 outside the patch.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor


class SelfTrainingTask(SegmentationTask):
    """Supervised on the labelled patches of a batch, taught on the others.

    What teaches is up to `MeanTeacherTask` and `NoisyStudentTask`. Both keep the moving average of
    the segmenter.

    Args:
        segmenter: the student, with the weights it starts from.
        settings: of the run.
        mirror_axes: axes that views are mirrored along.
        classes: names of the classes, background first.
        follows_fast: whether the average follows the segmenter faster at first, since nothing of
            worth is in it yet.
    """

    teacher_shares: Tensor
    label_shares: Tensor
    confidences: Tensor

    def __init__(
        self,
        segmenter: Segmenter,
        settings: SelftrainSettings,
        mirror_axes: tuple[ArrayAxis, ...],
        classes: tuple[str, ...],
        *,
        follows_fast: bool,
    ) -> None:
        super().__init__(segmenter, settings, mirror_axes)
        self.selftraining, self.classes = settings, classes
        self.follows_fast = follows_fast
        self.teacher = momentum_copy(segmenter)
        for name in ("teacher_shares", "label_shares", "confidences"):
            self.register_buffer(name, torch.zeros(len(classes)))
        shared = {
            name: quantity
            for name, quantity in SegmentationTask.quantities.items()
            if name != "loss_deep"
        }
        self.quantities = {**shared, **_quantities(classes)}

    def train(self, mode: bool = True) -> SelfTrainingTask:
        """The teacher always predicts as a finished segmenter does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def step(self, batch: Batch) -> StepOutput:
        """Move the teacher, then one pass over labelled and unlabelled views together."""
        self._move_teacher(batch.rng.step)
        with_label, without = self.selftraining.patches_per_step
        count = len(batch.images) * with_label // (with_label + without)
        images, labels = self.augment(batch.rows(slice(count)))
        taught = self.teach(batch.rows(slice(count, None)))
        logits = self.segmenter(torch.cat((images, taught.images)))
        supervised = self.compare(logits[:count], labels)
        counted = self._counted(taught, batch.rng.step)
        unlabelled = self._taught_loss(logits[count:], taught.labels, counted)
        weight = _ramped(self.selftraining, batch.progress, unlabelled.device)
        logged = {
            **supervised.logged,
            "loss_unlabelled": unlabelled.detach(),
            "unlabelled_weight": weight,
            **self._diagnosed(logits[count:], labels, taught, counted, batch.rng.step),
        }
        return StepOutput(supervised.loss + weight * unlabelled, logged)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Taught:
        """The student's view of unlabelled patches, with the teacher's labels of it."""
        spatial = self.selftraining.augmentation.spatial
        patch = batch.images.shape[2:]
        grid = sampling_grid(batch.rng, "view", spatial, patch, self.mirror_axes)
        images = resample(batch.images, grid, spatial.interpolation)
        images = change_intensity(images, batch.rng, self.selftraining.augmentation.intensity)
        labels, confidence = self.labels_at(grid, batch)
        return self._mixed(batch, Taught(images, labels, confidence))

    @abstractmethod
    def labels_at(self, grid: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels of unlabelled patches at a grid of places, and the confidence in them.

        Returns:
            (B, *patch) int64 and float32; the confidence is 0 outside the patch.
        """

    def _mixed(self, batch: Batch, taught: Taught) -> Taught:
        """A box of some patches shows what the next patch of the whole batch has there."""
        box = random_box(batch.rng, batch.images.shape[2:], BOX_SIDES)
        chosen = batch.rng.chance("box", self.selftraining.cutmix)
        box = box & chosen.reshape(-1, *(1,) * (box.ndim - 1))
        images, labels, confidence = (
            torch.where(
                box[:, None] if own.ndim > box.ndim else box,
                collectives.local_shard(collectives.all_gather(own).roll(-1, 0)),
                own,
            )
            for own in taught
        )
        return Taught(images, labels, confidence)

    def _counted(self, taught: Taught, step: int | Tensor) -> Tensor:
        """(B, *patch) bool, the voxels of which the teacher is sure."""
        limit, inside = self.selftraining.confidence, taught.confidence > 0
        if not self.selftraining.adapt_confidence:
            return inside & (taught.confidence >= limit)
        voxels = self._per_class(taught.labels, inside)
        sums = self._per_class(taught.labels, taught.confidence)
        voxels, sums = collectives.all_reduce_sum(torch.stack((voxels, sums)))
        means = torch.where(voxels > 0, sums / voxels.clamp(min=1), self.confidences)
        # A class that is seen for the first time starts at its own mean.
        self.confidences.copy_(torch.where(self.confidences > 0, self.confidences, means))
        _follow(self.confidences, means, step)
        limits = limit * self.confidences / self.confidences.max().clamp(min=1e-6)
        return inside & (taught.confidence >= limits[taught.labels])

    def _per_class(self, labels: Tensor, values: Tensor) -> Tensor:
        """(K,) float32, the values (B, *patch) added up over the voxels of each class."""
        sums = torch.zeros(len(self.classes), device=labels.device)
        return sums.index_add_(0, labels.flatten(), values.flatten().float())

    def _drawn_evenly(self, labels: Tensor) -> Tensor:
        """(B, *patch) bool, the labelled patches that were not chosen for showing a class."""
        count, _ = self.selftraining.patches_per_step
        evenly = max(1, count - round(count * self.selftraining.foreground_share))
        chosen = collectives.local_shard(torch.arange(count, device=labels.device)) < evenly
        return chosen[: len(labels)].reshape(-1, *(1,) * (labels.ndim - 1)).expand_as(labels)

    def _taught_loss(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """As on labelled patches, over the voxels that count; cross-entropy is the mean over all,
        so that it grows with their share."""
        per_voxel = F.cross_entropy(logits.float(), labels, reduction="none")
        loss = (per_voxel * counted).mean()
        if self.selftraining.loss == "cross_entropy_dice":
            loss = loss + soft_dice(logits, labels, counted)
        return loss

    @torch.no_grad()
    def _diagnosed(
        self, logits: Tensor, truth: Tensor, taught: Taught, counted: Tensor, step: int | Tensor
    ) -> Mapping[str, Tensor]:
        labels, inside = taught.labels, taught.confidence > 0
        student = logits.argmax(1)
        structure = inside & ((student > 0) | (labels > 0))
        agreed = structure & (student == labels)
        sums = torch.cat(
            (
                self._per_class(truth, self._drawn_evenly(truth)),
                self._per_class(labels, torch.ones_like(inside)),
                self._per_class(labels, inside),
                self._per_class(labels, counted),
                torch.stack((agreed.sum(), structure.sum())).float(),
            )
        )
        count = len(self.classes)
        of_labels, of_teacher, known, sure, (both, either) = collectives.all_reduce_sum(sums).split(
            (count, count, count, count, 2)
        )
        # Places outside the scan are background in the labels, and so they are in the teacher's.
        _follow(self.label_shares, of_labels / of_labels.sum(), step)
        _follow(self.teacher_shares, of_teacher / of_teacher.sum(), step)
        confident = sure / known.clamp(min=1)
        ratios = self.teacher_shares / self.label_shares.clamp(min=1e-9)
        return {
            "agreement": both / either.clamp(min=1),
            **{f"confident_{k}": confident[k].clone() for k in range(len(self.classes))},
            **{f"proportion_{k}": ratios[k].clone() for k in range(1, len(self.classes))},
        }

    @kept_uncompiled
    @torch.no_grad()
    def _move_teacher(self, step: int | Tensor) -> None:
        """θ' ← α·θ' + (1 − α)·θ, of the weights and the running statistics."""
        own, towards = (
            [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
            for module in (self.teacher, self.segmenter)
        )
        # Kept on the device, where the host would have to wait for it.
        share = torch.full((), 1.0 - self.selftraining.teacher_decay, device=own[0].device)
        if self.follows_fast:
            share = share.maximum(9.0 / (10.0 + torch.as_tensor(step, device=share.device)))
        moves = torch._foreach_sub(towards, own)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(moves, share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(own, moves)  # pyright: ignore[reportPrivateImportUsage]


class MeanTeacherTask(SelfTrainingTask):
    """The moving average itself labels unlabelled patches, step by step."""

    def labels_at(self, grid: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The most probable classes, and their probabilities."""
        probabilities = self.teacher(batch.images).float().softmax(1)
        confidence, labels = resample(probabilities, grid, "bilinear").max(1)
        return labels, confidence


class NoisyStudentTask(SelfTrainingTask):
    """Unlabelled patches bring the labels of a finished run (Xie et al. 2020, arXiv 1911.04252)."""

    def labels_at(self, grid: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The patches' own labels; the confidence is 0 where they are `UNSURE`, else 1."""
        assert batch.labels is not None
        given = resample_labels(torch.where(batch.labels == UNSURE, 0, batch.labels + 1), grid)
        return (given - 1).clamp(min=0), (given > 0).float()


def _follow(mean: Tensor, value: Tensor, step: int | Tensor) -> None:
    """Move a running mean towards a step's value; at first it is the plain mean."""
    weight = 1.0 / (1.0 + torch.as_tensor(step, device=mean.device, dtype=torch.float32))
    mean.lerp_(value, weight.clamp(min=CONFIDENCE_MEMORY))


@kept_uncompiled
def _ramped(settings: SelftrainSettings, done: float, device: torch.device) -> Tensor:
    """The unlabelled weight at a share of the run: w · exp(−5 (1 − done / ramp)²), then w."""
    rest = max(0.0, 1.0 - done / settings.ramp) if settings.ramp else 0.0
    return torch.full((), settings.unlabelled_weight * math.exp(-5.0 * rest**2), device=device)


def _quantities(classes: tuple[str, ...]) -> dict[str, Quantity]:
    confident = {
        f"confident_{k}": Quantity(
            f"Confident, {name}",
            "Share of the unlabelled voxels to which the teacher gives this class that count.",
        )
        for k, name in enumerate(classes)
    }
    proportions = {
        f"proportion_{k}": Quantity(
            f"Proportion, {name}",
            "The class's share of the teacher's predictions over its share of the labels, both as "
            "running means over patches drawn evenly; 1 where they are alike, towards 0 where the "
            "class vanishes.",
        )
        for k, name in enumerate(classes)
        if k
    }
    return {
        "loss_unlabelled": Quantity(
            "Unlabelled loss",
            "Against the teacher, over the voxels of which it is sure; before its weight.",
        ),
        "unlabelled_weight": Quantity("Unlabelled weight", "Of the unlabelled loss in the loss."),
        "agreement": Quantity(
            "Agreement",
            "Of the unlabelled voxels that student or teacher call a structure, the share to which "
            "both give the same class.",
        ),
        **confident,
        **proportions,
    }


class ProportionWatch:
    """Warns, once each, of classes that vanish and of a share of foreground far from the labels'.

    Args:
        task: its running means are watched.
        steps: of the whole run; not watched before the unlabelled weight is at its height.
    """

    def __init__(self, task: SelfTrainingTask, steps: int) -> None:
        self.task, self.from_step = task, round(task.selftraining.ramp * steps)
        self.warned: set[str] = set()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the running means at a step."""
        if step < self.from_step:
            return
        taught, labelled = self.task.teacher_shares.tolist(), self.task.label_shares.tolist()
        for name, of_teacher, of_labels in zip(
            self.task.classes[1:], taught[1:], labelled[1:], strict=True
        ):
            if of_teacher < VANISHED * of_labels:
                self._warn(name, f"{name} vanishes", of_teacher, of_labels, step)
        foreground, wanted = 1.0 - taught[0], 1.0 - labelled[0]
        if not wanted / FOREGROUND_FACTOR <= foreground <= wanted * FOREGROUND_FACTOR:
            much = "little" if foreground < wanted else "much"
            self._warn("", f"too {much} of it is foreground", foreground, wanted, step)

    def _warn(self, key: str, what: str, of_teacher: float, of_labels: float, step: int) -> None:
        if key in self.warned:
            return
        self.warned.add(key)
        warn(
            f"Warning: at step {step}, in what the teacher predicts, {what} ({of_teacher:.2%} of "
            f"the voxels, {of_labels:.2%} in the labels): the run may be collapsing. Start from a "
            "fine-tuned run, train longer, or lower unlabelled_weight."
        )
