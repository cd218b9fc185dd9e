"""How Sphinx makes the site of these pages: `make docs`."""

from __future__ import annotations

import json
import re
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser

import macl

project = "macl"
author = "the developers of macl"
version = release = macl.__version__
html_title = f"macl {release}"
html_theme = "furo"
html_copy_source = html_show_sourcelink = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "literal"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["misc.highlighting_failure"]
"""Commands are shown with placeholders such as `…`."""


class NotebookParser(MystParser):
    """Shows a notebook's cells, without running them: a test does that."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the notebook as Markdown."""
        cells = json.loads(inputstring)["cells"]
        super().parse("\n\n".join(map(_as_markdown, cells)) + "\n", document)


def _as_markdown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def _escape(_app: object, _what: str, _name: str, _of: object, _opts: object, lines: list[str]):
    """Shapes such as (B, C, *patch) in docstrings are no emphasis."""
    lines[:] = [re.sub(r"(?<![\\`])([*|])", r"\\\1", line) for line in lines]


def setup(app: Any) -> None:
    """Add what Sphinx and MyST do not have."""
    app.add_source_parser(NotebookParser)
    # Before napoleon (500), whose own markup must stay.
    app.connect("autodoc-process-docstring", _escape, priority=100)
