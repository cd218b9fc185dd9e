"""A run on disk: its files, its record `run.json`, and how it starts, resumes and finishes.

A run's folder holds `run.json` (this record), `log.jsonl` (one line a step), and, once finished,
`weights.safetensors`. Until then it holds `state.safetensors`, everything an exact resume needs.
Segmenters also have `transfer.json`; later stages may add `predictions/`, `cases.csv` and
`report.html`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import macl
from macl.config.mistakes import validate
from macl.config.settings import PrepareSettings, Settings
from macl.data.store import Store
from macl.records.training_range import TrainingRange
from macl.utils.errors import MaclError, listed
from macl.utils.files import (
    ASIDE,
    clear_unfinished,
    file_lock,
    inside,
    read_json,
    refuse_links,
    sha256,
    write_json,
    write_text,
)
from macl.utils.progress import warn
from macl.utils.ranks import this_rank
from macl.utils.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from macl.utils.checkpoint import Checkpoint

RECORD = "run.json"
LOG = "log.jsonl"
WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
TRANSFER = "transfer.json"
PREDICTIONS = "predictions"
SCORES = "cases.csv"
LOCK = ".lock"
MODELS = "models.json"
"""In the folder of `macl run`: its runs that segment."""

WEIGHTS_DIGEST = re.compile(r" \([0-9a-f]{12}\)$")
"""The digest that fine-tuning adds to the path of its initial weights."""

RunKind = Literal["pretrain", "finetune", "selftrain"]


class LoggedQuantity(Settings):
    """What a value in the log is, for people who read the report."""

    label: str = Field(description="its name on a page, such as 'Dense loss'")
    description: str = Field(default="", description="what it tells, in a sentence or two")
    unit: str = Field(default="", description="such as 'nats'; empty for a plain number")


class ModelList(Settings):
    """What `models.json` holds: folders of runs, relative to its own."""

    format: Literal["macl-models"] = "macl-models"
    version: Literal[1] = 1
    models: tuple[str, ...]


class RunRecord(Settings):
    """What `run.json` holds."""

    format: Literal["macl-run"] = "macl-run"
    version: Literal[1] = 1
    kind: RunKind
    finished: bool = False
    settings: dict[str, Any] = Field(description="resolved; of the class that its kind has")
    recipe: str = ""
    seed: int
    device: str
    versions: dict[str, str]
    folder: str = Field(default="", description="the run's folder, as the user gave it")
    store: str = Field(description="the store's folder, as the user gave it")
    store_checksum: str
    reader: str
    modality: str
    prepared: PrepareSettings
    channels: tuple[str, ...]
    classes: tuple[str, ...] = ()
    label_values: tuple[int, ...] = ()
    split: dict[str, Any] | None = Field(default=None, description="the split file's contents")
    labels: str | None = Field(default=None, description="the label budget's name")
    people: tuple[str, ...] = Field(
        default=(), description="people of the split whose scans were trained on"
    )
    patients: tuple[str, ...] = Field(
        default=(), description="patients whose scans were trained on"
    )
    cases: tuple[str, ...] = Field(default=(), description="cases that were trained on")
    validation_cases: tuple[str, ...] = ()
    test_cases: tuple[str, ...] = Field(
        default=(), description="cases of the split's test people, never trained on"
    )
    unlabelled_cases: tuple[str, ...] = Field(
        default=(), description="self-training: cases that were trained on without their labels"
    )
    unlabelled_patients: tuple[str, ...] = Field(
        default=(), description="self-training: the patients whose cases these are"
    )
    leaves_unlabelled: bool = Field(
        default=False,
        description="fine-tuning: whether its split has scans to self-train on",
    )
    init: str | None = Field(
        default=None, description="segmenters: 'scratch', or the run or file they started from"
    )
    init_patients: tuple[str, ...] = Field(
        default=(), description="segmenters: patients seen in the training they started from"
    )
    teacher: str | None = Field(
        default=None,
        description="self-training: the run that labelled the unlabelled cases, if it did not "
        "change with the student",
    )
    overlap_allowed: bool = False
    mirror_axes: tuple[Literal["slice", "row", "column"], ...] = ()
    quantities: dict[str, LoggedQuantity] = Field(
        default_factory=dict, description="what the task's values in the log are, by name"
    )
    uniform_losses: dict[str, float] = Field(
        default_factory=dict,
        description="pre-training: losses that show collapse, and their values where all features "
        "are equal",
    )
    at_uniform: tuple[str, ...] = Field(
        default=(), description="those of them that the finished run ended near"
    )
    trained_on: TrainingRange | None = Field(
        default=None, description="modality, spacings and intensities of the cases"
    )
    weights_sha256: str = Field(
        default="", description="of the weights' file; empty until the run is finished"
    )
    steps: int = Field(default=0, description="of the whole run; 0 until it is finished")
    seconds: float = Field(default=0.0, description="training time, over all resumptions")

    @property
    def is_segmenter(self) -> bool:
        """Whether it was trained with labels."""
        return self.kind != "pretrain"

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of the patches that it was trained on, in voxels."""
        size = self.settings["training"]["size"]
        return (size,) * self.settings["dims"] if isinstance(size, int) else tuple(size)

    @property
    def seen_patients(self) -> tuple[str, ...]:
        """Everyone whose scans had a part in its weights, sorted."""
        return tuple(sorted({*self.patients, *self.unlabelled_patients, *self.init_patients}))


NOT_COMPARED = {
    "finished", "device", "versions", "folder", "store", "quantities", "uniform_losses",
    "at_uniform", "trained_on", "leaves_unlabelled", "weights_sha256", "steps", "seconds",
}  # fmt: skip
"""Fields that may differ when a run is resumed."""


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    return {
        "python": platform.python_version(),
        "macl": macl.__version__,
        **{name: version(name) for name in ("torch", "lightning-fabric", "numpy", "blosc2")},
    }


def require_finished(run: Path, record: RunRecord) -> None:
    """MaclError unless the run is finished."""
    if not record.finished:
        raise MaclError(
            f"{run} is not finished: continue with `macl {record.kind} --out {run} --resume`."
        )


def write_models(folder: Path, models: Sequence[Path]) -> None:
    """Write which runs below the folder of `macl run` segment together."""
    names = tuple(model.relative_to(folder).as_posix() for model in models)
    write_json(folder / MODELS, ModelList(models=names).model_dump(mode="json"))


def runs_at(path: Path) -> list[Path]:
    """The run in a folder, or the segmenting runs of a folder of `macl run`; none elsewhere.

    Raises:
        MaclError: the list of these runs is damaged.
    """
    if (path / RECORD).is_file():
        return [path]
    if not (path / MODELS).is_file():
        return []
    known = validate(ModelList, read_json(path / MODELS, "a list of models"), where=MODELS)
    return [inside(path, name) for name in known.models]


def about_store(store: Store, folder: Path) -> dict[str, Any]:
    """The fields of a `RunRecord` that describe the store it is trained on."""
    index = store.index
    return {
        "store": printable(str(folder)), "store_checksum": store.checksum,
        "reader": index.reader, "modality": index.modality, "prepared": index.prepared,
        "channels": index.channels, "classes": index.classes, "label_values": index.label_values,
    }  # fmt: skip


def patients_of(store: Store, cases: Iterable[str]) -> tuple[str, ...]:
    """The patients of some cases, sorted."""
    return tuple(sorted({store.case(name).patient for name in cases}))


def read_record(run: Path) -> RunRecord:
    """Read the record of the run in a folder.

    A store, start or teacher that was moved along with the run is named where it lies now.

    Raises:
        MaclError: there is no run there, or another version wrote it.
    """
    if not (run / RECORD).is_file():
        what = "is not a run" if run.exists() else "does not exist"
        raise MaclError(
            f"{run} {what}: name a folder that `macl pretrain`, `macl finetune` or "
            "`macl selftrain` has written."
        )
    raw = read_json(run / RECORD, "a run's record")
    if raw.get("format") != "macl-run" or raw.get("version") != 1:
        raise MaclError(f"{run / RECORD} is not a record of this version of macl: train again.")
    return _where_it_is_now(run, validate(RunRecord, raw, where=RECORD))


def _where_it_is_now(run: Path, record: RunRecord) -> RunRecord:
    """The record of a run that was moved together with its store, start or teacher."""
    moved: dict[str, str] = {}
    for name in ("store", "init", "teacher"):
        value = getattr(record, name) or ""
        path = Path(WEIGHTS_DIGEST.sub("", value))
        if path.is_absolute() != Path(record.folder).is_absolute() or path.exists():
            continue
        now = Path(os.path.normpath(run / os.path.relpath(path, record.folder)))
        if now.exists():
            moved[name] = value.replace(str(path), str(now), 1)
    return record.model_copy(update={**moved, "folder": str(run)}) if moved else record


def write_record(run: Path, record: RunRecord) -> None:
    """Write `run.json` atomically."""
    write_text(run / RECORD, record.model_dump_json(indent=1) + "\n")


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other commands from training the run in a folder; nothing where that holds no run.

    Raises:
        MaclError: another command is training it, or a part of the folder is a link.
    """
    if run.exists() and not (run / RECORD).is_file() and not _is_new(run):
        yield
        return
    refuse_links(run)
    busy = f"Another command is training the run in {run}: wait until it ends."
    with file_lock(run / LOCK, busy):
        yield
        if not (run / RECORD).is_file() or read_record(run).finished:
            (run / LOCK).unlink(missing_ok=True)


def _is_new(run: Path) -> bool:
    """Whether a folder holds nothing, or what a start that was killed has left."""
    return run.is_dir() and all(
        item.name.startswith(ASIDE) or item.name == LOCK for item in run.iterdir()
    )


def open_run(run: Path, record: RunRecord, resume: bool) -> RunRecord:
    """Start a run in a folder, or resume the one that is there.

    Returns:
        `record` for a new run; the earlier record where a run is resumed.

    Raises:
        MaclError: the folder holds something else, a run but `resume` is False, or a run with other
            settings.
    """
    if not run.exists() or _is_new(run):
        run.mkdir(parents=True, exist_ok=True)
        clear_unfinished(run)
        write_record(run, record)
        return record
    if not (run / RECORD).is_file():
        raise MaclError(
            f"--out {run} already holds something that is not a run: choose another folder."
        )
    earlier = read_record(run)
    if not resume:
        raise MaclError(
            f"--out {run} already holds a run: add --resume to continue it, or choose another "
            "folder."
        )
    before, now = (_compared(each) for each in (earlier, record))
    changed = sorted(before.items() ^ now.items())
    if changed:
        names = listed(sorted({name for name, _ in changed}))
        raise MaclError(
            f"The run in {run} was started with other settings ({names}): resume it with the same "
            "ones, or choose another --out."
        )
    clear_unfinished(run)
    return earlier


def finish_run(
    run: Path,
    record: RunRecord,
    weights: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    steps: int,
    seconds: float,
    **fields: Any,
) -> RunRecord:
    """Write the weights of a run and its final record, then delete its training state.

    Call it in every process; only rank 0 writes.

    Args:
        run: the run's folder.
        record: the record that `open_run` returned.
        weights: tensors to keep, by name.
        about: JSON-able description for the header of the weights file.
        steps: steps of the whole run.
        seconds: training time, over all resumptions.
        fields: further fields of the record.

    Returns:
        The record of the finished run.
    """
    from macl.utils import checkpoint

    finished = record.model_copy(
        update={"finished": True, "steps": steps, "seconds": round(seconds, 3), **fields}
    )
    if this_rank().is_zero:
        checkpoint.write(run / WEIGHTS, weights, about)
        finished = finished.model_copy(update={"weights_sha256": sha256(run / WEIGHTS)})
        write_record(run, finished)
        (run / STATE).unlink(missing_ok=True)
    return finished


def read_weights(run: Path, record: RunRecord) -> Checkpoint:
    """Read the weights of a finished run.

    Raises:
        MaclError: they are missing, broken, not those that the run has written, or not finite.
    """
    from macl.utils import checkpoint

    path = run / WEIGHTS
    saved = checkpoint.read(path)
    if record.weights_sha256 and sha256(path) != record.weights_sha256:
        raise MaclError(
            f"{path} is not the file that this run has written: restore it, or train again."
        )
    checkpoint.require_finite(path, saved.tensors)
    return saved


def identity(run: Path) -> str:
    """A hash of a run's record, which stays the same until the run is finished; empty: none."""
    return sha256(run / RECORD) if (run / RECORD).is_file() else ""


def _compared(record: RunRecord) -> dict[str, str]:
    """What must stay the same; of weights it is their digest, wherever they lie."""
    values = record.model_dump(exclude=NOT_COMPARED)
    for name in ("init", "teacher"):
        if digest := WEIGHTS_DIGEST.search(values[name] or ""):
            values[name] = digest[0]
    return _leaves(values)


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        leaves = (_leaves(part, f"{prefix}{name}.") for name, part in value.items())
        return {name: text for group in leaves for name, text in group.items()}
    return {prefix.rstrip("."): json.dumps(value)}


def read_log(run: Path) -> Iterator[dict[str, Any]]:
    """The log's lines in order, without a last line that a kill cut off.

    Broken lines are left out, and said.
    """
    if not (run / LOG).is_file():
        return
    broken = 0
    with (run / LOG).open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            values = _parse_log_line(line)
            if values is None:
                broken += 1
            else:
                yield values
    if broken:
        lines_are = "1 line is" if broken == 1 else f"{broken} lines are"
        warn(f"{run / LOG}: {lines_are} broken and left out.")


def _parse_log_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    numbers = all(isinstance(value, int | float) for value in values.values())
    return values if numbers else None
