"""store + few labels → segmenter, from pre-trained weights or from scratch, and the table of what was transplanted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from macl.config import FinetuneSettings, read_recipe, resolve
from macl.data import resolved_split as parts
from macl.data import splits
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.resolved_split import ResolvedSplit
from macl.data.store import Store
from macl.distributed.collectives import all_reduce_sum
from macl.distributed.launch import describe_device, on_rank_zero, process_group
from macl.distributed.collectives import require_even_shards
from macl.engine.trainer import Validation, fit, make_fabric
from macl.inference.sliding_window import predict_slices
from macl.models.transfer import check, transplant
from macl.plugins import find
from macl.preprocessing.normalisation import normalise
from macl.records import runs
from macl.records.runs import RunRecord
from macl.tasks.segmentation import (
    SegmentationTask,
    Segmenter,
    build_segmenter,
    mirror_axes,
    resolve_finetuning,
    segmenter_weights,
)
from macl.models.conversion.macl_release import read_authors
from macl.utils import checkpoint
from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError, listed
from macl.utils.files import require_disk_space, sha256, write_json
from macl.utils.progress import say

SCRATCH = "scratch"


@process_group()
def finetune(
    store: Path,
    out: Path,
    *,
    init: str,
    split: str,
    labels: str,
    recipe: str = "strong",
    overrides: Iterable[str] = (),
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    allow_overlap: bool = False,
    encoder_only: bool = False,
    init_decoder_blocks: int = 2,
) -> RunRecord:
    """Fine-tune a segmenter on the labelled slices of a budget.

    Args:
        store: folder made by `prepare`.
        out: the run's folder.
        init: "scratch", a pre-training run, or a weights file (ours, or the authors' `.pth`).
        split: split file or name.
        labels: name of a label budget of the split.
        recipe: recipe by name or path.
        overrides: `key=value` settings over the recipe's.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the weights, the order and the views.
        resume: go on with an unfinished run.
        allow_overlap: accept weights that were pre-trained on test people; recorded.
        encoder_only: accept an init without decoder blocks.
        init_decoder_blocks: decoder blocks that the authors' files trained; they do not say.

    Raises:
        MaclError: a setting, the store, the split, the init or the folder does not fit; the sentence says what to do.
    """
    opened = Store.open(store)
    settings = resolve(FinetuneSettings, read_recipe("finetune", recipe), overrides)
    settings = resolve_finetuning(settings, find("models", settings.backbone))
    fabric = make_fabric(device, settings.training.precision)
    chosen = splits.read_split(split)
    resolved = parts.resolve(chosen, opened, allow_overlap=allow_overlap)
    cases = resolved.labelled_cases(labels)
    source, init_name, init_patients = _read_init(init, resolved, allow_overlap, init_decoder_blocks)
    plane = opened.case(cases[0]).orientation.plane
    record = RunRecord(
        kind="finetune", settings=settings.model_dump(mode="json"), recipe=recipe, seed=seed, device=describe_device(fabric),
        versions=runs.versions(), **runs.about_store(opened, store), cases=cases, split=chosen.model_dump(mode="json"),
        labels=labels, people=resolved.people(cases), patients=runs.patients_of(opened, cases),
        validation_cases=resolved.validation_cases, test_cases=resolved.test_cases, init=init_name,
        init_patients=init_patients, overlap_allowed=allow_overlap,
        mirror_axes=mirror_axes(settings, opened.index.classes, plane),
    )  # fmt: skip
    task = SegmentationTask(_segmenter(record, settings), settings, record.mirror_axes)
    transfer = transplant(init_name, source.tensors if source else {}, task.segmenter.named_state())
    if source:
        check(transfer, encoder_only)
    slices = sum(opened.case(name).slices for name in cases)
    require_even_shards(settings.training.batch_size, slices, fabric.world_size)
    record = on_rank_zero(lambda: runs.open_run(out, record, resume))
    if record.finished:
        say(f"{out} is finished already.")
        return record
    if fabric.is_global_zero:
        write_json(out / runs.TRANSFER, transfer.about())
    say(transfer.table())
    return _train(opened, out, record, settings, task, fabric)


def _read_init(
    init: str, resolved: ResolvedSplit, allow_overlap: bool, decoder_blocks: int
) -> tuple[Checkpoint | None, str, tuple[str, ...]]:
    """The weights to start from, how the record names them, and whose scans they were trained on."""
    if init == SCRATCH:
        return None, SCRATCH, ()
    path = Path(init)
    if not path.exists():
        raise MaclError(f"--init {init} does not exist: name a pre-training run, a weights file, or {SCRATCH!r}.")
    if path.is_dir():
        earlier = runs.read_record(path)
        if not earlier.finished:
            raise MaclError(f"The run in {init} is not finished: go on with it (--resume) before fine-tuning from it.")
        leaked = parts.overlap((*earlier.patients, *earlier.init_patients), resolved)
        if leaked and not allow_overlap:
            raise MaclError(
                f"{len(leaked)} test people ({listed(leaked)}) were in the training data of {init}: pre-train with the "
                "same --split, or add --allow-overlap (recorded) if these are other people of the same names."
            )
        weights = path / runs.WEIGHTS
        patients = tuple(sorted({*earlier.patients, *earlier.init_patients}))
        return checkpoint.read(weights), f"{init} ({sha256(weights)[:12]})", patients
    ours = path.suffix == ".safetensors"
    source = checkpoint.read(path) if ours else read_authors(path, decoder_blocks)
    say(f"{init} does not say whose scans it was trained on: that none of the test people are among them is assumed.")
    return source, f"{init} ({sha256(path)[:12]})", ()


def _segmenter(record: RunRecord, settings: FinetuneSettings) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(record.seed)
        network = find("models", settings.backbone)
        return build_segmenter(settings, network, len(record.channels), len(record.classes))


def _train(
    store: Store, out: Path, record: RunRecord, settings: FinetuneSettings, task: SegmentationTask, fabric: Fabric
) -> RunRecord:
    training = settings.training
    bank = PatchCache(store, record.cases, labelled=True, device=fabric.device)
    batches = Loader(bank, training.batch_size, settings.patch, record.seed, fabric.global_rank, fabric.world_size)
    count = sum(parameter.numel() for parameter in task.parameters())
    require_disk_space(out, 6 * count * 4, "The run")
    steps = training.epochs * batches.steps_per_epoch
    say(f"Segmenter: {count / 1e6:.3f} M parameters, {steps} steps on {describe_device(fabric)}.")
    validation = None
    if record.validation_cases:
        scorer = _ValidationScore(store, record, settings, task.segmenter, fabric)
        validation = Validation(scorer)
    tensors, seconds = fit(task, batches, training, out, fabric, validation=validation)
    record = record.model_copy(update={"finished": True, "steps": steps, "seconds": round(seconds, 3)})
    if fabric.is_global_zero:
        about = {"kind": "finetune", "channels": list(record.channels), "classes": list(record.classes)}
        checkpoint.write(out / runs.WEIGHTS, segmenter_weights(tensors), about)
        runs.write_record(out, record)
        (out / runs.STATE).unlink(missing_ok=True)
    say(f"The segmenter is in {out}; next: macl predict {out} SCANS --out {out / runs.PREDICTIONS}")
    return record


class _ValidationScore:
    """Mean Dice of the validation cases, over cases and the classes that either mask holds; processes share the cases."""

    def __init__(
        self, store: Store, record: RunRecord, settings: FinetuneSettings, segmenter: Segmenter, fabric: Fabric
    ) -> None:
        self.segmenter, self.record, self.settings, self.device = segmenter, record, settings, fabric.device
        self.images, self.labels = [], []
        for name in record.validation_cases[fabric.global_rank :: fabric.world_size]:
            values = np.moveaxis(normalise(store.read(name), store.case(name).normalisation), 0, 1)
            self.images.append(torch.from_numpy(values))
            self.labels.append(torch.from_numpy(store.read(name, "label")).long())

    def __call__(self) -> float:
        training = self.settings.training
        axes = self.record.mirror_axes if self.settings.mirror_averaging else ()
        scores = 0.0
        for images, labels in zip(self.images, self.labels, strict=True):
            probabilities = predict_slices(
                self.segmenter, images, size=self.settings.patch[0], mirror_axes=axes, batch_size=training.batch_size
            )
            scores += _mean_dice(probabilities.argmax(1).cpu(), labels, len(self.record.classes))
        everyone = all_reduce_sum(torch.tensor(scores, dtype=torch.float64))
        return everyone.item() / len(self.record.validation_cases)


def _mean_dice(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Of a case, over the classes but background that either mask holds; 1 where both are empty throughout."""
    size = classes * classes
    table = torch.bincount((truth * classes + predicted).flatten(), minlength=size).reshape(classes, classes).double()
    totals = (table.sum(0) + table.sum(1))[1:]
    held = totals > 0
    return float((2 * table.diagonal()[1:] / totals)[held].mean()) if held.any() else 1.0
