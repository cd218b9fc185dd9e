"""store + a few labels + unlabelled scans → segmenter, which learns from its own predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import blosc2
import numpy as np

from macl.config.settings import SelftrainSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import MixedSampler
from macl.data.store import Store
from macl.distributed.collectives import require_even_parts
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingRun
from macl.inference.members import place_member
from macl.inference.scans import differences_of_preparation
from macl.inference.sliding_window import predict_slices
from macl.plugins import find
from macl.records import runs
from macl.records.runs import WEIGHTS, RunRecord, read_record
from macl.tasks.initial_weights import require_apart
from macl.tasks.run_settings import NETWORK_SETTINGS
from macl.tasks.segmentation import require_segmenter, segmenter_weights
from macl.tasks.segmenter_run import Arguments, record_transfer, resolve_start, start_segmenter
from macl.tasks.semi_supervised import (
    UNSURE,
    MeanTeacherTask,
    NoisyStudentTask,
    ProportionWatch,
    SelfTrainingTask,
)
from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, sha256
from macl.utils.progress import progress, say, warn
from macl.utils.text import counted, printable

MEAN_TEACHER, NOISY_STUDENT = "mean-teacher", "noisy-student"

MOST_LABELLED = 3
"""Labelled people; with more, the same time of fine-tuning was seen to be worth as much or more."""

UNTRAINED_TEACHER = (
    "Warning: the teacher starts untrained, and may teach its mistakes: fine-tune first, then "
    "self-train with --init and that run."
)


def is_worth_trying(segmenter: RunRecord) -> bool:
    """Whether a finished fine-tuning has few labels, and its split leaves unlabelled scans."""
    return segmenter.leaves_unlabelled and len(segmenter.people) <= MOST_LABELLED


@process_group()
def selftrain(
    store: AnyPath | None,
    out: AnyPath,
    *,
    init: AnyPath | None,
    split: AnyPath | None,
    labels: str | int | None,
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
        store: folder made by `prepare`; None, here as for init, split, labels and teacher: that of
            the run to resume.
        out: the run's folder.
        init: "scratch", a pre-training, fine-tuning or self-training run, or a weights file.
        labels: name of a label budget of the split, or "all".
        split: split file or name; None with the labels "all": everybody trains and nobody tests.
        teacher: a finished fine-tuning or self-training run.
        encoder_only: accept an init without decoder blocks.
        init_decoder_blocks: trained decoder blocks in an authors' file, which does not say.
        options: `recipe` (None: mean-teacher, or noisy-student with a teacher), `overrides`,
            `device`, `seed`, `resume`, `inherit` and `allow_overlap` (accept weights that were
            trained on test people); see `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split, the init, the teacher or the folder does not
            fit.
    """
    out = Path(out)
    arguments = Arguments(store, init, split, labels, teacher, init_decoder_blocks)
    default_recipe = NOISY_STUDENT if teacher else MEAN_TEACHER
    start = resolve_start(out, SelftrainSettings, arguments, options, default_recipe)
    opened, settings = start.store, start.settings
    teaching = _read_teacher(start.teacher, opened) if start.teacher else NO_TEACHER
    with TrainingRun(opened, out, settings, start.split, start.options) as run:
        assert run.resolved is not None
        require_even_parts(*settings.patches_per_step, run.fabric.world_size)
        allow_overlap = start.options.allow_overlap
        require_apart(str(start.teacher), teaching.patients, run.resolved, allow_overlap)
        network = find("models", settings.backbone)
        segmenter, axes, transfer = start_segmenter(run, start, network, encoder_only=encoder_only)
        has_learned = "head.weight" in transfer.names
        if start.teacher is None and not has_learned:
            warn(UNTRAINED_TEACHER)
        taught = NoisyStudentTask if start.teacher else MeanTeacherTask
        task = taught(segmenter, settings, axes, opened.index.classes, follows_fast=not has_learned)
        unlabelled = run.resolved.unlabelled_cases(start.labels)
        if not unlabelled:
            raise MaclError(
                f"The split {run.resolved.split.name!r} leaves no unlabelled scans beside the "
                f"budget {start.labels}, its validation and its test people: use a smaller "
                "budget, or `macl finetune`."
            )
        record = run.open(
            task,
            run.resolved.labelled_cases(start.labels),
            settings.training.batch_size,
            recipe=start.recipe,
            labels=start.labels,
            unlabelled_cases=unlabelled,
            unlabelled_patients=runs.patients_of(opened, unlabelled),
            init=printable(start.weights.name),
            init_patients=tuple(sorted({*start.weights.patients, *teaching.patients})),
            teacher=teaching.name,
            mirror_axes=axes,
        )
        if record.finished:
            return record
        record_transfer(run, start, transfer)
        say(
            f"Labelled: {counted(len(record.cases), 'case')} of "
            f"{counted(len(record.patients), 'patient')}; unlabelled: "
            f"{counted(len(unlabelled), 'case')} of "
            f"{counted(len(record.unlabelled_patients), 'patient')}."
        )
        given = _pseudo_labels(run, settings, start.teacher) if start.teacher else {}
        return _train(run, settings, task, given)


def _train(
    run: TrainingRun,
    settings: SelftrainSettings,
    task: SelfTrainingTask,
    pseudo_labels: Mapping[str, Any],
) -> RunRecord:
    store, record, fabric = run.store, run.record, run.fabric
    cases = (*record.cases, *record.unlabelled_cases)
    labelled, unlabelled = settings.patches_per_step
    cache = PatchCache(store, cases, record.cases, fabric.device, given_labels=pseudo_labels)
    sampler = MixedSampler(
        cache.volumes,
        cache.has_label,
        settings.patch,
        labelled,
        unlabelled,
        record.seed,
        settings.foreground_share,
        store,
    )
    loader = Loader(cache, sampler, fabric.global_rank, fabric.world_size)
    watch = ProportionWatch(task, settings.training.total_steps(loader.steps_per_epoch))
    trained = run.train("Segmenter", task, loader, on_log=watch)
    network = {name: record.settings[name] for name in NETWORK_SETTINGS}
    about = {"kind": record.kind, "channels": record.channels, "classes": record.classes, **network}
    finished = run.finish(segmenter_weights(trained.tensors, "teacher."), about, trained)
    say(f"The segmenter is in {run.folder}.")
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
    """MaclError if the run is not a finished segmenter of the store's classes and channels, or was
    trained on scans that were prepared in another way."""
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
    if differing := differences_of_preparation(store, record):
        raise MaclError(
            f"The teacher {run} knows scans that were prepared in another way ({differing}): name "
            "a run that was trained on this store, or prepare the scans as it saw them."
        )
    return Teacher(printable(f"{run} ({sha256(run / WEIGHTS)[:12]})"), record.seen_patients)


def _pseudo_labels(
    run: TrainingRun, settings: SelftrainSettings, teacher: Path
) -> dict[str, blosc2.NDArray]:
    """The teacher's labels (z, y, x) of the run's unlabelled cases, compressed in memory; `UNSURE`
    where it is less confident than the settings ask for."""
    record = read_record(teacher)
    network = find("models", record.settings["backbone"])
    member = place_member(teacher, record, network, run.fabric.device)
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
