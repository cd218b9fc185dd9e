"""The whole path on synthetic subjects, from prepare to report.

The demo uses only the public stages: a few commands do the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.prepare import prepare
from macl.stages.pretrain import pretrain
from macl.stages.report import report
from macl.stages.selftrain import selftrain
from macl.stages.split import split
from macl.utils.errors import MaclError
from macl.utils.files import read_json, write_json
from macl.utils.progress import progress, say
from macl.workflows.demo.subjects import VoxelGrid, write_subjects

MARK = "demo.json"
PAGE = "report.html"
SEED = 0
WIDTH = 8
"""Channels of the network's finest level: a quarter of the usual, to be quick on a laptop."""

SYNTHETIC = (
    "These subjects are synthetic: each is the same brain template (MNI152), randomly deformed, "
    "with its own contrast, bias field and noise. They are much more alike than people are: "
    "nothing here carries over to a clinic."
)
ONE_SEED = (
    "One seed and {tests} synthetic test subjects: whichever is ahead here, another seed may "
    "reverse it."
)


DemoTraining = Literal["scratch", "macl", "self-trained"]
TITLES: dict[DemoTraining, str] = {
    "scratch": "labels alone",
    "macl": "from MACL",
    "self-trained": "self-trained",
}

SHORT = ("teacher_decay=0.9", "adapt_confidence=true")
"""Self-training so short that the teacher must follow quickly and is sure of little."""


@dataclass(frozen=True)
class Schedule:
    """How a network of the demo is trained.

    Attributes:
        recipe: name of a recipe.
        patch: sides in voxels (y, x in 2D; z, y, x in 3D).
        more: further settings.
    """

    recipe: str
    patch: tuple[int, ...]
    batch_size: int
    steps: int
    more: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings that differ from the recipe's."""
        return (
            f"dims={len(self.patch)}",
            f"backbone_settings.width={WIDTH}",
            f"training.size={list(self.patch)}",
            f"training.steps={self.steps}",
            f"training.batch_size={self.batch_size}",
            *self.more,
        )


@dataclass(frozen=True)
class DemoSize:
    """How large the demo is, and whether it works on slices or on volumes.

    Attributes:
        pretraining: of MACL.
        finetuning: of the segmenters from scratch and from MACL.
        first: fine-tuning of the segmenters that are self-trained afterwards.
        selftraining: whose steps cost twice those of fine-tuning: with `first`, as much as
            `finetuning`.
    """

    subjects: int = 12
    test: int = 4
    budgets: tuple[int, ...] = (1, 2, 4)
    grid: VoxelGrid = field(default_factory=VoxelGrid)
    pretraining: Schedule = Schedule("macl-plus", (128, 128), batch_size=16, steps=100)
    finetuning: Schedule = Schedule("strong", (112, 112), batch_size=8, steps=160)
    first: Schedule = Schedule("strong", (112, 112), batch_size=8, steps=80)
    selftraining: Schedule = Schedule(
        "mean-teacher", (112, 112), batch_size=8, steps=40, more=SHORT
    )


SLICES = DemoSize()
VOLUMES = DemoSize(
    grid=VoxelGrid(size=(64, 72, 48), spacing_mm=(3.0, 3.0, 3.0)),
    budgets=(1, 2),
    pretraining=Schedule("macl-plus", (32, 32, 32), batch_size=16, steps=80),
    finetuning=Schedule("strong-3d", (32, 48, 48), batch_size=2, steps=300),
    first=Schedule("strong-3d", (32, 48, 48), batch_size=2, steps=150),
    selftraining=Schedule("mean-teacher-3d", (32, 48, 48), batch_size=2, steps=75, more=SHORT),
)


@dataclass(frozen=True)
class DemoCell:
    """One segmenter: how it is trained, and its number of labelled subjects."""

    training: DemoTraining
    labels: int

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.training}-{self.labels}"


def demo(out: Path, size: DemoSize = SLICES) -> Path:
    """Compare labels alone with labels and unlabelled scans, on synthetic subjects.

    Labels alone: fine-tuning from scratch. With unlabelled scans: fine-tuning from MACL's weights;
    or half as much fine-tuning from scratch, then self-training. `out` then holds the scans, the
    store, the runs, `overlays/*.png`, `report.html` and `report.json`; finished parts are kept. A
    table is printed.

    Returns:
        The page.

    Raises:
        MaclError: nilearn is not installed, or `out` holds something else.
    """
    _open_folder(out, size)
    scans, store = out / "scans" / "Dataset001_Synthetic", out / "store"
    split_file = out / "split.json"
    cells = [DemoCell(training, labels) for labels in size.budgets for training in TITLES]
    runs = {cell: out / "runs" / cell.name for cell in cells}
    pretrained = out / "runs" / "macl-pretraining"
    _step(1, f"make {size.subjects} synthetic subjects")
    say(SYNTHETIC)
    with progress("subjects", size.subjects) as advance:
        write_subjects(scans, size.subjects, size.grid, SEED, advance)
    _step(2, "prepare")
    prepare(scans, store)
    _step(3, "split")
    budgets = ",".join(map(str, size.budgets))
    split(store, split_file, test=str(size.test), budgets=budgets, seed=SEED)
    _step(4, "pre-train (no labels)")
    pretrain(
        store, pretrained, split=str(split_file), recipe=size.pretraining.recipe,
        overrides=size.pretraining.overrides, seed=SEED, resume=True,
    )  # fmt: skip
    _step(5, f"train {len(cells)} segmenters")
    for cell, run in runs.items():
        say(f"{TITLES[cell.training]}, {cell.labels} labelled:")
        common = {"split": split_file, "labels": cell.labels, "seed": SEED, "resume": True}
        if cell.training == "self-trained":
            first = run.with_name(f"{run.name}-first")
            _train(finetune, size.first, store, first, init="scratch", **common)
            _train(selftrain, size.selftraining, store, run, init=first, **common)
        else:
            init = pretrained if cell.training == "macl" else "scratch"
            _train(finetune, size.finetuning, store, run, init=init, **common)
    _step(6, "predict the test subjects")
    for run in runs.values():
        predict([run, store], run / "predictions")
    _step(7, "evaluate")
    for run in runs.values():
        evaluate(run / "predictions", store, run / "cases.csv")
    _step(8, "report")
    reported = [*runs.values(), pretrained]
    page = report(reported, out / PAGE, notes=[SYNTHETIC], overlays=out / "overlays")
    summaries = {
        cell: read_json(run / "cases.summary.json", "a summary") for cell, run in runs.items()
    }
    print(_table(summaries))
    print(ONE_SEED.format(tests=size.test), SYNTHETIC, f"The page: {page}", sep="\n")
    return page


def _train(
    stage: Callable[..., Any], schedule: Schedule, store: Path, run: Path, **options: Any
) -> None:
    stage(store, run, recipe=schedule.recipe, overrides=schedule.overrides, **options)


def _open_folder(out: Path, size: DemoSize) -> None:
    """Start a folder, or continue a demo of the same size."""
    mark = json.loads(json.dumps({"format": "macl-demo", **asdict(size)}))
    if (out / MARK).is_file() and read_json(out / MARK, "a demo's mark") == mark:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MaclError(
            f"--out {out} already holds something that is not this demo: choose another folder."
        )
    write_json(out / MARK, mark)


def _step(number: int, what: str) -> None:
    say(f"\n{number}/8 {what}")


def _table(summaries: Mapping[DemoCell, Mapping[str, Any]]) -> str:
    """Dice in % by class, training and number of labelled subjects."""
    names = [row["class"] for row in next(iter(summaries.values()))["classes"]]
    lines = [_line("Dice %, mean", "labelled", *names, "mean")]
    for cell, summary in summaries.items():
        rows = [*summary["classes"], summary["mean"]]
        means = [row["dice"]["mean"] for row in rows]
        texts = ["–" if mean is None else f"{100 * mean:.1f}" for mean in means]
        lines.append(_line(TITLES[cell.training], str(cell.labels), *texts))
    return "\n".join(lines)


def _line(first: str, *texts: str) -> str:
    return f"{first:<16}" + "".join(f"{text:>14}" for text in texts)
