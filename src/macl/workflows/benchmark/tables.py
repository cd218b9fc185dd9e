"""The results of a benchmark: tables (CSV, Markdown, LaTeX), figures (SVG) and a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from macl.metrics import Convention
from macl.pages.benchmark_figures import (
    Line,
    LinePoint,
    curves_figure,
    means_figure,
    ranks_figure,
)
from macl.pages.benchmark_page import benchmark_page
from macl.pages.result_table import ResultTable
from macl.records.scores import MEASURES, OVERLAPS
from macl.utils.files import write_text
from macl.utils.text import counted
from macl.workflows.benchmark.cells import BenchmarkFolder
from macl.workflows.benchmark.comparisons import (
    Findings,
    Interval,
    PairedComparison,
    compare_methods,
    format_p,
    title_of,
)
from macl.workflows.benchmark.grid import folder_name, name_of_recipe
from macl.workflows.benchmark.plan import BenchmarkPlan
from macl.workflows.benchmark.results import CellRecord, cell_rows, run_row, write_csv
from macl.workflows.benchmark.rows import (
    CurveRow,
    DifferenceRow,
    PersonRow,
    RankRow,
    comparison_rows,
    curve_rows,
    person_rows,
    rank_rows,
)
from macl.workflows.benchmark.wording import (
    HOW_RANKED,
    how_compared,
    how_drawn,
    unfinished,
    what_values_are,
    what_was_run,
)

RESULTS = "results.csv"
RUNS = "runs.csv"
PEOPLE = "people.csv"
COMPARISONS = "comparisons.csv"
RANKS = "ranks.csv"
CURVES = "curves.csv"
SUMMARY = "results.md"
LATEX = "results.tex"
PAGE = "results.html"
FIGURES = "figures"


def write_tables(folder: BenchmarkFolder) -> str:
    """Write all tables of what is finished, and return the summary."""
    plan, out, finished = folder.plan, folder.out, folder.finished()
    cells = [*finished.values()]
    scored = [cell for cell, record in finished.items() if "strict" in record.summaries]
    findings = compare_methods(plan, {cell: folder.folder(cell) for cell in scored})
    write_csv(out / RESULTS, [row for cell in cells for row in cell_rows(cell)])
    write_csv(out / RUNS, [run_row(cell) for cell in cells])
    _write_rows(out / PEOPLE, PersonRow, person_rows(findings))
    _write_rows(out / COMPARISONS, DifferenceRow, comparison_rows(findings))
    _write_rows(out / RANKS, RankRow, rank_rows(findings))
    _write_rows(out / CURVES, CurveRow, curve_rows(findings))
    conventions: dict[Convention, None] = dict.fromkeys(
        name for cell in cells for name in cell.summaries
    )
    means = [_means(cells, plan, convention) for convention in conventions]
    compared = [*_comparison_tables(findings, plan), *_rank_tables(findings, plan)]
    printed = [*_printed_comparisons(findings, plan), *_rank_tables(findings, plan)]
    text = _summary(folder, cells, means, compared, findings)
    write_text(out / SUMMARY, text)
    lines = ["% Needs \\usepackage{booktabs}."]
    for table in (*means, *printed):
        lines += ["", *table.latex()]
    write_text(out / LATEX, "\n".join(lines) + "\n")
    figures = {
        how_drawn(findings): _curve_figures(findings, plan),
        HOW_RANKED: _rank_figures(findings, plan),
    }
    for drawings in figures.values():
        for name, drawing in drawings.items():
            write_text(out / FIGURES / f"{name}.svg", drawing)
    page = benchmark_page(
        command=folder.command,
        unfinished=unfinished(plan, len(cells)),
        introduction=what_values_are(plan, cells),
        facts=what_was_run(plan, cells),
        figures={caption: [*drawings.values()] for caption, drawings in figures.items()},
        sentences=_sentences(findings, plan),
        explanation=how_compared(findings, complete=not unfinished(plan, len(cells))),
        tables=[*means, *compared],
        failed=[f"{cell}: {reason}" for cell, reason in folder.failed().items()],
    )
    write_text(out / PAGE, page)
    return text


def _write_rows(path: Path, kind: type[NamedTuple], rows: Iterable[NamedTuple]) -> None:
    write_csv(path, [row._asdict() for row in rows], kind._fields)


def _curve_figures(findings: Findings, plan: BenchmarkPlan) -> dict[str, str]:
    """Name of a file → figure of the Dice as SVG."""
    figures = {}
    for recipe, methods in findings.curves.items():
        shown = _unless_only(recipe, plan)
        lines = [
            Line(
                title_of(method, plan),
                tuple(LinePoint(each.labelled_people, each.mean, each.interval) for each in points),
            )
            for method, points in methods.items()
        ]
        people = {point.labelled_people for line in lines for point in line.points}
        if len(people) == 1:
            kind, draw = "means", means_figure
            title = f"Dice with {people.pop()} labelled"
        else:
            kind, draw = "curves", curves_figure
            title = "Dice over the number of labelled people"
        title += f", recipe {shown}" if shown else ""
        figures["__".join(filter(None, (kind, shown)))] = draw(title, lines)
    return figures


def _rank_figures(findings: Findings, plan: BenchmarkPlan) -> dict[str, str]:
    """Name of a file → figure of mean ranks as SVG."""
    figures = {}
    for each in findings.rankings:
        labels, shown = folder_name(each.labels), _unless_only(each.recipe, plan)
        title = f"Mean ranks with {each.labels} labelled" + (f", recipe {shown}" if shown else "")
        ranks = {title_of(method, plan): rank for method, rank in each.ranks.items()}
        name = "__".join(filter(None, ("ranks", labels, shown)))
        figures[name] = ranks_figure(title, ranks, each.critical_difference)
    return figures


def _sentences(findings: Findings, plan: BenchmarkPlan) -> list[str]:
    return [f"{_in_context(each, plan)}: {each.sentence}" for each in findings.comparisons]


def mean_and_deviation(values: Sequence[float | None], factor: float = 1.0) -> str:
    """ "mean ± sd" of the defined values times `factor`; one value has no sd, none is "–"."""
    defined = [factor * value for value in values if value is not None]
    if not defined:
        return "–"
    return f"{mean(defined):.2f}" + (f" ± {stdev(defined):.2f}" if len(defined) > 1 else "")


def _summary(
    folder: BenchmarkFolder,
    cells: Sequence[CellRecord],
    means: Sequence[ResultTable],
    compared: Sequence[ResultTable],
    findings: Findings,
) -> str:
    plan = folder.plan
    still_running = unfinished(plan, len(cells))
    lines = ["# Benchmark", "", f"`{folder.command}`", ""]
    if still_running:
        lines += [still_running, ""]
    lines += [what_values_are(plan, cells), ""]
    lines += [f"- {fact}" for fact in what_was_run(plan, cells)]
    for table in means:
        lines += ["", f"## {table.title}", "", *table.markdown()]
    if findings.comparisons:
        explained = how_compared(findings, complete=not still_running)
        lines += ["", "## Against the reference", "", explained, ""]
        lines += [f"- {sentence}." for sentence in _sentences(findings, plan)]
    for table in compared:
        explained = [HOW_RANKED, ""] if table.title.startswith("Ranks") else []
        lines += ["", f"## {table.title}", "", *explained, *table.markdown()]
    if failed := folder.failed():
        lines += ["", "## Failed", "", *(f"- {cell}: {reason}" for cell, reason in failed.items())]
    return "\n".join(lines) + "\n"


def _in_context(each: PairedComparison, plan: BenchmarkPlan) -> str:
    context = ", ".join(filter(None, (f"{each.labels} labelled", _recipe_of(each, plan))))
    return f"{context}: {title_of(each.method, plan)} against {title_of(each.reference, plan)}"


def _recipe_of(each: PairedComparison, plan: BenchmarkPlan) -> str:
    """The recipe of a comparison, where there are several that the methods' titles do not name."""
    return _unless_only(each.method.recipe, plan) if plan.grid.reference.recipe is None else ""


def _unless_only(recipe: str, plan: BenchmarkPlan) -> str:
    return recipe if len(plan.grid.recipes) > 1 else ""


def _means(cells: Sequence[CellRecord], plan: BenchmarkPlan, convention: Convention) -> ResultTable:
    grid = plan.grid
    groups: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    several = len(grid.training) > 1
    for cell in cells:
        if convention in cell.summaries:
            training = (cell.training,) if several else ()
            groups[(cell.labels, cell.recipe, cell.start, *training)].append(cell)
    units = {cell.summaries[convention]["unit"] for group in groups.values() for cell in group}
    unit = ", ".join(sorted(units))
    heads = (
        "labels", "recipe", "start", *(("training",) if several else ()), "repeats",
        "pooled Dice %" if convention == "paper" else "Dice %", "Jaccard %",
        f"HD95 {unit}", f"ASD {unit}", "missed", "invented", "minutes",
    )  # fmt: skip
    orders = (
        grid.labels,
        [name_of_recipe(recipe) for recipe in grid.recipes],
        [start.name for start in grid.start],
        [training.name for training in grid.training],
    )

    def place(names: tuple[str, ...]) -> list[int]:
        return [order.index(name) for name, order in zip(names, orders, strict=False)]

    rows = []
    for names in sorted(groups, key=place):
        group = groups[names]
        summaries = [cell.summaries[convention] for cell in group]
        measures = [
            mean_and_deviation(
                [summary["mean"][measure]["mean"] for summary in summaries],
                100.0 if measure in OVERLAPS else 1.0,
            )
            for measure in MEASURES
        ]
        counts = [
            mean_and_deviation(
                [float(sum(row[outcome] for row in summary["classes"])) for summary in summaries]
            )
            for outcome in ("missed", "invented")
        ]
        minutes = [(cell.pretraining_seconds + cell.finetuning_seconds) / 60 for cell in group]
        numbers = (*measures, *counts, f"{mean(minutes):.1f}")
        rows.append((*names, str(len(group)), *numbers))
    return ResultTable(f"Convention {convention}", heads, tuple(rows), words=4 if several else 3)


def _comparison_tables(findings: Findings, plan: BenchmarkPlan) -> list[ResultTable]:
    """All numbers of the comparisons, for a screen; no table where there are none."""
    if not findings.comparisons:
        return []
    heads = (
        "labels", "recipe", "method", "reference", "conclusion", "difference, points",
        "95 % over people", "95 % over people and repeats", "p", "p after Holm", "people",
        "people ahead", "repeats", "repeats ahead", "missed", "missed by the reference",
        "invented", "invented by the reference",
    )  # fmt: skip
    rows = tuple(
        (
            each.labels, each.method.recipe, title_of(each.method, plan),
            title_of(each.reference, plan), each.verdict, _signed(each.difference),
            _interval(each.interval), _interval(each.crossed_interval), f"{each.p:.2g}",
            f"{each.p_holm:.2g}", str(each.people), str(each.people_ahead), str(each.repeats),
            str(each.repeats_ahead), f"{each.missed:.1f}", f"{each.reference_missed:.1f}",
            f"{each.invented:.1f}", f"{each.reference_invented:.1f}",
        )
        for each in findings.comparisons
    )  # fmt: skip
    return [ResultTable("Paired differences of Dice", heads, rows, words=5)]


def _printed_comparisons(findings: Findings, plan: BenchmarkPlan) -> list[ResultTable]:
    """The comparisons as narrow as a paper prints them, one table for each recipe."""
    tables = []
    several = any(each.repeats > 1 for each in findings.comparisons)
    over = "people and repeats" if several else "people"
    heads = (
        "labels", "method", "reference", "difference (95 %)", "p after Holm", "people",
        "repeats ahead",
    )  # fmt: skip
    for recipe in dict.fromkeys(_recipe_of(each, plan) for each in findings.comparisons):
        rows = tuple(
            (
                each.labels, title_of(each.method, plan), title_of(each.reference, plan),
                f"{_signed(each.difference)} "
                f"({_interval(each.crossed_interval if several else each.interval)})",
                f"{each.p_holm:.2g}", str(each.people), f"{each.repeats_ahead} of {each.repeats}",
            )
            for each in findings.comparisons
            if _recipe_of(each, plan) == recipe
        )  # fmt: skip
        title = f"Differences of Dice in points, with intervals over {over}"
        title += f", recipe {recipe}" if recipe else ""
        tables.append(ResultTable(title, heads, rows, words=3))
    return tables


def _rank_tables(findings: Findings, plan: BenchmarkPlan) -> list[ResultTable]:
    tables = []
    for each in findings.rankings:
        recipe = f", recipe {each.recipe}" if _unless_only(each.recipe, plan) else ""
        title = f"Ranks with {each.labels} labelled{recipe}"
        described = (
            f"CD {each.critical_difference:.2f}, {format_p(each.p)}, {each.people} people, "
            f"{counted(each.repeats, 'repeat')}"
        )
        rows = tuple((title_of(method, plan), f"{rank:.2f}") for method, rank in each.ranks.items())
        tables.append(ResultTable(f"{title} ({described})", ("method", "mean rank"), rows, words=1))
    return tables


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{_signed(interval[0])} to {_signed(interval[1])}"
