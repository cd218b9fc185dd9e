"""A training run from its store to its finished folder: what pre-training and fine-tuning share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from lightning_fabric import Fabric
from torch import Tensor

from macl.config.mistakes import validate
from macl.config.settings import NetworkRunSettings, Stage
from macl.data.loader import Loader
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import Split, read_split
from macl.data.store import Store
from macl.distributed.collectives import require_even_shards
from macl.distributed.launch import describe_device, on_rank_zero
from macl.engine.task import Task
from macl.engine.trainer import LogCallback, Trained, Validation, fit, make_fabric
from macl.engine.training_log import require_tensorboard
from macl.records import runs
from macl.records.runs import RECORD, LoggedQuantity, RunRecord, read_record
from macl.records.training_range import measure_range
from macl.utils import checkpoint
from macl.utils.errors import MaclError
from macl.utils.files import require_disk_space
from macl.utils.progress import say
from macl.utils.text import printable

STATE_SIZE = 6
"""Space that a run needs, in copies of its weights: the weights, two moments of the optimiser, the
moving average, the best weights so far, and the weights file."""


class TrainingKeywords(TypedDict, total=False):
    """The fields of `TrainingOptions`, as keyword arguments."""

    recipe: str | None
    overrides: Iterable[str]
    device: str
    seed: int
    resume: bool
    inherit: bool
    allow_overlap: bool
    verify: bool
    tensorboard: bool


@dataclass(frozen=True)
class TrainingOptions:
    """How a user starts a training run.

    Attributes:
        recipe: recipe by name or path; None: the stage's default.
        overrides: `key=value` settings over the recipe's.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the weights, the order of patches and their views.
        resume: continue an unfinished run.
        inherit: resume with what the run was started with, where an argument is left out; False:
            every argument must be repeated.
        allow_overlap: let test people into the training data; recorded.
        verify: compare the store's arrays with their checksums.
        tensorboard: also write the log as TensorBoard reads it, into the run's folder.
    """

    recipe: str | None = None
    overrides: Iterable[str] = ()
    device: str = "auto"
    seed: int = 0
    resume: bool = False
    inherit: bool = False
    allow_overlap: bool = False
    verify: bool = True
    tensorboard: bool = False


def inherited(
    out: Path, stage: Stage, store: Path | None, options: TrainingKeywords
) -> tuple[RunRecord | None, Path, TrainingOptions]:
    """What a command that leaves arguments out takes over from the run that it resumes.

    Args:
        out: the run's folder.
        stage: the kind of run.
        store: as the user names it; None: left out.
        options: those that the user gives.

    Returns:
        The record of the resumed run (None: nothing is taken over), the store, and the options.

    Raises:
        MaclError: there is no such run, or it was started with another recipe.
    """
    record = None
    if options.get("resume") and options.get("inherit") and (out / RECORD).is_file():
        record = read_record(out)
        record = record if record.kind == stage else None
    if record is None:
        if store is None:
            raise MaclError(f"There is no {stage} run in {out} to resume: name the store.")
        return None, store, TrainingOptions(**options)
    given = TrainingOptions(**options)
    if given.recipe not in (None, record.recipe):
        raise MaclError(
            f"The run in {out} was started with other settings (recipe {record.recipe!r}): resume "
            "it without --recipe, or choose another --out."
        )
    taken: TrainingKeywords = {"seed": record.seed, **options}
    taken["allow_overlap"] = given.allow_overlap or record.overlap_allowed
    taken["recipe"] = record.recipe
    return record, store or Path(record.store), TrainingOptions(**taken)


def split_of(record: RunRecord) -> Split | None:
    """The split that a run was started with."""
    return validate(Split, record.split, where=RECORD) if record.split else None


class TrainingRun(contextlib.AbstractContextManager["TrainingRun"]):
    """A run that trains a task on cases of a store, from its start to its end.

    As a context, it keeps other commands from training the same run until its end.

    Args:
        store: the store.
        folder: the run's folder.
        settings: resolved settings of the run.
        split: split file or name, or a split; None: no people are set aside.
        options: how the user starts it.

    Attributes:
        fabric: device and precision.
        split, resolved: the split, and what it means for the store; None without one.
        record: the record in the run's folder, once `open` was called.

    Raises:
        MaclError: the device or TensorBoard is not there, or the split does not fit the store.
    """

    record: RunRecord

    def __init__(
        self,
        store: Store,
        folder: Path,
        settings: NetworkRunSettings,
        split: str | Split | None,
        options: TrainingOptions,
    ) -> None:
        if options.tensorboard:
            require_tensorboard()
        self.store, self.folder, self.settings, self.options = store, folder, settings, options
        self.fabric: Fabric = make_fabric(options.device, settings.training.precision)
        self._lock = contextlib.ExitStack()
        self.split: Split | None = read_split(split) if isinstance(split, str) else split
        self.resolved: ResolvedSplit | None = None
        if self.split:
            allow_overlap = options.allow_overlap
            self.resolved = resolve_split(self.split, store, allow_overlap=allow_overlap)

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def open(
        self, task: Task, cases: Sequence[str], patches: int, *, recipe: str, **fields: Any
    ) -> RunRecord:
        """Start the run in its folder, or resume it.

        Args:
            task: what will be trained.
            cases: names of the cases to train on.
            patches: number of patches in an epoch.
            recipe: name of the recipe.
            fields: further fields of the record.

        Returns:
            The record; if it is finished, there is nothing to train.

        Raises:
            MaclError: the processes cannot share the batches, the disk is full, or the folder
                holds something else, a run with other settings or one that is being trained.
        """
        settings, training, store = self.settings, self.settings.training, self.store
        patients = runs.patients_of(store, cases)
        record = RunRecord(
            kind=settings.stage,
            settings=settings.model_dump(mode="json"),
            recipe=printable(recipe),
            seed=self.options.seed,
            device=describe_device(self.fabric),
            versions=runs.versions(),
            folder=printable(str(self.folder)),
            **runs.about_store(store, store.path),
            split=self.split.model_dump(mode="json") if self.split else None,
            people=self.resolved.people(cases) if self.resolved else patients,
            patients=patients,
            cases=tuple(cases),
            trained_on=measure_range(store, cases),
            test_cases=self.resolved.test_cases if self.resolved else (),
            overlap_allowed=self.options.allow_overlap,
            quantities={
                name: LoggedQuantity(**asdict(quantity))
                for name, quantity in task.quantities.items()
            },
            **fields,
        )
        world_size, gather_negatives = self.fabric.world_size, training.gather_negatives
        gathers = settings.stage != "pretrain" or gather_negatives
        require_even_shards(training.batch_size, patches, world_size, gathers)
        require_disk_space(self.folder, STATE_SIZE * 4 * _parameters(task), "The run")
        self.record = on_rank_zero(lambda: self._open_folder(record))
        if self.record.finished:
            say(f"{self.folder} is finished already.")
        return self.record

    def _open_folder(self, record: RunRecord) -> RunRecord:
        self._lock.enter_context(runs.lock_run(self.folder))
        return runs.open_run(self.folder, record, self.options.resume)

    def train(
        self,
        title: str,
        task: Task,
        loader: Loader,
        *,
        on_log: LogCallback | None = None,
        validation: Validation | None = None,
    ) -> Trained:
        """Train the task; see `fit`. `title` names it in a message."""
        training = self.settings.training
        steps = training.total_steps(loader.steps_per_epoch)
        millions = _parameters(task) / 1e6
        device = describe_device(self.fabric)
        say(f"{title}: {millions:.3f} M parameters, {steps} steps on {device}.")
        return fit(
            task,
            loader,
            training,
            self.folder,
            self.fabric,
            on_log=on_log,
            validation=validation,
            tensorboard=self.options.tensorboard,
        )

    def finish(
        self,
        weights: Mapping[str, Tensor],
        about: Mapping[str, Any],
        trained: Trained,
        **fields: Any,
    ) -> RunRecord:
        """Write the weights and the final record, with further fields.

        Raises:
            MaclError: the weights are not finite.
        """
        checkpoint.require_finite(self.folder / runs.WEIGHTS, weights)
        return runs.finish_run(
            self.folder,
            self.record,
            weights,
            about,
            steps=trained.steps,
            seconds=trained.seconds,
            **fields,
        )


def _parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.parameters())
