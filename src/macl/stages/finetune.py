"""store + a few labels → segmenter, from pre-trained weights or from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from macl.config.settings import FinetuneSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import EpochSampler, find_class_voxels
from macl.data.store import Store
from macl.data.windows import select_volumes
from macl.distributed.collectives import all_reduce_sum
from macl.distributed.launch import process_group
from macl.engine.precision import computes_in_bf16
from macl.engine.run import TrainingKeywords, TrainingRun
from macl.engine.trainer import Validation
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.plugins import find
from macl.records.runs import RunRecord
from macl.tasks.networks import require_values_to_normalise
from macl.tasks.run_settings import NETWORK_SETTINGS
from macl.tasks.segmentation import (
    SegmentationTask,
    Segmenter,
    segmenter_weights,
)
from macl.tasks.segmenter_run import Arguments, record_transfer, resolve_start, start_segmenter
from macl.utils.files import AnyPath
from macl.utils.progress import say
from macl.utils.text import printable

DEFAULT_RECIPE = "strong"


@process_group()
def finetune(
    store: AnyPath | None,
    out: AnyPath,
    *,
    init: AnyPath | None,
    labels: str | int | None,
    split: AnyPath | None = None,
    encoder_only: bool = False,
    init_decoder_blocks: int = 2,
    **options: Unpack[TrainingKeywords],
) -> RunRecord:
    """Fine-tune a segmenter on the labelled cases of a budget.

    The network and its dimensions are those of `init`, unless recipe or overrides name others.

    Args:
        store: folder made by `prepare`; None, here as for init, split and labels: that of the run
            to resume.
        out: the run's folder.
        init: "scratch", a training run, or a weights file (of macl, or the MACL authors' `.pth`).
        labels: name of a label budget of the split, or "all".
        split: split file or name; None with the labels "all": everybody trains and nobody tests.
        encoder_only: accept an init without decoder blocks.
        init_decoder_blocks: trained decoder blocks in an authors' file, which does not say.
        options: `recipe` (None: strong), `overrides`, `device`, `seed`, `resume`, `inherit` and
            `allow_overlap` (accept weights that were pre-trained on test people); see
            `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split, the init or the folder does not fit.
    """
    out = Path(out)
    arguments = Arguments(store, init, split, labels, init_decoder_blocks=init_decoder_blocks)
    start = resolve_start(out, FinetuneSettings, arguments, options, DEFAULT_RECIPE)
    opened, settings = start.store, start.settings
    with TrainingRun(opened, out, settings, start.split, start.options) as run:
        assert run.resolved is not None
        network = find("models", settings.backbone)
        segmenter, axes, transfer = start_segmenter(run, start, network, encoder_only=encoder_only)
        task = SegmentationTask(segmenter, settings, axes)
        cases = run.resolved.labelled_cases(start.labels)
        patches = select_volumes(opened, cases).samples_per_epoch(settings.patch)
        batch_size = min(settings.training.batch_size, patches)
        require_values_to_normalise(batch_size, settings.patch, segmenter.network.strides)
        record = run.open(
            task,
            cases,
            patches,
            recipe=start.recipe,
            labels=start.labels,
            validation_cases=run.resolved.validation_cases,
            leaves_unlabelled=bool(run.resolved.unlabelled_cases(start.labels)),
            init=printable(start.weights.name),
            init_patients=start.weights.patients,
            mirror_axes=axes,
        )
        if record.finished:
            return record
        record_transfer(run, start, transfer)
        return _train(run, settings, task)


def _train(run: TrainingRun, settings: FinetuneSettings, task: SegmentationTask) -> RunRecord:
    store, record, fabric = run.store, run.record, run.fabric
    cache = PatchCache(store, record.cases, labelled=True, device=fabric.device)
    share = settings.foreground_share
    sampler = EpochSampler(
        cache.volumes,
        settings.patch,
        settings.training.batch_size,
        record.seed,
        share,
        find_class_voxels(store, cache.volumes) if share else None,
    )
    loader = Loader(cache, sampler, fabric.global_rank, fabric.world_size)
    validation = None
    if record.validation_cases:
        score = ValidationScore(store, record, settings, task.segmenter, fabric)
        validation = Validation(score)
    trained = run.train("Segmenter", task, loader, validation=validation)
    network = {name: record.settings[name] for name in NETWORK_SETTINGS}
    about = {"kind": "finetune", "channels": record.channels, "classes": record.classes, **network}
    finished = run.finish(segmenter_weights(trained.tensors), about, trained)
    say(f"The segmenter is in {run.folder}.")
    return finished


class ValidationScore:
    """Mean Dice over the validation cases, which the processes share.

    Of a case, the mean over the classes, except background, that its label or its prediction shows.

    Args:
        store: where the cases are.
        record: the run's, with its validation cases.
        settings: of the run.
        segmenter: to score as it is, in eval mode.
        fabric: device and processes.
    """

    def __init__(
        self,
        store: Store,
        record: RunRecord,
        settings: FinetuneSettings,
        segmenter: Segmenter,
        fabric: Fabric,
    ) -> None:
        self.store, self.segmenter = store, segmenter
        self.classes, self.count = len(record.classes), len(record.validation_cases)
        self.cases = record.validation_cases[fabric.global_rank :: fabric.world_size]
        self.patch, self.batch_size = settings.patch, settings.training.batch_size
        self.mirror_axes = record.mirror_axes if settings.mirror_averaging else ()
        self.bf16 = computes_in_bf16(fabric)

    def __call__(self) -> float:
        """The score of the segmenter's present weights."""
        member = SegmenterMember(self.segmenter, self.patch, self.mirror_axes, self.bf16)
        total = 0.0
        for name in self.cases:
            image, label = self.store.read(name), self.store.read(name, "label")
            normalisation = self.store.case(name).normalisation
            slices = predict_slices([member], image, normalisation, batch_size=self.batch_size)
            total += _mean_dice(_confusion(slices, label, self.classes))
        return all_reduce_sum(torch.tensor(total, dtype=torch.float64)).item() / self.count


def _confusion(slices: Iterable[np.ndarray], label: np.ndarray, classes: int) -> Tensor:
    """Voxels by true and predicted class, (K, K) float64, from the probabilities of each slice."""
    counts = np.zeros(classes * classes, dtype=np.int64)
    for probabilities, truth in zip(slices, label, strict=True):
        pairs = truth.astype(np.int64) * classes + probabilities.argmax(axis=0)
        counts += np.bincount(pairs.ravel(), minlength=classes * classes)
    return torch.from_numpy(counts).reshape(classes, classes).double()


def _mean_dice(table: Tensor) -> float:
    """Mean Dice of the classes, except background, in either mask; 1 if there are none."""
    totals = (table.sum(0) + table.sum(1))[1:]
    shown = totals > 0
    return float((2 * table.diagonal()[1:] / totals)[shown].mean()) if shown.any() else 1.0
