"""How fine-tuning and self-training start: from arguments, or from a run to resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from macl.config.settings import ArrayAxis, FinetuneSettings
from macl.data.resolved_split import split_of_everybody
from macl.data.splits import ALL, Split
from macl.data.store import Store
from macl.engine.run import TrainingKeywords, TrainingOptions, TrainingRun, inherited, split_of
from macl.models.network import Network
from macl.models.transfer import Transfer, require_transfer, transplant
from macl.records.runs import TRANSFER, WEIGHTS_DIGEST, RunRecord
from macl.tasks.initial_weights import SCRATCH, InitialWeights, read_init, require_apart
from macl.tasks.run_settings import finetune_settings
from macl.tasks.segmentation import HEADS, Segmenter, fresh_segmenter, mirror_axes
from macl.tasks.training_scans import (
    warn_of_other_pseudonyms,
    warn_of_other_scans,
    warn_of_unseen_classes,
)
from macl.utils.errors import MaclError, listed
from macl.utils.files import AnyPath, read_json, write_json
from macl.utils.progress import say, warn

F = TypeVar("F", bound=FinetuneSettings)


@dataclass(frozen=True)
class Arguments:
    """What a user names: a command that resumes may leave anything out.

    Attributes:
        store: folder made by `prepare`.
        init: "scratch", a training run, or a weights file.
        split: split file or name; None with the labels "all": everybody trains and nobody tests.
        labels: name of a label budget of the split, or "all".
        teacher: run that labels the unlabelled scans; None: none.
        init_decoder_blocks: trained decoder blocks in an authors' file, which does not say.
    """

    store: AnyPath | None
    init: AnyPath | None
    split: AnyPath | None
    labels: str | int | None
    teacher: AnyPath | None = None
    init_decoder_blocks: int = 2


@dataclass(frozen=True)
class SegmenterStart(Generic[F]):
    """What a segmenter is trained on and from.

    Attributes:
        store: opened.
        split: as named, or that of the resumed run.
        labels: name of the label budget.
        init: as named.
        weights: what `init` holds.
        teacher: as named.
        recipe: its name.
        settings: complete.
        options: how the user starts the run.
        resumed: record of the run to resume; None: a new run, or all arguments were repeated.
    """

    store: Store
    split: str | Split
    labels: str
    init: str
    weights: InitialWeights
    teacher: Path | None
    recipe: str
    settings: F
    options: TrainingOptions
    resumed: RunRecord | None


def resolve_start(
    out: Path,
    kind: type[F],
    arguments: Arguments,
    options: TrainingKeywords,
    default_recipe: str,
) -> SegmenterStart[F]:
    """Complete the arguments and settings of a run.

    Args:
        out: the run's folder.
        kind: FinetuneSettings or SelftrainSettings.
        arguments: what the user names.
        options: of the training.
        default_recipe: where the user and the resumed run name none.

    Raises:
        MaclError: an argument is missing or wrong, or a setting does not fit.
    """
    named = None if arguments.store is None else Path(arguments.store)
    resumed, path, chosen = inherited(out, kind.stage, named, options)
    init, split, labels = arguments.init, arguments.split, arguments.labels
    teacher, taken_split = arguments.teacher, None
    if resumed:
        init = init or _without_digest(resumed.init or SCRATCH)
        teacher = teacher or (_without_digest(resumed.teacher) if resumed.teacher else None)
        taken_split, labels = split_of(resumed), labels or resumed.labels
    split = str(split) if split else taken_split
    if init is None or labels is None:
        raise MaclError(f"There is no run in {out} to resume: name --init, --split and --labels.")
    if split is None and labels != ALL:
        raise MaclError(f"--labels {labels} is a budget of a split: name it with --split.")
    store = Store.open(path, chosen.verify)
    split = split or split_of_everybody(store)
    weights = read_init(str(init), arguments.init_decoder_blocks)
    recipe = chosen.recipe or default_recipe
    settings = finetune_settings(
        recipe,
        chosen.overrides,
        store=store,
        init=weights.name,
        init_network=weights.network,
        kind=kind,
        resumed=resumed.settings if resumed else None,
    )
    return SegmenterStart(
        store,
        split,
        str(labels),
        str(init),
        weights,
        Path(teacher) if teacher else None,
        recipe,
        settings,
        chosen,
        resumed,
    )


def _without_digest(name: str) -> str:
    return WEIGHTS_DIGEST.sub("", name)


class StartedSegmenter(NamedTuple):
    """A segmenter with its initial weights.

    Attributes:
        segmenter: with them.
        mirror_axes: axes that its views are mirrored along.
        transfer: what became of each initial weight.
    """

    segmenter: Segmenter
    mirror_axes: tuple[ArrayAxis, ...]
    transfer: Transfer


def start_segmenter(
    run: TrainingRun,
    start: SegmenterStart[F],
    network: type[Network],
    *,
    encoder_only: bool,
) -> StartedSegmenter:
    """A segmenter with the weights that it starts from, checked against the run's test people.

    Args:
        run: the run.
        start: its arguments.
        network: class of the backbone.
        encoder_only: accept weights without decoder blocks.

    Raises:
        MaclError: the weights do not fit, or test people were among their training data.
    """
    assert run.resolved is not None
    store, settings, weights = start.store, start.settings, start.weights
    cases = run.resolved.labelled_cases(start.labels)
    require_apart(start.init, weights.patients, run.resolved, start.options.allow_overlap)
    warn_of_unseen_classes(store, cases, start.labels)
    warn_of_other_pseudonyms(store, weights)
    warn_of_other_scans(store, cases, weights)
    axes = mirror_axes(settings, store.index.classes, store.case(cases[0]).anatomical_axes)
    segmenter = fresh_segmenter(store, settings, network, start.options.seed)
    tensors = _tensors_for(store.index.classes, weights)
    transfer = transplant(weights.name, tensors, segmenter.named_state())
    if weights.tensors:
        require_transfer(transfer, encoder_only or start.resumed is not None, weights.trained_with)
    return StartedSegmenter(segmenter, axes, transfer)


def _tensors_for(classes: Sequence[str], weights: InitialWeights) -> Mapping[str, Tensor]:
    """The initial weights; without the head, with a message, if it is one of other classes."""
    heads = [name for name in weights.tensors if name.split(".")[0] in HEADS]
    if not heads or not weights.classes or weights.classes == tuple(classes):
        return weights.tensors
    warn(
        f"The head starts fresh: {weights.name} tells {listed(weights.classes)} apart, the store "
        f"{listed(classes)}."
    )
    return {name: tensor for name, tensor in weights.tensors.items() if name not in heads}


def record_transfer(run: TrainingRun, start: SegmenterStart[F], transfer: Transfer) -> None:
    """Write what became of each initial weight into an open run, and say it.

    Raises:
        MaclError: the weights were taken over in another way when the run was started.
    """
    file = run.folder / TRANSFER
    about = transfer.about()
    # The weights may lie elsewhere by now; that they are the same is known by their digest.
    if (
        start.resumed
        and file.is_file()
        and {**read_json(file, "a transfer"), "source": about["source"]} != about
    ):
        raise MaclError(
            f"The run in {run.folder} took over other tensors of its initial weights: repeat "
            "--init-decoder-blocks as it was given."
        )
    if run.fabric.is_global_zero:
        write_json(file, about)
    say(transfer.table())
