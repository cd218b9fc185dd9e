"""What a benchmark runs: its cells, and everything that the result of each depends on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macl.config.recipes import resolve_recipe
from macl.config.settings import FinetuneSettings, PretrainSettings, SelftrainSettings, Settings
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import resolve_split
from macl.data.splits import Split, read_split
from macl.data.store import Store
from macl.tasks.run_settings import NETWORK_SETTINGS, finetune_settings, pretrain_settings
from macl.utils.errors import MaclError
from macl.utils.progress import warn
from macl.workflows.benchmark.grid import (
    BenchmarkCell,
    BenchmarkGrid,
    Start,
    Training,
    combinations,
)

Finetunings = dict[tuple[Start, str, str], FinetuneSettings]
"""(start, recipe, training's name) → settings."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a benchmark runs.

    Attributes:
        grid: the grid.
        specifications: the cells in the order they run → everything their result depends on.
        splits: draw → split; of None, the grid's own.
        groups: case → person.
        labelled_people: label budget → number of people whose labels it uses.
        test_people: number of people who are tested.
    """

    grid: BenchmarkGrid
    specifications: Mapping[BenchmarkCell, dict[str, Any]]
    splits: Mapping[int | None, Split]
    groups: Mapping[str, str]
    labelled_people: Mapping[str, int]
    test_people: int

    def preceding(self, cell: BenchmarkCell) -> BenchmarkCell | None:
        """The cell whose segmenter a cell continues; None: it begins with its start."""
        return _preceding(cell, self.grid)


def plan(grid: BenchmarkGrid) -> BenchmarkPlan:
    """Find what a benchmark runs, and what cannot run before anything does.

    Raises:
        MaclError: the store, the split, a label budget, a method, a recipe or a setting does not
            exist or does not fit.
    """
    store = Store.open(grid.store)
    split = read_split(grid.split)
    resolved = resolve_split(split, store)
    labelled_people = {
        labels: len(resolved.people(resolved.labelled_cases(labels))) + len(resolved.validation)
        for labels in grid.labels
    }
    # Each stage prints the same messages again when it runs.
    with redirect_stderr(io.StringIO()):
        splits: dict[int | None, Split] = {
            draw: split if draw is None else draw_labelled_people(resolved, store, draw)
            for _, draw in grid.seeds_and_draws
        }
        pretraining = {start: _pretraining(start, store) for start in grid.start}
        finetuning = _finetunings(grid, store, pretraining)
    _warn_of_networks(finetuning)
    specifications: dict[BenchmarkCell, dict[str, Any]] = {}
    for cell in combinations(grid):
        settings = finetuning.get((cell.start, cell.recipe, cell.training.name))
        if settings is None:
            continue
        preceding = _preceding(cell, grid)
        specifications[cell] = {
            "store": store.checksum,
            "split": splits[cell.draw].model_dump(mode="json"),
            "labels": cell.labels,
            "seed": cell.seed,
            "pretraining": _as_json(pretraining[cell.start]),
            **({"after": specifications[preceding]} if preceding else {}),
            "finetuning": _as_json(settings),
        }
    return BenchmarkPlan(
        grid, specifications, splits, resolved.groups, labelled_people, len(resolved.test)
    )


def _finetunings(
    grid: BenchmarkGrid, store: Store, pretraining: Mapping[Start, PretrainSettings | None]
) -> Finetunings:
    """The settings of every training, from every start of the recipe's dimensions."""
    dims = {recipe: _recipe_dims(recipe, grid) for recipe in grid.recipes}
    finetuning: Finetunings = {}
    for start, pretrained in pretraining.items():
        if pretrained and pretrained.dims not in dims.values():
            raise MaclError(
                f"The start {start.name!r} is pre-trained in {pretrained.dims}D, but no recipe of "
                f'the grid fine-tunes in {pretrained.dims}D: add "dims={pretrained.dims}" to the '
                "set of [finetune], or a recipe that names it."
            )
        for recipe in grid.recipes:
            if pretrained and pretrained.dims != dims[recipe]:
                continue
            for training in grid.training:
                after = training.after
                before = finetuning[start, recipe, after] if after else pretrained
                finetuning[start, recipe, training.name] = _finetuning(
                    recipe, grid, store, start, before, training
                )
    return finetuning


def _preceding(cell: BenchmarkCell, grid: BenchmarkGrid) -> BenchmarkCell | None:
    trainings = {training.name: training for training in grid.training}
    after = cell.training.after
    return replace(cell, training=trainings[after]) if after else None


def _warn_of_networks(finetuning: Finetunings) -> None:
    """Say so where the starts of one recipe have different networks without naming them."""
    networks: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for (start, recipe, _), settings in finetuning.items():
        network = settings.model_dump_json(include={"backbone", "backbone_settings"})
        networks.setdefault((recipe, start.network), set()).add(network)
    for (recipe, _), different in networks.items():
        if len(different) > 1:
            warn(
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
    before: PretrainSettings | FinetuneSettings | None,
    training: Training,
) -> FinetuneSettings:
    """The settings of a training by a recipe; it takes over the network of the training before."""
    settings = _as_json(before) or {}
    network = {name: settings[name] for name in NETWORK_SETTINGS if name in settings}
    overrides = (*grid.finetune.set, *training.set, *start.network)
    return finetune_settings(
        training.recipe or recipe,
        overrides,
        store=store,
        init=start.name,
        init_network=network,
        kind=SelftrainSettings if training.stage == "selftrain" else FinetuneSettings,
    )
