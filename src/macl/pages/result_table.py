"""A table of results, as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LATEX_WORDS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$",
}  # fmt: skip


@dataclass(frozen=True)
class ResultTable:
    """A table for people.

    Attributes:
        words: number of columns, from the left, that hold words and not numbers.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int

    def markdown(self) -> list[str]:
        """The lines of a Markdown table."""
        rules = ["---" if index < self.words else "---:" for index in range(len(self.heads))]
        return [f"| {' | '.join(cells)} |" for cells in (self.heads, rules, *self.rows)]

    def latex(self) -> list[str]:
        """The lines of a LaTeX table, which needs the package booktabs."""
        columns = "l" * self.words + "r" * (len(self.heads) - self.words)
        return [
            r"\begin{table}", rf"\caption{{{_latex(self.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(self.heads), r"\midrule",
            *map(_latex_row, self.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX_WORDS.get(letter, letter) for letter in text)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"
