"""Text files that users write or edit: JSON, TOML and tables, with what is wrong in them and where.

Editors on Windows begin a file with a byte order mark, which is passed over.
"""

from __future__ import annotations

import codecs
import csv
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from macl.utils.errors import MaclError
from macl.utils.failures import ADVICE, os_reason
from macl.utils.text import printable

DEEPEST_NESTING = 100

_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
"""Byte order mark → encoding; those of UTF-32 begin like those of UTF-16."""


class Row(NamedTuple):
    """A row of a table: its line in the file, and its values by column."""

    line: int
    values: Mapping[str, str]


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        MaclError: the file is missing, cannot be read or is in another encoding; `what` names it
            in the message ("a recipe").
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MaclError(
            f"There is no {printable(str(path))}, which should be {what}: check the path."
        ) from None
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "correct that and run the command again")
        raise _broken(path, what, os_reason(error), advice) from None
    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise _broken(path, what, f"it is {encoding} text", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8-sig", "replace"))
        where = f"line {line}, column {column}"
        raise _broken(path, what, f"no UTF-8 text at {where}", "save it as UTF-8") from None


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        MaclError: as for `read_text`, or it holds no JSON object; line and column are named.
    """
    value = _parse(json.loads, path, what, "JSON")
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else "single value"
        raise _broken(path, what, f"it holds a {kind}, not one JSON object")
    return value


def read_toml_table(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        MaclError: as for `read_text`, or it is no TOML; line and column are named.
    """
    return _parse(tomllib.loads, path, what, "TOML")


def read_table(path: Path, what: str, columns: tuple[str, ...]) -> list[Row]:
    """Read a table with a head line; its values are separated by tabs, commas or semicolons.

    Raises:
        MaclError: as for `read_text`, or a column is missing, or a row has no value there.
    """
    text = read_text(path, what)
    head = text.partition("\n")[0]
    separator = max("\t,;", key=head.count)
    reader = csv.DictReader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if missing := [column for column in columns if column not in names]:
            expected = f"give it the columns {', '.join(columns)}"
            raise _broken(path, what, f"no column {missing[0]!r} in line 1", expected)
        rows = [
            Row(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k in names})
            for row in reader
        ]
    except csv.Error as error:
        raise _broken(path, what, f"{error} in line {reader.line_num}") from None
    for row in rows:
        if empty := [column for column in columns if not row.values[column]]:
            raise _broken(path, what, f"no {empty[0]} in line {row.line}")
    return rows


def _parse(parse: Any, path: Path, what: str, language: str) -> Any:
    text = read_text(path, what)
    try:
        value = parse(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _broken(path, what, f"not valid JSON: {where}") from None
    except tomllib.TOMLDecodeError as error:
        raise _broken(path, what, f"not valid TOML: {error}") from None
    except RecursionError:
        raise _nested_too_deeply(path, what) from None
    except (ValueError, OverflowError):
        raise _broken(path, what, f"it holds a number too long for {language}") from None
    if _is_nested_too_deeply(value):
        raise _nested_too_deeply(path, what)
    return value


def _is_nested_too_deeply(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _nested_too_deeply(path: Path, what: str) -> MaclError:
    return _broken(path, what, f"it is nested more than {DEEPEST_NESTING} levels deep")


def _broken(path: Path, what: str, problem: str, advice: str = "correct it there") -> MaclError:
    name = printable(str(path))
    return MaclError(f"{name} should be {what}, but cannot be read ({problem}): {advice}.")


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows a text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


# ---------------------------------------------------------------- tables for spreadsheets

_STARTS_A_FORMULA = ("=", "+", "-", "@", "'", "\t", "\r")
"""A spreadsheet computes a cell that begins so, or drops its apostrophe."""


def spreadsheet_text(text: str) -> str:
    """Text for a cell of a table that spreadsheets may open: it is never computed.

    An apostrophe before it tells that it is text; control characters become visible. Read it back
    with `from_spreadsheet`.
    """
    plain = printable(text)
    return f"'{plain}" if plain.lstrip(" ").startswith(_STARTS_A_FORMULA) else plain


def from_spreadsheet(cell: str) -> str:
    """The text that `spreadsheet_text` was given."""
    rest = cell[1:]
    is_marked = cell.startswith("'") and rest.lstrip(" ").startswith(_STARTS_A_FORMULA)
    return rest if is_marked else cell
