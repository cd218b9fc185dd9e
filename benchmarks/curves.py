"""Draw Dice over the number of labelled people, from a table of benchmarks' runs.

A point is the mean over repeats; of a run that was repeated on another day, the last counts.

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
    runs = {
        (f"{row['start']}, {row['training']}", int(row["labels"]), row["seed"], row["draw"]): row
        for row in sorted(rows, key=lambda row: row["date"])
    }
    dice: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, labels, _, _), row in runs.items():
        dice[name][labels].append(100 * float(row["dice"]))
    return [
        Line(
            name,
            tuple(LinePoint(labels, fmean(own[labels]), None) for labels in sorted(own)),
        )
        for name, own in dice.items()
    ]


if __name__ == "__main__":
    main()
