"""Training on toy stores of slices and volumes, as words of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fakes.toy_store import write_toy_store
from macl.stages.split import split

SLICES_OF_A_CASE = {2: 6, 3: 24}


def write_stores(
    folder: Path, *, test: str, validation: str, budget: str, patients: int = 6
) -> Path:
    """Cases of 6 slices, and as many of 24 slices for volumes, each with a split."""
    for dims, slices in SLICES_OF_A_CASE.items():
        store = folder / f"{dims}d.store"
        write_toy_store(store, patients=patients, slices=slices, side=32)
        target = folder / f"{dims}d.json"
        split(store, target, test=test, validation=validation, budgets=budget)
    return folder


def training_words(
    folder: Path, stage: str, dims: int, out: Path, settings: Iterable[str], budget: str
) -> list[str]:
    """`macl pretrain`, or a segmenter from scratch, on the store in a folder."""
    words = [stage, str(folder / f"{dims}d.store"), "--out", str(out), "--device", "cpu"]
    if stage in ("finetune", "selftrain"):
        words += ["--init", "scratch", "--split", str(folder / f"{dims}d.json"), "--labels", budget]
    for setting in settings:
        words += ["--set", setting]
    return words
