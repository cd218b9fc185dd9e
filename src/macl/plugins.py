"""Plug-ins by name: the folder is the catalogue.

`find("methods", "macl")` imports `macl/methods/macl.py` and returns its `PLUGIN`, a class: a
`Method`, a `Network` or a `Reader`. A module without a `PLUGIN`, such as one whose name begins with
an underscore, is no plug-in.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from typing import TYPE_CHECKING, Any, Literal, overload

from macl.utils.errors import MaclError, did_you_mean

if TYPE_CHECKING:
    from macl.models.network import Network
    from macl.readers._reader import Reader
    from macl.tasks.pretraining import Method

PluginKind = Literal["methods", "models", "readers"]

_SINGULAR = {"methods": "method", "models": "backbone", "readers": "reader"}


def names(kind: PluginKind) -> tuple[str, ...]:
    """The names in a catalogue, sorted: the modules of `macl/<kind>` that define a `PLUGIN`."""
    package = importlib.import_module(f"macl.{kind}")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in modules if _defines_plugin(f"macl.{kind}.{name}")))


@overload
def find(kind: Literal["methods"], name: str) -> type[Method]: ...
@overload
def find(kind: Literal["models"], name: str) -> type[Network]: ...
@overload
def find(kind: Literal["readers"], name: str) -> type[Reader]: ...
def find(kind: PluginKind, name: str) -> Any:
    """The plug-in `name` of a catalogue.

    Raises:
        MaclError: there is none of that name; the nearest right one is named.
    """
    known = names(kind)
    if name not in known:
        raise MaclError(
            f"There is no {_SINGULAR[kind]} called {name!r}; {did_you_mean(name, known)}."
        )
    return importlib.import_module(f"macl.{kind}.{name}").PLUGIN


def reader(name: str) -> Reader:
    """The reader of that name, or of one part of its data set as "name:part".

    Raises:
        MaclError: there is no such reader or part.
    """
    name, _, part = name.partition(":")
    plugin = find("readers", name)
    if part and part not in plugin.parts:
        known = f"known: {', '.join(plugin.parts)}" if plugin.parts else "it has none"
        raise MaclError(f"{name!r} has no part {part!r}; {known}.")
    return plugin(part or None)


def readers() -> list[Reader]:
    """Every reader."""
    return [reader(name) for name in names("readers")]


def _defines_plugin(module: str) -> bool:
    specification = importlib.util.find_spec(module)
    loader: Any = specification and specification.loader
    source = loader.get_source(module) if loader else None
    return bool(source and re.search(r"^PLUGIN\b", source, re.MULTILINE))
