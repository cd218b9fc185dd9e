"""Values → settings, or what is wrong with them, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from macl.config.settings import Settings, setting_names
from macl.utils.errors import MaclError, did_you_mean
from macl.utils.text import counted, shown

S = TypeVar("S", bound=Settings)

PROBLEMS_NAMED = 4


def validate(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Make settings of `kind`.

    Args:
        kind: which settings.
        values: by name.
        where: prefix of the names in messages, such as the file that the values come from.

    Raises:
        MaclError: names each wrong setting and what it takes.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
        for details in error.errors():
            path = _path(kind, details["loc"])
            grouped.setdefault(path, []).append(details)
        named = list(grouped.items())[:PROBLEMS_NAMED]
        problems = [_problem(kind, where, path, errors, values) for path, errors in named]
        if len(grouped) > len(named):
            problems.append(f"and {len(grouped) - len(named)} more")
        raise MaclError(f"These settings do not fit: {'; '.join(problems)}.") from None


def _path(annotation: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of an error's location that names a setting, without the tags of alternatives."""
    if not loc:
        return ()
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    alternatives = _alternatives(annotation)
    if len(alternatives) > 1:
        return ()
    step, rest, inner = loc[0], loc[1:], alternatives[0]
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        field = inner.model_fields.get(str(step))
        return (step, *_path(field.annotation, rest)) if field else (step,)
    arguments = get_args(inner)
    item = 0 if get_origin(inner) is tuple else -1
    return (step, *_path(arguments[item], rest)) if arguments else ()


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a union allows, but None; one type is its own only alternative."""
    if get_origin(annotation) in (Union, UnionType):
        return [each for each in get_args(annotation) if each is not type(None)]
    return [annotation]


def _problem(
    kind: type[Settings],
    where: str,
    path: tuple[str | int, ...],
    errors: Sequence[ErrorDetails],
    values: Mapping[str, Any],
) -> str:
    """What is wrong with one setting, in words."""
    error, key = errors[0], ".".join(filter(None, (where, *map(str, path))))
    group = _group(kind, path[:-1]) if path else None
    if error["type"] == "value_error":
        text = str(error.get("ctx", {}).get("error", error["msg"]))
        return f"{key}: {text}" if key else text
    if group and error["type"] == "extra_forbidden":
        if elsewhere := [
            name for name in setting_names(kind) if name.rpartition(".")[2] == path[-1]
        ]:
            return f"there is no {key}; did you mean {' or '.join(elsewhere)}?"
        return f"there is no {key}; {did_you_mean(str(path[-1]), tuple(group.model_fields))}"
    if group and isinstance(error["input"], dict):
        own = f"{path[-1]}_settings"
        if own in group.model_fields:
            return f"{key} is a name, whose settings are under {own}"
    field = group.model_fields.get(str(path[-1])) if group else None
    if field and field.description and len(errors) > 1:
        value: Any = values
        for step in path:
            value = value[step]
        return f"{key} cannot be {shown(value)} ({field.description})"
    if error["type"] == "too_short":
        least = error.get("ctx", {})["min_length"]
        return f"{key} needs at least {counted(least, 'value')}"
    message = error["msg"]
    return f"{key}: {message[:1].lower()}{message[1:]}"


def _group(kind: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    """The settings at a path, through lists; None if it leads through something else."""
    for step in path:
        if isinstance(step, str):
            field = kind.model_fields.get(step)
            annotations = (field.annotation, *get_args(field.annotation)) if field else ()
            models = [a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)]
            if not models:
                return None
            kind = models[0]
    return kind
