"""store + a few labels → segmenter, from pre-trained weights or from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from macl.config import FinetuneSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.splits import Split
from macl.data.store import Store
from macl.data.windows import select_volumes
from macl.distributed.collectives import all_reduce_sum
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingRun, inherited, split_of
from macl.engine.trainer import Validation
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.models.transfer import Transfer, require_transfer, transplant
from macl.plugins import find
from macl.records.runs import PREDICTIONS, TRANSFER, WEIGHTS_DIGEST, RunRecord
from macl.tasks.initial_weights import SCRATCH, read_init, require_apart
from macl.tasks.networks import require_values_to_normalise
from macl.tasks.run_settings import NETWORK_SETTINGS, finetune_settings
from macl.tasks.segmentation import (
    SegmentationTask,
    Segmenter,
    fresh_segmenter,
    mirror_axes,
    segmenter_weights,
)
from macl.tasks.training_scans import warn_of_other_scans, warn_of_unseen_classes
from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, read_json, write_json
from macl.utils.progress import say
from macl.utils.text import printable

DEFAULT_RECIPE = "strong"


@process_group()
def finetune(
    store: AnyPath | None,
    out: AnyPath,
    *,
    init: AnyPath | None,
    split: AnyPath | None,
    labels: str | int | None,
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
        split: split file or name.
        labels: name of a label budget of the split.
        encoder_only: accept an init without decoder blocks.
        init_decoder_blocks: trained decoder blocks in an authors' file, which does not say.
        options: `recipe` (None: strong), `overrides`, `device`, `seed`, `resume`, `inherit` and
            `allow_overlap` (accept weights that were pre-trained on test people); see
            `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split, the init or the folder does not fit.
    """
    out, store = Path(out), None if store is None else Path(store)
    resumed, store, chosen = inherited(out, "finetune", store, options)
    chosen_split: str | Split | None = str(split) if split else None
    if resumed:
        init = init or WEIGHTS_DIGEST.sub("", resumed.init or SCRATCH)
        chosen_split, labels = chosen_split or split_of(resumed), labels or resumed.labels
    if init is None or chosen_split is None or labels is None:
        raise MaclError(f"There is no run in {out} to resume: name --init, --split and --labels.")
    init, labels = str(init), str(labels)
    recipe = chosen.recipe or DEFAULT_RECIPE
    opened = Store.open(store, chosen.verify)
    weights = read_init(init, init_decoder_blocks)
    settings = finetune_settings(
        recipe,
        chosen.overrides,
        store=opened,
        init=weights.name,
        init_network=weights.network,
        resumed=resumed.settings if resumed else None,
    )
    with TrainingRun(opened, out, settings, chosen_split, chosen) as run:
        assert run.resolved is not None
        cases = run.resolved.labelled_cases(labels)
        require_apart(init, weights.patients, run.resolved, chosen.allow_overlap)
        warn_of_unseen_classes(opened, cases, labels)
        warn_of_other_scans(opened, cases, weights)
        along = opened.case(cases[0]).anatomical_axes
        axes = mirror_axes(settings, opened.index.classes, along)
        network = find("models", settings.backbone)
        segmenter = fresh_segmenter(opened, settings, network, chosen.seed)
        task = SegmentationTask(segmenter, settings, axes)
        transfer = transplant(weights.name, weights.tensors, task.segmenter.named_state())
        if weights.tensors:
            require_transfer(transfer, encoder_only or resumed is not None, weights.trained_with)
        patches = select_volumes(opened, cases).samples_per_epoch(settings.patch)
        batch_size = min(settings.training.batch_size, patches)
        require_values_to_normalise(batch_size, settings.patch, task.segmenter.network.strides)
        record = run.open(
            task,
            cases,
            patches,
            recipe=recipe,
            labels=labels,
            validation_cases=run.resolved.validation_cases,
            init=printable(weights.name),
            init_patients=weights.patients,
            mirror_axes=axes,
        )
        if record.finished:
            return record
        if resumed:
            _check_transfer(out, transfer)
        if run.fabric.is_global_zero:
            write_json(out / TRANSFER, transfer.about())
        say(transfer.table())
        return _train(run, settings, task)


def _train(run: TrainingRun, settings: FinetuneSettings, task: SegmentationTask) -> RunRecord:
    store, record, fabric = run.store, run.record, run.fabric
    loader = Loader(
        PatchCache(store, record.cases, labelled=True, device=fabric.device),
        settings.training.batch_size,
        settings.patch,
        record.seed,
        fabric.global_rank,
        fabric.world_size,
        foreground_share=settings.foreground_share,
    )
    validation = None
    if record.validation_cases:
        score = ValidationScore(store, record, settings, task.segmenter, fabric)
        validation = Validation(score)
    trained = run.train("Segmenter", task, loader, validation=validation)
    network = {name: record.settings[name] for name in NETWORK_SETTINGS}
    about = {"kind": "finetune", "channels": record.channels, "classes": record.classes, **network}
    finished = run.finish(segmenter_weights(trained.tensors), about, trained)
    masks = run.folder / PREDICTIONS
    say(f"The segmenter is in {run.folder}; next: macl predict {run.folder} SCANS --out {masks}")
    return finished


def _check_transfer(out: Path, transfer: Transfer) -> None:
    """MaclError if the weights were taken over in another way when the run was started."""
    if (out / TRANSFER).is_file() and read_json(out / TRANSFER, "a transfer") != transfer.about():
        raise MaclError(
            f"The run in {out} took over other tensors of its initial weights: repeat "
            "--init-decoder-blocks as it was given."
        )


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

    def __call__(self) -> float:
        """The score of the segmenter's present weights."""
        member = SegmenterMember(self.segmenter, self.patch, self.mirror_axes)
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
