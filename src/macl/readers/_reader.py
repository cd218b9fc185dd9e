"""The contract of a reader: a layout of scans on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from macl.io.source import Source


class Reader(ABC):
    """A layout of scans on disk. Readers name files; they never open the scans, convert or augment.

    Attributes:
        parts: the parts of a data set that is read one part at a time, such as ("CT", "MR"), the usual one first.
        part: the one that is wanted; None: the first that is there.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, part: str | None = None) -> None:
        self.part = part

    @property
    def name(self) -> str:
        """The name of its module."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def evidence(self, source: Path) -> tuple[int, str] | None:
        """How specific a sign of this layout `source` shows (higher wins), and the sign in words; None: not this one."""

    @abstractmethod
    def read(self, source: Path) -> Source:
        """List the cases of `source`; MaclError where the layout is broken beyond use."""
