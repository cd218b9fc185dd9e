"""The grid of a benchmark: its file, its cells, and what each cell depends on."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from macl.config import (
    FinetuneSettings,
    PretrainSettings,
    Settings,
    read_toml,
    resolve_recipe,
    validate,
)
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.metrics import Convention
from macl.tasks.run_settings import NETWORK_SETTINGS, finetune_settings, pretrain_settings
from macl.utils.errors import MaclError, listed
from macl.utils.progress import say

NAME = r"^\w[\w.+-]*$"


class Start(Settings):
    """A start of fine-tuning: pre-training by a method, once per seed; no method: from scratch."""

    name: str = Field(pattern=NAME)
    method: str | None = None
    recipe: str | None = Field(
        default=None, description="recipe of the pre-training; none: the method's own"
    )
    network: tuple[str, ...] = Field(
        default=(),
        description="settings of the backbone, for pre-training and fine-tuning alike, to compare "
        "backbones",
    )
    set: tuple[str, ...] = Field(
        default=(), description="settings of the pre-training, as --set takes them"
    )

    @field_validator("network")
    @classmethod
    def _network_is_a_backbone(cls, network: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [text for text in network if not text.startswith("backbone")]:
            raise ValueError(f"{listed(strange)} is no setting of the backbone")
        return network

    @model_validator(mode="after")
    def _scratch_has_no_settings(self) -> Start:
        if self.method is None and (self.recipe or self.set):
            raise ValueError("recipe and set belong to a method, and none is named")
        return self


class FinetuneChanges(Settings):
    """What the grid changes in every recipe of fine-tuning."""

    set: tuple[str, ...] = ()


class BenchmarkGrid(Settings):
    """A grid file. Its paths are relative to it.

    Every combination of start, labels, recipe and seed is a cell, except that weights pre-trained
    in 2D do not start a recipe in 3D, nor the other way round. A recipe is in 2D unless it or
    `finetune.set` says dims = 3.
    """

    store: Path
    split: str
    start: tuple[Start, ...] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(default=("strong",), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    finetune: FinetuneChanges = FinetuneChanges()
    conventions: tuple[Convention, ...] = Field(default=("strict", "paper"), min_length=1)

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_may_be_numbers(cls, labels: Any) -> Any:
        if not isinstance(labels, list):
            return labels
        return [str(label) if isinstance(label, int) else label for label in labels]

    @model_validator(mode="after")
    def _cells_differ(self) -> BenchmarkGrid:
        counts = Counter(cell.name for cell in combinations(self))
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"these cells are there twice: {listed(repeated)}")
        return self


@dataclass(frozen=True)
class BenchmarkCell:
    """One fine-tuning of the grid."""

    start: Start
    labels: str
    recipe: str
    seed: int

    @property
    def recipe_name(self) -> str:
        """The recipe's name; of a file, its stem."""
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


def combinations(grid: BenchmarkGrid) -> Iterator[BenchmarkCell]:
    """All combinations, seed by seed, so that an interrupted benchmark compares like with like."""
    for seed in grid.seeds:
        for start in grid.start:
            for labels in grid.labels:
                for recipe in grid.recipes:
                    yield BenchmarkCell(start, labels, recipe, seed)


def read_grid(path: Path) -> BenchmarkGrid:
    """Read a grid file, with its paths made absolute.

    Raises:
        MaclError: the file is missing or broken, or a setting in it does not fit.
    """
    grid = validate(BenchmarkGrid, read_toml(path, "a benchmark's grid"), where=path.name)
    folder = path.absolute().parent

    def located(name: str, suffix: str) -> str:
        return str(folder / name) if name.endswith(suffix) else name

    starts = tuple(
        start.model_copy(update={"recipe": located(start.recipe, ".toml")})
        if start.recipe
        else start
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


def specify(grid: BenchmarkGrid) -> dict[BenchmarkCell, dict[str, Any]]:
    """The cells in the order they run, each with everything its result depends on, as JSON.

    This finds what cannot run before anything does.

    Raises:
        MaclError: the store, the split, a label budget, a method, a recipe or a setting does not
            exist or does not fit.
    """
    store = Store.open(grid.store)
    split = read_split(grid.split)
    resolved = resolve_split(split, store)
    for labels in grid.labels:
        resolved.labelled_cases(labels)
    # Each stage prints the same messages again when it runs.
    with redirect_stderr(io.StringIO()):
        pretraining = {start: _pretraining(start, store) for start in grid.start}
        dims = {recipe: _recipe_dims(recipe, grid) for recipe in grid.recipes}
        finetuning = {
            (start, recipe): _finetuning(recipe, grid, store, start, settings)
            for start, settings in pretraining.items()
            for recipe in grid.recipes
            if settings is None or settings.dims == dims[recipe]
        }
    for start, settings in pretraining.items():
        if settings and settings.dims not in dims.values():
            raise MaclError(
                f"The start {start.name!r} is pre-trained in {settings.dims}D, but no recipe of "
                f'the grid fine-tunes in {settings.dims}D: add "dims={settings.dims}" to the set '
                "of [finetune], or a recipe that names it."
            )
    _warn_of_networks(finetuning)
    return {
        cell: {
            "store": store.checksum,
            "split": split.model_dump(mode="json"),
            "labels": cell.labels,
            "seed": cell.seed,
            "pretraining": _as_json(pretraining[cell.start]),
            "finetuning": _as_json(finetuning[cell.start, cell.recipe]),
        }
        for cell in combinations(grid)
        if (cell.start, cell.recipe) in finetuning
    }


def _warn_of_networks(finetuning: Mapping[tuple[Start, str], FinetuneSettings]) -> None:
    """Say so where the starts of one recipe have different networks without naming them."""
    networks: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for (start, recipe), settings in finetuning.items():
        network = settings.model_dump_json(include={"backbone", "backbone_settings"})
        networks.setdefault((recipe, start.network), set()).add(network)
    for (recipe, _), different in networks.items():
        if len(different) > 1:
            say(
                "Warning: not like for like: the starts of the recipe "
                f"{Path(recipe).name} have different networks. Set the same backbone_settings "
                "(width, strides) in all starts and in [finetune]."
            )


def _as_json(settings: Settings | None) -> dict[str, Any] | None:
    return settings.model_dump(mode="json") if settings else None


def _pretraining(start: Start, store: Store) -> PretrainSettings | None:
    """The settings of a start's pre-training; None from scratch."""
    if start.method is None:
        return None
    recipe = start.recipe or start.method
    overrides = (*start.network, *start.set)
    settings, _ = pretrain_settings(recipe, overrides, method=start.method, store=store)
    if settings.method != start.method:
        raise MaclError(
            f"The start {start.name!r} names the method {start.method!r}, but sets "
            f"{settings.method!r}."
        )
    return settings


def _recipe_dims(recipe: str, grid: BenchmarkGrid) -> int:
    """The dimensions of a recipe, whatever the weights that it starts from."""
    return resolve_recipe(FinetuneSettings, recipe, grid.finetune.set).dims


def _finetuning(
    recipe: str,
    grid: BenchmarkGrid,
    store: Store,
    start: Start,
    pretraining: PretrainSettings | None,
) -> FinetuneSettings:
    """The settings of fine-tuning by a recipe from a start, whose network it takes over."""
    settings = _as_json(pretraining) or {}
    network = {name: settings[name] for name in NETWORK_SETTINGS if name in settings}
    overrides = (*grid.finetune.set, *start.network)
    return finetune_settings(recipe, overrides, store=store, init=start.name, init_network=network)
