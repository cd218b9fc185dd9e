"""Scans, machine and minutes → a plan: the largest network that the time trains well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from macl.config.settings import PrepareSettings
from macl.stages.selftrain import MOST_LABELLED
from macl.utils.errors import MaclError
from macl.utils.text import format_duration, format_size
from macl.workflows.run.budget import (
    LEAST_FINETUNING,
    LEAST_SELFTRAINING,
    Budget,
    TrainingSteps,
)
from macl.workflows.run.choices import (
    POSITIONS_RECIPE,
    SplitChoice,
    choose_dims,
    choose_split,
    design_network,
)
from macl.workflows.run.facts import SourceFacts, expected_prepare_seconds
from macl.workflows.run.plan import RunPlan, RunRequest, TrainingPlan
from macl.workflows.run.speed import DesignSpeed, NetworkDesign, has_gpu, measure

NETWORK_SIZES = {
    2: ((64, 8), (128, 8), (128, 16), (192, 16), (256, 16), (256, 32)),
    3: ((32, 8), (48, 16), (64, 16), (64, 32), (96, 32)),
}
"""By dimensions: longest side of a patch in voxels and width of the network, small to large."""

ENOUGH_STEPS = 1000
"""A larger network or patch is taken only if every model is still fine-tuned for so long."""

FEWER_FOLDS = 3
"""Models of a cross-validation whose models would otherwise be trained too briefly."""

FEWEST_FOLD_STEPS, TEST_SHARE = 200, "30%"
"""Where even those would be fine-tuned for less, one model is trained, and this share of the
labelled people test it."""

SHARE_TO_MEASURE, SECONDS_TO_MEASURE = 0.01, 15.0
"""Of the budget, to time each kind of step of the chosen network: this share, so long at most."""

COPIES_OF_WEIGHTS = 6
"""That an unfinished run keeps on disk."""

Measure = Callable[[NetworkDesign, str, float], DesignSpeed | None]
"""Times a design on a device; see `macl.workflows.run.speed`."""


@dataclass(frozen=True)
class TimedDesign:
    """A design, how fast it is, and what a budget leaves for it."""

    design: NetworkDesign
    speed: DesignSpeed
    steps: TrainingSteps


@dataclass(frozen=True)
class ChosenPlan:
    """A plan, why it is what it is, and what it needs.

    Attributes:
        plan: the plan.
        reasons: one sentence for each choice.
        store_bytes, run_bytes: on disk, at most.
    """

    plan: RunPlan
    reasons: tuple[str, ...]
    store_bytes: int
    run_bytes: int


def choose_plan(
    request: RunRequest, facts: SourceFacts, started: float, measure: Measure = measure
) -> ChosenPlan:
    """Choose everything that the user left open.

    Args:
        request: what the user asked for.
        facts: about the scans.
        started: `time.perf_counter()` when the budget began to run.
        measure: times a design.

    Raises:
        MaclError: not even the smallest network fits into memory.
    """
    gpu, device = has_gpu(request.device), request.device
    dims, why_dims = choose_dims(facts, gpu)
    split, why_split = choose_split(facts)
    designs = [design_network(facts, dims, side, width, gpu) for side, width in NETWORK_SIZES[dims]]
    prepare_seconds = round(expected_prepare_seconds(facts, designs[0].spacing_mm), 1)
    budget = Budget(facts, request.minutes, started, prepare_seconds)
    chosen = choose_design(budget, designs, split, device, measure)
    if chosen is None:
        raise MaclError(
            "Not even the smallest network fits into memory: close other programs, or use another "
            "machine."
        )
    design = chosen.design
    speed = measure(design, device, _seconds_to_measure(request.minutes)) or chosen.speed
    steps = budget.steps(design, speed, split)
    about_split = [f"Split: {why_split}."]
    if split.folds > FEWER_FOLDS and steps.finetune < ENOUGH_STEPS:
        split = SplitChoice(FEWER_FOLDS, split.test)
        steps = budget.steps(design, speed, split)
        about_split.append(f"Models: {FEWER_FOLDS}, so that each is trained longer.")
    if split.folds and steps.finetune < FEWEST_FOLD_STEPS:
        split = SplitChoice(0, TEST_SHARE)
        steps = budget.steps(design, speed, split)
        labelled = len(facts.labelled_people)
        about_split = [
            f"Split: {split.testing(labelled)} of {labelled} labelled people test, since the time "
            "is too short for the models of a cross-validation."
        ]
    timed = TimedDesign(design, speed, steps)
    plan = _plan(request, timed, split)
    plan = plan.model_copy(update={"expected_seconds": budget.expected(design, speed, split)})
    reasons = [f"Patches: {why_dims}.", *about_split]
    reasons += [_about_spacing(design), _about_network(plan)]
    if design.pretrain_recipe != POSITIONS_RECIPE:
        reasons.append(
            f"Pre-training: {design.pretrain_recipe}, since single slices have no position."
        )
    reasons += _about_time(plan, budget, timed, split)
    voxels = sum(math.prod(size) for size in facts.prepared_sizes(design.spacing_mm))
    trainings = 1 + plan.models * (2 if plan.selftrain else 1)
    return ChosenPlan(
        plan,
        tuple(reasons),
        store_bytes=2 * facts.channels * voxels + 2 * facts.labelled_voxels,
        run_bytes=trainings * COPIES_OF_WEIGHTS * 4 * speed.parameters,
    )


def choose_design(
    budget: Budget,
    designs: Sequence[NetworkDesign],
    split: SplitChoice,
    device: str,
    measure: Measure,
) -> TimedDesign | None:
    """The largest design that the budget trains well, or else the smallest.

    Designs come from small to large, and are timed until one is too slow or too large for the
    memory. None: not even the smallest fits into memory.
    """
    best: TimedDesign | None = None
    for design in dict.fromkeys(designs):
        if best and best.steps.deciding * best.design.cost / design.cost < ENOUGH_STEPS / 2:
            break
        speed = measure(design, device, _seconds_to_measure(budget.minutes) / 5)
        if speed is None:
            break
        timed = TimedDesign(design, speed, budget.steps(design, speed, split))
        if best and timed.steps.deciding < ENOUGH_STEPS:
            break
        best = timed
    return best


def _seconds_to_measure(minutes: float) -> float:
    return min(SECONDS_TO_MEASURE, SHARE_TO_MEASURE * 60 * minutes)


def _plan(request: RunRequest, timed: TimedDesign, split: SplitChoice) -> RunPlan:
    design, speed, steps = timed.design, timed.speed, timed.steps
    pretrain = TrainingPlan(
        recipe=design.pretrain_recipe,
        size=speed.pretrain_size,
        batch_size=design.pretrain_batch,
        steps=steps.pretrain,
        set=design.pretrain_set,
        seconds_per_step=speed.pretrain,
    )
    finetune = selftrain = None
    if steps.finetune:
        finetune = TrainingPlan(
            recipe=design.finetune_recipe,
            size=speed.finetune_size,
            batch_size=design.finetune_batch,
            steps=steps.finetune,
            seconds_per_step=speed.finetune,
        )
        recipe = "mean-teacher" if design.dims == 2 else "mean-teacher-3d"
        longer = {"steps": steps.selftrain, "seconds_per_step": speed.selftrain}
        if steps.selftrain:
            selftrain = finetune.model_copy(update={"recipe": recipe, **longer})
    return RunPlan(
        **dict(request),
        dims=design.dims,
        width=design.width,
        folds=split.folds,
        test=split.test,
        prepare=PrepareSettings(spacing_mm=design.spacing_mm),
        pretrain=pretrain,
        finetune=finetune,
        selftrain=selftrain,
    )


# ---------------------------------------------------------------- in words


def _about_spacing(design: NetworkDesign) -> str:
    if design.spacing_mm is None:
        return "Spacing: as scanned."
    axes = design.spacing_mm if isinstance(design.spacing_mm, tuple) else (design.spacing_mm,) * 2
    shown = " × ".join(f"{mm:g}" for mm in axes)
    return f"Spacing: {shown} mm, the same for all scans, so that a patch shows enough of one."


def _about_network(plan: RunPlan) -> str:
    size = plan.finetune.size if plan.finetune else plan.pretrain.size
    return (
        f"Network: U-Net of width {plan.width} on patches of {format_size(size)}, the largest that "
        "the time trains well."
    )


def _about_time(
    plan: RunPlan, budget: Budget, timed: TimedDesign, split: SplitChoice
) -> Iterator[str]:
    if plan.seconds > 60 * plan.minutes:
        yield (
            f"Too little time: the least that makes sense takes about "
            f"{format_duration(plan.seconds)}, not {plan.minutes:g} min."
        )
    elif timed.steps.deciding < ENOUGH_STEPS:
        yield (
            f"Little time: {timed.steps.deciding} steps are few, so take the result as a first "
            "look."
        )
    work = budget.workload(timed.design, split)
    if work.models and not work.may_selftrain:
        yield (
            f"Self-training: none, since {work.training_people} people train with labels: with "
            f"more than {MOST_LABELLED}, longer fine-tuning is worth more."
            if budget.facts.unlabelled_people
            else "Self-training: none, since everybody has labels."
        )
    elif work.models and not plan.selftrain:
        yield (
            f"Self-training: none, since with fewer than {LEAST_FINETUNING} steps of fine-tuning "
            f"and {LEAST_SELFTRAINING} of its own it may do harm."
        )
    richer = replace(budget, minutes=4 * budget.minutes)
    more = richer.steps(timed.design, timed.speed, split)
    gains = [
        f"{after:,} steps of {name}"
        for name, before, after in (
            ("pre-training", timed.steps.pretrain, more.pretrain),
            ("fine-tuning", timed.steps.finetune, more.finetune),
            ("self-training", timed.steps.selftrain, more.selftrain),
        )
        if after > 1.2 * before
    ]
    if gains:
        bought = ", ".join(gains)
        yield f"More time: --minutes {richer.minutes:g} buys {bought}, or a larger network."


def render_plan(plan: RunPlan) -> str:
    """The steps of a plan and how long they take."""
    expected, many = plan.expected_seconds, f"{plan.models} × " if plan.models > 1 else ""
    rows = [("prepare", "", expected.prepare)]
    rows.append(("pre-train", _training(plan.pretrain), plan.pretrain.seconds))
    for name, training in (("fine-tune", plan.finetune), ("self-train", plan.selftrain)):
        if training:
            rows.append((name, many + _training(training), plan.models * training.seconds))
    if plan.finetune:
        models = f", {plan.models} models averaged" if many else ""
        rows.append(("predict", f"every scan{models}", expected.predict))
    rows.append(("report", "scores and page" if plan.tests else "page", expected.report))
    rows.append(("in all", "", plan.seconds))
    width = max(len(what) for _, what, _ in rows)
    return "\n".join(
        f"  {name:<11}{what:<{width}}  {format_duration(seconds):>12}"
        for name, what, seconds in rows
    )


def _training(training: TrainingPlan) -> str:
    return (
        f"{training.recipe}: {training.steps:,} steps of {training.batch_size} patches of "
        f"{format_size(training.size)}"
    )
