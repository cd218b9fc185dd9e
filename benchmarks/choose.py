"""Is a choice by `macl choose` worth more than chance? On a standing protocol, over many repeats.

Each repeat pre-trains with its own seed, on everybody outside the test and without labels. Then the
same number of people is labelled in three ways: drawn at random (another draw each repeat), and
chosen in the features of that pre-training by coverage and by distance. All are fine-tuned alike
from these weights, with the repeat's seed, and scored on the test people of the protocol.

    python benchmarks/choose.py benchmarks/protocol_hippocampus.toml --start masked --labels 4 \
        --repeats 10 --out runs/choose_hippocampus --device cpu

What is finished is kept, and what was killed resumes, if the command is run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from paired import table

import macl
from macl.data.coverage import Strategy
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import read_split, write_split
from macl.data.store import Store
from macl.records.scores import read_rows
from macl.workflows.benchmark.comparisons import dice_of_people
from macl.workflows.benchmark.grid import BenchmarkGrid, Start, read_grid

RANDOM = "random"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", type=Path, help="grid of a benchmark (.toml)")
    parser.add_argument("--start", required=True, help="one of its starts, which pre-trains")
    parser.add_argument("--labels", required=True, help="a label budget of its split")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--steps", type=int, nargs=2, help="of pre-training and fine-tuning, to try the script"
    )
    given = parser.parse_args()
    grid = read_grid(given.protocol)
    start = next(each for each in grid.start if each.name == given.start)
    store = Store.open(grid.store)
    resolved = resolve_split(read_split(grid.split), store)
    pretraining, finetuning = ((f"training.steps={steps}",) for steps in given.steps or (0, 0))
    dice: dict[str, list[dict[str, float]]] = {}
    for repeat in range(given.repeats):
        pretrained = given.out / "pretrained" / f"{start.name}__seed{repeat}"
        changes = (*start.network, *start.set, *(pretraining if given.steps else ()))
        macl.pretrain(
            grid.store, pretrained, method=start.method, split=grid.split, recipe=start.recipe,
            overrides=changes, device=given.device, seed=repeat, resume=True,
        )  # fmt: skip
        for name, path in splits(resolved, store, pretrained, given, repeat).items():
            run = given.out / "cells" / f"{name}__repeat{repeat}"
            changes = (*finetune_settings(grid, start), *(finetuning if given.steps else ()))
            macl.finetune(
                grid.store, run, init=pretrained, split=path, labels=given.labels,
                recipe=grid.recipes[0], overrides=changes, device=given.device, seed=repeat,
                resume=True, encoder_only=True,
            )  # fmt: skip
            macl.predict([run, grid.store], run / "predictions", device=given.device)
            macl.evaluate(run / "predictions", grid.store, run / "cases.csv")
            dice.setdefault(name, []).append(
                dice_of_people(read_rows(run / "cases.csv"), resolved.groups)
            )
        text = table(dice, RANDOM, "labelled")
        (given.out / "results.md").write_text(text, encoding="utf-8")
        (given.out / "results.json").write_text(json.dumps(dice, indent=1), encoding="utf-8")
    print(text)


def finetune_settings(grid: BenchmarkGrid, start: Start) -> tuple[str, ...]:
    """The changes of the protocol's supervised training."""
    supervised = next(each for each in grid.training if each.stage == "finetune")
    return (*grid.finetune.set, *supervised.set, *start.network)


def splits(
    resolved: ResolvedSplit,
    store: Store,
    pretrained: Path,
    given: argparse.Namespace,
    repeat: int,
) -> dict[str, Path]:
    """Files of the protocol's split with people labelled at random, and by each strategy."""
    drawn = draw_labelled_people(resolved, store, repeat)
    people = drawn.budgets[given.labels]
    paths = {
        name: given.out / "splits" / f"{name}__repeat{repeat}.json"
        for name in (RANDOM, *get_args(Strategy))
    }
    write_split(paths[RANDOM], drawn.model_copy(update={"budgets": {given.labels: people}}))
    for strategy in get_args(Strategy):
        if paths[strategy].is_file():
            continue
        chosen = macl.choose(
            store.path, run=pretrained, count=len(people), among="labelled", strategy=strategy,
            split=paths[RANDOM], device=given.device,
        )  # fmt: skip
        changes = {
            "name": f"{drawn.name}-{strategy}",
            "source": f"macl choose, {strategy}, {pretrained.name}",
            "budgets": {given.labels: tuple(person.person for person in chosen)},
        }
        write_split(paths[strategy], drawn.model_copy(update=changes))
    return paths


if __name__ == "__main__":
    main()
