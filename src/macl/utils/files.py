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
from macl.utils.failures import cannot
from macl.utils.text import printable
from macl.utils.user_text import read_json_object

AnyPath = str | Path
"""A path as users of the Python functions give it."""


def paths_of(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    """One path, or several."""
    return [Path(paths)] if isinstance(paths, str | Path) else [*map(Path, paths)]


ASIDE = ".writing-"
"""Prefix of a file that is still being written."""

_WRITERS_FAILURES = ("NDArray", "ITK ERROR", "itk::")
"""Signs of the errors that blosc2 and SimpleITK raise where the disk is full, among others."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which replaces `path` if the block succeeds.

    Raises:
        MaclError: the disk is full, say, or the folder cannot be written.
    """
    # Image writers choose the format by the suffix, so that it must stay at the end.
    aside = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    except OSError as error:
        nothing_written = isinstance(error, FileNotFoundError) and error.filename == str(aside)
        if nothing_written:
            raise
        raise MaclError(cannot("written", path, error)) from None
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _WRITERS_FAILURES):
            raise
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise MaclError(
            f"{printable(str(path))} cannot be written ({printable(reason)}): check that the disk "
            "is not full, or choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
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
    with lock_if_free(path) as held:
        if not held:
            raise MaclError(message)
        yield


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs, unless another process does; yield whether we do."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_links(path.parent, (path.name,))
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout:
        yield False
        return
    with lock:
        yield True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read one JSON object; see `macl.utils.user_text`.

    Raises:
        MaclError: the file is missing or holds no JSON object; `what` names it in the message
            ("a store's index").
    """
    return read_json_object(path, what)


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


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; [] if it is no folder, or if the user may not read it."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(folder.iterdir())


def unreadable_below(source: Path) -> list[Path]:
    """The visible files and folders in `source` that the user may not read; follows no links."""
    found = [] if os.access(source, os.R_OK | os.X_OK) else [source]
    for name, folders, files in os.walk(source):
        folder = Path(name)
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        found += [
            folder / inner for inner in folders if not os.access(folder / inner, os.R_OK | os.X_OK)
        ]
        visible = [folder / inner for inner in sorted(files) if not inner.startswith(".")]
        # A link to nothing is no question of rights.
        found += [path for path in visible if not os.access(path, os.R_OK) and path.exists()]
    return found


def files_below(source: Path, deepest: int = DEEPEST) -> list[Path]:
    """Visible files at most `deepest` folders below `source`, sorted; follows no folder links."""
    found: list[Path] = []
    for path in entries(source):
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
        inside = (path for path in entries(source) if path.is_dir() and not path.is_symlink())
        for path in inside:
            if not path.name.startswith("."):
                found += folders_below(path, deepest - 1)
    return found
