"""The contract of a reader: a layout of scans on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from macl.io.source import Source
from macl.utils.errors import MaclError


class Reader(ABC):
    """A layout of scans on disk. Readers list files; they never open, convert or augment scans.

    Attributes:
        parts: the parts of a data set that is read one part at a time, such as ("ct", "mr"), the
            usual one first.
        part: the part to read; None: the first one that is there.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, part: str | None = None) -> None:
        self.part = part

    @property
    def name(self) -> str:
        """The name of its module, by which users choose it."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A sign of this layout in `source`: how specific it is, and the sign in words; or None.

        The reader with the most specific sign reads the folder.
        """

    @abstractmethod
    def read(self, source: Path) -> Source:
        """List the cases of `source`.

        Raises:
            MaclError: the folder cannot be read in this layout.
        """

    def choose_part(self, counts: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
        """The part to read, and a note about the parts that are ignored.

        Args:
            counts: part → its number of scans, the usual part first; at least one is above 0.

        Raises:
            MaclError: there are no scans of the part that was asked for.
        """
        there = [part for part, count in counts.items() if count]
        chosen = self.part or there[0]
        if chosen not in there:
            raise MaclError(
                f"There are no {chosen} scans here: use --reader {self.name}:{there[0]}, or check "
                "the folder."
            )
        others = ", ".join(
            f"{counts[part]} of {part} (--reader {self.name}:{part})"
            for part in there
            if part != chosen
        )
        if not others:
            return chosen, ()
        return chosen, (f"Reading the {chosen} scans of this data set; ignored: {others}.",)
