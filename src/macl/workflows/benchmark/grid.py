"""The grid of a benchmark: its file, and the cells that it spans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from macl.config.mistakes import validate
from macl.config.settings import Seed, Settings
from macl.metrics import Convention
from macl.utils.errors import listed
from macl.utils.text import shown
from macl.utils.user_text import read_toml_table

LISTS = {
    "labels": "[2, 4]",
    "recipes": '["strong"]',
    "seeds": "[0, 1]",
    "draws": "[0, 1]",
    "conventions": '["strict"]',
}
"""What a list of the grid may look like, for messages."""


def _fit_for_folders(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(
            f"{shown(name)} may hold letters, digits, ., +, - and _ alone, and may not begin with "
            "., + or -"
        )
    return name


def _number_as_text(label: Any) -> Any:
    return str(label) if isinstance(label, int) else label


Name = Annotated[str, AfterValidator(_fit_for_folders)]
LabelBudget = Annotated[str, BeforeValidator(_number_as_text)]


class Start(Settings):
    """A start of fine-tuning: pre-training by a method, once per seed; no method: from scratch."""

    name: Name
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


SUPERVISED = "supervised"


class Training(Settings):
    """A way to train segmenters from every start."""

    name: Name = SUPERVISED
    stage: Literal["finetune", "selftrain"] = "finetune"
    recipe: str | None = Field(
        default=None,
        description="recipe of the stage, in place of the grid's recipes; none: theirs, which "
        "self-training has not",
    )
    after: str | None = Field(
        default=None,
        description="an earlier training of the grid, whose segmenter it continues; none: it "
        "begins with the start's weights",
    )
    set: tuple[str, ...] = Field(
        default=(), description="settings of the stage, as --set takes them, after [finetune]'s"
    )

    @model_validator(mode="after")
    def _selftraining_has_a_recipe(self) -> Training:
        if self.stage == "selftrain" and self.recipe is None:
            raise ValueError('self-training needs a recipe of its own: recipe = "mean-teacher"')
        return self


class Reference(Settings):
    """The method with which the others are compared, at the same labels."""

    start: str | None = Field(
        default=None,
        description="none: the first one from scratch, of the same network where there is one",
    )
    training: str | None = Field(default=None, description="none: the first one")
    recipe: str | None = Field(
        default=None,
        description="compare all recipes with this one; none: each method with the reference of "
        "its own recipe",
    )


class FinetuneChanges(Settings):
    """What the grid changes in every recipe of fine-tuning."""

    set: tuple[str, ...] = ()


class BenchmarkGrid(Settings):
    """A grid file. Its paths are relative to it.

    Every combination of start, training, labels, recipe and repeat is a cell, except that weights
    pre-trained in 2D do not start a recipe in 3D, nor the other way round. A recipe is in 2D unless
    it or `finetune.set` says dims = 3.

    A repeat is a seed together with a draw of the labelled people. All methods go through the same
    repeats, so that they are compared in pairs.
    """

    store: Path
    split: str
    start: tuple[Start, ...] = Field(min_length=1)
    labels: tuple[LabelBudget, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(default=("strong",), min_length=1)
    training: tuple[Training, ...] = Field(default=(Training(),), min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    draws: tuple[int, ...] = Field(
        default=(), description="one for each seed; none: the people whom the split names"
    )
    repeats: int | None = Field(
        default=None, ge=1, description="in place of seeds and draws: 0, 1, … for both"
    )
    reference: Reference = Reference()
    finetune: FinetuneChanges = FinetuneChanges()
    conventions: tuple[Convention, ...] = Field(default=("strict", "paper"), min_length=1)

    @field_validator(*LISTS, mode="before")
    @classmethod
    def _is_a_list(cls, value: Any, field: ValidationInfo) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"should be a list such as {LISTS[str(field.field_name)]}")
        return value

    @model_validator(mode="after")
    def _seeds_and_draws_go_together(self) -> BenchmarkGrid:
        if self.repeats and {"seeds", "draws"} & self.model_fields_set:
            raise ValueError("repeats stands for seeds and draws: name it, or them")
        if self.draws and "seeds" in self.model_fields_set and len(self.draws) != len(self.seeds):
            raise ValueError(
                f"a draw goes with a seed, but there are {len(self.draws)} draws and "
                f"{len(self.seeds)} seeds"
            )
        return self

    @property
    def seeds_and_draws(self) -> tuple[tuple[int, int | None], ...]:
        """The repeats, in order; a draw of None takes the people whom the split names."""
        if self.repeats:
            return tuple((number, number) for number in range(self.repeats))
        if self.draws and "seeds" not in self.model_fields_set:
            return tuple((draw, draw) for draw in self.draws)
        return tuple(zip_longest(self.seeds, self.draws))

    @property
    def split_name(self) -> str:
        """The split's name; of a file, its stem."""
        return Path(self.split).stem if self.split.endswith(".json") else self.split

    @model_validator(mode="after")
    def _reference_is_there(self) -> BenchmarkGrid:
        named = {
            "start": (self.reference.start, [start.name for start in self.start]),
            "training": (self.reference.training, [each.name for each in self.training]),
            "recipe": (self.reference.recipe, [name_of_recipe(each) for each in self.recipes]),
        }
        for what, (name, known) in named.items():
            if name is not None and name not in known:
                raise ValueError(
                    f"the reference names the {what} {name!r}, but the grid has {listed(known)}"
                )
        return self

    @model_validator(mode="after")
    def _trainings_follow_earlier_ones(self) -> BenchmarkGrid:
        earlier: list[str] = []
        for training in self.training:
            if training.after is not None and training.after not in earlier:
                raise ValueError(
                    f"the training {training.name!r} comes after {training.after!r}, which the "
                    "grid does not list before it"
                )
            earlier.append(training.name)
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> BenchmarkGrid:
        named = {
            "starts": [start.name for start in self.start],
            "trainings": [training.name for training in self.training],
            "label budgets": self.labels,
            "recipes": [name_of_recipe(recipe) for recipe in self.recipes],
        }
        for what, names in named.items():
            name, count = Counter(names).most_common(1)[0]
            if count > 1:
                raise ValueError(f"two {what} are called {name!r}")
        return self

    @model_validator(mode="after")
    def _cells_differ(self) -> BenchmarkGrid:
        counts = Counter(cell.name for cell in combinations(self))
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"these cells are there twice: {listed(repeated)}")
        return self


@dataclass(frozen=True)
class BenchmarkCell:
    """One segmenter of the grid; a draw of None takes the people whom the split names."""

    start: Start
    labels: str
    recipe: str
    seed: int
    draw: int | None = None
    training: Training = field(default_factory=Training)

    @property
    def recipe_name(self) -> str:
        """The recipe's name; of a file, its stem."""
        return name_of_recipe(self.recipe)

    @property
    def pretraining(self) -> str:
        """The folder of its pre-training."""
        return f"{self.start.name}__seed{self.seed}"

    @property
    def name(self) -> str:
        """The cell's folder."""
        labels = folder_name(self.labels)
        training = "" if self.training.name == SUPERVISED else f"__{self.training.name}"
        draw = "" if self.draw is None else f"__draw{self.draw}"
        name = f"{self.start.name}{training}__{labels}__{self.recipe_name}"
        return f"{name}__seed{self.seed}{draw}"


def folder_name(labels: str) -> str:
    """A label budget as a part of a file's name."""
    return re.sub(r"[^\w.-]", "_", labels.replace("%", "percent"))


def name_of_recipe(recipe: str) -> str:
    """A recipe's name; of a file, its stem."""
    return Path(recipe).stem if recipe.endswith(".toml") else recipe


def combinations(grid: BenchmarkGrid) -> Iterator[BenchmarkCell]:
    """All combinations, repeat by repeat, so that a part of a benchmark compares like with like."""
    for seed, draw in grid.seeds_and_draws:
        for start in grid.start:
            for training in grid.training:
                for labels in grid.labels:
                    for recipe in grid.recipes:
                        yield BenchmarkCell(start, labels, recipe, seed, draw, training)


def read_grid(path: Path) -> BenchmarkGrid:
    """Read a grid file, with its paths made absolute.

    Raises:
        MaclError: the file is missing or broken, or a setting in it does not fit.
    """
    grid = validate(BenchmarkGrid, read_toml_table(path, "a benchmark's grid"), where=path.name)
    folder = path.absolute().parent

    def located(name: str, suffix: str) -> str:
        return str(folder / name) if name.endswith(suffix) else name

    starts = tuple(
        start.model_copy(update={"recipe": located(start.recipe, ".toml")})
        if start.recipe
        else start
        for start in grid.start
    )
    trainings = tuple(
        training.model_copy(update={"recipe": located(training.recipe, ".toml")})
        if training.recipe
        else training
        for training in grid.training
    )
    return grid.model_copy(
        update={
            "training": trainings,
            "store": folder / grid.store,
            "split": located(grid.split, ".json"),
            "start": starts,
            "recipes": tuple(located(recipe, ".toml") for recipe in grid.recipes),
        }
    )
