"""What went wrong, in a sentence: failures of files, memory and devices; the rest are bugs."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

from macl.utils.errors import MaclError
from macl.utils.text import printable

ADVICE = {
    errno.EACCES: "ask for the right to it, or choose another place",
    errno.EPERM: "ask for the right to it, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some space or choose another place, then run the command again",
    errno.EDQUOT: "free some space or choose another place, then run the command again",
    errno.EFBIG: "choose a place that takes larger files",
    errno.ENAMETOOLONG: "choose a shorter name or path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of its path is a file, so name another",
    errno.EISDIR: "name a file, or remove that folder",
    errno.EEXIST: "a file is there where a folder should be, so name another",
    errno.ENOTEMPTY: "choose another place",
    errno.ELOOP: "links lead in a circle, so name the file itself",
    errno.EMFILE: "raise the limit (ulimit -n) or use fewer --workers",
    errno.ENFILE: "close other programs or use fewer --workers",
    errno.ETXTBSY: "wait until no other program uses it",
    errno.EIO: "check the disk or the network share",
    errno.ESTALE: "the network share has changed, so run the command again",
    errno.ETIMEDOUT: "check the network share, then run the command again",
}
"""What to do about an error of the operating system, by its number."""

_MEMORY_RAN_OUT = (
    "Memory ran out: close other programs, or do less at a time (--workers 1 for inspect and "
    "prepare, --batch-size 1 for predict, --set training.batch_size=… for training)."
)

BUG = (
    "This is a mistake in macl, not yours: please report it where you got macl, with the lines "
    "above, the command and `macl --version`."
)


def explain(error: Exception) -> str | None:
    """What is wrong, where, and what to do; None: the error is a bug of macl."""
    if isinstance(error, MaclError):
        return str(error)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if _is_out_of_memory(error):
        return _MEMORY_RAN_OUT
    if isinstance(error, UnicodeEncodeError):
        text = printable(str(error.object)[:200])
        return f"{text!r} holds characters that cannot be written: rename the file or folder."
    if isinstance(error, ImportError) and not (error.name or "").startswith("macl"):
        return f"A package that macl needs is missing or broken ({error}): install macl again."
    if isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per"):
        return (
            "A batch of one patch leaves the network a single value to normalise: raise "
            "training.batch_size or training.size with --set, or add scans."
        )
    first_line = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError) and first_line.startswith(("CUDA", "cuDNN", "NCCL")):
        return (
            f"The GPU failed ({first_line.rstrip('.')}): check it with nvidia-smi, run the command "
            "again, or try --device cpu."
        )
    return None


def describe(error: Exception) -> str:
    """`explain`; for a bug, prints the traceback and says where to report it."""
    sentence = explain(error)
    if sentence is None:
        traceback.print_exception(error)
        return BUG
    return sentence


def cannot(what: str, path: object, error: OSError) -> str:
    """The sentence about a file of the user that an operation failed on: "… cannot be written"."""
    reason = os_reason(error)
    advice = ADVICE.get(error.errno or 0, "correct that and run the command again")
    return f"{printable(str(path))} cannot be {what} ({reason}): {advice}."


def os_reason(error: OSError) -> str:
    """An operating system's error in a few words, without the file: "permission denied"."""
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return reason[:1].lower() + reason[1:]


def _explain_os_error(error: OSError) -> str:
    if error.errno == errno.ENOMEM:
        return _MEMORY_RAN_OUT
    if error.errno == errno.ENOENT and error.filename is None and not _has_working_folder():
        return (
            "The working folder no longer exists: go to another one (cd) and run the command again."
        )
    if error.filename is None:
        advice = ADVICE.get(error.errno or 0, "correct that and run the command again")
        return f"The operating system refused something ({os_reason(error)}): {advice}."
    name = error.filename
    return cannot("used", os.fsdecode(name) if isinstance(name, bytes) else name, error)


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from macl.utils.memory import is_out_of_memory

    return is_out_of_memory(error)
