"""What `macl run` says at its end: what was made, where, and what the numbers allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from macl.data.splits import group_of
from macl.data.store import Store
from macl.data.store_index import INDEX
from macl.records import runs
from macl.records.scores import ScoreRow, render, summarise
from macl.workflows.run.plan import PLAN, STORE, RunPlan

ROUGH = 20
"""Scores of fewer people are called a rough idea."""


@dataclass(frozen=True)
class RunResult:
    """What a run has made.

    Attributes:
        folder: the run's.
        plan: what was done.
        models: folders of the segmenters, whose probabilities are averaged; none without labels.
        pretrained: folder of the pre-training run.
        masks: folder of the masks of all scans; None without labels.
        page: the report.
        scores: one row per tested scan and class.
    """

    folder: Path
    plan: RunPlan
    models: tuple[Path, ...]
    pretrained: Path
    masks: Path | None
    page: Path
    scores: tuple[ScoreRow, ...]


def summary(result: RunResult) -> str:
    """What was made, where, and what the numbers allow."""
    plan, out = result.plan, result.folder
    lines, store = [], Store.open(out / STORE)
    if result.scores:
        lines.append(render(summarise(result.scores, "strict")))
        lines.append(what_scores_allow(result.scores, plan, store))
    elif result.models:
        lines.append("There are no scores: nobody's labels were kept to test.")
    if result.masks:
        masks = len([*result.masks.glob("*.nii*")])
        models = f", {len(result.models)} models averaged" if len(result.models) > 1 else ""
        lines.append(f"Masks    {result.masks} ({masks} scans{models})")
        if plan.folds:
            every_fold = next(iter(result.models)).name.removesuffix("1") + "*"
            lines.append(
                "         of labelled people, those by a model that never saw them: "
                f"{out / 'runs' / every_fold / runs.PREDICTIONS}"
            )
        lines.append(f"New scan macl predict {out} SCAN --out MASKS")
    if refused := len(store.index.refused):
        lines.append(f"Refused  {refused} scans, with the reasons in {out / STORE / INDEX}")
    if (names := out / f"{STORE}.private.json").is_file():
        lines.append(f"Names    {names} says which scan a hashed name means: keep it to yourself")
    lines += [f"Weights  {result.pretrained}, pre-trained without labels"]
    lines += [f"Page     {result.page}", f"Plan     {out / PLAN}"]
    return "\n".join(lines)


def as_values(result: RunResult) -> dict[str, Any]:
    """What was made and where, for programs."""
    return {
        "folder": str(result.folder),
        "models": [str(model) for model in result.models],
        "pretrained": str(result.pretrained),
        "masks": str(result.masks) if result.masks else None,
        "page": str(result.page),
        "scores": summarise(result.scores, "strict") if result.scores else None,
    }


def what_scores_allow(scores: Sequence[ScoreRow], plan: RunPlan, store: Store) -> str:
    """One sentence: how well whom, and how far that goes."""
    people_of = {case.name: group_of(case.patient, plan.group) for case in store.index.cases}
    by_person: dict[str, list[float]] = {}
    for row in scores:
        if not math.isnan(row.dice):
            by_person.setdefault(people_of[row.case], []).append(row.dice)
    means = [100 * fmean(values) for values in by_person.values()]
    if not means:
        return "No structure is in the test, so its scores say nothing."
    if len(means) == 1:
        return (
            f"Dice {means[0]:.1f} % on one person whom training never saw, with one seed: a rough "
            "idea at most."
        )
    people = f"{len(means)} people"
    whom = "each by a model that never saw them" if plan.folds else "whom training never saw"
    rough = ": a rough idea only" if len(means) < ROUGH else ""
    return (
        f"Mean Dice {fmean(means):.1f} % ({min(means):.1f} to {max(means):.1f}) on {people}, "
        f"{whom}; one seed{rough}."
    )
