"""store + a few labels → segmenter, from pre-trained weights or from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from macl.config import FinetuneSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.resolved_split import ResolvedSplit, find_test_people
from macl.data.splits import Split
from macl.data.store import Store
from macl.data.windows import select_volumes
from macl.distributed.collectives import all_reduce_sum
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingRun, inherited, split_of
from macl.engine.trainer import Validation
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.models.conversion.macl_release import read_authors
from macl.models.transfer import Transfer, require_transfer, transplant
from macl.plugins import find
from macl.records.runs import (
    PREDICTIONS,
    TRANSFER,
    WEIGHTS,
    WEIGHTS_DIGEST,
    RunRecord,
    read_record,
    read_weights,
)
from macl.tasks.run_settings import NETWORK_SETTINGS, describe_network, finetune_settings
from macl.tasks.segmentation import (
    SegmentationTask,
    Segmenter,
    build_segmenter,
    mirror_axes,
    segmenter_weights,
)
from macl.utils import checkpoint
from macl.utils.errors import MaclError, listed
from macl.utils.files import read_json, sha256, write_json
from macl.utils.progress import say

SCRATCH = "scratch"
DEFAULT_RECIPE = "strong"


@dataclass(frozen=True)
class InitialWeights:
    """The weights that fine-tuning starts from.

    Attributes:
        name: in messages and records; "scratch", or the path with a checksum.
        tensors: under the network's names; empty from scratch.
        network: the `NETWORK_SETTINGS`, as far as the source gives them; empty from scratch.
        patients: whose scans the weights were trained on.
    """

    name: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    patients: tuple[str, ...] = ()

    @property
    def trained_with(self) -> str:
        """The network, in words; empty if it is unknown."""
        return describe_network(self.network) if "backbone" in self.network else ""


@process_group()
def finetune(
    store: Path | None,
    out: Path,
    *,
    init: str | None,
    split: str | None,
    labels: str | None,
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
    resumed, store, chosen = inherited(out, "finetune", store, options)
    chosen_split: str | Split | None = split
    if resumed:
        init = init or WEIGHTS_DIGEST.sub("", resumed.init or SCRATCH)
        chosen_split, labels = split or split_of(resumed), labels or resumed.labels
    if init is None or chosen_split is None or labels is None:
        raise MaclError(f"There is no run in {out} to resume: name --init, --split and --labels.")
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
        _check_overlap(init, weights, run.resolved, chosen.allow_overlap)
        plane = opened.case(cases[0]).orientation.plane
        axes = mirror_axes(settings, opened.index.classes, plane)
        task = SegmentationTask(_segmenter(opened, settings, chosen.seed), settings, axes)
        transfer = transplant(weights.name, weights.tensors, task.segmenter.named_state())
        if weights.tensors:
            require_transfer(transfer, encoder_only or resumed is not None, weights.trained_with)
        record = run.open(
            task,
            cases,
            select_volumes(opened, cases).samples_per_epoch(settings.patch),
            recipe=recipe,
            labels=labels,
            validation_cases=run.resolved.validation_cases,
            init=weights.name,
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


def read_init(init: str, decoder_blocks: int) -> InitialWeights:
    """Read the weights that `init` names; see `finetune`.

    Raises:
        MaclError: they do not exist, cannot be read, are not finite, or are of an unfinished run.
    """
    if init == SCRATCH:
        return InitialWeights(SCRATCH)
    path = Path(init)
    if not path.exists():
        raise MaclError(
            f"--init {init} does not exist: name a pre-training run, a weights file, or "
            f"{SCRATCH!r}."
        )
    if path.is_dir():
        earlier = read_record(path)
        if not earlier.finished:
            raise MaclError(
                f"The run in {init} is not finished: finish it with --resume, then fine-tune."
            )
        file, patients = path / WEIGHTS, sorted({*earlier.patients, *earlier.init_patients})
        source = read_weights(path, earlier)
    else:
        file, patients = path, []
        is_ours = path.suffix == ".safetensors"
        source = checkpoint.read(path) if is_ours else read_authors(path, decoder_blocks)
        checkpoint.require_finite(path, source.tensors)
        say(
            f"{init} does not say whose scans it was trained on; it is assumed that no test people "
            "are among them."
        )
    about = {"dims": 2, **source.about}
    network = {name: about[name] for name in NETWORK_SETTINGS if name in about}
    name = f"{init} ({sha256(file)[:12]})"
    return InitialWeights(name, source.tensors, network, tuple(patients))


def _check_transfer(out: Path, transfer: Transfer) -> None:
    """MaclError if the weights were taken over in another way when the run was started."""
    if (out / TRANSFER).is_file() and read_json(out / TRANSFER, "a transfer") != transfer.about():
        raise MaclError(
            f"The run in {out} took over other tensors of its initial weights: repeat "
            "--init-decoder-blocks as it was given."
        )


def _check_overlap(
    init: str, weights: InitialWeights, resolved: ResolvedSplit, allow_overlap: bool
) -> None:
    leaked = find_test_people(weights.patients, resolved)
    if leaked and not allow_overlap:
        raise MaclError(
            f"{len(leaked)} test people ({listed(leaked)}) were in the training data of {init}: "
            "pre-train with the same --split, or add --allow-overlap (recorded) if these are other "
            "people of the same names."
        )


def _segmenter(store: Store, settings: FinetuneSettings, seed: int) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = find("models", settings.backbone)
        channels, classes = len(store.index.channels), len(store.index.classes)
        return build_segmenter(settings, network, channels, classes)


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
