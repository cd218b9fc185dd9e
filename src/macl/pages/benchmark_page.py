"""The page of a benchmark, which opens offline: its figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import macl
from macl.pages.result_table import ResultTable


def benchmark_page(
    command: str,
    unfinished: str,
    introduction: str,
    facts: Sequence[str],
    figures: Mapping[str, Sequence[str]],
    sentences: Sequence[str],
    explanation: str,
    tables: Sequence[ResultTable],
    failed: Sequence[str],
) -> str:
    """The page as HTML.

    Args:
        command: what made the results.
        unfinished: how many cells are finished; empty where all are.
        introduction: what the values in the tables are.
        facts: what was run on what, "name: value" each.
        figures: caption → the figures that it explains, as SVG.
        sentences: what the comparisons allow to be said.
        explanation: how methods were compared.
        tables: in the order of the page.
        failed: cells that failed, and why.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("macl", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("benchmark.html.j2").render(
        command=command,
        unfinished=unfinished,
        introduction=introduction,
        facts=facts,
        figures={
            caption: [Markup(drawing) for drawing in drawings]
            for caption, drawings in figures.items()
            if drawings
        },
        sentences=sentences,
        explanation=explanation,
        tables=tables,
        failed=failed,
        macl_version=macl.__version__,
        date=date.today().isoformat(),
    )
