"""The name of a stage, method or network → its settings: names, values and meaning."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from macl import plugins
from macl.config.recipes import read_recipe, recipe_names, resolve_recipe
from macl.config.settings import (
    FinetuneSettings,
    NetworkRunSettings,
    PretrainSettings,
    SelftrainSettings,
)
from macl.utils.errors import MaclError, did_you_mean

WIDTH = 80

STAGES: dict[str, tuple[type[NetworkRunSettings], str]] = {
    "pretrain": (PretrainSettings, "macl"),
    "finetune": (FinetuneSettings, "strong"),
    "selftrain": (SelftrainSettings, "mean-teacher"),
}
"""The settings of each stage, and its default recipe."""


@dataclass(frozen=True)
class Setting:
    """One setting, as --set takes it.

    Attributes:
        name: such as "training.epochs".
        value: what it is unless set.
        takes: the values that it takes, in words; empty: its description says.
        description: what it means.
    """

    name: str
    value: Any
    takes: str
    description: str


@dataclass(frozen=True)
class Catalogue:
    """The settings of one stage, method or network.

    Attributes:
        heading: what has these settings, in a sentence.
        settings: in their order.
    """

    heading: str
    settings: tuple[Setting, ...]


def settings(name: str, recipe: str | None = None) -> Catalogue:
    """The settings of a stage, a method or a network.

    Args:
        name: pretrain, finetune, selftrain, or the name of a method or a network.
        recipe: of a stage: whose values to show; None: those of its default recipe.

    Raises:
        MaclError: there is nothing of that name, or no such recipe.
    """
    if name in STAGES:
        kind, default = STAGES[name]
        chosen = recipe or default
        resolved = resolve_recipe(kind, chosen).model_dump(mode="json")
        heading = f"Settings of macl {name} with the recipe {chosen}; change them with --set."
        return Catalogue(heading, tuple(_settings(kind, resolved)))
    if recipe is not None:
        raise MaclError("--recipe goes with pretrain, finetune or selftrain.")
    if name in plugins.names("methods"):
        kind = plugins.find("methods", name).Settings
        values = _over_defaults(kind, read_recipe("pretrain", name).get("method_settings", {}))
        heading = (
            f"Settings of the method {name}, for --set of macl pretrain --method {name}, which has "
            "those of macl settings pretrain too."
        )
        return Catalogue(heading, tuple(_settings(kind, values, "method_settings.")))
    if name in plugins.names("models"):
        kind = plugins.find("models", name).Settings
        heading = f"Settings of the network {name}, for --set of every training."
        values = _over_defaults(kind, {})
        return Catalogue(heading, tuple(_settings(kind, values, "backbone_settings.")))
    known = (*STAGES, *plugins.names("methods"), *plugins.names("models"))
    raise MaclError(f"Nothing called {name!r} has settings; {did_you_mean(name, known)}.")


def overview() -> dict[str, tuple[str, ...]]:
    """What has settings, by kind."""
    stages = ("pretrain", "finetune", "selftrain")
    recipes = dict.fromkeys(name for stage in stages for name in recipe_names(stage))
    return {
        "stages": tuple(STAGES),
        "methods": tuple(plugins.names("methods")),
        "networks": tuple(plugins.names("models")),
        "recipes": tuple(recipes),
    }


def render_overview(parts: Mapping[str, Sequence[str]]) -> str:
    """What has settings, for people."""
    lines = ["`macl settings NAME` shows the settings of a stage, a method or a network."]
    for title, names in parts.items():
        lines += ["", f"{title.capitalize()}:", *_wrapped(", ".join(names))]
    lines += [
        "",
        *textwrap.wrap(
            "A training takes the defaults, over them its recipe, over it --set NAME=VALUE, such "
            "as --set training.epochs=50. `macl settings finetune --recipe paper` shows the values "
            "of a recipe.",
            WIDTH,
        ),
    ]
    return "\n".join(lines)


def render(catalogue: Catalogue) -> str:
    """A catalogue for people, 80 columns wide."""
    lines = textwrap.wrap(catalogue.heading, WIDTH)
    for setting in catalogue.settings:
        about = "; ".join(filter(None, (setting.description, setting.takes)))
        value = json.dumps(setting.value, ensure_ascii=False)
        lines += ["", f"{setting.name} = {value}", *_wrapped(f"{about[:1].upper()}{about[1:]}.")]
    return "\n".join(lines)


def by_name(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """A catalogue for programs: by the names of the settings."""
    named = {setting.name: asdict(setting) for setting in catalogue.settings}
    for values in named.values():
        del values["name"]
    return named


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _over_defaults(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    return kind.model_validate(values).model_dump(mode="json")


def _settings(
    kind: type[BaseModel], values: Mapping[str, Any], prefix: str = ""
) -> Iterator[Setting]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, values[name], f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", values[name], _takes(field), field.description or "")


def _takes(field: FieldInfo) -> str:
    """The values of a choice or a range, in words."""
    if get_origin(field.annotation) is Literal:
        *others, last = map(str, get_args(field.annotation))
        return f"{', '.join(others)} or {last}" if others else last
    bounds = []
    for rule in field.metadata:
        match rule:
            case Gt():
                bounds.append(f"above {rule.gt}")
            case Ge():
                bounds.append(f"at least {rule.ge}")
            case Lt():
                bounds.append(f"below {rule.lt}")
            case Le():
                bounds.append(f"at most {rule.le}")
    return " and ".join(bounds)
