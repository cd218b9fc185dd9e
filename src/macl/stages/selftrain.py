"""store + a few labels + unlabelled scans → segmenter, which learns from its own predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import blosc2
import numpy as np

from macl.config import SelftrainSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.store import Store
from macl.distributed.collectives import require_even_parts
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingOptions, TrainingRun
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.models.transfer import require_transfer, transplant
from macl.plugins import find
from macl.records import runs
from macl.records.runs import PREDICTIONS, TRANSFER, WEIGHTS, RunRecord, read_record
from macl.tasks.initial_weights import read_init, require_apart
from macl.tasks.run_settings import NETWORK_SETTINGS, finetune_settings
from macl.tasks.segmentation import (
    fresh_segmenter,
    load_segmenter,
    mirror_axes,
    require_segmenter,
    segmenter_settings,
    segmenter_weights,
)
from macl.tasks.semi_supervised import UNSURE, ProportionWatch, SelfTrainingTask
from macl.tasks.training_scans import warn_of_other_scans, warn_of_unseen_classes
from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, sha256, write_json
from macl.utils.progress import progress, say

MEAN_TEACHER, NOISY_STUDENT = "mean-teacher", "noisy-student"


@process_group()
def selftrain(
    store: AnyPath,
    out: AnyPath,
    *,
    init: AnyPath,
    split: AnyPath,
    labels: str | int,
    teacher: AnyPath | None = None,
    encoder_only: bool = False,
    init_decoder_blocks: int = 2,
    **options: Unpack[TrainingKeywords],
) -> RunRecord:
    """Train a segmenter on the labelled cases of a budget and on the split's unlabelled ones.

    Unlabelled are all cases but the budget's, and but those of test and validation people. Labels
    that they have in the store are not read. Without `teacher` the teacher is the moving average of
    the segmenter itself (mean teacher), and is what the run keeps. With it, that run labels all
    unlabelled cases once, and the segmenter is trained on all of them (noisy student).

    Args:
        store: folder made by `prepare`.
        out: the run's folder.
        init: "scratch", a pre-training, fine-tuning or self-training run, or a weights file.
        split: split file or name.
        labels: name of a label budget of the split.
        teacher: a finished fine-tuning or self-training run.
        encoder_only: accept an init without decoder blocks.
        init_decoder_blocks: trained decoder blocks in an authors' file, which does not say.
        options: `recipe` (None: mean-teacher, or noisy-student with a teacher), `overrides`,
            `device`, `seed`, `resume` and `allow_overlap` (accept weights that were trained on test
            people); see `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split, the init, the teacher or the folder does not
            fit.
    """
    store, out, teacher = Path(store), Path(out), Path(teacher) if teacher else None
    init, split, labels = str(init), str(split), str(labels)
    chosen = TrainingOptions(**options)
    recipe = chosen.recipe or (NOISY_STUDENT if teacher else MEAN_TEACHER)
    opened = Store.open(store)
    weights = read_init(init, init_decoder_blocks)
    teaching = _read_teacher(teacher, opened) if teacher else NO_TEACHER
    settings = finetune_settings(
        recipe,
        chosen.overrides,
        store=opened,
        init=weights.name,
        init_network=weights.network,
        kind=SelftrainSettings,
    )
    with TrainingRun(opened, out, settings, split, chosen) as run:
        assert run.resolved is not None
        cases, unlabelled = (
            run.resolved.labelled_cases(labels),
            run.resolved.unlabelled_cases(labels),
        )
        require_even_parts(*settings.patches_per_step, run.fabric.world_size)
        require_apart(init, weights.patients, run.resolved, chosen.allow_overlap)
        warn_of_unseen_classes(opened, cases, labels)
        warn_of_other_scans(opened, cases, weights)
        require_apart(str(teacher), teaching.patients, run.resolved, chosen.allow_overlap)
        along = opened.case(cases[0]).anatomical_axes
        axes = mirror_axes(settings, opened.index.classes, along)
        segmenter = fresh_segmenter(
            opened, settings, find("models", settings.backbone), chosen.seed
        )
        transfer = transplant(weights.name, weights.tensors, segmenter.named_state())
        if weights.tensors:
            require_transfer(transfer, encoder_only, weights.trained_with)
        task = SelfTrainingTask(
            segmenter,
            settings,
            axes,
            opened.index.classes,
            follows_fast="head.weight" not in transfer.names,
            pseudo_labels=teacher is not None,
        )
        record = run.open(
            task,
            cases,
            settings.training.batch_size,
            recipe=recipe,
            labels=labels,
            unlabelled_cases=unlabelled,
            unlabelled_patients=runs.patients_of(opened, unlabelled),
            init=weights.name,
            init_patients=tuple(sorted({*weights.patients, *teaching.patients})),
            teacher=teaching.name,
            mirror_axes=axes,
        )
        if record.finished:
            return record
        if run.fabric.is_global_zero:
            write_json(out / TRANSFER, transfer.about())
        say(transfer.table())
        say(
            f"Labelled: {len(cases)} cases of {len(record.patients)} patients; unlabelled: "
            f"{len(unlabelled)} cases of {len(record.unlabelled_patients)} patients."
        )
        return _train(
            run, settings, task, _pseudo_labels(run, settings, teacher) if teacher else {}
        )


def _train(
    run: TrainingRun,
    settings: SelftrainSettings,
    task: SelfTrainingTask,
    pseudo_labels: Mapping[str, Any],
) -> RunRecord:
    store, record, fabric = run.store, run.record, run.fabric
    cases = (*record.cases, *record.unlabelled_cases)
    labelled, unlabelled = settings.patches_per_step
    loader = Loader(
        PatchCache(store, cases, record.cases, fabric.device, given_labels=pseudo_labels),
        labelled,
        settings.patch,
        record.seed,
        fabric.global_rank,
        fabric.world_size,
        foreground_share=settings.foreground_share,
        unlabelled_batch_size=unlabelled,
    )
    watch = ProportionWatch(task, settings.training.total_steps(loader.steps_per_epoch))
    trained = run.train("Segmenter", task, loader, on_log=watch)
    network = {name: record.settings[name] for name in NETWORK_SETTINGS}
    about = {"kind": record.kind, "channels": record.channels, "classes": record.classes, **network}
    finished = run.finish(segmenter_weights(trained.tensors, "teacher."), about, trained)
    masks = run.folder / PREDICTIONS
    say(f"The segmenter is in {run.folder}; next: macl predict {run.folder} SCANS --out {masks}")
    return finished


# ---------------------------------------------------------------- a teacher that stays


class Teacher(NamedTuple):
    """A finished run that labels the unlabelled cases.

    Attributes:
        name: its path with a checksum of its weights.
        patients: whose scans it was trained on.
    """

    name: str | None
    patients: tuple[str, ...]


NO_TEACHER = Teacher(None, ())


def _read_teacher(run: Path, store: Store) -> Teacher:
    """MaclError if the run is not a finished segmenter of the store's classes and channels."""
    record = read_record(run)
    require_segmenter(run, record)
    index = store.index
    for what, theirs, ours in (
        ("classes", record.classes, index.classes),
        ("channels", record.channels, index.channels),
    ):
        if theirs != ours:
            raise MaclError(
                f"The teacher {run} has the {what} {theirs}, but the store {store.path} has "
                f"{ours}: name a run that was trained on this store."
            )
    return Teacher(f"{run} ({sha256(run / WEIGHTS)[:12]})", record.seen_patients)


def _pseudo_labels(
    run: TrainingRun, settings: SelftrainSettings, teacher: Path
) -> dict[str, blosc2.NDArray]:
    """The teacher's labels (z, y, x) of the run's unlabelled cases, compressed in memory; `UNSURE`
    where it is less confident than the settings ask for."""
    record = read_record(teacher)
    own = segmenter_settings(record)
    network = load_segmenter(teacher, find("models", own.backbone), run.fabric.device)
    axes = record.mirror_axes if own.mirror_averaging else ()
    member = SegmenterMember(network, own.patch, axes)
    labels = {}
    cases = run.record.unlabelled_cases
    with progress("Labelling", len(cases)) as advance:
        for name in cases:
            case = run.store.case(name)
            slices = predict_slices([member], run.store.read(name), case.normalisation)
            volume = np.stack([_label(each, settings.confidence) for each in slices])
            labels[name] = blosc2.asarray(volume)  # pyright: ignore[reportArgumentType]
            advance(note=name)
    return labels


def _label(probabilities: np.ndarray, confidence: float) -> np.ndarray:
    """(K, y, x) → (y, x) uint8."""
    labels = probabilities.argmax(axis=0).astype(np.uint8)
    labels[probabilities.max(axis=0) < confidence] = UNSURE
    return labels
