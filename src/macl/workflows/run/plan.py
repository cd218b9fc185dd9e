"""The plan of `macl run`: all that it will do, as a TOML file that can be edited and run again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from macl.config.mistakes import validate
from macl.config.settings import PatchSide, PrepareSettings, Seed, Settings
from macl.preprocessing.statements import TABLES
from macl.utils.errors import MaclError
from macl.utils.user_text import read_toml_table

PLAN, STORE = "plan.toml", "store"
"""In the folder of a run."""

HEAD = """\
# The plan of `macl run`. Edit it and run it: macl run --plan plan.toml
# (with --out for another folder, once training has begun).
"""


class RunRequest(Settings):
    """What the user asks for."""

    scans: Path = Field(description="folder of scans")
    reader: str | None = Field(default=None, description="layout of the scans; none: recognised")
    labels: Path | None = Field(
        default=None, description="folder or table of labels; none: as the layout says"
    )
    patients: str | None = Field(
        default=None, description="who was scanned, as `macl prepare --patients` takes it"
    )
    minutes: float = Field(gt=0, allow_inf_nan=False, description="the time for everything")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where to compute"
    )

    def with_absolute_paths(self, folder: Path) -> Self:
        """The same with paths that were relative to a folder."""
        labels, patients = self.labels, self.patients
        if patients and patients.lower().endswith(TABLES):
            patients = str(folder / patients)
        return self.model_copy(
            update={
                "scans": folder / self.scans,
                "labels": folder / labels if labels else None,
                "patients": patients,
            }
        )


class TrainingPlan(Settings):
    """How one network is trained."""

    recipe: str = Field(description="name or path of a recipe")
    size: tuple[PatchSide, ...] = Field(description="sides of a patch in voxels")
    batch_size: int = Field(gt=0, description="patches per step")
    steps: int = Field(gt=0, description="batches of the run")
    set: tuple[str, ...] = Field(default=(), description="further settings, as --set takes them")
    seconds_per_step: float = Field(
        default=0.0, ge=0, description="as measured on this machine, only to tell how long it takes"
    )

    @property
    def seconds(self) -> float:
        """The time that the steps take, as far as it was measured."""
        return self.steps * self.seconds_per_step


class ExpectedSeconds(Settings):
    """How long the other steps were expected to take."""

    prepare: float = Field(default=0.0, ge=0, description="read, resample and store the scans")
    predict: float = Field(default=0.0, ge=0, description="segment every scan")
    report: float = Field(default=0.0, ge=0, description="score and report")


class RunPlan(RunRequest):
    """What the file holds."""

    format: Literal["macl-run-plan"] = "macl-run-plan"
    version: Literal[1] = 1
    seed: Seed = Field(default=0, description="of all random draws")
    dims: Literal[2, 3] = Field(description="2: slices; 3: volumes")
    width: int = Field(gt=0, description="channels of the U-Net's finest level")
    folds: int = Field(
        default=0,
        ge=0,
        description="2 or more: cross-validation, so many models that test every labelled person "
        "once; 0: one model",
    )
    test: str = Field(
        default="20%", description="without folds: labelled people to test, a number or a share"
    )
    group: Literal["patient", "consecutive-pair"] = Field(
        default="patient", description="who is one person, as `macl split --group` takes it"
    )
    prepare: PrepareSettings = Field(
        default=PrepareSettings(), description="how scans become a store"
    )
    pretrain: TrainingPlan = Field(description="without labels")
    finetune: TrainingPlan | None = Field(
        default=None, description="every model, on the labels; none: there are no labels"
    )
    selftrain: TrainingPlan | None = Field(
        default=None, description="every model, on the unlabelled scans too; none: not at all"
    )
    expected_seconds: ExpectedSeconds = Field(
        default=ExpectedSeconds(), description="of the other steps, only to tell how long it takes"
    )

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds is 1: give 0 for one model, or at least 2")
        if self.prepare.plan:
            raise ValueError("prepare.plan cannot be given here: use `macl prepare --plans`")
        if self.selftrain and not self.finetune:
            raise ValueError("selftrain needs finetune, whose models it continues")
        for name in ("pretrain", "finetune", "selftrain"):
            training: TrainingPlan | None = getattr(self, name)
            if training and len(training.size) != self.dims:
                raise ValueError(
                    f"{name}.size has {len(training.size)} sides, but dims is {self.dims}: give "
                    f"{self.dims} sides"
                )
        return self

    @property
    def request(self) -> RunRequest:
        """What the user asked for."""
        return RunRequest(**{name: getattr(self, name) for name in RunRequest.model_fields})

    @property
    def models(self) -> int:
        """How many segmenters are trained."""
        return max(1, self.folds) if self.finetune else 0

    @property
    def seconds(self) -> float:
        """How long everything was expected to take."""
        expected = self.expected_seconds
        trainings = [self.finetune.seconds if self.finetune else 0.0]
        trainings += [self.selftrain.seconds if self.selftrain else 0.0]
        other = expected.prepare + expected.predict + expected.report
        return other + self.pretrain.seconds + self.models * sum(trainings)

    @property
    def tests(self) -> bool:
        """Whether labelled people are kept to test."""
        return self.finetune is not None and (
            self.folds > 0 or self.test.strip(" %").strip("0.") != ""
        )

    def overrides(self, training: TrainingPlan) -> tuple[str, ...]:
        """The settings that differ from the recipe's."""
        return (
            f"dims={self.dims}",
            f"backbone_settings.width={self.width}",
            f"training.size={list(training.size)}",
            f"training.batch_size={training.batch_size}",
            f"training.steps={training.steps}",
            *training.set,
        )


def read_plan(path: Path) -> RunPlan:
    """Read a plan; its paths are relative to the file.

    Raises:
        MaclError: the file is missing or broken, or a setting does not fit.
    """
    values = read_toml_table(path, "a plan of `macl run`")
    if values.get("format") != "macl-run-plan" or values.get("version") != 1:
        raise MaclError(
            f"{path} is not a plan of this version of macl: make one with `macl run SCANS --out "
            "DIR --dry-run`."
        )
    return validate(RunPlan, values, where=path.name).with_absolute_paths(path.absolute().parent)


def plan_text(plan: RunPlan, reasons: Iterable[str]) -> str:
    """The plan as TOML; each setting has its meaning beside it."""
    comments = "".join(f"# {reason}\n" for reason in reasons)
    return HEAD + "#\n" + comments + "\n" + "\n".join(_lines(plan)) + "\n"


def _lines(settings: BaseModel) -> Iterator[str]:
    fields = type(settings).model_fields
    tables: dict[str, BaseModel] = {}
    # Without a description are the format and its version, which come first.
    for name, field in sorted(fields.items(), key=lambda item: bool(item[1].description)):
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            tables[name] = value
        elif value is not None:
            yield f"{name} = {_toml(value)}" + (
                f"  # {field.description}" if field.description else ""
            )
    for name, table in tables.items():
        yield f"\n[{name}]  # {fields[name].description}"
        yield from _lines(table)


def _toml(value: Any) -> str:
    """A value as TOML, whose texts and numbers are written like JSON's."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
