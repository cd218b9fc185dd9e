"""A benchmark's grid: what it names, and the cells that this makes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from macl.config import FinetuneSettings, PretrainSettings, Settings, read_recipe, read_toml, resolve, validate
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.metrics import Convention
from macl.plugins import find
from macl.tasks.networks import plugin_settings
from macl.utils.errors import MaclError, listed

NAME = r"^\w[\w.+-]*$"


class Start(Settings):
    """What fine-tuning starts from: pre-training by a method, once per seed, or, without a method, from scratch."""

    name: str = Field(pattern=NAME)
    method: str | None = None
    recipe: str | None = Field(default=None, description="of pre-training; none: the method's own")
    set: tuple[str, ...] = Field(default=(), description="settings of pre-training, as --set takes them")

    @model_validator(mode="after")
    def _scratch_has_no_settings(self) -> Start:
        if self.method is None and (self.recipe or self.set):
            raise ValueError("recipe and set belong to a method, and none is named")
        return self


class Finetune(Settings):
    """What is changed in every fine-tuning recipe of the grid."""

    set: tuple[str, ...] = ()


class Grid(Settings):
    """A grid file. Paths in it are relative to it; every combination of start, labels, recipe and seed is a cell."""

    store: Path
    split: str
    start: tuple[Start, ...] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(default=("strong",), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    finetune: Finetune = Finetune()
    conventions: tuple[Convention, ...] = Field(default=("strict", "paper"), min_length=1)

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_may_be_numbers(cls, labels: Any) -> Any:
        return (
            [str(label) if isinstance(label, int) else label for label in labels]
            if isinstance(labels, list)
            else labels
        )

    @model_validator(mode="after")
    def _cells_differ(self) -> Grid:
        repeated = [name for name, times in Counter(cell.name for cell in cells(self)).items() if times > 1]
        if repeated:
            raise ValueError(f"these cells stand twice: {listed(repeated)}")
        return self


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the grid."""

    start: Start
    labels: str
    recipe: str
    seed: int

    @property
    def recipe_name(self) -> str:
        """The recipe's name, also of one that was given as a file."""
        return Path(self.recipe).stem if self.recipe.endswith(".toml") else self.recipe

    @property
    def pretraining(self) -> str:
        """The folder of its pre-training."""
        return f"{self.start.name}__seed{self.seed}"

    @property
    def name(self) -> str:
        """The cell's folder."""
        labels = re.sub(r"[^\w.-]", "_", self.labels.replace("%", "percent"))
        return f"{self.start.name}__{labels}__{self.recipe_name}__seed{self.seed}"


def cells(grid: Grid) -> Iterator[Cell]:
    """The cells in the order they run: seed by seed, so that what is reached compares like with like."""
    for seed in grid.seeds:
        for start in grid.start:
            for labels in grid.labels:
                for recipe in grid.recipes:
                    yield Cell(start, labels, recipe, seed)


def read_grid(path: Path) -> Grid:
    """Read a grid file, with its paths made absolute.

    Raises:
        MaclError: the file is missing or broken, or a setting in it does not fit.
    """
    grid = validate(Grid, read_toml(path, "a benchmark's grid"), where=path.name)
    folder = path.absolute().parent

    def located(name: str, suffix: str) -> str:
        return str(folder / name) if name.endswith(suffix) else name

    starts = tuple(
        start.model_copy(update={"recipe": located(start.recipe, ".toml")}) if start.recipe else start
        for start in grid.start
    )
    return grid.model_copy(
        update={
            "store": folder / grid.store,
            "split": located(grid.split, ".json"),
            "start": starts,
            "recipes": tuple(located(recipe, ".toml") for recipe in grid.recipes),
        }
    )


def specify(grid: Grid) -> dict[str, dict[str, Any]]:
    """Cell → everything its result depends on, as JSON; what cannot run is found here, before anything does.

    Raises:
        MaclError: the store, the split, a label budget, a method, a recipe or a setting is not there or does not fit.
    """
    store = Store.open(grid.store)
    split = read_split(grid.split)
    resolved = resolve_split(split, store)
    for labels in grid.labels:
        resolved.labelled_cases(labels)
    pretraining = {start.name: _pretraining(start) for start in grid.start}
    finetuning = {
        recipe: resolve(FinetuneSettings, read_recipe("finetune", recipe), grid.finetune.set) for recipe in grid.recipes
    }
    return {
        cell.name: {
            "store": store.checksum,
            "split": split.model_dump(mode="json"),
            "labels": cell.labels,
            "seed": cell.seed,
            "pretraining": pretraining[cell.start.name],
            "finetuning": finetuning[cell.recipe].model_dump(mode="json"),
        }
        for cell in cells(grid)
    }


def _pretraining(start: Start) -> dict[str, Any] | None:
    if start.method is None:
        return None
    method = find("methods", start.method)
    recipe = read_recipe("pretrain", start.recipe or start.method)
    settings = resolve(PretrainSettings, {**recipe, "method": start.method}, start.set)
    if settings.method != start.method:
        raise MaclError(f"The start {start.name!r} names the method {start.method!r}, but sets {settings.method!r}.")
    plugin_settings(method, settings.method_settings, f"{start.name}.method_settings")
    return settings.model_dump(mode="json")
