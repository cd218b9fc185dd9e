"""Draw Dice over the number of labelled people, from a table of benchmarks' runs.

A point is the mean over the repeats that all methods with as many labels have; of a run that was
repeated on another day, the last counts.

    python benchmarks/curves.py docs/results/results.csv --split protocol_hippocampus \
        --training supervised self-trained --out curves.svg
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from macl.pages.benchmark_figures import Line, LinePoint, curves_figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="runs.csv of a benchmark, or a table of several")
    parser.add_argument("--split", required=True, help="the runs with this split")
    parser.add_argument("--start", nargs="+", help="these starts alone. Default: all")
    parser.add_argument("--training", nargs="+", help="these trainings alone. Default: all")
    parser.add_argument("--out", type=Path, required=True, help="the figure (.svg)")
    given = parser.parse_args()
    with given.runs.open(newline="", encoding="utf-8") as opened:
        rows = [row for row in csv.DictReader(opened) if row["split"] == given.split]
    chosen = [
        row
        for row in rows
        if row["start"] in (given.start or [row["start"]])
        and row["training"] in (given.training or [row["training"]])
    ]
    if not chosen:
        raise SystemExit(f"{given.runs} has no such runs with the split {given.split}.")
    figure = curves_figure("Dice over the number of labelled people", lines(chosen))
    given.out.write_text(figure, encoding="utf-8")


def lines(rows: list[dict[str, str]]) -> list[Line]:
    """One for each start and training, over their label budgets."""
    dice: dict[int, dict[str, dict[tuple[str, str], float]]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row["date"]):
        method, repeat = f"{row['start']}, {row['training']}", (row["seed"], row["draw"])
        dice[int(row["labels"])].setdefault(method, {})[repeat] = 100 * float(row["dice"])
    points: dict[str, list[LinePoint]] = defaultdict(list)
    for labels, methods in sorted(dice.items()):
        shared = set.intersection(*({*own} for own in methods.values()))
        for method, own in methods.items():
            mean = fmean(own[repeat] for repeat in shared)
            points[method].append(LinePoint(labels, mean, None))
    return [Line(method, tuple(own)) for method, own in points.items()]


if __name__ == "__main__":
    main()
