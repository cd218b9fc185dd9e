"""Files: atomic writing, so that a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from macl.utils.errors import MaclError

ASIDE = ".writing-"
"""Prefix of a file that is still being written."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which replaces `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Image writers choose the format by the suffix, so that it must stay at the end.
    aside = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
        _flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Bring a folder's list of files to the disk, where the system can."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            # Some network file systems cannot.
            with contextlib.suppress(OSError):
                os.fsync(opened)
        finally:
            os.close(opened)


def clear_unfinished(folder: Path) -> None:
    """Delete the half-written files that killed processes left in `folder`."""
    for aside in folder.glob(f"{ASIDE}*"):
        if not aside.is_dir():
            aside.unlink(missing_ok=True)


def clear_unfinished_copies(path: Path) -> None:
    """Delete what processes that are gone left half-written of one file, in a folder of others'."""
    for aside in path.parent.glob(f"{ASIDE}*-{path.name}"):
        process = aside.name.removeprefix(ASIDE).removesuffix(f"-{path.name}")
        if process.isdecimal() and not _is_running(int(process)) and not aside.is_dir():
            aside.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def refuse_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuse links in a folder that macl writes: through them it would change what lies elsewhere.

    Args:
        folder: may be missing.
        names: of its parts; None: all.

    Raises:
        MaclError: names a part that is a link.
    """
    if not folder.is_dir():
        return
    parts = folder.iterdir() if names is None else (folder / name for name in names)
    for part in sorted(parts):
        if part.is_symlink():
            raise MaclError(
                f"{part} is a link to another place, in which nothing may be changed: put the "
                "files themselves there, or choose another folder."
            )


@contextlib.contextmanager
def file_lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the lock of a killed process is free again.

    Args:
        path: the lock file, which is created.
        message: of the error.

    Raises:
        MaclError: another process holds the lock.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_links(path.parent, (path.name,))
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout:
        raise MaclError(message) from None
    with lock:
        yield


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        MaclError: the file is missing or holds no JSON object; `what` names it in the message
            ("a store's index").
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaclError(f"There is no {path}, which should be {what}: check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MaclError(f"{path} should be {what}, but cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise MaclError(
            f"{path} should be {what}, one JSON object, but holds a {type(value).__name__}."
        )
    return value


def inside(folder: Path, relative: str) -> Path:
    """The path `folder / relative`, for a `relative` that was read from an index or an archive.

    Raises:
        MaclError: the path leaves the folder (absolute, `..`, or a link that points out of it).
    """
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise MaclError(
            f"{relative!r}, named in {folder}, lies outside that folder: correct or delete it."
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_disk_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that the disk holds `needed_bytes` and 5 % more, before a long write.

    Raises:
        MaclError: it does not; `what` names the thing to be written.
    """
    existing = next(
        parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()
    )
    free = shutil.disk_usage(existing).free
    if needed_bytes * 1.05 > free:
        raise MaclError(
            f"{what} needs about {needed_bytes / 2**30:.1f} GiB in {folder}, but only "
            f"{free / 2**30:.1f} GiB are free: free some space or choose another folder."
        )


DEEPEST = 4
"""How many folders below the source a data set may begin."""


def files_below(source: Path, deepest: int = DEEPEST) -> list[Path]:
    """Visible files at most `deepest` folders below `source`, sorted; follows no folder links."""
    if not source.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            found.append(path)
        elif deepest and path.is_dir() and not path.is_symlink():
            found += files_below(path, deepest - 1)
    return found


def folders_below(source: Path, deepest: int = DEEPEST) -> list[Path]:
    """`source` and visible folders at most `deepest` levels below it, sorted; follows no links."""
    if not source.is_dir():
        return []
    found = [source]
    if deepest:
        inside = (
            path for path in sorted(source.iterdir()) if path.is_dir() and not path.is_symlink()
        )
        for path in inside:
            if not path.name.startswith("."):
                found += folders_below(path, deepest - 1)
    return found
