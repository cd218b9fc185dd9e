"""Compare the methods of finished benchmarks in pairs, from their people.csv.

Cells of several benchmarks on the same test people may be taken together, such as starts that were
run on another day:

    python benchmarks/paired.py docs/results/people/protocol_acdc.csv --labels 2
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from macl.statistics import crossed_bootstrap_interval, holm, signed_rank_p
from macl.workflows.benchmark.comparisons import format_p

Repeat = tuple[str, str]
"""Seed and draw."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("people", type=Path, nargs="+", help="people.csv of benchmarks")
    parser.add_argument("--labels", required=True, help="a label budget")
    parser.add_argument("--reference", default="scratch, supervised", help="START, TRAINING")
    parser.add_argument("--training", nargs="+", help="these trainings alone. Default: all")
    given = parser.parse_args()
    dice = read(given.people, given.labels)
    if given.training:
        dice = {name: own for name, own in dice.items() if name.split(", ")[1] in given.training}
    if given.reference not in dice:
        raise SystemExit(f"There is no {given.reference!r}; there are: {'; '.join(dice)}.")
    print(table(shared(dice), given.reference, "start, training"))


def read(files: Iterable[Path], labels: str) -> dict[str, dict[Repeat, dict[str, float]]]:
    """Method → repeat → test person → Dice in %."""
    dice: dict[str, dict[Repeat, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for file in files:
        with file.open(newline="", encoding="utf-8") as opened:
            for row in csv.DictReader(opened):
                if row["labels"] == labels:
                    repeat = (row["seed"], row["draw"])
                    method = f"{row['start']}, {row['training']}"
                    dice[method][repeat][row["person"]] = float(row["dice_percent"])
    return dice


def shared(
    dice: Mapping[str, Mapping[Repeat, dict[str, float]]],
) -> dict[str, list[dict[str, float]]]:
    """Method → person → Dice, for each of the repeats that all methods have."""
    repeats = sorted(set.intersection(*({*own} for own in dice.values())))
    return {name: [own[repeat] for repeat in repeats] for name, own in dice.items()}


def table(dice: Mapping[str, list[dict[str, float]]], reference: str, what: str) -> str:
    """Means over repeats, and differences from the reference, paired over people and repeats.

    Args:
        dice: method → for each repeat, person → Dice in %.
        reference: one of the methods.
        what: the methods are, for the head of their column.
    """
    repeats = min(map(len, dice.values()))
    people = sorted(set.intersection(*({*one} for own in dice.values() for one in own)))
    values = {
        name: np.array([[one[person] for one in own[:repeats]] for person in people])
        for name, own in dice.items()
    }
    apart = {name: own - values[reference] for name, own in values.items() if name != reference}
    corrected = holm([signed_rank_p(own.mean(axis=1)) for own in apart.values()])
    p_values = dict(zip(apart, corrected, strict=True))
    lines = [
        f"{len(people)} test people, {repeats} repeats. Dice in %, mean ± deviation over repeats;",
        "differences paired, 95 % intervals over people and repeats; p of Wilcoxon over people,",
        "after Holm.",
        "",
        f"| {what} | Dice % | against {reference} | repeats ahead | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, own in values.items():
        means = own.mean(axis=0)
        spread = f" ± {means.std(ddof=1):.1f}" if repeats > 1 else ""
        line = f"| {name} | {means.mean():.1f}{spread} |"
        if name == reference:
            lines.append(f"{line} | | |")
            continue
        low, high = crossed_bootstrap_interval(apart[name])
        ahead = int((apart[name].mean(axis=0) > 0).sum())
        gain = f"{apart[name].mean():+.1f}, {low:.1f} to {high:.1f}"
        p = format_p(p_values[name]).removeprefix("p ").removeprefix("= ")
        lines.append(f"{line} {gain} | {ahead} of {repeats} | {p} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
