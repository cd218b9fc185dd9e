"""The scripts of a page, each allowed by its hash, so that nothing else in the page can run."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

NIIVUE = "vendor/niivue.umd.js.gz"
"""The volume viewer's library; see the licence beside it."""


@dataclass(frozen=True)
class Script:
    """JavaScript, and what the page's security policy calls it."""

    text: str

    @property
    def source(self) -> str:
        """The source expression for `script-src`."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"


def own_script(name: str) -> Script:
    """A script of this package."""
    return Script(files("macl.pages").joinpath(name).read_text(encoding="utf-8"))


def niivue() -> tuple[Script, str]:
    """The library, and as it stands in the page: gzip as base64 text."""
    packed = files("macl.pages").joinpath(NIIVUE).read_bytes()
    return Script(gzip.decompress(packed).decode()), base64.b64encode(packed).decode()
