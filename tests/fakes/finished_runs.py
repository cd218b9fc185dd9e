"""Runs as the stages leave them, without training: records, logs, transfer tables, masks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fakes.toy_store import write_toy_store
from macl.config.settings import FinetuneSettings, PretrainSettings
from macl.data.store import Store
from macl.engine.task import Task
from macl.io.volume import write_volume
from macl.plugins import find
from macl.preprocessing.orientation import to_scan
from macl.records import runs
from macl.records.runs import LoggedQuantity, RunKind, RunRecord, write_record
from macl.stages.evaluate import evaluate
from macl.tasks.segmentation import SegmentationTask

TEST_CASES = ("patient004", "patient005", "patient006")


@dataclass(frozen=True)
class FakeRuns:
    """A store, a pre-training, and fine-tuning from scratch and from that pre-training."""

    store: Path
    pretrained: Path
    scratch: Path
    transferred: Path


def write_runs(folder: Path) -> FakeRuns:
    """Write a store and its runs below `folder`."""
    store = write_toy_store(folder / "store")
    fake = FakeRuns(
        folder / "store", folder / "pretrained", folder / "scratch", folder / "transferred"
    )
    write_pretrained(fake.pretrained, store)
    write_finetuned(fake.scratch, store, init="scratch", shift=6)
    write_finetuned(fake.transferred, store, init=f"{fake.pretrained} (0123456789ab)", shift=2)
    return fake


def write_pretrained(path: Path, store: Store, *, steps: int = 400, finished: bool = True) -> None:
    """Write a pre-training run whose losses fall and whose features spread."""
    settings = PretrainSettings(
        method="macl", method_settings={"decoder_blocks": 2, "threshold": 0.1}
    )
    cases = tuple(case for case in store.cases if case not in TEST_CASES)
    record = _record(store, "pretrain", settings, cases, steps if finished else 0)
    record = record.model_copy(update={"quantities": described(find("methods", "macl"))})
    path.mkdir(parents=True)
    write_record(path, record)
    random = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        fall = math.exp(-step / 90)
        parts = {
            "loss_global": 4.2 + 2.6 * fall, "loss_dense": 5.0 + 1.6 * fall,
            "loss_regularisation": 0.1 + 0.5 * fall, "positives_per_anchor": 7.0,
            "feature_spread": 0.9 - 0.7 * fall, "bottleneck_size": 0.4 + 0.3 * fall,
        }  # fmt: skip
        parts = {name: value * random.normal(1, 0.05) for name, value in parts.items()}
        loss = parts["loss_global"] + 0.5 * parts["loss_dense"] + parts["loss_regularisation"]
        lines.append(_line(step, steps, {"loss": loss, **parts}))
    _write_log(path, lines)


def write_finetuned(
    path: Path,
    store: Store,
    *,
    init: str,
    shift: int,
    labels: str = "2",
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    test_cases: tuple[str, ...] = TEST_CASES,
    also_scored: tuple[str, ...] = (),
) -> None:
    """Write a fine-tuned run with scored masks, which are off by up to `shift` columns."""
    write_unscored(
        path, store, init=init, labels=labels, seed=seed, settings=settings, test_cases=test_cases
    )
    for case in (*test_cases, *also_scored):
        number = TEST_CASES.index(case) if case in TEST_CASES else 0
        stored = store.case(case)
        label = store.read(case, "label")
        mask = to_scan(np.roll(label, shift * (number + 1) // 2, axis=2), stored.orientation)
        write_volume(path / runs.PREDICTIONS / f"{case}.nii.gz", mask, stored.geometry)
    evaluate(path / runs.PREDICTIONS, store.path, path / runs.SCORES)


def write_unscored(
    path: Path,
    store: Store,
    *,
    init: str,
    labels: str = "2",
    seed: int = 0,
    finished: bool = True,
    settings: FinetuneSettings | None = None,
    test_cases: tuple[str, ...] = TEST_CASES,
) -> None:
    """Write a fine-tuned run without predictions."""
    path.mkdir(parents=True)
    steps = 60
    cases = tuple(store.cases)[: int(labels)]
    settings = settings or FinetuneSettings()
    record = _record(store, "finetune", settings, cases, steps if finished else 0)
    changes = {"init": init, "labels": labels, "recipe": "strong", "seed": seed}
    changes["test_cases"] = test_cases
    quantities = described(SegmentationTask)
    write_record(path, record.model_copy(update={**changes, "quantities": quantities}))
    lines = [
        _line(
            step,
            steps,
            {"loss": 2.5 / step, "loss_cross_entropy": 1.5 / step, "loss_dice": 1.0 / step},
        )
        for step in range(1, steps + 1)
    ]
    _write_log(path, lines)
    (path / runs.TRANSFER).write_text(json.dumps(_transfer(init)))


def described(task: type[Task]) -> dict[str, LoggedQuantity]:
    """What the stages write of the values that a task logs."""
    return {name: LoggedQuantity(**asdict(of)) for name, of in task.quantities.items()}


def _record(
    store: Store,
    kind: RunKind,
    settings: PretrainSettings | FinetuneSettings,
    cases: tuple[str, ...],
    steps: int,
) -> RunRecord:
    return RunRecord(
        kind=kind, finished=steps > 0, settings=settings.model_dump(mode="json"),
        recipe="default", seed=0, device="cpu", versions=runs.versions(),
        **runs.about_store(store, store.path), cases=cases, people=cases, patients=cases,
        test_cases=TEST_CASES, steps=steps, seconds=83.2 if steps else 0.0,
    )  # fmt: skip


def _line(step: int, steps: int, values: dict[str, float]) -> dict[str, float]:
    rate = 0.05 * (1 + math.cos(math.pi * step / steps))
    line = {"step": step, "epoch": round(step / 8, 4), "learning_rate": rate, **values}
    return line | ({"patches_per_second": 60.0 + step % 7} if step % 20 == 0 else {})


def _write_log(path: Path, lines: list[dict[str, float]]) -> None:
    (path / runs.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _transfer(init: str) -> dict:
    loaded = init != "scratch"
    shapes = {
        "encoder.levels.0.0.weight": [8, 1, 3, 3],
        "decoder.blocks.0.up.weight": [128, 64, 2, 2],
        "head.weight": [3, 8, 1, 1],
    }
    tensors = []
    for name, shape in shapes.items():
        outcome = "loaded" if loaded and not name.startswith("head") else "fresh"
        origin, why = (name, "same shape") if outcome == "loaded" else (None, "not in the source")
        tensors.append(
            {"name": name, "shape": shape, "outcome": outcome, "why": why, "from": origin}
        )
    outcomes = [tensor["outcome"] for tensor in tensors]
    counts = {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}
    return {"source": init, "tensors": tensors, "counts": counts, "elements": {}, "unused": []}
