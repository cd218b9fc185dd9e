"""The command `macl`: one sub-command per stage, in the order of the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import macl
from macl.options import (
    Convention,
    Device,
    DeviceOption,
    DevicesOption,
    FramesOption,
    JsonOption,
    Out,
    OverlapOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    StoreArgument,
    WorkersOption,
)
from macl.utils.errors import MaclError
from macl.utils.progress import say
from macl.utils.ranks import exit_rank, require_single_process

app = typer.Typer(
    name="macl",
    help="From unlabelled scans and a handful of labels to a segmentation model.",
    epilog="The path: inspect → prepare → split → pretrain → finetune → predict → evaluate → report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"macl {macl.__version__}")
        raise typer.Exit


@app.callback()
def alone(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which macl this is, and exit.")
    ] = False,
) -> None:
    """Refuse several processes where they would do the same work over each other."""
    if context.invoked_subcommand not in ("pretrain", "finetune"):
        require_single_process(f"macl {context.invoked_subcommand}")


@app.command()
def demo(out: Out = Path("demo")) -> None:
    """Run the whole path on a dozen synthetic subjects made from a real brain template."""
    from macl.workflows.demo import demo as run

    run(out)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A folder of scans, a store, a run or a scan.", show_default=False)],
    reader: Annotated[str | None, typer.Option(help="Read a folder of scans as this layout.")] = None,
    frames: FramesOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read headers alone; count no voxels.")] = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a folder of scans, a store, a run or a scan holds."""
    import json

    from macl.stages.inspect import inspect as run
    from macl.stages.inspect import render

    found = run(path, reader=reader, frames=frames, quick=quick, workers=workers)
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else render(found))


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A folder of scans in a known layout, or any folder of scans.")],
    store: Annotated[Path, typer.Argument(help="Folder to write; an unfinished one is gone on with.")],
    reader: Annotated[str | None, typer.Option(help="Read SOURCE as this layout; otherwise it is recognised.")] = None,
    spacing_mm: Annotated[float | None, typer.Option(help="Resample slices in plane to this spacing.")] = None,
    plane: Annotated[
        Literal["auto", "axial", "coronal", "sagittal"], typer.Option(help="Plane of the slices.")
    ] = "auto",
    window: Annotated[
        Literal["soft_tissue", "lung", "bone", "brain", "liver"] | None,
        typer.Option(help="CT: clip to this window in Hounsfield units instead of percentiles."),
    ] = None,
    frames: FramesOption = False,
    keep_identity: Annotated[bool, typer.Option(help="Keep DICOM patient ids instead of hashing them.")] = False,
    workers: WorkersOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if any case was refused.")] = False,
) -> None:
    """Turn raw scans into a store of slices; broken cases are refused with a reason, the rest goes on."""
    from macl.config import PrepareSettings, validate
    from macl.stages.prepare import prepare as run

    chosen = {
        "spacing_mm": spacing_mm, "plane": plane, "window": window, "frames": frames, "keep_identity": keep_identity,
    }  # fmt: skip
    settings = validate(PrepareSettings, chosen)
    index = run(source, store, reader=reader, settings=settings, workers=workers)
    if strict and index.refused:
        raise typer.Exit(1)


@app.command()
def split(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Split file to write (.json).")],
    test: Annotated[
        str | None, typer.Option(help="Patients kept for the test: a number or a percentage; 20% by default.")
    ] = None,
    validation: Annotated[
        str, typer.Option(help="Patients whose labels choose the best weights; 0: keep the last.")
    ] = "0",
    budgets: Annotated[str, typer.Option(help="Nested label budgets: numbers of patients or percentages.")] = "10%,25%",
    group: Annotated[str, typer.Option(help="What never crosses the split: patient, or consecutive-pair.")] = "patient",
    seed: SeedOption = 0,
    folds: Annotated[int | None, typer.Option(min=2, help="Write so many splits that test everybody once.")] = None,
    stratify: Annotated[bool, typer.Option("--stratify", help="Spread the structures shown evenly.")] = False,
) -> None:
    """Choose who trains, validates and tests, by patient."""
    from macl.stages import split as stage

    chosen = {"validation": validation, "budgets": budgets, "group": group, "seed": seed, "stratify": stratify}
    if folds is None:
        stage.split(store, out, test=test or "20%", **chosen)
    elif test is not None:
        raise MaclError("--folds tests everybody once, which leaves nothing to --test: give one of them.")
    else:
        stage.folds(store, out, count=folds, **chosen)


@app.command()
def pretrain(
    store: StoreArgument,
    out: Out,
    method: Annotated[str | None, typer.Option(help="Way to pre-train; by default the recipe's, or `macl`.")] = None,
    split: Annotated[str | None, typer.Option(help="Split file or name; its test people are left out.")] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
) -> None:
    """Pre-train an encoder and decoder blocks on unlabelled slices."""
    from macl.distributed.launch import launch_processes
    from macl.stages.pretrain import pretrain as run

    launch_processes(devices, sys.argv[1:])
    run(
        store, out, method=method, split=split, recipe=recipe, overrides=overrides, device=device.value, seed=seed,
        resume=resume, allow_overlap=allow_overlap,
    )  # fmt: skip


@app.command()
def finetune(
    store: StoreArgument,
    out: Out,
    init: Annotated[str, typer.Option(help="Where to start: a pre-training run, a weights file, or scratch.")],
    split: Annotated[str, typer.Option(help="Split file, or the name of a split in the package.")],
    labels: Annotated[str, typer.Option(help="Label budget of the split, such as 8 or 10%.")],
    recipe: Annotated[str, typer.Option(help="strong, paper, or a path (.toml).")] = "strong",
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    encoder_only: Annotated[
        bool, typer.Option("--encoder-only", help="Accept an init without decoder blocks.")
    ] = False,
    init_decoder_blocks: Annotated[
        int, typer.Option(min=0, max=4, help="Decoder blocks that the authors' weights files trained.")
    ] = 2,
) -> None:
    """Fine-tune a segmenter with few labels, from pre-trained weights or from scratch."""
    from macl.distributed.launch import launch_processes
    from macl.stages.finetune import finetune as run

    launch_processes(devices, sys.argv[1:])
    run(
        store, out, init=init, split=split, labels=labels, recipe=recipe, overrides=overrides, device=device.value,
        seed=seed, resume=resume, allow_overlap=allow_overlap, encoder_only=encoder_only,
        init_decoder_blocks=init_decoder_blocks,
    )  # fmt: skip


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN... SCAN|FOLDER|STORE...", help="Fine-tuned runs (several are averaged), then scans."
        ),
    ],
    out: Out,
    cases: Annotated[Literal["test", "all"], typer.Option(help="Of a store: its run's test cases, or all.")] = "test",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 16,
    frames: FramesOption = False,
    device: DeviceOption = Device.auto,
) -> None:
    """Segment scans: a mask in each scan's own geometry."""
    from macl.stages.predict import predict as run

    chosen = {"cases": cases, "probabilities": probabilities, "batch_size": batch_size, "frames": frames}
    run(paths, out, **chosen, device=device.value)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks.")],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, a source in a known layout, or a store.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write (.csv).")],
    convention: Annotated[
        Convention, typer.Option(help="strict: 3D, mm, misses punished. paper: the release's way.")
    ] = Convention.strict,
) -> None:
    """Score masks against the truth: Dice, Jaccard, HD95 and ASD per case and class."""
    from macl.stages.evaluate import evaluate as run

    run(predictions, truth, out, convention=convention.value)


@app.command()
def profile(
    method: Annotated[str, typer.Option(help="Way to pre-train.")] = "macl",
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    store: Annotated[
        Path | None, typer.Option(help="Store whose channels and slices to take, to estimate the whole run.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Image channels, where no store is named.")] = 1,
    slices: Annotated[int | None, typer.Option(min=1, help="Slices of a data set that is not prepared yet.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 5,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Say what pre-training costs on this machine: time, memory, and where the time goes."""
    import json

    from macl.stages.profile import profile as run
    from macl.stages.profile import render

    found = run(
        method=method, recipe=recipe, overrides=overrides, store=store, channels=channels, slices=slices,
        device=device.value, steps=steps,
    )  # fmt: skip
    print(json.dumps(found, indent=1) if as_json else render(found))


@app.command()
def benchmark(
    grid: Annotated[Path, typer.Argument(help="Grid of methods, label budgets, recipes and seeds (.toml).")],
    out: Out,
    device: DeviceOption = Device.auto,
) -> None:
    """Run a grid of pre-training, fine-tuning and evaluation; finished cells are kept."""
    from macl.workflows.benchmark import benchmark as run

    if not run(grid, out, device=device.value):
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs to show side by side.")],
    out: Annotated[Path, typer.Option("--out", help="Page to write (.html).")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs."""
    from macl.stages.report import report as run

    run(runs, out)


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and exit code 1."""
    # PyTorch's threads otherwise spin while they wait: beside another busy program a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="macl")
    except MaclError as error:
        # Any process may be the one that speaks for all here, which `say` leaves to the first.
        print(f"macl: {error}", file=sys.stderr, flush=True)
        exit_rank(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns Ctrl-C into this exit code without a word.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        say("macl: interrupted; run the same command again (with --resume for training) to go on.")
        sys.exit(130)
