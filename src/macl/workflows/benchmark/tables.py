"""The results of a benchmark: tables (CSV, Markdown, LaTeX), figures (SVG) and a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

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
    Ranking,
    compare_methods,
    format_p,
    title_of,
)
from macl.workflows.benchmark.grid import folder_name
from macl.workflows.benchmark.plan import BenchmarkPlan
from macl.workflows.benchmark.results import CellRecord, cell_rows, run_row, write_csv

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

HOW_COMPARED = (
    "Methods are compared in pairs, over the same repeats and the same test people. A person's "
    "Dice is the mean over their scans of the mean over the classes, by the strict convention, and "
    "of a person the mean over the repeats is taken. Intervals (95 %) are bootstrapped over "
    "people, and once more over people and repeats; p is from Wilcoxon's signed-rank test over "
    "people, corrected for all {count} comparisons of this benchmark by Holm's method. Ahead or "
    "behind: p < 0.05 after the correction, and an interval over people without 0. The test asks "
    "whether the difference would hold for other people, and not for other seeds or other labelled "
    "people: for that see the interval over people and repeats."
)
HOW_RANKED = (
    "Mean rank over people; 1 is best. Methods whose ranks lie less than the critical difference "
    "(CD, Nemenyi's test at 5 %) apart are not told apart. p is of Friedman's test that all are "
    "alike."
)


def write_tables(folder: BenchmarkFolder) -> str:
    """Write all tables of what is finished, and return the summary."""
    plan, out, finished = folder.plan, folder.out, folder.finished()
    cells = [*finished.values()]
    scored = [cell for cell, record in finished.items() if "strict" in record.summaries]
    findings = compare_methods(plan, {cell: folder.folder(cell) for cell in scored})
    write_csv(out / RESULTS, [row for cell in cells for row in cell_rows(cell)])
    write_csv(out / RUNS, [run_row(cell) for cell in cells])
    write_csv(out / PEOPLE, _people_rows(findings))
    write_csv(out / COMPARISONS, [_comparison_row(each) for each in findings.comparisons])
    write_csv(out / RANKS, [row for each in findings.rankings for row in _ranking_rows(each)])
    write_csv(out / CURVES, _curve_rows(findings))
    conventions: dict[Convention, None] = dict.fromkeys(
        name for cell in cells for name in cell.summaries
    )
    means = [_means(cells, plan, convention) for convention in conventions]
    compared = _comparison_tables(findings, plan)
    text = _summary(folder, cells, means, compared, findings)
    write_text(out / SUMMARY, text)
    lines = ["% Needs \\usepackage{booktabs}."]
    for table in (*means, *compared):
        lines += ["", *table.latex()]
    write_text(out / LATEX, "\n".join(lines) + "\n")
    figures = _figures(findings, plan)
    for name, figure in figures.items():
        write_text(out / FIGURES / f"{name}.svg", figure)
    page = benchmark_page(
        command=folder.command,
        figures=[*figures.values()],
        sentences=_sentences(findings, plan),
        explanation=HOW_COMPARED.format(count=len(findings.comparisons)),
        tables=[*means, *compared],
        failed=[f"{cell}: {reason}" for cell, reason in folder.failed().items()],
    )
    write_text(out / PAGE, page)
    return text


def _figures(findings: Findings, plan: BenchmarkPlan) -> dict[str, str]:
    """Name of a file → figure as SVG."""
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


# ---------------------------------------------------------------- for people


def _summary(
    folder: BenchmarkFolder,
    cells: Sequence[CellRecord],
    means: Sequence[ResultTable],
    compared: Sequence[ResultTable],
    findings: Findings,
) -> str:
    lines = [
        "# Benchmark", "", f"`{folder.command}`", "",
        "Every value is the mean ± standard deviation over repeats, each with its own seed"
        + (" and its own draw of the labelled people" if None not in folder.plan.splits else "")
        + ". Minutes are the mean training time, pre-training included.", "",
    ]  # fmt: skip
    devices = dict.fromkeys(cell.device for cell in cells)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in cell.versions.items()) for cell in cells
    )
    commits = dict.fromkeys(cell.commit for cell in cells if cell.commit)
    lines += [f"- device: {device}" for device in devices]
    lines += [f"- versions: {texts}" for texts in versions]
    lines += [f"- commit: {commit}" for commit in commits]
    for table in means:
        lines += ["", f"## {table.title}", "", *table.markdown()]
    if findings.comparisons:
        explained = HOW_COMPARED.format(count=len(findings.comparisons))
        lines += ["", "## Against the reference", "", explained, ""]
        lines += [f"- {sentence}." for sentence in _sentences(findings, folder.plan)]
    for table in compared:
        explained = [HOW_RANKED, ""] if table.title.startswith("Ranks") else []
        lines += ["", f"## {table.title}", "", *explained, *table.markdown()]
    if failed := folder.failed():
        lines += ["", "## Failed", "", *(f"- {cell}: {reason}" for cell, reason in failed.items())]
    return "\n".join(lines) + "\n"


def _in_context(each: PairedComparison, plan: BenchmarkPlan) -> str:
    recipe = each.method.recipe if plan.grid.reference.recipe is None else ""
    context = ", ".join(filter(None, (f"{each.labels} labelled", _unless_only(recipe, plan))))
    return f"{context}: {title_of(each.method, plan)} against {title_of(each.reference, plan)}"


def _unless_only(recipe: str, plan: BenchmarkPlan) -> str:
    return recipe if len(plan.grid.recipes) > 1 else ""


def _means(cells: Sequence[CellRecord], plan: BenchmarkPlan, convention: Convention) -> ResultTable:
    groups: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    several = len(plan.grid.training) > 1
    for cell in cells:
        if convention in cell.summaries:
            training = (cell.training,) if several else ()
            groups[(cell.labels, cell.recipe, cell.start, *training)].append(cell)
    units = {cell.summaries[convention]["unit"] for group in groups.values() for cell in group}
    unit = ", ".join(sorted(units))
    heads = (
        "labels", "recipe", "start", *(("training",) if several else ()), "repeats",
        "pooled Dice %" if convention == "paper" else "Dice %", "Jaccard %",
        f"HD95 {unit}", f"ASD {unit}", "missed", "minutes",
    )  # fmt: skip
    rows = []
    for names, group in groups.items():
        summaries = [cell.summaries[convention] for cell in group]
        measures = [
            mean_and_deviation(
                [summary["mean"][measure]["mean"] for summary in summaries],
                100.0 if measure in OVERLAPS else 1.0,
            )
            for measure in MEASURES
        ]
        missed = [float(sum(row["missed"] for row in summary["classes"])) for summary in summaries]
        minutes = [(cell.pretraining_seconds + cell.finetuning_seconds) / 60 for cell in group]
        numbers = (*measures, mean_and_deviation(missed), f"{mean(minutes):.1f}")
        rows.append((*names, str(len(group)), *numbers))
    return ResultTable(f"Convention {convention}", heads, tuple(rows), words=4 if several else 3)


def _comparison_tables(findings: Findings, plan: BenchmarkPlan) -> list[ResultTable]:
    tables = []
    if findings.comparisons:
        heads = (
            "labels", "recipe", "method", "reference", "conclusion", "difference, points",
            "95 % over people", "95 % over people and repeats", "p", "p after Holm", "people",
            "people ahead", "repeats", "repeats ahead", "missed", "missed by the reference",
        )  # fmt: skip
        rows = tuple(
            (
                each.labels, each.method.recipe, title_of(each.method, plan),
                title_of(each.reference, plan), each.verdict, _signed(each.difference),
                _interval(each.interval), _interval(each.crossed_interval), f"{each.p:.2g}",
                f"{each.p_holm:.2g}", str(each.people), str(each.people_ahead), str(each.repeats),
                str(each.repeats_ahead), f"{each.missed:.1f}", f"{each.reference_missed:.1f}",
            )
            for each in findings.comparisons
        )  # fmt: skip
        tables.append(ResultTable("Paired differences of Dice", heads, rows, words=5))
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


# ---------------------------------------------------------------- for programs


def _comparison_row(each: PairedComparison) -> dict[str, Any]:
    low, high = each.interval or (None, None)
    crossed_low, crossed_high = each.crossed_interval or (None, None)
    return {
        "labels": each.labels,
        "start": each.method.start,
        "training": each.method.training,
        "recipe": each.method.recipe,
        "reference_start": each.reference.start,
        "reference_training": each.reference.training,
        "reference_recipe": each.reference.recipe,
        "dice_points": each.difference,
        "low": low,
        "high": high,
        "low_over_repeats_too": crossed_low,
        "high_over_repeats_too": crossed_high,
        "p": each.p,
        "p_holm": each.p_holm,
        "people": each.people,
        "people_ahead": each.people_ahead,
        "repeats": each.repeats,
        "repeats_ahead": each.repeats_ahead,
        "missed": each.missed,
        "reference_missed": each.reference_missed,
        "conclusion": each.verdict,
        "sentence": each.sentence,
    }


def _ranking_rows(each: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "labels": each.labels,
            "start": method.start,
            "training": method.training,
            "recipe": method.recipe,
            "mean_rank": rank,
            "critical_difference": each.critical_difference,
            "friedman_p": each.p,
            "people": each.people,
            "repeats": each.repeats,
        }
        for method, rank in each.ranks.items()
    ]


def _people_rows(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "start": method.start,
            "training": method.training,
            "labels": labels,
            "recipe": method.recipe,
            "seed": seed,
            "draw": draw,
            "person": person,
            "dice_percent": dice,
        }
        for labels, methods in findings.scores.items()
        for method, scores in methods.items()
        for (seed, draw), of_people in scores.dice.items()
        for person, dice in of_people.items()
    ]


def _curve_rows(findings: Findings) -> list[dict[str, Any]]:
    rows = []
    for methods in findings.curves.values():
        for method, points in methods.items():
            for point in points:
                low, high = point.interval or (None, None)
                rows.append(
                    {
                        "labels": point.labels,
                        "labelled_people": point.labelled_people,
                        "start": method.start,
                        "training": method.training,
                        "recipe": method.recipe,
                        "dice_percent": point.mean,
                        "low": low,
                        "high": high,
                        "people": point.people,
                        "repeats": point.repeats,
                    }
                )
    return rows
