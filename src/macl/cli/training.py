"""Training: `macl pretrain`, `finetune` and `selftrain`; `profile` and `settings` beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macl.cli.app import EXAMPLES, CommandWithSettings, app, name_next, print_result
from macl.cli.options import (
    Device,
    DeviceOption,
    DevicesOption,
    EncoderOnlyOption,
    InitDecoderBlocksOption,
    InitOption,
    JsonOption,
    LabelBudgetOption,
    Out,
    OverlapOption,
    RecipeOption,
    ResumeOption,
    SegmenterSplitOption,
    SetOption,
    TensorboardOption,
    TrainedStore,
    TrainingSeed,
    VerifyOption,
)
from macl.utils.progress import say

if TYPE_CHECKING:
    from macl.records.runs import RunRecord


@app.command(cls=CommandWithSettings)
def pretrain(
    out: Out,
    store: TrainedStore = None,
    method: Annotated[
        str | None, typer.Option(help="How to pre-train. Default: the recipe's, or macl.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split file or name; its test people are left out.")
    ] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pre-train a network on unlabelled scans, in 2D or 3D."""
    from macl.distributed.launch import launch_processes
    from macl.stages.pretrain import pretrain as run

    _require("pretrain", resume, STORE=store)
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        method=method,
        split=split,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    store = store or Path(record.store)
    if record.classes:
        budget = next(iter(record.split["budgets"] if record.split else ()), "N")
        words = ("--split", split or "my.json", "--labels", budget, "--init", out)
        name_next(("finetune", store, *words, "--out", f"{out}-{budget}"))
    else:
        name_next(("choose", store, "--run", out, "--count", 8))


@app.command(cls=CommandWithSettings)
def finetune(
    out: Out,
    store: TrainedStore = None,
    init: InitOption = None,
    split: SegmenterSplitOption = None,
    labels: LabelBudgetOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="strong, strong-3d, paper, or a path (.toml). Default: strong."),
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    encoder_only: EncoderOnlyOption = False,
    init_decoder_blocks: InitDecoderBlocksOption = 2,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with few labels.

    It starts from pre-trained weights or from scratch.
    """
    from macl.distributed.launch import launch_processes
    from macl.stages.finetune import finetune as run
    from macl.stages.selftrain import is_worth_trying

    _require("finetune", resume, **_labelled(store, init, split, labels))
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        init=init,
        split=split,
        labels=labels,
        encoder_only=encoder_only,
        init_decoder_blocks=init_decoder_blocks,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    _name_uses(out, record)
    if is_worth_trying(record):
        words = ("--split", split or "SPLIT", "--labels", record.labels, "--init", out)
        overlap = ("--allow-overlap",) if record.overlap_allowed else ()
        say("With so few labels, unlabelled scans help once more:")
        name_next(("selftrain", record.store, *words, "--out", f"{out}-self", *overlap))


@app.command(cls=CommandWithSettings)
def selftrain(
    out: Out,
    store: TrainedStore = None,
    init: InitOption = None,
    split: SegmenterSplitOption = None,
    labels: LabelBudgetOption = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="A finished fine-tuned run, which labels the unlabelled scans once. Default: the "
            "moving average of the segmenter itself, at every step."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="mean-teacher, mean-teacher-3d, noisy-student, or a path (.toml). Default: "
            "mean-teacher; with a teacher, noisy-student."
        ),
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    encoder_only: EncoderOnlyOption = False,
    init_decoder_blocks: InitDecoderBlocksOption = 2,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with few labels and unlabelled scans.

    The unlabelled scans are those of the split.
    """
    from macl.distributed.launch import launch_processes
    from macl.stages.selftrain import selftrain as run

    _require("selftrain", resume, **_labelled(store, init, split, labels))
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        init=init,
        split=split,
        labels=labels,
        teacher=teacher,
        encoder_only=encoder_only,
        init_decoder_blocks=init_decoder_blocks,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    _name_uses(out, record)


def _require(command: str, resume: bool, **arguments: object) -> None:
    """Refuse a training that lacks arguments, unless it resumes a run that has them."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing and not resume:
        raise typer.BadParameter(
            f"missing {', '.join(missing)} (which --resume needs not). For example: "
            f"{EXAMPLES[command]}"
        )


def _labelled(
    store: Path | None, init: str | None, split: str | None, labels: str | None
) -> dict[str, object]:
    """What training with labels cannot do without, by name; all labels need no split."""
    needed = {"STORE": store, "--init": init, "--labels": labels}
    return needed if labels == "all" else {**needed, "--split": split}


def _seed_if_given(seed: int | None) -> dict[str, int]:
    return {} if seed is None else {"seed": seed}


def _name_uses(run: Path, record: RunRecord) -> None:
    """What comes after a segmenter: its test people, where it has any, and other scans."""
    masks = run / "predictions"
    scored = [
        ("predict", run, record.store, "--out", masks),
        ("evaluate", masks, record.store, "--out", run / "cases.csv"),
        ("report", run, "--out", "report.html"),
    ]
    name_next(*(scored if record.test_cases else []), ("predict", run, "SCANS", "--out", "masks"))


@app.command(cls=CommandWithSettings)
def profile(
    method: Annotated[str, typer.Option(help="How to pre-train.")] = "macl",
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    store: Annotated[Path | None, typer.Option(help="Store to estimate the whole run for.")] = None,
    channels: Annotated[int, typer.Option(min=1, help="Image channels, if no store is named.")] = 1,
    patches: Annotated[
        int | None,
        typer.Option(min=1, help="Patches per epoch (2D: slices), if no store is named."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 5,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Measure what pre-training costs on this machine.

    Time per part of a step, and memory.
    """
    from macl.stages.profile import profile as run
    from macl.stages.profile import render

    figures = run(
        method=method,
        recipe=recipe,
        overrides=overrides,
        store=store,
        channels=channels,
        patches=patches,
        steps=steps,
        device=device.value,
    )
    print_result(as_json, figures, render(figures))


@app.command()
def settings(
    name: Annotated[
        str | None,
        typer.Argument(help="pretrain, finetune, selftrain, a method or a network."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Of a stage: show the values of this recipe.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the settings of a stage, a method or a network."""
    from macl.stages import settings as stage

    if name is None:
        parts = stage.overview()
        print_result(as_json, parts, stage.render_overview(parts))
        return
    catalogue = stage.settings(name, recipe)
    print_result(as_json, stage.by_name(catalogue), stage.render(catalogue))
