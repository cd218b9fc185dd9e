"""Plans of `macl run` that are done within seconds, for scans of 6 slices of 20 × 24 voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from macl.workflows.run.plan import RunPlan, TrainingPlan, plan_text

OFTEN = ("training.checkpoint_every_steps=2", "training.log_every_steps=1")
PRETRAIN = TrainingPlan(
    recipe="macl-plus",
    size=(32, 32),
    batch_size=4,
    steps=6,
    set=("method_settings.decoder_blocks=1", *OFTEN),
)
FINETUNE = TrainingPlan(recipe="strong", size=(32, 32), batch_size=4, steps=6, set=OFTEN)
SELFTRAIN = FINETUNE.model_copy(update={"recipe": "mean-teacher", "steps": 4})


def tiny_plan(scans: Path, **changes: Any) -> RunPlan:
    """Cross-validation in two folds, with self-training; `changes` replace fields."""
    values: dict[str, Any] = {
        "scans": scans, "minutes": 1, "device": "cpu", "dims": 2, "width": 4, "folds": 2,
        "pretrain": PRETRAIN, "finetune": FINETUNE, "selftrain": SELFTRAIN,
    }  # fmt: skip
    return RunPlan(**{**values, **changes})


def write_tiny_plan(path: Path, scans: Path, **changes: Any) -> Path:
    """Write such a plan."""
    path.write_text(plan_text(tiny_plan(scans, **changes), ()), encoding="utf-8")
    return path
