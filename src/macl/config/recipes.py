"""Recipes: named settings, over the defaults and under `--set`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from macl.config.mistakes import validate
from macl.config.settings import NetworkRunSettings, Settings, Stage
from macl.utils.errors import MaclError, did_you_mean
from macl.utils.progress import say
from macl.utils.user_text import read_toml_table

S = TypeVar("S", bound=Settings)
R = TypeVar("R", bound=NetworkRunSettings)

VOLUME_RECIPES: dict[Stage, str] = {
    "pretrain": "macl-3d",
    "finetune": "strong-3d",
    "selftrain": "mean-teacher-3d",
}
SAMPLING = (
    "training.size",
    "training.batch_size",
    "patients_per_position",
    "position_jitter",
    "foreground_share",
)
"""Settings that a recipe for slices cannot give for volumes."""


def resolve_recipe(
    kind: type[R],
    recipe: str,
    overrides: Iterable[str] = (),
    *,
    inherited: Mapping[str, Any] | None = None,
    method: str | None = None,
) -> R:
    """Settings of a run: defaults < `inherited` < recipe < `method` < overrides.

    If a recipe for slices is used with dims = 3, patch size, batch size and sampling come from the
    recipe for volumes, with a message.

    Args:
        kind: PretrainSettings, FinetuneSettings or SelftrainSettings.
        recipe: name or path.
        overrides: `key.sub=value` texts, or one.
        inherited: what the weights to start from say of their network.
        method: name of the method, if the user chose one.

    Raises:
        MaclError: there is no such recipe, or a setting does not fit.
    """
    values = read_recipe(kind.stage, recipe)
    is_for_volumes = values.get("dims", 2) == 3
    values = _merge(inherited or {}, values)
    if method:
        values["method"] = method
    settings = resolve(kind, values, overrides)
    if settings.dims == 2 or is_for_volumes:
        return settings
    volumes = VOLUME_RECIPES[kind.stage]
    for key, value in _leaves(read_recipe(kind.stage, volumes)):
        if key in SAMPLING:
            _set(values, key, value)
    say(
        f"{recipe} is a recipe for slices: patch size, batch size and sampling are those of "
        f"{volumes}, unless set."
    )
    return resolve(kind, values, overrides)


def resolve(kind: type[S], recipe: Mapping[str, Any], overrides: Iterable[str] = ()) -> S:
    """Settings: the defaults of `kind`, over them the recipe, over it `key.sub=value` overrides.

    An override of training.epochs replaces the recipe's training.steps too.

    Raises:
        MaclError: a name does not exist or a value does not fit; each is named.
    """
    merged = _merge(recipe, {})
    for override in (overrides,) if isinstance(overrides, str) else overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise MaclError(f"--set takes key=value, such as training.epochs=50, not {override!r}.")
        try:
            _set(merged, key.strip(), _parse(text.strip()))
            if key.strip() == "training.epochs":
                _set(merged, "training.steps", None)
        except KeyError as error:
            step = error.args[0]
            message = f"--set {override}: {step!r} is a value, not a group of settings."
            raise MaclError(message) from None
    return validate(kind, merged)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `below` with the values of `above` over it, group by group."""
    merged: dict[str, Any] = deepcopy(dict(below))
    for key, value in _leaves(above):
        _set(merged, key, value)
    return merged


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `key.sub` to a value; KeyError names the step that is no group."""
    *path, last = key.split(".")
    for step in path:
        values = values.setdefault(step, {})
        if not isinstance(values, dict):
            raise KeyError(step)
    values[last] = value


def _parse(text: str) -> Any:
    if text in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def recipe_names(stage: Stage) -> tuple[str, ...]:
    """The recipes of a stage in the package."""
    names = (item.name for item in (files("macl") / "recipes" / stage).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def read_recipe(stage: Stage, name: str | Path) -> dict[str, Any]:
    """Read a recipe by name (in the package) or by path (any `.toml`).

    Raises:
        MaclError: there is no such recipe; the known ones are named.
    """
    if str(name).endswith(".toml"):
        return read_toml_table(Path(name), "a recipe")
    if name not in recipe_names(stage):
        known = did_you_mean(str(name), recipe_names(stage))
        raise MaclError(
            f"There is no {stage} recipe called {str(name)!r}; {known}, or the path of a .toml "
            "file."
        )
    file = files("macl") / "recipes" / stage / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
